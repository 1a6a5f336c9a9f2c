"""A stage of a run: a folder whose ``stage.json`` says what its files were made from and what was measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TrainingError
from ..files import read_json, remove_leftovers, write_json
from ..host.distributed import from_first

logger = logging.getLogger(__name__)

RESULT_NAME, STARTED_NAME = "stage.json", "started.json"

Facts = dict[str, Any]


class Stage:
    """One step of a run; where several processes share it, the first one looks, writes and is believed by all.

    Args:
        folder: where its files are kept.
        digest: of everything that decides its result.
        outputs: names of the files that the finished stage has left in its folder.
    """

    def __init__(self, folder: Path, digest: str, outputs: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.digest = digest
        self.outputs = outputs

    def complete(self, work: Callable[[bool], Facts]) -> Facts:
        """The stage's facts: read if its result is there and its configuration unchanged, else made by ``work``.

        Args:
            work: makes the outputs; told whether files of an interrupted attempt at the very same work may be used.

        Returns:
            What ``work`` returned, now or then, with ``seconds``, those of interrupted attempts included.

        Raises:
            TrainingError: training cannot go on; says in which stage.
        """
        known, started = from_first(self._look)
        if known is not None:
            logger.info("%s: done before, with the same configuration", self.folder.name)
            return known["facts"]
        spent = started.get("seconds", 0.0) if started else 0.0
        self._note_start(spent)
        logger.info("%s: %s", self.folder.name, "goes on" if started else "begins")
        start = time.perf_counter()
        try:
            facts = work(started is not None)
        except BaseException as stop:
            self._note_start(spent + time.perf_counter() - start)
            if isinstance(stop, TrainingError):
                raise TrainingError(f"stage '{self.folder.name}': {stop}") from stop
            raise
        facts = {"seconds": spent + time.perf_counter() - start, **facts}
        return from_first(lambda: self._finish(facts))

    def _look(self) -> tuple[Facts | None, Facts | None]:
        """What a finished attempt has left, and what an interrupted one has, once its torn files are gone."""
        known = self._read(RESULT_NAME)
        if known is not None and all((self.folder / name).is_file() for name in self.outputs):
            return known, None
        for folder in {self.folder, *((self.folder / name).parent for name in self.outputs)}:
            remove_leftovers(folder)
        return None, self._read(STARTED_NAME)

    def _finish(self, facts: Facts) -> Facts:
        write_json(self.folder / RESULT_NAME, {"digest": self.digest, "facts": facts})
        (self.folder / STARTED_NAME).unlink(missing_ok=True)
        return facts

    def _note_start(self, seconds: float) -> None:
        """Says that an attempt was begun, and how long attempts have taken so far."""
        write_json(self.folder / STARTED_NAME, {"digest": self.digest, "seconds": seconds})

    def _read(self, name: str) -> Facts | None:
        """A file of this stage, if it is there and was written for the same configuration."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = read_json(path)
        except ConfigError as error:
            logger.warning("%s; the stage is made again", error)
            return None
        return content if isinstance(content, dict) and content.get("digest") == self.digest else None


def attempt_key(folder: Path) -> str:
    """Digest of the stage that is being made in a folder; empty where there is none."""
    path = folder / STARTED_NAME
    return str(read_json(path)["digest"]) if path.is_file() else ""
