"""SLiMe's offline half: learns text embeddings for the parts painted in one image, and segments with them."""

from slime_optimize.backbone import Backbone, choose_device, load_backbone
from slime_optimize.errors import BackboneError, InputError
from slime_optimize.layers import Layers
from slime_optimize.method.attention import Attended, Maps, attend, attention_maps
from slime_optimize.method.prediction import Predictor, load_predictor
from slime_optimize.presets import PRESETS, preset
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings

__all__ = [
    "PRESETS",
    "Attended",
    "Backbone",
    "BackboneError",
    "InputError",
    "Layers",
    "Maps",
    "Predictor",
    "Segmenter",
    "Settings",
    "attend",
    "attention_maps",
    "choose_device",
    "load_backbone",
    "load_predictor",
    "preset",
]
