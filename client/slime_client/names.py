"""The names on the wire, restated so that the client imports no other component.

A test holds them equal to `slime_repository.contract`, which generates the server's configuration.
"""

IMAGE = "IMAGE"
MASK = "MASK"
SCORES = "SCORES"

# Of a configuration's parameters, and of the description of a segmenter in shared form.
PARTS = "parts"
COLOURS = "colours"
FORM = "form"
BAKED, SHARED = "baked", "shared"

# Segmenters in shared form: one ensemble serves many, which the model `segmenters` knows by name.
SEGMENTERS = "segmenters"
SEGMENTER = "SEGMENTER"
DESCRIPTION = "DESCRIPTION"
MODEL = "model"
