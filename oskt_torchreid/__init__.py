"""Model compression for torchreid: one trained teacher, one weight chain, deployable students of any size.

Importing this package registers its engines, model names and data sets with torchreid; doing so again changes nothing.
Where torchreid is absent, the method itself is there all the same (``graph``, ``chain``, ``deploy``), and what needs
torchreid says so when it is asked for.
"""

from typing import Any

from . import chain, graph
from .chain.chain import WeightChain
from .chain.distance import feature_scale
from .chain.expansion import choose_widths, expand, width_plan
from .chain.ladder import Ladder
from .chain.network import trace
from .chain.recalibration import recalibrate
from .chain.student_file import load_student, save_plain, save_student
from .deploy import Exported, export
from .errors import (
    ChainError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    GraphError,
    MissingTorchreidError,
    OsktError,
    TrainingError,
    WidthError,
    ZooError,
)
from .graph import ChannelGraph, register_rule
from .registry import build_engine, engine_names, register_engine

try:
    from .integration import (
        NeckModel,
        OSKTEngine,
        SetModel,
        VKDEngine,
        distance_preservation_loss,
        kd_loss,
        rank,
        register_backbone,
        soft_margin_triplet_loss,
        student_from,
        without_neck,
        zoo,
    )
except MissingTorchreidError as _reason:
    _missing: MissingTorchreidError | None = _reason
else:
    _missing = None

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
    "MissingTorchreidError",
    "OSKTEngine",
    "OsktError",
    "SetModel",
    "TrainingError",
    "VKDEngine",
    "WeightChain",
    "WidthError",
    "ZooError",
    "build_engine",
    "chain",
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


def __getattr__(name: str) -> Any:
    """What is absent with torchreid: the reason why, instead of a missing attribute."""
    if name in __all__ and _missing is not None:
        raise _missing
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
