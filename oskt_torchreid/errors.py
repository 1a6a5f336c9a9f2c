"""Typed errors: every message says which thing, what it got, what is allowed and what to do."""


class OsktError(Exception):
    """Base of every error that this package raises for a user."""


class ConfigError(OsktError, ValueError):
    """A configuration key or value that cannot be used."""


class GraphError(OsktError, ValueError):
    """A network whose channels cannot be followed, or a channel graph that does not fit its network."""


class WidthError(OsktError, ValueError):
    """A width, width plan or budget outside of what a chain can give."""


class ChainError(OsktError, ValueError):
    """A weight chain, or a chain file, that is damaged, foreign or does not fit its teacher."""


class CheckpointError(OsktError, ValueError):
    """A checkpoint that is damaged or does not belong to the network it was given to."""


class DataError(OsktError, ValueError):
    """A data set that is missing, incomplete or not in the expected layout."""


class TrainingError(OsktError, RuntimeError):
    """Training that cannot go on, such as a loss that is not finite."""


class ZooError(OsktError, ValueError):
    """A published file that cannot be found, fetched or trusted."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as KeyboardInterrupt is SIGINT: no error, and the same command goes on where it was."""


class ExportError(OsktError, RuntimeError):
    """A network that cannot be exported, or an exported file that does not compute what the network does."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in a line of a message of our own; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
