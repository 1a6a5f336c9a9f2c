"""Tables of a comparison, over seeds, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from ...report.tables import human_count
from ..measurements import CHAIN_METHOD, Measurement, Seeds, Spread, differences, points, select


def methods_of(measurements: Iterable[Measurement]) -> list[str]:
    """Methods in the order in which they come, the chain's first, without the teacher."""
    found = dict.fromkeys(m.method for m in measurements if m.method != "teacher")
    return sorted(found, key=lambda method: method != CHAIN_METHOD)


def map_table(measurements: Sequence[Measurement], before: bool = False) -> str:
    """Markdown: mAP in %, a row per method and a column per width; of one scenario."""
    widths = sorted({m.width for m in measurements if m.method != "teacher"})
    rows = []
    for method in methods_of(measurements):
        cells = [_cell((m for m in measurements if m.method == method and m.width == w), before) for w in widths]
        rows.append((method, *cells))
    headers = ("method", *(f"width {width:g}" for width in widths))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def _cell(measurements: Iterable[Measurement], before: bool) -> str:
    return Spread.of(m.row.map_before if before else m.row.map_after for m in measurements).percent()


def gain(measurements: Sequence[Measurement], width: float, other: Sequence[Measurement] | None = None) -> str:
    """How far the chain's student is above the best baseline, pair by pair of seeds, in points of mAP.

    Args:
        measurements: of the scenario that the chain's student is taken from.
        width: of both.
        other: of the scenario that baselines are taken from; by default the same.
    """
    found = _over_best(measurements, width, measurements if other is None else other)
    if found is None:
        return "no baseline to compare with"
    best, gains = found
    spread = Spread.of(gains.values())
    return f"{points(spread)} over {best} (mean of {spread.count} pairs of runs, standard error)"


def mean_gain(measurements: Sequence[Measurement], widths: Sequence[float], other: Sequence[Measurement]) -> str:
    """The mean of `gain` over widths, pair by pair of the seeds that all of them have."""
    found = [_over_best(measurements, width, other) for width in widths]
    gains = [each[1] for each in found if each is not None]
    shared = set.intersection(*(set(each) for each in gains)) if gains else set()
    return points(Spread.of(sum(each[seeds] for each in gains) / len(gains) for seeds in sorted(shared)))


def _over_best(
    ours: Sequence[Measurement], width: float, pool: Sequence[Measurement]
) -> tuple[str, dict[Seeds, float]] | None:
    """The best baseline of a width, and how far the chain's student is above it, by seeds."""
    own = select(ours, method=CHAIN_METHOD, width=width)
    gains = {
        method: differences(own, select(pool, method=method, width=width))
        for method in methods_of(pool)
        if method != CHAIN_METHOD
    }
    gains = {method: found for method, found in gains.items() if found}
    if not gains:
        return None
    best = min(gains, key=lambda method: Spread.of(gains[method].values()).mean)
    return best, gains[best]


def transfer_table(measurements: Sequence[Measurement], scenarios: Sequence[str]) -> str:
    """Markdown: mAP on other people before and after fine-tuning on few identities."""
    rows = []
    chosen = [m for m in measurements if m.scenario in scenarios]
    widths = sorted({m.width for m in chosen})
    for width in widths:
        for method in methods_of(chosen):
            cells = []
            for scenario in scenarios:
                found = select(chosen, scenario, method, width)
                cells += [_cell(found, before=True), _cell(found, before=False)]
            rows.append((method, f"{width:g}", *cells))
    headers = ["method", "width"]
    for scenario in scenarios:
        count = scenario.rpartition("-")[2]
        headers += [f"{count} ids, before", f"{count} ids, fine-tuned"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def ablation_table(measurements: Sequence[Measurement]) -> str:
    """Markdown: students of chains that were refined in other ways, before and after fine-tuning.

    A difference is that of fine-tuned students, in points, pair by pair of seeds, with its standard error.
    """
    names = dict.fromkeys(m.scenario for m in measurements if m.scenario.startswith("ablation:"))
    rows, widths = [], sorted({m.width for m in measurements if m.scenario in names and m.method == CHAIN_METHOD})
    for scenario in ("finetune", *names):
        row = ["as compared above" if scenario == "finetune" else scenario.removeprefix("ablation:")]
        for width in widths:
            whole, chosen = (select(measurements, name, CHAIN_METHOD, width) for name in ("finetune", scenario))
            row.append(f"{_cell(chosen, True)} → {_cell(chosen, False)}")
            row.append(points(Spread.of(differences(chosen, whole).values())) if scenario != "finetune" else "")
        rows.append(row)
    headers = ("refinement", *(header for width in widths for header in (f"width {width:g}", "difference")))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def fleet_table(measurements: Sequence[Measurement], refining: Spread, refining_flops: Spread) -> str:
    """Markdown: what a fleet of students of different widths costs to train by each method, evaluation left out.

    A column adds a width to those before it. The chain pays its refinement once. Baselines are those of equal passes,
    where they approach or exceed the chain's quality.

    Args:
        measurements: of all scenarios.
        refining, refining_flops: seconds and multiply-adds of the refinements.
    """
    widths = sorted({m.width for m in select(measurements, "passes") if m.width < 1})
    rows = []
    for method in [CHAIN_METHOD, *methods_of(m for m in select(measurements, "passes") if m.width < 1)]:
        ours = method == CHAIN_METHOD
        seconds, flops = (refining.mean, refining_flops.mean) if ours else (0.0, 0.0)
        cells = []
        for width in widths:
            found = select(measurements, "finetune" if ours else "passes", method, width)
            seconds += Spread.of(m.row.seconds for m in found).mean
            flops += Spread.of(m.row.training_flops for m in found).mean
            cells.append("-" if math.isnan(seconds) else f"{seconds:.0f} s, {_counted(flops)}")
        rows.append((method, *cells))
    headers = ("method", *(f"{'and ' * (number > 0)}{width:g}" for number, width in enumerate(widths)))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def _counted(flops: float) -> str:
    """Multiply-adds with a unit, if they were counted: `1.23 T`."""
    return "-" if math.isnan(flops) else f"{human_count(round(flops))}"


def making_table(measurements: Sequence[Measurement]) -> str:
    """Markdown: milliseconds that making a student takes, before any training."""
    chosen = select(measurements, "finetune")
    rows = []
    for method in methods_of(chosen):
        spread = Spread.of(m.row.expand_seconds for m in chosen if m.method == method)
        rows.append((method, f"{1000 * spread.mean:.0f}" if spread.count else "-"))
    return tabulate(rows, ("method", "ms"), tablefmt="github", disable_numparse=True, stralign="right")
