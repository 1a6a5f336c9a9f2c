"""SIGTERM, with which schedulers end a process that may save its work first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from ..errors import Terminated


@contextlib.contextmanager
def on_termination(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` for every SIGTERM that comes inside the block, instead of ending the process.

    Outside of the main thread, which alone may handle signals, and where the signal is ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def terminate() -> None:
    """Raises Terminated: the action where there is no work to be saved first."""
    raise Terminated("terminated")
