"""User code: files and modules of Python that register networks, data sets, engines or methods of a user.

A file is a module of its own name, mine.py is `mine`. Its folder comes last on Python's path, so that the file
imports its neighbours, any other process finds what it defines, and importing it again, in whatever way, changes
nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from .errors import ConfigError, expect, first_line

__all__ = ["import_user_code", "was_imported"]

SUFFIX = ".py"
IMPORT_HINT = "--import mine.py, or imports: [mine.py] in a configuration"
"""What to do about a name that is not registered, for messages."""

_ASKED = "--import and the key imports"
_IMPORTED: dict[str, str] = {}  # name of a module -> path of its file, or its name


def import_user_code(names: Iterable[str]) -> list[str]:
    """Imports files and modules, each once per process; all names are looked at before the first is imported.

    Args:
        names: paths of files that end in `.py`, relative to the working folder, and names of modules that Python finds.
            Of two files with the same name the last counts, and a file that is not there any more is the one of its
            name that was imported before: a file that was moved can be named again.

    Returns:
        The same without repetition, paths absolute: they mean the same in every folder and process.

    Raises:
        ConfigError: no such file or module, a name that another module has, or code that raises anything; the message
            names the file, its line and the error.
    """
    chosen: dict[str, str] = {}
    for name in names:
        place = _checked(name)
        module = _module_name(place)
        moved = _is_file(place) and not os.path.isfile(place)
        chosen[module] = _IMPORTED.get(module, place) if moved else place
    missing = next((place for place in chosen.values() if _is_file(place) and not os.path.isfile(place)), None)
    if missing is not None:
        raise ConfigError(f"user code '{missing}' is not there; give the path of a file of Python, see {_ASKED}")
    for module, place in chosen.items():
        if _is_file(place):
            _import_file(module, place)
        else:
            _import_module(module)
        _IMPORTED[module] = place
    return list(chosen.values())


def was_imported(name: str) -> bool:
    """Whether user code of this name was imported in this process, possibly from another place."""
    return _module_name(name) in _IMPORTED


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIX)


def _module_name(place: str) -> str:
    return Path(place).stem if _is_file(place) else place


def _checked(name: str) -> str:
    """A name that can be one: of a file as an absolute path, of a module as it is."""
    expect(str, name, f"an entry of {_ASKED}", "give the path of a file such as 'mine.py', or the name of a module")
    if _is_file(name):
        path = os.path.abspath(os.path.expanduser(name))
        stem = Path(path).stem
        if not stem.isidentifier() or stem == "__init__":
            raise ConfigError(
                f"user code '{name}' cannot be a module of its name, '{stem}'; give the file a name of letters, digits "
                "and '_' (a package is named as a module, such as 'my_package')"
            )
        return path
    if not all(part.isidentifier() for part in name.split(".")):
        what = "a folder" if os.path.isdir(name) else "neither a file of Python nor the name of a module"
        raise ConfigError(f"user code '{name}' is {what}; give a path that ends in {SUFFIX}, or a name as 'my.nets'")
    return name


def _import_file(module: str, path: str) -> None:
    """Imports a file as a module, its folder on the path from then on; a failure leaves the path as it was."""
    if any(_has_come_from(sys.modules.get(name), path) for name in ("__main__", module)):
        return
    folder = os.path.dirname(path)
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        _check_free(module, path)
        _run(module, path)
    except ConfigError:
        if added:
            sys.path.remove(folder)
        raise


def _has_come_from(module: ModuleType | None, path: str) -> bool:
    place = getattr(module, "__file__", None)
    return isinstance(place, str) and os.path.exists(place) and os.path.samefile(place, path)


def _check_free(module: str, path: str) -> None:
    """Raises `ConfigError` if Python finds another module under the name of a file."""
    importlib.invalidate_caches()  # the file may be newer than what Python has seen of the folder
    known = sys.modules.get(module)
    spec = None if known is not None else importlib.util.find_spec(module)
    origin = getattr(known, "__file__", None) if spec is None else spec.origin
    if origin is None or not os.path.exists(origin) or not os.path.samefile(origin, path):
        raise ConfigError(
            f"user code '{path}' cannot be imported: the name '{module}' belongs to the module in "
            f"'{origin or 'Python itself'}'; give the file another name"
        )


def _import_module(module: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None or module in sys.modules
    except ModuleNotFoundError:  # a package above it
        found = False
    except Exception as error:  # the package's own code
        raise _failure(module, error) from error
    if not found:
        file = f"{module.replace('.', '/')}{SUFFIX}"
        hint = f"did you mean the file '{file}'?" if os.path.isfile(file) else "add its folder to PYTHONPATH"
        raise ConfigError(f"user code '{module}' is no module that Python finds, and no file ({SUFFIX}); {hint}")
    _run(module, module)


def _run(module: str, place: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # anything that a user's code may raise
        raise _failure(place, error) from error


def _failure(place: str, error: BaseException) -> ConfigError:
    """The error about user code that raised one, with the line that did it last."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == place else (lines or [None])[-1]
    where = "" if line is None else f", line {line}"
    remedy = "name it as a module of its package, such as 'my.nets'" if "relative import" in str(error) else "mend it"
    return ConfigError(
        f"user code '{place}' cannot be imported{where}: {type(error).__name__}: {first_line(error)}; {remedy}, or "
        f"take it out of {_ASKED}"
    )
