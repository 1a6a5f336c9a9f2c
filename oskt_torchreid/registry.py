"""Tables that are open to everybody: engines, and the names of baselines; each is added to with one line.

What users register here and elsewhere is remembered, so that further processes can be made to know it.
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec

from .errors import ConfigError, expect
from .on_demand import integrate, integrate_if_installed, is_registering_own
from .user_code import IMPORT_HINT

__all__ = ["baseline_names", "build_engine", "engine_class", "register_engine"]

_ENGINES: dict[str, type] = {}
_BASELINE_NAMES: list[str] = []

Given = ParamSpec("Given")


class Registration(NamedTuple):
    """A call that registered something, which may be repeated in another process.

    Attributes:
        register: the function; the same again changes nothing.
        arguments: without names.
        keywords: with names.
    """

    register: Callable[..., None]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


_REGISTRATIONS: list[Registration] = []


def remembered(register: Callable[Given, None]) -> Callable[Given, None]:
    """Makes a function that registers something remember the calls of users that succeed, see `registrations`."""

    @functools.wraps(register)
    def remembering(*arguments: Given.args, **keywords: Given.kwargs) -> None:
        register(*arguments, **keywords)
        if not is_registering_own():
            _REGISTRATIONS.append(Registration(remembering, arguments, keywords))

    return remembering


def registrations() -> list[Registration]:
    """What users registered, in order; what this package registers, its import repeats in any process."""
    return list(_REGISTRATIONS)


@remembered
def register_engine(name: str, engine: type) -> None:
    """Adds an engine class under `name`; registering the same class again changes nothing.

    Raises:
        ConfigError: no name or no class, or another class has the name.
    """
    expect(str, name, "name of an engine", "give a text")
    expect(type, engine, f"engine '{name}'", "give a class, such as one derived from host.engine.TransferEngine")
    if not callable(getattr(engine, "run", None)):
        raise ConfigError(
            f"engine '{name}' is {engine!r:.100}, which has no run; derive it from an engine of torchreid"
        )
    integrate_if_installed()  # names of this package's own come first
    known = _ENGINES.setdefault(name, engine)
    if known is not engine:
        raise ConfigError(
            f"engine name '{name}' belongs to {known.__module__}.{known.__qualname__}, got "
            f"{engine.__module__}.{engine.__qualname__}; register it under another name"
        )


def engine_class(name: str) -> type:
    """The class registered under `name`.

    Raises:
        ConfigError: unknown name; the message has the nearest one.
        MissingTorchreidError: engines are torchreid's, which is not installed.
    """
    if name not in _ENGINES:
        integrate()  # it registers this package's own
    if name not in _ENGINES:
        raise ConfigError(
            f"unknown engine '{name}'{nearest(name, _ENGINES)}; known engines: {', '.join(_ENGINES)}; name the file "
            f"that registers one of your own: {IMPORT_HINT}"
        )
    return _ENGINES[name]


def build_engine(name: str, datamanager: Any, model: Any, **kwargs: Any) -> Any:
    """Builds the engine registered under `name`; keyword arguments go to its constructor."""
    return engine_class(name)(datamanager, model, **kwargs)


def add_baseline_name(name: str) -> None:
    """Makes a name of a baseline known to configurations; adding it again changes nothing."""
    if name not in _BASELINE_NAMES:
        _BASELINE_NAMES.append(name)


def baseline_names() -> tuple[str, ...]:
    """Names of baselines that were registered, in order."""
    return tuple(_BASELINE_NAMES)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Part of an error message that suggests names: "; did you mean 'a' or 'b'?", empty when nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
