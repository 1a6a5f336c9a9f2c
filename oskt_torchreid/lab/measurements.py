"""The measurements of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from ..report.results import Row

CHAIN_METHOD = "oskt"


@dataclass(frozen=True)
class Measurement:
    """One network of one run.

    Attributes:
        scenario: finetune, passes, transfer-N or ablation:NAME.
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
