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


def checked_imports(configuration: Path) -> list[str]:
    """The user code that a run's resolved configuration names, which may have come from somebody else.

    What was imported already is allowed: the user has named it.

    Raises:
        ConfigError: no list of names, or code that lies in the run's folder or is named by a relative path, neither of
            which a run writes by itself.
    """
    content = read_yaml(configuration)
    names = content.get(IMPORTS_KEY, []) if isinstance(content, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{IMPORTS_KEY} in '{configuration}' is {names!r:.100}; it must be a list of texts")
    folder = os.path.realpath(configuration.parent)
    for name in names:
        comes_along = os.path.realpath(name).startswith(folder + os.sep) or not os.path.isabs(name)
        if name.endswith(".py") and comes_along and not was_imported(name):
            raise ConfigError(
                f"{IMPORTS_KEY} in '{configuration}' names '{name}', code that may have come with the run's folder and "
                f"is not run unasked; read it, and if it may run, name it yourself: --import {name}"
            )
    return names


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
    places = [folder / RESOLVED_NAME for folder in Path(path).absolute().parents[:_LEVELS]]
    configuration = next((place for place in places if _is_of_run(place)), None)
    if configuration is None:
        return
    try:
        import_user_code([*checked_imports(configuration), *given])
    except ConfigError as error:
        logger.warning("the user code of the run in '%s' is not imported: %s", configuration.parent, error)


def _is_of_run(path: Path) -> bool:
    """Whether a file is the resolved configuration of a run; other programs give theirs the same name."""
    try:
        content = read_yaml(path)
    except ConfigError:
        return False
    return isinstance(content, dict) and "oskt" in content
