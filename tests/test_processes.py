"""Pieces of work in separate processes."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from runs import configured

from oskt_torchreid.errors import Terminated
from oskt_torchreid.host.termination import GRACE, on_termination
from oskt_torchreid.runs import run
from oskt_torchreid.runs.processes import Workers, in_processes, prepare_processes


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """Imports once what every process of this module would import."""
    prepare_processes()


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)


def leave(folder: Path, number: int) -> None:
    (folder / str(number)).touch()


def leave_slowly(folder: Path, number: int) -> None:
    """All pieces take longer than a failure takes to be heard of."""
    time.sleep(0.2)
    leave(folder, number)


def leave_or_fail(folder: Path, number: int) -> None:
    """The first piece fails, however late its process begins; the others are not done before."""
    failing = folder.with_name(f"{folder.name}-failing")
    if number == 0:
        failing.touch()
        raise ValueError("piece 0 failed")
    wait_for(failing)
    leave_slowly(folder, number)


def append(path: Path, number: int) -> None:
    """The first piece runs until all have been added."""
    if number == 0:
        wait_for(path.with_name("added"))
    with path.open("a") as file:
        file.write(f"{number}\n")


def stay(folder: Path, number: int) -> None:
    """Longer than any test waits."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def keep_and_go(folder: Path, number: int) -> None:
    """Between two steps it notices that it has to terminate, and saves its state, as training does."""
    told = []
    with on_termination(lambda: told.append(number)):
        (folder / "begun").touch()
        while not told:
            time.sleep(0.01)
        (folder / "kept").touch()
        raise Terminated("piece")


def not_heed(folder: Path, number: int) -> None:
    """Cannot be interrupted, like a kernel that takes long."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(folder, number)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}


def test_every_piece_is_worked_off(tmp_path):
    with Workers(leave, 2, "pieces") as workers:
        workers.add([(tmp_path, 0), (tmp_path, 1)])
        workers.add([(tmp_path, number) for number in range(2, 5)])
    assert left(tmp_path) == set(range(5))


def test_pieces_ahead_of_those_that_wait(tmp_path):
    order = tmp_path / "order"
    with Workers(append, 2, "pieces") as workers:
        workers.add([(order, 0), (order, 1)])
        workers.add([(order, 2), (order, 3)], ahead=True)
        (tmp_path / "added").touch()
        until = time.monotonic() + 60
        while not order.exists() or order.read_text().count("\n") < 4:  # one at a time as long as this runs
            assert time.monotonic() < until, "not all pieces were worked off"
            time.sleep(0.01)
    assert order.read_text().split() == ["0", "2", "3", "1"]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_failure_is_raised_and_stops_what_has_not_begun(tmp_path, processes):
    with pytest.raises(ValueError, match="piece 0 failed"):
        in_processes(leave_or_fail, [(tmp_path, 0)] + [(tmp_path, number) for number in range(1, 40)], processes, "")
    assert left(tmp_path) < set(range(1, 40))


def test_a_failure_beside_them_stops_what_has_not_begun(tmp_path):
    with pytest.raises(KeyError, match="here"), Workers(leave_slowly, 2, "pieces") as workers:
        workers.add([(tmp_path, number) for number in range(200)])
        raise KeyError("here")
    assert left(tmp_path) < set(range(200))


def test_pieces_that_have_begun_keep_their_state(tmp_path):
    with pytest.raises(KeyError, match="here"), Workers(keep_and_go, 2, "pieces") as workers:
        workers.add([(tmp_path, 0)])
        wait_for(tmp_path / "begun")
        start = time.monotonic()
        raise KeyError("here")
    assert (tmp_path / "kept").exists()
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks up processes in /proc")
@pytest.mark.parametrize(("again", "error"), [(False, KeyError), (True, KeyboardInterrupt)])
def test_pieces_that_do_not_end_are_ended(tmp_path, again, error):
    """After seconds, or at a Ctrl-C while they are waited for."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    try:
        with pytest.raises(error), Workers(not_heed, 2, "pieces") as workers:
            workers.add([(tmp_path, 0)])
            until = time.monotonic() + 60
            while not left(tmp_path):
                assert time.monotonic() < until, "the piece has not begun"
                time.sleep(0.01)
            start = time.monotonic()
            if again:
                timer.start()
            raise KeyError("here")
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < (GRACE if again else 10)
    while any(is_alive(pid) for pid in left(tmp_path)):
        assert time.monotonic() < start + 10, "the piece still runs"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks up processes in /proc")
def test_processes_end_with_the_one_that_waits_for_them(tmp_path):
    """If it is killed, it cannot tell its workers to stop; one that runs for hours would block the machine."""
    context = multiprocessing.get_context("spawn")
    parent = context.Process(target=in_processes, args=(stay, [(tmp_path, 0), (tmp_path, 1)], 2, ""))
    parent.start()
    until = time.monotonic() + 60
    try:
        while len(left(tmp_path)) < 2:
            assert time.monotonic() < until, "the pieces have not begun"
            time.sleep(0.01)
        assert all(is_alive(pid) for pid in left(tmp_path))
        parent.kill()
        while any(is_alive(pid) for pid in left(tmp_path)):
            assert time.monotonic() < until, "the workers still run"
            time.sleep(0.01)
    finally:
        parent.kill()
        for pid in filter(is_alive, left(tmp_path)):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_students_in_processes_of_their_own_are_the_same(data_root, tmp_path):
    """A second process trains what one process would have trained, and every message reaches the run's log."""
    options = ("oskt.students=['width=0.5', 'width=0.75']", "oskt.controls=['slice']")
    alone = run(configured(data_root, tmp_path / "alone", *options))
    beside = run(configured(data_root, tmp_path / "beside", *options, "oskt.processes=2"))
    numbers = [(row.name, row.map_before, row.map_after, row.epochs) for row in alone.rows]
    assert [(row.name, row.map_before, row.map_after, row.epochs) for row in beside.rows] == numbers
    log = (tmp_path / "beside" / "log.txt").read_text()
    assert all(f"{name}: begins" in log for name in ("width=0.5", "width=0.75", "slice", "slice-equal-passes"))
