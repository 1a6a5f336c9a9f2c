"""SIGTERM, with which schedulers end a process after it has saved its work."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ..errors import Terminated

GRACE = 2.0
"""Seconds that a process has to save its state after SIGTERM; then it ends."""


@contextlib.contextmanager
def on_termination(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` for the first SIGTERM inside the block, instead of ending the process.

    If the block has not ended after `GRACE` seconds (a batch takes long, data do not arrive), and at any further
    SIGTERM, `Terminated` is raised wherever the block is. Outside the main thread, which alone may handle signals, and
    if the signal is ignored, nothing changes.
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
    """Raises Terminated: the action if there is no work to save."""
    raise Terminated("terminated")


def status_of(main: Callable[[], int]) -> int:
    """The exit status of a command's main function, or 130 and 143 if Ctrl-C or SIGTERM ended it.

    After that this process ignores both: Python needs seconds to end, and another Ctrl-C would change the exit status.
    """
    try:
        status = main()
    except KeyboardInterrupt as stop:
        status = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return status
