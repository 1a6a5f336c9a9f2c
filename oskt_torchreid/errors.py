"""Typed errors: every message says which thing, what it got, what is allowed and what to do."""

import re

__all__ = [
    "ChainError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "FeatureError",
    "GraphError",
    "MissingTorchreidError",
    "OsktError",
    "Terminated",
    "TrainingError",
    "WidthError",
    "ZooError",
]

_FROM_WORKER = re.compile(r"Caught \w+ in .+\.\nOriginal Traceback \(most recent call last\):\n")


class OsktError(Exception):
    """Base of every error that this package raises for a user.

    A data loader's worker process cannot raise in the process that waits for it: torch creates the error again there,
    of its type and of a text that holds the worker's whole traceback. Such a text is reduced to the error's own
    message, so that a user reads the same message with any number of workers.
    """

    def __init__(self, *arguments: object) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], str):
            arguments = (_own_message(arguments[0], type(self).__qualname__),)
        super().__init__(*arguments)


def _own_message(text: str, name: str) -> str:
    """The message after the error's name in a worker's traceback; any other text unchanged."""
    if not _FROM_WORKER.match(text):
        return text
    *_, last = [None, *re.finditer(rf"^(?:[\w.]+\.)?{re.escape(name)}: ", text, re.MULTILINE)]
    return text[last.end() :].rstrip("\n") if last else text


class ConfigError(OsktError, ValueError):
    """A configuration key or value that cannot be used."""


class MissingTorchreidError(ConfigError):
    """torchreid, or something that it needs, is absent."""


class GraphError(OsktError, ValueError):
    """A network whose channels cannot be followed, or a channel graph that does not fit its network."""


class WidthError(OsktError, ValueError):
    """A width, width plan or budget outside of what a chain can give."""


class ChainError(OsktError, ValueError):
    """A weight chain, or a chain file, that is damaged, unrelated or does not fit its teacher."""


class CheckpointError(OsktError, ValueError):
    """A checkpoint that is damaged or does not belong to the network it was given to."""


class DataError(OsktError, ValueError):
    """A data set that is missing, incomplete or not in the expected layout."""


class TrainingError(OsktError, RuntimeError):
    """Training that cannot continue, such as a loss that is not finite."""


class ZooError(OsktError, ValueError):
    """A published file that cannot be found, fetched or trusted."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as KeyboardInterrupt is SIGINT: not an error, and the same command resumes where it stopped."""


class FeatureError(OsktError, ValueError):
    """Features that cannot be lifted, or that are not of one chain and cannot be compared."""


class ExportError(OsktError, RuntimeError):
    """A network that cannot be exported, or an exported file that does not compute the same as the network."""


def expect(
    kind: type | tuple[type, ...], value: object, what: str, advice: str, error: type[OsktError] = ConfigError
) -> None:
    """Raises a typed error unless a value is of a kind.

    Example: `expect(str, 3, "name", "give a text")` raises `ConfigError("name is 3; give a text")`.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise error(f"{what} is {value!r:.100}; {advice}")


def first_line(error: BaseException) -> str:
    """The message of another library's error, as one line; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
