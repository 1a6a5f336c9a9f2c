"""A stage of a run: a folder whose ``stage.json`` says what its files were made from and what was measured."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, TrainingError
from ..files import read_json, remove_leftovers, write_json
from ..host.distributed import from_first
from .recipes import Recipe, changes_of

logger = logging.getLogger(__name__)

RESULT_NAME, STARTED_NAME = "stage.json", "started.json"
KEPT_PREFIX = "kept-"
_PARTS = ("model", RESULT_NAME, STARTED_NAME, "events.out.*", "visrank_*")
"""What training leaves in a stage's folder, beside the stage's outputs."""

Facts = dict[str, Any]


class Stage:
    """One step of a run; where several processes share it, the first one looks, writes and is believed by all.

    Args:
        folder: where its files are kept.
        recipe: of everything that decides its result.
        outputs: names of the files that the finished stage has left in its folder.
    """

    def __init__(self, folder: Path, recipe: Recipe, outputs: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.recipe = recipe
        self.outputs = outputs

    @property
    def digest(self) -> str:
        """Digest of what decides the weights."""
        return self.recipe.key

    def complete(self, work: Callable[[bool], Facts], evaluate: Callable[[Facts], Facts] | None = None) -> Facts:
        """The stage's facts: read where nothing that decides them changed, else measured or made anew.

        Where settings of the weights changed, what is there is not overwritten: it is moved into a folder ``kept-1``,
        ``kept-2``, ... of the stage's own.

        Args:
            work: makes the outputs; told whether files of an interrupted attempt at the very same work may be used.
            evaluate: given the facts of a finished stage, measures its networks again; ``None``: nothing is measured.

        Returns:
            What ``work`` returned, now or then, with ``seconds``, those of interrupted attempts included.

        Raises:
            TrainingError: training cannot go on; says in which stage.
        """
        known, started = from_first(self._look)
        if known is not None:
            return self._known(known, evaluate)
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

    def evaluated(self, evaluate: Callable[[Facts], Facts]) -> Facts | None:
        """The facts of a stage whose outputs are there, measured again; nothing is trained or written.

        Outputs that were made with other settings are evaluated all the same, and the log says so.

        Returns:
            ``None`` where an output is missing.
        """
        if not self._has_outputs():
            return None
        known = self._read(RESULT_NAME) or {}
        made = known.get("settings", {}).get("weights", {})
        if known and (changed := changes_of(made, self.recipe.as_json()["weights"])):
            logger.warning("%s: evaluated as it is, though made with other settings: %s", self.folder.name, changed)
        return evaluate(dict(known.get("facts", {})))

    def _known(self, known: Facts, evaluate: Callable[[Facts], Facts] | None) -> Facts:
        """The facts of a finished stage, measured again where that became necessary."""
        changed = changes_of(known["settings"]["numbers"], self.recipe.as_json()["numbers"])
        if not changed or evaluate is None:
            logger.info("%s: done before, with the same configuration", self.folder.name)
            return known["facts"]
        logger.info("%s: %s; evaluated again, nothing is trained", self.folder.name, changed)
        facts = evaluate(dict(known["facts"]))
        return from_first(lambda: self._finish(facts))

    def _look(self) -> tuple[Facts | None, Facts | None]:
        """What a finished attempt has left, and what an interrupted one has, once its torn files are gone."""
        known = self._read(RESULT_NAME)
        if self._is_ours(known) and isinstance(known.get("facts"), dict) and self._has_outputs():
            return known, None
        for folder in {self.folder, *((self.folder / name).parent for name in self.outputs)}:
            remove_leftovers(folder)
        started = self._read(STARTED_NAME)
        if self._is_ours(started):
            return None, started
        if not self._is_ours(known):
            self._keep_aside(known or started)
        return None, None

    def _is_ours(self, content: Facts | None) -> bool:
        return content is not None and content.get("digest") == self.digest

    def _has_outputs(self) -> bool:
        return all((self.folder / name).is_file() for name in self.outputs)

    def _keep_aside(self, found: Facts | None) -> None:
        """Moves what is there into a folder of its own, where something is, and says why."""
        paths = [path for pattern in _PARTS for path in sorted(self.folder.glob(pattern))]
        outputs = [self.folder / name for name in self.outputs]
        paths += [path for path in outputs if path.is_file() and path.parent not in paths]
        if not paths:
            return
        number = 1 + max((_number(path) for path in self.folder.glob(f"{KEPT_PREFIX}*")), default=0)
        place = self.folder / f"{KEPT_PREFIX}{number}"
        place.mkdir()
        for path in paths:
            os.replace(path, place / path.name)
        made = (found or {}).get("settings", {}).get("weights")
        changed = changes_of(made, self.recipe.as_json()["weights"]) if made else "it is not known how that was made"
        logger.info("%s: %s; made anew, what was there is kept in '%s'", self.folder.name, changed, place)

    def _finish(self, facts: Facts) -> Facts:
        content = {"digest": self.digest, "settings": self.recipe.as_json(), "facts": facts}
        write_json(self.folder / RESULT_NAME, content)
        (self.folder / STARTED_NAME).unlink(missing_ok=True)
        return facts

    def _note_start(self, seconds: float) -> None:
        """Says that an attempt was begun, and how long attempts have taken so far."""
        content = {"digest": self.digest, "settings": self.recipe.as_json(), "seconds": seconds}
        write_json(self.folder / STARTED_NAME, content)

    def _read(self, name: str) -> Facts | None:
        """A file of this stage, if it is there and whole."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = read_json(path)
        except ConfigError as error:
            logger.warning("%s; the stage is made again", error)
            return None
        return content if _is_note(content) else None


def _is_note(content: Any) -> bool:
    """Whether a file's content is what a stage writes, in this version of the package."""
    settings = content.get("settings") if isinstance(content, dict) else None
    return isinstance(settings, dict) and all(isinstance(settings.get(part), dict) for part in ("weights", "numbers"))


def _number(path: Path) -> int:
    """Of a folder of what was kept aside."""
    digits = path.name.removeprefix(KEPT_PREFIX)
    return int(digits) if digits.isdigit() else 0


def attempt_key(folder: Path) -> str:
    """Digest of the stage that is being made in a folder; empty where there is none."""
    path = folder / STARTED_NAME
    return str(read_json(path)["digest"]) if path.is_file() else ""


def require_any(found: bool, folder: Path, what: str) -> None:
    """Raises ``CheckpointError`` where ``test.evaluate`` finds nothing that was trained."""
    if not found:
        raise CheckpointError(
            f"test.evaluate trains nothing, and there is nothing to evaluate in '{folder.absolute()}': {what}"
        )
