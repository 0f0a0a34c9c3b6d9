"""The commands of this package, each a module with `main(argv, prog)`."""
