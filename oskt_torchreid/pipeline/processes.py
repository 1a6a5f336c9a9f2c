"""Pieces of work that do not depend on one another, several at a time, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

_LOG_FORMAT = "%(asctime)s %(message)s", "%H:%M:%S"
_PREPARED = "forkserver" in multiprocessing.get_all_start_methods()


def prepare_processes() -> None:
    """Imports, beside what this process does meanwhile, what processes of ``in_processes`` are to begin with.

    Where the system has no fork server they import it themselves, seconds each.
    """
    if _PREPARED:
        multiprocessing.set_forkserver_preload([f"{__package__}.run"])
        multiprocessing.forkserver.ensure_running()


def in_processes(work: Callable[..., None], pieces: Sequence[tuple], processes: int, title: str) -> None:
    """Calls ``work(*piece)`` for every piece; the first failure stops those that have not begun.

    Small networks gain little from a second thread and much from a second process: torch's threads are shared out
    among the processes.

    Args:
        work: a function of a module, which new processes import.
        pieces: its arguments; they are pickled.
        processes: at a time; 1 works here, one piece after the other, with torch's threads.
        title: of the progress bar.

    Raises:
        whatever ``work`` raises.
    """
    processes = min(processes, len(pieces))
    with tqdm(total=len(pieces), desc=title, unit="run", disable=None, leave=False) as bar:
        if processes < 2:
            for piece in pieces:
                work(*piece)
                bar.update()
            return
        context = multiprocessing.get_context("forkserver" if _PREPARED else "spawn")
        threads = max(1, torch.get_num_threads() // processes)
        with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(threads,)) as pool:
            pending = [pool.submit(work, *piece) for piece in pieces]
            for done in as_completed(pending):
                if done.exception() is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
                done.result()
                bar.update()


def _begin(threads: int) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would write over one another
    torch.set_num_threads(threads)
    logging.getLogger("oskt_torchreid").setLevel(logging.INFO)


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
