"""SIGTERM, with which schedulers end a process that may save its work first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ..errors import Terminated

GRACE = 2.0
"""Seconds in which work that is told to end may save its state; then it ends as it is."""


@contextlib.contextmanager
def on_termination(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` for the first SIGTERM that comes inside the block, instead of ending the process.

    Where the block is still not left after `GRACE` seconds, for a batch takes long or data do not come, and at any
    further SIGTERM, `Terminated` is raised wherever the block is. Outside of the main thread, which alone may handle
    signals, and where the signal is ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return
    again = threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True

    def handle(*_: object) -> None:
        if again.ident is not None:
            terminate()
        again.start()
        action()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def terminate() -> None:
    """Raises Terminated: the action where there is no work to be saved first."""
    raise Terminated("terminated")


def status_of(main: Callable[[], int]) -> int:
    """What a command's main function returns, or 130 and 143 where Ctrl-C or SIGTERM ended it.

    From then on this process takes no notice of either: Python needs seconds to end, and a further Ctrl-C within them
    would change the exit status.
    """
    try:
        status = main()
    except KeyboardInterrupt as stop:
        status = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return status
