"""Independent pieces of work, several at a time, each in a separate process."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import torch
from tqdm.auto import tqdm

from ..config import Config
from ..errors import ConfigError, OsktError, Terminated, first_line
from ..host.data import own_datasets
from ..host.distributed import world_size
from ..host.termination import GRACE, on_termination, terminate
from ..registry import Registration, registrations
from ..user_code import IMPORT_HINT, import_user_code

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(message)s", "%H:%M:%S"
_GRACE = 30  # seconds that an abandoned piece has to save its state
_DELAY = 0.5  # seconds until the end of a piece is noticed
_MOMENT = 0.02  # seconds between two checks of the pieces
_PREPARED = "forkserver" in multiprocessing.get_all_start_methods()


def processes_of(node: Config) -> int:
    """Number of networks that the node of a method has trained at a time; one if several processes share the run."""
    return node.processes if world_size() == 1 else 1


def prepare_processes() -> None:
    """Imports in the background the modules that processes of `in_processes` start with.

    On systems without a fork server each of them imports the modules itself, which takes seconds.
    """
    if _PREPARED:
        multiprocessing.set_forkserver_preload([f"{__package__}.run"])
        multiprocessing.forkserver.ensure_running()


class Workers:
    """Processes that work on pieces in the background, in the order of `add`.

    Small networks gain little from a second thread and much from a second process: torch's threads are divided among
    the processes. Inside the `with` block this process counts as one of them; leaving the block waits for all pieces,
    with one more process at work. After the first failure, here or there, no further piece begins, and the processes
    are told to terminate, upon which training saves its state; the same happens if this process is killed. They ignore
    Ctrl-C, which in a terminal reaches them as well: this process passes it on.

    They know what is registered here (`own_registrations`), and import the same user code before anything else.

    Args:
        work: a module-level function, which new processes import; called with each piece's arguments, which are
            pickled.
        processes: at a time, at least 2.
        title: of the progress bar while waiting.
        imports: user code, see `import_user_code`.
    """

    def __init__(self, work: Callable[..., None], processes: int, title: str, imports: Sequence[str] = ()) -> None:
        self._work, self._processes, self._title = work, processes, title
        self._threads = torch.get_num_threads()
        self._share = max(1, self._threads // processes)
        context = multiprocessing.get_context("forkserver" if _PREPARED else "spawn")
        begin = (self._share, tuple(imports), _pickled(own_registrations()))
        self._pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=begin)
        self._places = processes - 1
        self._lock = threading.RLock()  # a piece that ends at once calls back in the thread that began it
        self._waiting: deque[tuple] = deque()
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._added = self._running = 0

    def add(self, pieces: Sequence[tuple], ahead: bool = False) -> None:
        """Starts as many pieces as there are free processes; this process keeps the remaining threads.

        Args:
            pieces: arguments of `work`, in order.
            ahead: before all waiting pieces, not after them.
        """
        if pieces:
            torch.set_num_threads(max(1, self._threads - self._share * (self._processes - 1)))
        with self._lock:
            if ahead:
                self._waiting.extendleft(reversed(pieces))
            else:
                self._waiting.extend(pieces)
            self._added += len(pieces)
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self._running < self._places:
            self._running += 1
            piece = self._waiting.popleft()
            self._begun(piece).add_done_callback(self._release)

    def _begun(self, piece: tuple) -> Future:
        """A piece on its way; it has failed at once if it cannot be sent to another process."""
        try:
            return self._pool.submit(_work_off, pickle.dumps((self._work, piece)))
        except Exception as error:  # pickling runs the code of any class
            failed: Future = Future()
            failed.set_exception(_not_taken(error))
            return failed

    def _release(self, piece: Future) -> None:
        with self._lock:
            self._running -= 1
            if piece.exception() is not None:
                self._waiting.clear()
            self._fill()
        self._done.put(piece)

    def _wait(self) -> None:
        with self._lock:
            self._places = self._processes
            self._fill()
        for _ in tqdm(range(self._added), self._title, unit="run", disable=None, leave=False):
            self._done.get().result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        torch.set_num_threads(self._threads)
        whole = False
        try:
            if kind is None:
                self._wait()
                whole = True
        finally:
            with self._lock:
                self._waiting.clear()
            processes = list((self._pool._processes or {}).values())  # Python 3.14 has a public interface for this
            self._pool.shutdown(wait=whole, cancel_futures=True)
            if not whole:
                self._end(processes)

    def _end(self, processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
        """Tells processes to terminate; ends them with their pieces, after a time limit, or at a second Ctrl-C."""
        end = time.monotonic() + GRACE + _DELAY
        try:
            for process in processes:
                process.terminate()
            while self._running and time.monotonic() < end:
                time.sleep(_MOMENT)
        finally:
            for process in processes:
                process.kill()


def in_processes(
    work: Callable[..., None], pieces: Sequence[tuple], processes: int, title: str, imports: Sequence[str] = ()
) -> None:
    """Calls `work(*piece)` for every piece, `processes` at a time; 1 works in this process, one piece after another.

    See `Workers`, also for the errors.
    """
    processes = min(processes, len(pieces))
    if processes > 1:
        with Workers(work, processes, title, imports) as workers:
            workers.add(pieces)
        return
    for piece in tqdm(pieces, title, unit="run", disable=None, leave=False):
        work(*piece)


def check_known(key: str, count: int, imports: Sequence[str], find: Callable[..., None], piece: tuple) -> None:
    """Raises `ConfigError` if further processes would not know the networks, data sets or methods of a run.

    They know those of this package, which need no check.

    Args:
        key: of the configuration, which asks for them.
        count: its value.
        imports: user code, see `import_user_code`.
        find: a module-level function, which raises `ConfigError` for a name that is not known.
        piece: its arguments.
    """
    if count == 1 or not (imports or own_registrations()):
        return
    try:
        with Workers(find, 2, "a look into a further process", imports) as workers:
            workers.add([piece])
    except ConfigError as error:
        raise ConfigError(
            f"{key} is {count}, and a further process could not train: {error}; or set {key}=1"
        ) from error


def own_registrations() -> list[Registration]:
    """What users have registered in this process: data sets, networks, methods, rules."""
    return [*registrations(), *own_datasets()]


def _pickled(calls: Sequence[Registration]) -> list[bytes]:
    """The calls that another process may repeat, each by itself: classes and functions are pickled by their names."""
    found = []
    for call in calls:
        try:
            found.append(pickle.dumps(call))
        except Exception as error:  # pickling runs the code of any class
            logger.debug("%s is not repeated in other processes: %s", call.arguments[0], error)
    return found


_FAILED: list[OsktError] = []
"""Why this process of a pool cannot work: what its beginning raised, which a pool would not say."""


def _begin(threads: int, imports: Sequence[str], calls: Sequence[bytes]) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would write over one another
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    logging.getLogger("oskt_torchreid").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _between_pieces)
    try:
        import_user_code(imports)
    except OsktError as error:
        _FAILED.append(error)
    for call in calls:
        _repeat(call)


def _repeat(call: bytes) -> None:
    """Registers here what another process has; what cannot be found here stays unknown."""
    try:
        register, arguments, keywords = pickle.loads(call)
        register(*arguments, **keywords)
    except Exception as error:  # unpickling imports a user's code
        logger.debug("not registered in this process: %s", error)


def _between_pieces(*_: object) -> None:
    """Handles SIGTERM between pieces: the pool ends its processes itself, unless it is gone.

    If a process ended by itself, the pool would assume a crash and terminate the others at once.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(128 + signal.SIGTERM)


def _not_taken(error: Exception) -> ConfigError:
    return ConfigError(
        f"a further process cannot take over work: {type(error).__name__}: {first_line(error)}; define networks, data "
        f"sets and functions at the top level of a file that can be imported, and name it: {IMPORT_HINT}"
    )


def _work_off(content: bytes) -> None:
    """Works on a pickled piece; it is unpickled here, where an error is heard of: a pool would break of it."""
    if _FAILED:
        raise _FAILED[0]
    try:
        work, piece = pickle.loads(content)
    except Exception as error:  # unpickling imports a user's code
        raise _not_taken(error) from error
    try:
        with on_termination(terminate):
            work(*piece)
    except Terminated:
        _between_pieces()
        raise


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, instead of finishing its piece hours later."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Adds this process's messages to a run's log file."""
    logger = logging.getLogger("oskt_torchreid")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(*_LOG_FORMAT))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
