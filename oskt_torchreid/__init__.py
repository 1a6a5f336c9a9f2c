"""Model compression for torchreid: one trained teacher, one weight chain, deployable students of any size.

Importing this package registers its engines, model names and data sets with torchreid; doing so again changes nothing.
Without torchreid the method itself is still available (`graph`, `chain`, `deploy`), and attributes that need torchreid
raise an error that says so.

The most used names are here; all others are in the parts: `chain` (widths, recalibration, scales of features), `graph`
(rules of operators), `deploy` (latency, parity), `errors`, `models`, `vkd`, `zoo`, `baselines`.
"""

from typing import Any

from . import chain, deploy, errors, graph
from .chain import Ladder, Refinement, WeightChain, expand, load_student, prove, recalibrate, save_student, trace
from .deploy import calibrate_threshold, export, lift, lifted, rank
from .errors import MissingTorchreidError, OsktError
from .registry import register_engine

try:
    from .integration import OSKTEngine, SetModel, VKDEngine, baselines, models, register_backbone, vkd, zoo
except MissingTorchreidError as _reason:
    _missing: MissingTorchreidError | None = _reason
else:
    _missing = None

__version__ = "0.2.0"

__all__ = [
    "Ladder",
    "OSKTEngine",
    "OsktError",
    "Refinement",
    "SetModel",
    "VKDEngine",
    "WeightChain",
    "baselines",
    "calibrate_threshold",
    "chain",
    "deploy",
    "errors",
    "expand",
    "export",
    "graph",
    "lift",
    "lifted",
    "load_student",
    "models",
    "prove",
    "rank",
    "recalibrate",
    "register_backbone",
    "register_engine",
    "save_student",
    "trace",
    "vkd",
    "zoo",
]


_EVERYTHING = frozenset(__all__)
if _missing is not None:
    __all__ = [name for name in __all__ if name in globals()]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


def __getattr__(name: str) -> Any:
    """Attributes that need torchreid: raises the reason if it is missing, instead of an attribute error."""
    if name in _EVERYTHING and _missing is not None:
        raise _missing
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
