"""The measurements of a comparison, and their spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..report.results import Row

CHAIN_METHOD = "oskt"
Seeds = tuple[int, int]
"""Of the data and of training."""


@dataclass(frozen=True)
class Measurement:
    """One network of one run.

    Attributes:
        scenario: finetune, passes, trained-on, compute, total, transfer-N or ablation:NAME.
        method: oskt, teacher or a baseline.
        width: width ratio.
        data_seed, seed: of the data, of training.
        row: the numbers.
    """

    scenario: str
    method: str
    width: float
    data_seed: int
    seed: int
    row: Row


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample) of one number over runs, and how many there were."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the measured values; if there are none, the count is 0 and the mean is NaN."""
        found = np.array([value for value in values if value is not None], float)
        if not found.size:
            return cls(math.nan, 0.0, 0)
        deviation = float(found.std(ddof=1)) if found.size > 1 else 0.0
        return cls(float(found.mean()), deviation, int(found.size))

    def percent(self) -> str:
        """`61.8 +- 2.3`, in %; `-` where nothing was measured."""
        if not self.count:
            return "-"
        spread = f" ± {100 * self.deviation:.1f}" if self.count > 1 else ""
        return f"{100 * self.mean:.1f}{spread}"


def select(
    measurements: Iterable[Measurement], scenario: str = "", method: str = "", width: float = 0
) -> list[Measurement]:
    """Measurements of a scenario, a method and a width, as far as these are given."""
    return [
        m
        for m in measurements
        if scenario in ("", m.scenario) and method in ("", m.method) and (not width or math.isclose(m.width, width))
    ]


def differences(ours: Iterable[Measurement], theirs: Iterable[Measurement]) -> dict[Seeds, float]:
    """How much higher mAP is here than there, by the seeds of runs that are in both."""
    here, there = ({(m.data_seed, m.seed): m.row.map_after for m in each} for each in (ours, theirs))
    pairs = {seeds: (value, there.get(seeds)) for seeds, value in here.items()}
    return {seeds: one - other for seeds, (one, other) in pairs.items() if one is not None and other is not None}


def points(spread: Spread) -> str:
    """`+2.3 ± 0.4`, mean and standard error in points of mAP; the error if there are several."""
    if not spread.count:
        return "-"
    error = f" ± {100 * spread.deviation / math.sqrt(spread.count):.1f}" if spread.count > 1 else ""
    return f"{100 * spread.mean:+.1f}{error}"
