"""A stage of a run: a folder whose `stage.json` says what its files were made from and what was measured."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from ..config import digest
from ..errors import CheckpointError, ConfigError, TrainingError
from ..files import read_json, remove_leftovers, write_json
from ..host.distributed import broadcast
from .recipes import Recipe

logger = logging.getLogger(__name__)

RESULT_NAME, STARTED_NAME = "stage.json", "started.json"
KEPT_PREFIX = "kept-"
_PARTS = ("model", RESULT_NAME, STARTED_NAME, "events.out.*", "visrank_*")
"""Files that training leaves in a stage's folder, besides the stage's outputs."""

Facts = dict[str, Any]
"""What a finished stage measured."""
Note = dict[str, Any]
"""Content of `stage.json` or `started.json`: a recipe with its digest, and the facts or the seconds so far."""


class Stage:
    """One step of a run; if several processes share it, the first one reads and writes for all of them.

    Args:
        folder: where its files are kept.
        recipe: of everything that decides its result.
        outputs: names of the files that the finished stage has left in its folder.
        given: files that the run was told to read, which are not moved.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, outputs: tuple[str, ...] = (), given: Iterable[str | Path] = ()
    ) -> None:
        self.folder = folder
        self.recipe = recipe
        self.outputs = outputs
        self.digest = recipe.key
        self._given = {Path(path).resolve() for path in given}

    def made(self, path: str | Path) -> bool:
        """Whether a file is one of the stage's outputs."""
        return Path(path).resolve() in self._places()

    def keep_as_made(self) -> None:
        """Accepts the existing result as the requested one, whatever settings it was made with."""
        known = self._read(RESULT_NAME)
        if known is not None:
            self.recipe = replace(self.recipe, weights=known["settings"]["weights"], idle=frozenset())
            self.digest = known["digest"]

    def complete(self, work: Callable[[bool], Facts], evaluate: Callable[[Facts], Facts] | None = None) -> Facts:
        """The stage's facts: read if nothing that determines them changed, else measured or made again.

        If settings of the weights changed, existing files are not overwritten: they are moved into a folder `kept-1`,
        `kept-2`, ... of the stage.

        Args:
            work: makes the outputs; its argument: whether files of an interrupted attempt with the same recipe may be
                used.
            evaluate: given the facts of a finished stage, measures its networks again; `None`: nothing is measured.

        Returns:
            What `work` returned, now or earlier, with `seconds`, including those of interrupted attempts.

        Raises:
            ConfigError: an output would overwrite a file that the run was told to read.
            TrainingError: training cannot continue; the message names the stage.
        """
        known, started = broadcast(self._look)
        if known is not None:
            return self._known(known, evaluate)
        spent = started.get("seconds", 0.0) if started else 0.0
        if started:
            self.digest = started["digest"]  # the digest in its checkpoints
        self._note_start(spent)
        logger.info("%s: %s", self.folder.name, "resumes" if started else "begins")
        start = time.perf_counter()
        try:
            facts = work(started is not None)
        except BaseException as stop:
            self._note_start(spent + time.perf_counter() - start)
            if isinstance(stop, TrainingError):
                raise TrainingError(f"stage '{self.folder.name}': {stop}") from stop
            raise
        facts = {"seconds": spent + time.perf_counter() - start, **facts}
        return broadcast(lambda: self._finish(facts))

    def evaluated(self, evaluate: Callable[[Facts], Facts]) -> Facts | None:
        """The facts of a stage whose outputs exist, measured again; nothing is trained or written.

        Outputs that were made with other settings are evaluated anyway, and the log says so.

        Returns:
            `None` where an output is missing.
        """
        if not self._has_outputs():
            return None
        known = self._read(RESULT_NAME) or {}
        if known and (changed := self.recipe.changed_weights(known["settings"])):
            logger.warning("%s: evaluated as it is, though made with other settings: %s", self.folder.name, changed)
        return evaluate(dict(known.get("facts", {})))

    def _known(self, known: Note, evaluate: Callable[[Facts], Facts] | None) -> Facts:
        """The facts of a finished stage, measured again if necessary."""
        changed = self.recipe.changed_numbers(known["settings"])
        if not changed or evaluate is None:
            logger.info("%s: done before, with the same configuration", self.folder.name)
            return known["facts"]
        logger.info("%s: %s; evaluated again, nothing is trained", self.folder.name, changed)
        facts = evaluate(dict(known["facts"]))
        return broadcast(lambda: self._finish(facts))

    def _look(self) -> tuple[Note | None, Note | None]:
        """The notes of a finished and of an interrupted attempt; incomplete files are removed."""
        known = self._read(RESULT_NAME)
        if self._is_ours(known) and _is_whole(known) and self._has_outputs():
            return known, None
        self._check_given()
        for folder in {self.folder, *((self.folder / name).parent for name in self.outputs)}:
            remove_leftovers(folder)
        started = self._read(STARTED_NAME)
        if self._is_ours(started):
            return None, started
        if not self._is_ours(known):
            self._keep_aside(known or started)
        return None, None

    def _places(self) -> set[Path]:
        return {(self.folder / name).resolve() for name in self.outputs}

    def _check_given(self) -> None:
        for path in self._given & self._places():
            raise ConfigError(
                f"'{path}' is given to this run, which would write its own result there (stage '{self.folder.name}'); "
                "copy the file to another place, or choose another data.save_dir"
            )

    def _is_ours(self, note: Note | None) -> TypeGuard[Note]:
        return note is not None and not self.recipe.changed_weights(note["settings"])

    def _has_outputs(self) -> bool:
        paths = [self.folder / name for name in self.outputs]
        return all(path.is_file() and path.stat().st_size for path in paths)

    def _keep_aside(self, found: Note | None) -> None:
        """Moves existing files into a new folder, if there are any, and logs why."""
        paths = [path for pattern in _PARTS for path in sorted(self.folder.glob(pattern))]
        outputs = [self.folder / name for name in self.outputs]
        paths += [path for path in outputs if path.is_file() and path.parent not in paths]
        paths = [piece for path in paths for piece in self._without_given(path)]
        if not paths:
            return
        number = 1 + max((_number(path) for path in self.folder.glob(f"{KEPT_PREFIX}*")), default=0)
        place = self.folder / f"{KEPT_PREFIX}{number}"
        for path in paths:
            within = path.relative_to(self.folder)
            kept = place / (path.name if ".." in within.parts else within)
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept)
        changed = self.recipe.changed_weights(found["settings"]) if found else "it is not known how that was made"
        logger.info("%s: %s; made again, the earlier files are kept in '%s'", self.folder.name, changed, place)

    def _without_given(self, path: Path) -> list[Path]:
        """A file or folder; if a folder holds a given file, everything else in it."""
        place = path.resolve()
        if not any(place in (given, *given.parents) for given in self._given):
            return [path]
        children = sorted(path.iterdir()) if path.is_dir() else []
        return [piece for child in children for piece in self._without_given(child)]

    def _finish(self, facts: Facts) -> Facts:
        content = {"digest": self.digest, "settings": self.recipe.as_json(), "facts": facts}
        content["facts_digest"] = digest(facts)
        write_json(self.folder / RESULT_NAME, content)
        (self.folder / STARTED_NAME).unlink(missing_ok=True)
        return facts

    def _note_start(self, seconds: float) -> None:
        """Records that an attempt has begun, and the seconds of attempts so far."""
        content = {"digest": self.digest, "settings": self.recipe.as_json(), "seconds": seconds}
        write_json(self.folder / STARTED_NAME, content)

    def _read(self, name: str) -> Note | None:
        """The note in a file of this stage, if it exists and is complete."""
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
    """Whether a file's content is a note of a stage, as this version of the package writes it."""
    if not isinstance(content, dict) or not isinstance(content.get("digest"), str):
        return False
    settings = content.get("settings")
    return isinstance(settings, dict) and all(isinstance(settings.get(part), dict) for part in ("weights", "numbers"))


def _is_whole(note: Note) -> bool:
    """Whether the facts of a finished stage are those that were written."""
    return isinstance(note.get("facts"), dict) and note.get("facts_digest") == digest(note["facts"])


def _number(path: Path) -> int:
    """Number of a folder of kept files; 0 for any other."""
    digits = path.name.removeprefix(KEPT_PREFIX)
    return int(digits) if digits.isdigit() else 0


def attempt_key(folder: Path) -> str:
    """Digest of the stage that is being made in a folder; empty if there is none."""
    path = folder / STARTED_NAME
    return str(read_json(path)["digest"]) if path.is_file() else ""


def require_any(found: bool, folder: Path, what: str) -> None:
    """Raises `CheckpointError` if `test.evaluate` finds nothing that was trained."""
    if not found:
        raise CheckpointError(
            f"test.evaluate trains nothing, and there is nothing to evaluate in '{folder.absolute()}': {what}"
        )
