"""User code that a configuration names: the key `imports`, which is followed before any other key is read.

What is registered decides which keys and names there are, and the resolved configuration keeps the names, so that a
finished run's folder finds its networks and data sets again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..user_code import import_user_code, was_imported
from .yaml_files import read_yaml

logger = logging.getLogger(__name__)

IMPORTS_KEY = "imports"
RESOLVED_NAME = "config.yaml"
_LEVELS = 3  # folders from a student's file to that of its run


def check_origin(names: Sequence[str], file: Path) -> None:
    """Raises `ConfigError` for code that would come with the folder of a run, perhaps of somebody else.

    Args:
        names: of files and modules, in a configuration. What was imported already, the user has named.
        file: the configuration; one that a run has resolved names files outside of its folder by absolute paths.
    """
    if file.name != RESOLVED_NAME:
        return
    folder = os.path.realpath(file.parent)
    for name in names:
        comes_along = os.path.realpath(name).startswith(folder + os.sep) or not os.path.isabs(name)
        if name.endswith(".py") and comes_along and not was_imported(name):
            raise ConfigError(
                f"{IMPORTS_KEY} in '{file}' names '{name}', code that may have come with the run's folder and is not "
                f"run unasked; read it, and if it may run, name it yourself: --import {name}"
            )


def import_for_file(path: str | Path, given: Sequence[str] = ()) -> None:
    """Imports the user code that is given and, if a file lies in the folder of a run, that of this run.

    Args:
        path: a chain or a network.
        given: names from the command line.

    Raises:
        ConfigError: the given code cannot be imported. That of the run is left out then, with a warning: the network
            may do without.
    """
    import_user_code(given)
    configuration = next((found for found in _configurations(Path(path)) if found.is_file()), None)
    if configuration is None:
        return
    try:
        content = read_yaml(configuration)
        names = content.get(IMPORTS_KEY, []) if isinstance(content, dict) else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{IMPORTS_KEY} in '{configuration}' is {names!r:.100}; it must be a list of texts")
        check_origin(names, configuration)
        import_user_code([*names, *given])
    except ConfigError as error:
        logger.warning("the user code of the run in '%s' is not imported: %s", configuration.parent, error)


def _configurations(path: Path) -> list[Path]:
    """Where the configuration of the run may be that a file belongs to, from near to far."""
    return [folder / RESOLVED_NAME for folder in path.absolute().parents[:_LEVELS]]
