"""The report of a run: table, plot, and notes on how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import Config
from ...report import Results, Row, size_vs_map, write_markdown, write_results


def write_report(folder: Path, results: Results, config: Config) -> None:
    """Writes `results.json`, `results.md` and `size_vs_map.png`, each whole or not at all."""
    title = f"{config.model.name} on {', '.join(config.data.targets)}"
    write_results(folder / "results.json", results.rows, results.facts)
    write_markdown(folder / "results.md", results.rows, title, notes(results, config))
    size_vs_map(results.rows, folder / "size_vs_map.png", title)


def row_of(name: str, kind: str, size: tuple[int, int], facts: Mapping[str, Any], epochs: int) -> Row:
    """A network's numbers.

    Args:
        name: its name in the run.
        kind: of `report.results.ROW_KINDS`.
        size: its parameters and multiply-adds.
        facts: `finetune_seconds`, and if present `before`, `after`, `curve`, `expand_seconds`, `training_flops`.
        epochs: before `after` was measured.
    """
    before, after = facts.get("before", {}), facts.get("after", {})
    return Row(
        name=name,
        kind=kind,
        params=size[0],
        flops=size[1],
        map_before=before.get("mAP"),
        rank1_before=before.get("rank1"),
        map_after=after.get("mAP"),
        rank1_after=after.get("rank1"),
        epochs=epochs,
        seconds=facts["finetune_seconds"],
        curve=facts.get("curve", ()),
        expand_seconds=facts.get("expand_seconds"),
        training_flops=facts.get("training_flops"),
        targets_before=before.get("targets", {}),
        targets=after.get("targets", {}),
    )


def notes(results: Results, config: Config) -> list[str]:
    """How the rows were made, and what they cost."""
    refine, finetune = config.oskt.refine, config.oskt.finetune
    if config.test.evaluate:
        return ["mAP, rank-1 and mINP in %. Networks are evaluated as they are; nothing was trained in this run."]
    lines = [
        "mAP, rank-1 and mINP (the number of a query's matches as a share of the place of the last one) in %, on "
        "identities that no network was trained on. Parameters and FLOPs (multiply-adds of one "
        f"{config.data.height}x{config.data.width} image) are those of the deployed network, without its classifier. "
        "Seconds are the time of the row's own training; 'before' is before any fine-tuning.",
        f"Students come from {_origin(results, config)},{_recalibrated(config)} and are fine-tuned for "
        f"{counted_epochs(finetune.max_epoch)}.",
    ]
    if config.oskt.controls:
        lines.append(
            "Controls that are named without a width have the chain's. Each is trained twice, with a learning rate of "
            f"its own: for the students' {counted_epochs(finetune.max_epoch)}, and for "
            f"{finetune.max_epoch + refine.max_epoch}, as many passes "
            "over the data as refinement and fine-tuning take together."
        )
    return lines


def _recalibrated(config: Config) -> str:
    batches = config.oskt.recalibrate
    return f" have norm statistics that are re-estimated from up to {batches} batches of images," if batches else ""


def counted_epochs(count: int) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _origin(results: Results, config: Config) -> str:
    """Where the chain comes from."""
    if config.oskt.chain:
        return f"the chain '{config.oskt.chain}' of an earlier run"
    facts = results.facts["refine"]
    if rungs := results.facts.get("rungs"):
        chains = ", ".join(f"{entry}" for entry in config.oskt.ladder)
        seconds = sum(rung["seconds"] for rung in (facts, *rungs))
        return (
            f"the nearest of {1 + len(rungs)} chains of widths {chains}, each refined for "
            f"{counted_epochs(config.oskt.refine.max_epoch)} together with the network that it was made of (the "
            f"teacher, then the S-student of the chain before), in {seconds:.0f} s altogether"
        )
    return (
        f"one chain of width {config.oskt.width}, refined once for {counted_epochs(config.oskt.refine.max_epoch)} "
        f"together with the teacher in {facts['seconds']:.0f} s (row dispersion afterwards "
        f"{facts['row_dispersion']:.3f})"
    )
