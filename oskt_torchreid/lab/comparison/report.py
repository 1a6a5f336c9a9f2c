"""The report of a comparison: its files, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config import Config, get
from ...files import atomic, write_json
from ...report.tables import human_count
from ..curves import comparison_plot, convergence_plot
from ..measurements import CHAIN_METHOD, Measurement, Spread, select
from .earlier import FORMAT_VERSION
from .tables import ablation_table, fleet_table, gain, making_table, map_table, mean_gain, transfer_table

JSON_NAME, MARKDOWN_NAME = "comparison.json", "comparison.md"
SIZE_PLOT, CURVE_PLOT = "map_against_size.png", "convergence.png"


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
    chain = [m for m in select(measurements, "finetune") if m.method != "teacher"]
    node = config.comparison
    seeds = f"{len({m.data_seed for m in chain})} data sets x {len({m.seed for m in chain})} training seeds"
    parts = [
        f"# {config.model.name} on {', '.join(config.data.targets)}",
        f"mAP in %, mean ± standard deviation over {teacher.count} runs ({seeds}), on "
        f"identities that nothing was trained or tuned on. Teacher "
        f"({human_count(params)} parameters): {teacher.percent()}. Chain of width {config.oskt.width}, refined for "
        f"{refine['max_epoch']} epochs in {seconds.mean:.0f} s. Learning rates were chosen for every method on "
        f"held-out training identities: {_rates_text(rates)}.",
        "## Before any training",
        map_table(chain, before=True),
        f"## Equal fine-tuning: {finetune['max_epoch']} epochs",
        map_table(chain),
        *_gains(chain, chain),
    ]
    parts += _equal_training(measurements, chain, refine["max_epoch"], finetune["max_epoch"])
    if scenarios := list(dict.fromkeys(m.scenario for m in measurements if m.scenario.startswith("transfer-"))):
        parts.append(f"## Few identities of other people: {node.transfer.max_epoch} epochs")
        parts.append(transfer_table(measurements, scenarios))
    if any(m.scenario.startswith("ablation:") for m in measurements):
        epochs = node.ablation_epochs or refine["max_epoch"]
        parts.append(f"## Ablations: {epochs} epochs of refinement, before → after fine-tuning")
        parts.append(ablation_table(measurements))
    parts += ["## Cost", "Milliseconds that making a student takes:", making_table(measurements)]
    if any(m.width < 1 for m in select(measurements, "passes")):
        flops = Spread.of(facts.get("training_flops") for facts in refinements)
        parts.append(
            "Training a fleet of these widths, baselines at equal passes: seconds, and multiply-adds of all that "
            "run, evaluation left out:"
        )
        parts.append(fleet_table(measurements, seconds, flops))
    return parts


def _equal_training(
    measurements: Sequence[Measurement], chain: Sequence[Measurement], refinement: int, finetuning: int
) -> list[str]:
    """The chain against baselines that were trained for as much, counted in four ways; see `equal`."""
    alone, passes, compute, total = (
        select(measurements, scenario) for scenario in ("trained-on", "passes", "compute", "total")
    )
    parts = []
    if alone:
        title = f"## The teacher after {refinement} more epochs: {CHAIN_METHOD} with its chain, others alone"
        parts += [title, map_table(alone), *_gains(alone, alone)]
    if passes:
        ours = f"for the chain {refinement} of refinement, {finetuning} after it"
        parts += _against(f"## Equal passes: {refinement + finetuning} epochs for baselines; {ours}", chain, passes)
    if compute:
        epochs = ", ".join(dict.fromkeys(f"{m.method} {m.row.epochs}" for m in compute))
        parts += _against(f"## Equal compute for all these widths together; epochs: {epochs}", chain, compute)
    if total:
        title = f"## {total[0].row.epochs} epochs from the first weights on, the teacher's included"
        parts += _against(title, chain, total)
    return parts


def _against(title: str, chain: Sequence[Measurement], others: Sequence[Measurement]) -> list[str]:
    """The chain's fine-tuned students, and baselines of other runs."""
    widths = {m.width for m in others}
    ours = [m for m in chain if m.method == CHAIN_METHOD and m.width in widths]
    return [title, map_table([*ours, *others]), *_gains(ours, others)]


def _gains(ours: Sequence[Measurement], others: Sequence[Measurement]) -> list[str]:
    """How far the chain is above the best baseline at every width, and on average of them."""
    widths = sorted({m.width for m in ours if m.method == CHAIN_METHOD})
    lines = [f"At width {width:g}: {gain(ours, width, others)}." for width in widths]
    if len(widths) > 1:
        lines.append(f"Mean of these widths, over the best baseline of each: {mean_gain(ours, widths, others)}.")
    return ["\n".join(f"* {line}" for line in lines)]


def _rates_text(rates: Mapping[str, Mapping[str, float]]) -> str:
    texts = []
    for scenario, chosen in rates.items():
        texts.append(f"{scenario}: " + ", ".join(f"{method} {rate:g}" for method, rate in chosen.items()))
    return "; ".join(texts)
