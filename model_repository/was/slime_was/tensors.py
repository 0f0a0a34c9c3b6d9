"""The names of the tensors between the served models, written once, so that no two models spell one differently.

    IMAGE > preprocess > PIXELS > vae_encoder > LATENTS > NAME_unet > CROSS, SELF, POSTPROCESS > was > MASK, SCORES,
                       > SIZE, STARTED, and GUIDE_IMAGE where the image guides the upsampling -------> SHARPENED

Shapes, types and configurations are the contract's (`slime_repository.contract`); a served model needs the names alone.
"""

IMAGE = "IMAGE"  # an encoded image, as bytes
SIZE = "SIZE"  # height and width of the upright image
STARTED = "STARTED"  # when the image came, nanoseconds of the machine's monotonic clock
PIXELS = "PIXELS"  # crops as the encoder takes them
GUIDE_IMAGE = "GUIDE_IMAGE"  # the whole fitted image, whose edges the enlarged scores follow
LATENTS = "LATENTS"
CROSS = "CROSS"  # cross-attention maps, one for each part
SELF = "SELF"  # self-attention map, pixels by pixels
ACCUMULATED = "ACCUMULATED"  # WAS maps (eq. 6), from a UNet that weights the cross maps itself
POSTPROCESS = "POSTPROCESS"  # slime_was.Postprocess as a vector, and the segmenter's name
PART_MASK = "PART_MASK"  # 1 for each part slot that is taken, where the maps have more slots than the segmenter parts
MASK = "MASK"
SCORES = "SCORES"
SHARPENED = "SHARPENED"  # the scores that the mask is the argmax of once they are enlarged; for video

# Of the shared form, in which a segmenter is a file and its text embedding an input.
SEGMENTER = "SEGMENTER"
DESCRIPTION = "DESCRIPTION"
TEXT = "TEXT"
NOISE = "NOISE"
