"""What a dry run checks of the files that a run is told to read, if they exist already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...chain import WeightChain, load_student
from ...config import Config
from ...errors import ConfigError, OsktError
from ...files import load_checkpoint
from ...files.weights import state_dict_of
from ..oskt.specification import students_of

FileReader = Callable[[str], Any]


def look_at_files(config: Config) -> None:
    """Reads the files of earlier runs that exist; those that an earlier run has yet to make are skipped.

    Raises:
        OsktError: a path is not a file, or a file of another kind; the message names the key.
    """
    for key, path, read in _given(config):
        if not path or not Path(path).exists():
            continue
        if not Path(path).is_file():
            raise ConfigError(f"{key} is '{path}', which is no file; give the path of one")
        try:
            read(path)
        except OsktError as error:
            raise type(error)(f"{key} is '{path}': {error}") from error


def _given(config: Config) -> Iterator[tuple[str, str, FileReader]]:
    """Key, path and reader of every file that this run would read."""
    engine, oskt, vkd = config.engine or config.loss.name, config.oskt, config.vkd
    yield "model.load_weights", config.model.load_weights, _state
    if engine == "oskt":
        yield "oskt.chain", oskt.chain, WeightChain.load
        yield "oskt.teacher", oskt.teacher, _state
        for spec in students_of(config):
            if spec.is_file:
                yield f"'{spec.text}' of oskt.students", spec.value or ".", load_student
    elif engine == "vkd":
        yield "vkd.teacher", vkd.teacher, load_checkpoint
        yield "vkd.student", vkd.student if vkd.student.endswith(".safetensors") else "", WeightChain.load
        yield "vkd.last_stage_weights", vkd.last_stage_weights, _state


def _state(path: str) -> Any:
    return state_dict_of(load_checkpoint(path), path)
