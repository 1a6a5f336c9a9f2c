"""What other packages print, sent elsewhere; in several threads at once, too."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

_PRINTED_TO: list[io.TextIOBase] = []  # streams in the place of stdout, of all threads, the last one in force
_ORIGINAL: list[Any] = []  # stdout as it was before the first of them
_EXCHANGE = threading.Lock()


@contextlib.contextmanager
def printing_to(stream: io.TextIOBase) -> Iterator[None]:
    """Sends what is printed inside the block to a stream; stdout belongs to the process, so that of other threads too.

    Blocks of several threads may end in any order: stdout comes back with the last (`contextlib.redirect_stdout`
    would give it back to the stream of a block that has ended).
    """
    with _EXCHANGE:
        if not _PRINTED_TO:
            _ORIGINAL[:] = [sys.stdout]
        _PRINTED_TO.append(stream)
        sys.stdout = stream
    try:
        yield
    finally:
        with _EXCHANGE:
            _PRINTED_TO.remove(stream)
            sys.stdout = _PRINTED_TO[-1] if _PRINTED_TO else _ORIGINAL.pop()
