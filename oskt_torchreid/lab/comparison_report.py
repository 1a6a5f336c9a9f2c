"""Results of a comparison: tables over seeds, costs, and the files that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..config import Config, get
from ..files import atomic, write_json
from ..report.tables import human_count
from .curves import comparison_plot, convergence_plot
from .measurements import CHAIN_METHOD, Measurement

FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME = "comparison.json", "comparison.md"
SIZE_PLOT, CURVE_PLOT = "map_against_size.png", "convergence.png"


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


def select(measurements: Iterable[Measurement], scenario: str, method: str = "", width: float = 0) -> list[Measurement]:
    """Measurements of a scenario and, if given, a method and a width."""
    return [
        m
        for m in measurements
        if m.scenario == scenario and method in ("", m.method) and (not width or math.isclose(m.width, width))
    ]


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


# ---- parts of the report -----------------------------------------------------------------------------------------


def gain(measurements: Sequence[Measurement], width: float, other: Sequence[Measurement] | None = None) -> str:
    """How far the chain's student is above the best baseline, pair by pair of seeds, in points of mAP.

    Args:
        measurements: of the scenario that the chain's student is taken from.
        width: of both.
        other: of the scenario that baselines are taken from; by default the same.
    """
    pool = measurements if other is None else other
    ours = [m for m in measurements if (m.method, m.width) == (CHAIN_METHOD, width)]
    spreads = {
        method: _differences(ours, (m for m in pool if (m.method, m.width) == (method, width)))
        for method in methods_of(pool)
        if method != CHAIN_METHOD
    }
    found = {method: spread for method, spread in spreads.items() if spread.count}
    if not found:
        return "no baseline to compare with"
    best = min(found, key=lambda method: found[method].mean)
    pairs = f"(mean of {found[best].count} pairs of runs, standard error)"
    return f"{_points(found[best])} over {best} {pairs}"


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
            row.append(_points(_differences(chosen, whole)) if scenario != "finetune" else "")
        rows.append(row)
    headers = ("refinement", *(header for width in widths for header in (f"width {width:g}", "difference")))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def _differences(ours: Iterable[Measurement], theirs: Iterable[Measurement]) -> Spread:
    """How much higher mAP is here than there, over pairs of runs of the same seeds."""
    there = {(m.data_seed, m.seed): m.row.map_after for m in theirs}
    pairs = ((m.row.map_after, there.get((m.data_seed, m.seed))) for m in ours)
    return Spread.of(here - other for here, other in pairs if here is not None and other is not None)


def _points(spread: Spread) -> str:
    """`+2.3 ± 0.4`, mean and standard error in points of mAP; the error if there are several."""
    if not spread.count:
        return "-"
    error = f" ± {100 * spread.deviation / math.sqrt(spread.count):.1f}" if spread.count > 1 else ""
    return f"{100 * spread.mean:+.1f}{error}"


def cost_table(measurements: Sequence[Measurement], refine_seconds: Spread, counts: Sequence[int]) -> str:
    """Markdown: seconds that n students of one width cost by each method, training included, evaluation left out.

    The chain pays its refinement once. At equal fine-tuning every method trains each student as long; baselines are
    shown at equal passes, where they approach or exceed the chain's quality.
    """
    rows = []
    widths = sorted({m.width for m in select(measurements, "passes")})
    for width in widths:
        ours = Spread.of(m.row.seconds for m in select(measurements, "finetune", CHAIN_METHOD, width))
        for method in methods_of(select(measurements, "passes", width=width)):
            theirs = Spread.of(m.row.seconds for m in select(measurements, "passes", method, width))
            totals = (f"{n * theirs.mean:.0f}" for n in counts)
            rows.append((method, f"{width:g}", *totals, crossover(refine_seconds, ours, theirs)))
        totals = (f"{refine_seconds.mean + n * ours.mean:.0f}" for n in counts)
        rows.append((CHAIN_METHOD, f"{width:g}", *totals, ""))
    headers = ("method", "width", *(f"{n} student{'s' * (n > 1)}" for n in counts), "chain is cheaper from")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right")


def crossover(refine_seconds: Spread, ours: Spread, theirs: Spread) -> str:
    """The smallest number of students for which refining once and fine-tuning each costs less than the other way.

    Example: refinement 100 s, 10 s a student, against 35 s a student: `100 + 10 n < 35 n` from n = 5 on (4 is equal).
    """
    saved = theirs.mean - ours.mean
    if saved <= 0:
        return "never"
    return f"{math.floor(refine_seconds.mean / saved) + 1} students"


def making_table(measurements: Sequence[Measurement]) -> str:
    """Markdown: milliseconds that making a student takes, before any training."""
    chosen = select(measurements, "finetune")
    rows = []
    for method in methods_of(chosen):
        spread = Spread.of(m.row.expand_seconds for m in chosen if m.method == method)
        rows.append((method, f"{1000 * spread.mean:.0f}" if spread.count else "-"))
    return tabulate(rows, ("method", "ms"), tablefmt="github", disable_numparse=True, stralign="right")


# ---- the report --------------------------------------------------------------------------------------------------


def write_comparison(
    folder: Path,
    config: Config,
    measurements: Sequence[Measurement],
    refinements: Sequence[Mapping[str, Any]],
    rates: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes `comparison.json`, `comparison.md` and the pictures, each whole or not at all.

    Args:
        folder: where to.
        config: whole tree of the comparison.
        measurements: everything that was measured.
        refinements: facts of every chain's refinement: seconds, row_dispersion, refined_teacher.
        rates: that were chosen.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "rates": rates,
        "refinements": list(refinements),
        "measurements": [dataclasses.asdict(measurement) for measurement in measurements],
    }
    write_json(folder / JSON_NAME, content)
    text = "\n\n".join(_paragraphs(config, measurements, refinements, rates)) + "\n"
    with atomic(folder / MARKDOWN_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")
    title = f"{config.model.name} on {', '.join(config.data.targets)}"
    comparison_plot(measurements, folder / SIZE_PLOT, title)
    convergence_plot(measurements, folder / CURVE_PLOT, title)


def _paragraphs(
    config: Config,
    measurements: Sequence[Measurement],
    refinements: Sequence[Mapping[str, Any]],
    rates: Mapping[str, Mapping[str, float]],
) -> list[str]:
    refine, finetune = get(config, "oskt.refine"), get(config, "oskt.finetune")
    teacher = Spread.of(m.row.map_after for m in select(measurements, "finetune", "teacher"))
    params = next(m.row.params for m in measurements if m.method == "teacher")
    seconds = Spread.of(facts["seconds"] for facts in refinements)
    chain, equal = select(measurements, "finetune"), select(measurements, "passes")
    chain = [m for m in chain if m.method != "teacher"]
    node = config.comparison
    parts = [
        f"# {config.model.name} on {', '.join(config.data.targets)}",
        f"mAP in %, mean ± standard deviation over {teacher.count} runs ({len(node.data_seeds)} data sets x "
        f"{len(node.seeds)} training seeds), on identities that nothing was trained or tuned on. Teacher "
        f"({human_count(params)} parameters): {teacher.percent()}. Chain of width {config.oskt.width}, refined for "
        f"{refine['max_epoch']} epochs in {seconds.mean:.0f} s. Learning rates were chosen for every method on "
        f"held-out training identities: {_rates_text(rates)}.",
        "## Before any training",
        map_table(chain, before=True),
        f"## Equal fine-tuning: {finetune['max_epoch']} epochs",
        map_table(chain),
        f"At the chain's width: {gain(chain, config.oskt.width)}.",
    ]
    if equal:
        parts += _equal_passes(chain, equal, refine["max_epoch"], finetune["max_epoch"])
    if scenarios := list(dict.fromkeys(m.scenario for m in measurements if m.scenario.startswith("transfer-"))):
        parts.append(f"## Few identities of other people: {node.transfer.max_epoch} epochs")
        parts.append(transfer_table(measurements, scenarios))
    if any(m.scenario.startswith("ablation:") for m in measurements):
        epochs = node.ablation_epochs or refine["max_epoch"]
        parts.append(f"## Ablations: {epochs} epochs of refinement, before → after fine-tuning")
        parts.append(ablation_table(measurements))
    parts += ["## Cost", "Milliseconds that making a student takes:", making_table(measurements)]
    if equal:
        parts.append("Seconds of training for n students of one width, evaluation left out:")
        parts.append(cost_table(measurements, seconds, (1, 2, 4, 8)))
    return parts


def _equal_passes(
    chain: Sequence[Measurement], equal: Sequence[Measurement], refinement: int, finetuning: int
) -> list[str]:
    widths = sorted({m.width for m in equal})
    ours = [m for m in chain if m.method == CHAIN_METHOD and m.width in widths]
    return [
        f"## Equal passes: {refinement + finetuning} epochs for baselines; for the chain {refinement} of refinement, "
        f"{finetuning} after it",
        map_table([*ours, *equal]),
        *(f"At width {width:g}: {gain(chain, width, equal)}." for width in widths),
    ]


def _rates_text(rates: Mapping[str, Mapping[str, float]]) -> str:
    texts = []
    for scenario, chosen in rates.items():
        texts.append(f"{scenario}: " + ", ".join(f"{method} {rate:g}" for method, rate in chosen.items()))
    return "; ".join(texts)
