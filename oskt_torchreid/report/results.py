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
_RERANKED = "reranked_"
ROW_KINDS = ("teacher", "s-student", "student", "control")


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        name: how the run calls it, such as 'width=0.25' or 'scratch'.
        kind: one of ROW_KINDS.
        params: parameters of the network as it is deployed.
        flops: multiply-adds of one image.
        map_before, rank1_before: fractions before fine-tuning; None: not measured.
        map_after, rank1_after: fractions after training (teacher) or fine-tuning (others); None: not measured.
        epochs: epochs behind `map_after`.
        seconds: time that training took, or None.
        curve: (epoch, mAP) of every evaluation during training, oldest first; empty: only the last was made.
        expand_seconds: time that making the network took, without any training; None: not measured.
        training_flops: multiply-adds of the training behind `map_after`, of networks that it learns from too; None: not
            counted.
        targets_before, targets: numbers of every target before fine-tuning and after it, as fractions: mAP, rank1, ...,
            and the same of re-ranked distances behind 'reranked_'; map_* and rank1_* are those of the first target.
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
    training_flops: float | None = None
    targets_before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple((int(epoch), float(value)) for epoch, value in self.curve))
        if self.kind not in ROW_KINDS:
            raise ConfigError(f"kind of result '{self.name}' is '{self.kind}'; allowed: {', '.join(ROW_KINDS)}")

    def on(self, target: str) -> "Row":
        """The row with the numbers of one target only."""
        before, after = self.targets_before.get(target, {}), self.targets.get(target, {})
        return dataclasses.replace(
            self,
            map_before=before.get("mAP"),
            rank1_before=before.get("rank1"),
            map_after=after.get("mAP"),
            rank1_after=after.get("rank1"),
            targets_before={target: before} if before else {},
            targets={target: after} if after else {},
        )

    @property
    def reranked(self) -> dict[str, float]:
        """Numbers of re-ranked distances on the first target, under plain names; empty: not requested.

        They are those after fine-tuning, or before it if there was none.
        """
        numbers = next(iter((self.targets or self.targets_before).values()), {})
        return {name.removeprefix(_RERANKED): value for name, value in numbers.items() if name.startswith(_RERANKED)}

    @property
    def best_inp(self) -> float | None:
        """mINP on the first target after fine-tuning, or before it if there was none; `None`: not measured."""
        return next(iter((self.targets or self.targets_before).values()), {}).get("mINP")

    @property
    def best_map(self) -> float | None:
        """mAP after fine-tuning, or before it if there was none."""
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
    """The object built from a results file of one format version.

    Args:
        path: a JSON file with a `format_version`.
        version: the one that is read.
        build: makes rows of the content; a missing or unknown field makes it raise `KeyError` or `TypeError`.
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
