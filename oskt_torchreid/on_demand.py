"""What needs torchreid is loaded when it is first used, or together with torchreid.

torchreid takes longer to import than torch. So importing this package leaves it alone, unless it is there already; the
module `integration`, which registers engines, names of models and data sets with torchreid, follows

* when torchreid is imported, by whomever: a script that imports it after this package finds everything registered;
* when something of this package that needs it is imported or used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .errors import MissingTorchreidError

TORCHREID = "torchreid"
_INTEGRATION = f"{__package__}.integration"


def integrate() -> ModuleType:
    """The module that registers everything with torchreid; it is imported the first time, and whole after that.

    The parts that it consists of call this before anything else, so that they may be imported in any order: a call from
    within that import returns the module as far as it has come.

    Raises:
        MissingTorchreidError: torchreid, or a package that it needs, is not installed.
        ConfigError: another torchreid than this package works with.
    """
    return import_module(_INTEGRATION)


def integrate_if_installed() -> None:
    """Calls `integrate`; without torchreid nothing happens."""
    with contextlib.suppress(MissingTorchreidError):
        integrate()


def integrate_with_torchreid() -> None:
    """Calls `integrate` now if torchreid is imported already, else as soon as it is; again changes nothing."""
    if sys.modules.get(TORCHREID) is not None:
        integrate()
    elif not any(isinstance(finder, _AfterTorchreid) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTorchreid())


class _AfterTorchreid(MetaPathFinder, Loader):
    """Finds torchreid as Python does, and has it loaded as ever; then integrates."""

    def __init__(self) -> None:
        self._loader: Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of torchreid with this loader in front of its own; `None` for all others."""
        if fullname != TORCHREID:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As torchreid's own loader does."""
        return self._own(spec).create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module by its own loader, which it keeps; then integrates."""
        spec = module.__spec__
        if spec is None:
            raise ImportError(f"{module.__name__} has no specification")
        spec.loader = module.__loader__ = self._own(spec)
        spec.loader.exec_module(module)
        integrate()

    def _own(self, spec: ModuleSpec) -> Loader:
        if self._loader is None:
            raise ImportError(f"{spec.name} was not found by this finder", name=spec.name)
        return self._loader
