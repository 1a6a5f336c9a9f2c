"""Networks of this package, and their names in torchreid's factory."""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
from . import presets  # noqa: F401  it registers them
from .backbone_weights import load_backbone_weights
from .bam import BAM
from .building import build_fetching, build_model, load_weights, register_all
from .neck import NeckModel, find_classifier, set_last_stride
from .registration import backbone_names, bare_name, register_wrapper
from .stock_form import without_neck
from .vit import VisionTransformer
from .vit_weights import LoadAccount, load_vit_weights

__all__ = [
    "BAM",
    "LoadAccount",
    "NeckModel",
    "VisionTransformer",
    "backbone_names",
    "bare_name",
    "build_fetching",
    "build_model",
    "find_classifier",
    "load_backbone_weights",
    "load_vit_weights",
    "load_weights",
    "register_all",
    "register_wrapper",
    "set_last_stride",
    "without_neck",
]
