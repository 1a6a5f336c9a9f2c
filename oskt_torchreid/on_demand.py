"""What needs torchreid is loaded when it is first used, or together with torchreid.

torchreid takes longer to import than torch. So importing this package leaves it alone, unless it is there already; the
module `integration`, which registers engines, names of models and data sets with torchreid, follows

* when torchreid is imported, by whomever: a script that imports it after this package finds everything registered;
* when something of this package that needs it is imported or used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, util
from importlib.abc import MetaPathFinder
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
    """Finds torchreid as Python does; once it has been run, everything is registered with it.

    Its specification keeps its own loader, which gets one thing more to do.
    """

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
            spec.loader.exec_module = self._then_integrating(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec

    def _then_integrating(self, run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:  # where this fails, the next import finds it again
                sys.meta_path.remove(self)
            integrate()

        return exec_module
