"""The names on the wire, restated so that the client imports no other component.

A test holds them equal to `slime_was.contract`, which generates the server's configuration.
"""

IMAGE = "IMAGE"
MASK = "MASK"
SCORES = "SCORES"

PARTS = "parts"
COLOURS = "colours"
