"""The `slime` command: one name for every step from an annotated image to served masks."""
