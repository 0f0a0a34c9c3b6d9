"""The commands of this package, one module each, with `main(argv, prog) -> exit code`."""
