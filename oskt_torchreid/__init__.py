"""Model compression for torchreid: one trained teacher, one weight chain, deployable students of any size.

Importing this package registers its engines, model names and data sets with torchreid; doing so again changes nothing.
"""

from . import graph, zoo
from .data import synthped
from .errors import (
    ChainError,
    CheckpointError,
    ConfigError,
    DataError,
    GraphError,
    OsktError,
    TrainingError,
    WidthError,
    ZooError,
)
from .graph import ChannelGraph, register_rule
from .host.engine import publish
from .host.losses import soft_margin_triplet_loss
from .models import NeckModel, register_all, without_neck
from .models.registration import register_backbone
from .oskt.chain import WeightChain
from .oskt.distance import feature_scale
from .oskt.engine import OSKTEngine
from .oskt.ladder import Ladder
from .oskt.network import trace
from .oskt.recalibration import recalibrate
from .oskt.students import choose_widths, expand, load_student, save_plain, save_student, width_plan
from .registry import build_engine, engine_names, register_engine

__version__ = "0.1.0"

__all__ = [
    "ChainError",
    "ChannelGraph",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GraphError",
    "Ladder",
    "NeckModel",
    "OSKTEngine",
    "OsktError",
    "TrainingError",
    "WeightChain",
    "WidthError",
    "ZooError",
    "build_engine",
    "choose_widths",
    "engine_names",
    "expand",
    "feature_scale",
    "graph",
    "load_student",
    "recalibrate",
    "register_backbone",
    "register_engine",
    "register_rule",
    "save_plain",
    "save_student",
    "soft_margin_triplet_loss",
    "trace",
    "width_plan",
    "without_neck",
    "zoo",
]

register_all()
synthped.register()
publish("build_engine", build_engine)
publish("ImageOSKTEngine", OSKTEngine)
