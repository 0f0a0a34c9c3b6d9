"""SLiMe's offline half: learns text embeddings for the parts painted in one image, and segments with them."""

from slime_optimize.attention import Layers, Maps, WasMaps, attention_maps, was_maps
from slime_optimize.backbone import Backbone, choose_device, load_backbone
from slime_optimize.errors import BackboneError, InputError
from slime_optimize.predict import Predictor, load_predictor
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import PRESETS, Settings, preset

__all__ = [
    "PRESETS",
    "Backbone",
    "BackboneError",
    "InputError",
    "Layers",
    "Maps",
    "Predictor",
    "Segmenter",
    "Settings",
    "WasMaps",
    "attention_maps",
    "choose_device",
    "load_backbone",
    "load_predictor",
    "preset",
    "was_maps",
]
