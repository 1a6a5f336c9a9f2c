"""What needs torchreid is loaded when it is first used, or together with torchreid.

torchreid takes longer to import than torch. So importing this package leaves it alone, unless it is there already; the
module `integration`, which registers engines, names of models and data sets with torchreid, follows

* when torchreid is imported, by whomever: a script that imports it after this package finds everything registered;
* when something of this package that needs it is imported or used, which imports torchreid first.

So everything is registered while torchreid is being imported, and of several threads the first does it: a thread that
waits for one of the two has the other as well. If it is interrupted, torchreid's import fails with it, and the next
one tries again. (Threads that import *different parts* of this package for the first time at the same moment may get
Python's error of a deadlock, as with any packages that import each other; import the parts in one thread.)
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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
    with contextlib.suppress(ImportError):  # the host's own import says what is missing
        import_module(TORCHREID)
    return import_module(_INTEGRATION)


def is_registering_own() -> bool:
    """Whether this package or its integration is being imported now: what is registered meanwhile is not a user's.

    The last thing that either module sets is `COMPLETE`.
    """
    modules = (sys.modules.get(str(name)) for name in (__package__, _INTEGRATION))
    return any(module is not None and "COMPLETE" not in vars(module) for module in modules)


def integrate_if_installed() -> None:
    """Calls `integrate`; without torchreid nothing happens."""
    with contextlib.suppress(MissingTorchreidError):
        integrate()


def is_installed() -> bool:
    """Whether torchreid is imported, or can be found; it is not imported."""
    if TORCHREID in sys.modules:  # possibly as `None`, or put there without a specification
        return sys.modules[TORCHREID] is not None
    return util.find_spec(TORCHREID) is not None


def integrate_with_torchreid() -> None:
    """Calls `integrate` now if torchreid is imported already, else as soon as it is; again changes nothing."""
    if sys.modules.get(TORCHREID) is not None:
        integrate()
    elif not any(isinstance(finder, _AfterTorchreid) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTorchreid())


class _AfterTorchreid(MetaPathFinder):
    """Finds torchreid as Python does; once it has been run, everything is registered with it."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of torchreid; `None` for all others, and while all other finders are asked for it."""
        if fullname != TORCHREID or self._searching:
            return None
        self._searching = True
        try:
            spec = util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Integrating(spec.loader, self)
        return spec


class _Integrating(Loader):
    """A module's own loader, which has everything registered once it has run the module."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module, which keeps its own loader, then integrates; where one fails, the next import does both."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cython evaluation")
            self._loader.exec_module(module)
        integrate()
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
