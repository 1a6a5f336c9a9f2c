"""Latencies that were measured elsewhere: a table of uniform widths and milliseconds, such as a device gave them.

What is between two measured widths is interpolated along multiply-adds, so that widths that are not uniform have a
latency, too.

Example: width 0.5 has 10 M multiply-adds and takes 2 ms, width 1 has 40 M and takes 5 ms. A student of 20 M takes
`2 + (20 - 10) / (40 - 10) * 3 = 3 ms`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..files.tables import read_table
from ..graph.plans import ratio_plan
from .chain import WeightChain
from .counting import Costs

WIDTH, MILLISECONDS = "width", "milliseconds"
HEADERS = (WIDTH, "file", MILLISECONDS)


@dataclass(frozen=True)
class MeasuredTable:
    """Milliseconds of uniform students.

    Attributes:
        rows: width ratio and milliseconds.
        source: where they come from, for messages.

    Raises:
        ConfigError: no row, a width outside of (0, 1] or twice, or no time above zero.
    """

    rows: tuple[tuple[float, float], ...]
    source: str = "a table"

    def __post_init__(self) -> None:
        for width, time in self.rows:
            if not (0 < width <= 1 and 0 < time < math.inf):
                raise ConfigError(
                    f"'{self.source}' has {time:g} ms for width {width:g}; widths are above 0 and at most 1, times are "
                    "above 0"
                )
        widths = [width for width, _ in self.rows]
        if not widths or len(set(widths)) < len(widths):
            raise ConfigError(f"'{self.source}' has the widths {widths}; give one line for each, and at least one")

    @classmethod
    def read(cls, path: str | Path) -> MeasuredTable:
        """Reads a CSV with the columns `width` and `milliseconds`; lines without a time are passed over.

        Raises:
            ConfigError: no such file, other columns, or what is no number.
        """
        lines = read_table(path, (WIDTH, MILLISECONDS), "latencies")
        measured = [(line[WIDTH], line[MILLISECONDS]) for line in lines if line[MILLISECONDS]]
        if not measured:
            raise ConfigError(f"'{path}' has no time in any of its {len(lines)} lines; fill in the milliseconds")
        try:
            rows = tuple((_number(width), _number(time)) for width, time in measured)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"'{path}' has a line that is not two numbers ({error}); mend it") from error
        return cls(rows, str(path))

    def costs(self, chain: WeightChain) -> TableCost:
        """Milliseconds of students of a chain, by their widths.

        What is narrower than all that was measured counts as the narrowest, what is wider takes infinitely long.
        """
        return TableCost(chain, self)


def _number(cell: str) -> float:
    """Of a cell; a comma in it marks decimals, as where spreadsheets put semicolons between cells."""
    return float(cell.replace(",", "."))


class TableCost:
    """Milliseconds of students of a chain, interpolated in a table.

    Args:
        chain: only read.
        table: of uniform widths.

    Attributes:
        source: what measured them, in words.
    """

    def __init__(self, chain: WeightChain, table: MeasuredTable) -> None:
        self.source = f"by '{table.source}'"
        self._costs = Costs(chain)
        ratios, times = map(np.array, zip(*sorted(table.rows), strict=True))
        plans = [ratio_plan(chain.graph, float(ratio)) for ratio in ratios]
        self._flops, self._times = np.array(self._costs.count(plans).flops, float), times

    def __call__(self, plan: dict[str, int]) -> float:
        """Milliseconds of the student of some widths, by group name."""
        flops = float(self._costs.count([plan]).flops[0])
        beyond = math.inf if flops > self._flops[-1] * (1 + 1e-9) else self._times[-1]
        return float(np.interp(flops, self._flops, self._times, right=beyond))


def table_to_fill(widths: Sequence[float], files: Sequence[str]) -> str:
    """The text of a CSV with a line per width, whose times are still to be measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADERS)
    writer.writerows((f"{width:g}", file, "") for width, file in zip(widths, files, strict=True))
    return text.getvalue()
