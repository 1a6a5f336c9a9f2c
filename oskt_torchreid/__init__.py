"""Model compression for torchreid: one trained teacher, one weight chain, deployable students of any size.

Once this package and torchreid are imported, in either order, its engines, model names and data sets are registered
with torchreid; importing it again changes nothing. What needs torchreid is loaded on demand, see `on_demand`. Without
torchreid the method itself is still available (`graph`, `chain`, `deploy`), and attributes that need it raise an error
that says so.

The most used names are here; all others are in the parts: `chain` (widths, recalibration, scales of features), `graph`
(rules of operators), `deploy` (latency, parity), `errors`, `models`, `vkd`, `zoo`, `baselines`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import chain, deploy, errors, graph
from .chain import Ladder, Refinement, WeightChain, expand, load_student, prove, recalibrate, save_student, trace
from .deploy import calibrate_threshold, export, lift, lifted, rank
from .errors import OsktError
from .on_demand import integrate, integrate_with_torchreid, is_installed
from .registry import register_engine

if TYPE_CHECKING:
    from . import baselines, models, vkd, zoo
    from .integration import OSKTEngine, SetModel, VKDEngine, register_backbone

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

_INTEGRATED = frozenset(__all__) - frozenset(globals())
if not is_installed():
    __all__ = [name for name in __all__ if name not in _INTEGRATED]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


def __getattr__(name: str) -> Any:
    """Attributes that need torchreid, which is imported now, and parts of the package that nothing has imported yet.

    Raises:
        MissingTorchreidError: torchreid cannot be imported.
        AttributeError: no such attribute.
    """
    if name in _INTEGRATED:
        return getattr(integrate(), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


COMPLETE = True
integrate_with_torchreid()
