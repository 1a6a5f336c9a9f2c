"""Batches of a loader, whose data set may raise anything while it gives its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError, OsktError, first_line


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives, batch by batch.

    Raises:
        DataError: what its data set, its transforms or its workers raised, in their own words.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except OsktError:
            raise
        except Exception as reason:  # a class of anybody raises what it likes
            dataset = getattr(loader, "dataset", loader)
            raise DataError(
                f"{type(dataset).__name__} raised {type(reason).__name__} while it gave pictures: {_own_words(reason)}"
                "; mend the data set, its class or its transforms"
            ) from reason
        yield batch


def _own_words(reason: Exception) -> str:
    """What an exception says; one that came from a worker process has it behind the worker's traceback."""
    lines = str(reason).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught "):
        return lines[-1].removeprefix(f"{type(reason).__name__}: ")
    return first_line(reason)
