"""Pieces of work in processes of their own."""

from pathlib import Path

import pytest

from oskt_torchreid.pipeline.processes import Workers, in_processes


def leave(folder: Path, number: int) -> None:
    (folder / str(number)).touch()


def leave_or_fail(folder: Path, number: int) -> None:
    if number == 0:
        raise ValueError("piece 0 failed")
    leave(folder, number)


def left(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}


def test_every_piece_is_worked_off(tmp_path):
    with Workers(leave, 2, "pieces") as workers:
        workers.add([(tmp_path, 0), (tmp_path, 1)])
        workers.add([(tmp_path, number) for number in range(2, 5)])
    assert left(tmp_path) == set(range(5))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_failure_is_raised_and_stops_what_has_not_begun(tmp_path, processes):
    with pytest.raises(ValueError, match="piece 0 failed"):
        in_processes(leave_or_fail, [(tmp_path, 0)] + [(tmp_path, number) for number in range(1, 40)], processes, "")
    assert left(tmp_path) < set(range(1, 40))


def test_a_failure_beside_them_stops_what_has_not_begun(tmp_path):
    with pytest.raises(KeyError, match="here"), Workers(leave, 2, "pieces") as workers:
        workers.add([(tmp_path, number) for number in range(200)])
        raise KeyError("here")
    assert left(tmp_path) < set(range(200))
