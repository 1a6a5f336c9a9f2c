"""Messages of a run where nobody has set up logging: a script or a notebook sees what is going on."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm.auto import tqdm

from .distributed import is_rank_zero

PACKAGE = __package__.partition(".")[0]


class _AboveBars(logging.Handler):
    """Writes messages to a stream, above progress bars."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=self._stream)


@contextlib.contextmanager
def shown(wanted: bool = True) -> Iterator[bool]:
    """Inside the block messages of this package go to standard output, unless somebody handles them already.

    They are those of `INFO` and above, torchreid's own lines among them. Logging is as it was afterwards. Of several
    processes the first one shows them.

    Args:
        wanted: False: nothing changes.

    Yields:
        Whether it is this block that shows them.
    """
    logger = logging.getLogger(PACKAGE)
    if not wanted or logger.hasHandlers() or not is_rank_zero():
        yield False
        return
    handler, level = _AboveBars(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield True
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
