"""Model compression for torchreid: one trained teacher, one weight chain, deployable students of any size.

Importing this package registers its engines, model names and data sets with torchreid; doing so again changes nothing.
"""

from . import graph, zoo
from .data import atrw, market1501, synthped, synthped_video, veri776
from .deploy import Exported, export
from .errors import (
    ChainError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    GraphError,
    OsktError,
    TrainingError,
    WidthError,
    ZooError,
)
from .graph import ChannelGraph, register_rule
from .host import image_engines  # noqa: F401  registers them
from .host.engine import publish
from .host.losses import kd_loss, soft_margin_triplet_loss
from .host.pictures import install_reader
from .host.ranking import rank
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
from .vkd.engine import VKDEngine
from .vkd.losses import distance_preservation_loss
from .vkd.model import SetModel, register_set_models
from .vkd.students import student_from

__version__ = "0.1.0"

__all__ = [
    "ChainError",
    "ChannelGraph",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "Exported",
    "GraphError",
    "Ladder",
    "NeckModel",
    "OSKTEngine",
    "OsktError",
    "SetModel",
    "TrainingError",
    "VKDEngine",
    "WeightChain",
    "WidthError",
    "ZooError",
    "build_engine",
    "choose_widths",
    "distance_preservation_loss",
    "engine_names",
    "expand",
    "export",
    "feature_scale",
    "graph",
    "kd_loss",
    "load_student",
    "rank",
    "recalibrate",
    "register_backbone",
    "register_engine",
    "register_rule",
    "save_plain",
    "save_student",
    "soft_margin_triplet_loss",
    "student_from",
    "trace",
    "width_plan",
    "without_neck",
    "zoo",
]

install_reader()
register_all()
register_set_models()
for dataset in (market1501, synthped, synthped_video, veri776, atrw):
    dataset.register()
publish("build_engine", build_engine)
publish("ImageOSKTEngine", OSKTEngine)
publish("VideoVKDEngine", VKDEngine)
