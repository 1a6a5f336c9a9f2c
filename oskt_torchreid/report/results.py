"""The numbers of a run, and results.json."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..files import read_json, write_json

FORMAT_VERSION = 1
Rows = TypeVar("Rows")
KINDS = ("teacher", "s-student", "student", "control")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        name: how the run calls it, such as 'width=0.25' or 'scratch'.
        kind: one of KINDS.
        params: parameters of the network as it is deployed.
        flops: multiply-adds of one image.
        map_before, rank1_before: fractions before fine-tuning; None: not measured.
        map_after, rank1_after: fractions after training (teacher) or fine-tuning (others); None: not measured.
        epochs: epochs behind `map_after`.
        seconds: time that training took, or None.
        curve: (epoch, mAP) of every evaluation during training, oldest first; empty: only the last was made.
        expand_seconds: time that making the network took, without any training; None: not measured.
    """

    name: str
    kind: str
    params: int
    flops: int
    map_before: float | None = None
    rank1_before: float | None = None
    map_after: float | None = None
    rank1_after: float | None = None
    epochs: int = 0
    seconds: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    expand_seconds: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple((int(epoch), float(value)) for epoch, value in self.curve))
        if self.kind not in KINDS:
            raise ConfigError(f"kind of result '{self.name}' is '{self.kind}'; allowed: {', '.join(KINDS)}")

    @property
    def best_map(self) -> float | None:
        """mAP after fine-tuning, or before it where there was none."""
        return self.map_before if self.map_after is None else self.map_after


@dataclass(frozen=True)
class Results:
    """All rows of a run, and facts about it (backbone, data set, seed, seconds of each stage, ...)."""

    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_results(path: str | Path, rows: Sequence[Row], facts: Mapping[str, Any] | None = None) -> None:
    """Writes results.json atomically; `read_results` reads it back."""
    content = {
        "format_version": FORMAT_VERSION,
        "facts": dict(facts or {}),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(path, content)


def read_results(path: str | Path) -> Results:
    """Reads results.json.

    Raises:
        ConfigError: missing, damaged, of another format version, or with rows of other fields.
    """
    return read_versioned(path, FORMAT_VERSION, lambda content: Results(_rows(content), content["facts"]), "a run")


def _rows(content: Mapping[str, Any]) -> tuple[Row, ...]:
    return tuple(Row(**row) for row in content["rows"])


def read_versioned(path: str | Path, version: int, build: Callable[[Mapping[str, Any]], Rows], run: str) -> Rows:
    """What is built of a results file of one format version.

    Args:
        path: a JSON file with a ``format_version``.
        version: the one that is read.
        build: makes rows of the content; a missing or unknown field makes it raise ``KeyError`` or ``TypeError``.
        run: whose rows they are, for messages.

    Raises:
        ConfigError: missing, damaged, of another format version, or with rows of other fields.
    """
    content = read_json(path)
    found = content.get("format_version") if isinstance(content, dict) else None
    if found != version:
        raise ConfigError(f"'{path}' has results format {found}; this version reads {version}: run again")
    try:
        return build(content)
    except (KeyError, TypeError) as reason:
        raise ConfigError(f"'{path}' does not hold the rows of {run} ({reason}); run again") from reason
