"""Finds torchreid, in either of its two distributions, and reports what is missing.

The package on PyPI keeps its code under `torchreid.reid`, the source repository directly under `torchreid`; both give
the attributes `torchreid.data`, `.engine`, ..., so everything is reached through those.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from ..errors import ConfigError, MissingTorchreidError
from ..on_demand import TORCHREID
from ..printing import printing_to

ATTRIBUTES = ("data", "engine", "losses", "metrics", "models", "optim", "utils")
INSTALL = "pip install torchreid"

logger = logging.getLogger("oskt_torchreid.host")


def _find_torchreid() -> ModuleType:
    """The torchreid module.

    Raises:
        MissingTorchreidError: torchreid, or one of its dependencies, is missing.
        ConfigError: one of its parts is missing.
    """
    try:
        found = import_module(TORCHREID)
    except ImportError as reason:
        missing = reason.name or "torchreid"
        command = INSTALL if missing.split(".")[0] == "torchreid" else f"pip install {missing}"
        raise MissingTorchreidError(
            f"cannot import torchreid: '{missing}' is missing ({reason}); run `{command}`"
        ) from reason
    absent = [name for name in ATTRIBUTES if not hasattr(found, name)]
    if absent:
        raise ConfigError(
            f"the torchreid at '{getattr(found, '__file__', None)}' has no {', '.join(absent)}: an incomplete or other "
            f"package of that name; run `{INSTALL}`"
        )
    return found


torchreid: Any = _find_torchreid()  # torchreid has no types


def device(use_gpu: bool = True) -> torch.device:
    """The device on which models run: the current GPU if requested and available, else the CPU."""
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    """Sets the seeds of Python, NumPy and torch."""
    torchreid.utils.set_random_seed(seed)


def host_table(function: object, name: str) -> dict[str, Any]:
    """A table that torchreid keeps private in the module of one of its public functions.

    Args:
        function: the public function that reads the table.
        name: the table's name in that module.

    Raises:
        ConfigError: this torchreid has no such table.
    """
    table = getattr(function, "__globals__", {}).get(name)
    if not isinstance(table, dict):
        raise ConfigError(
            f"this torchreid ({torchreid.__file__}) keeps no table '{name}' next to "
            f"{getattr(function, '__name__', function)}; versions 0.2.5 (PyPI) and 1.4 (source) do: run `{INSTALL}`"
        )
    return table


class _LogWriter(io.TextIOBase):
    """A text stream whose lines become log records."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in filter(str.strip, lines):
            logger.info(line.rstrip())
        return len(text)

    def finish(self) -> None:
        self.write("\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what torchreid prints inside the block to the logger 'oskt_torchreid.host' instead of stdout."""
    writer = _LogWriter()
    with printing_to(writer):
        try:
            yield
        finally:
            writer.finish()
