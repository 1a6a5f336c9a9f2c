"""The runs that a comparison chooses learning rates from: on training identities that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...config import Config, get
from .equal import inheriting_at_1, passes_changes, trained_on_changes
from .jobs import transfer_changes, transferable
from .parts import CHAIN_METHOD, CHAIN_NAME, TEACHER, TEACHER_PLACE, Changes, Job, Rates, student_entries

EARLY_STEPS = ("teacher", "refine")
"""Steps that are tuned one after the other, before the rates of students."""
Tried = Mapping[str, Mapping[str, Mapping[str, float]]]
"""mAP by scenario, method and rate."""


def tuning_jobs(config: Config, step: str, rates: Rates) -> list[Job]:
    """Runs that learning rates are chosen from.

    Args:
        config: whole tree.
        step: `teacher`, a run per candidate; then `refine`, a run per candidate for the refinement of the best
            teacher; then `rates`, a run per candidate and scenario for students of both.
        rates: the ones chosen in earlier steps.
    """
    node = config.comparison
    if step == "rates":
        return _student_jobs(config, rates, [(name, rate, ()) for name in scenarios(config) for rate in node.rates])
    if step == "teacher":
        return _early_jobs(config, step, rates, node.teacher_rates or [config.train.lr])
    return _early_jobs(config, step, rates, node.refine_rates or [get(config, "oskt.refine").lr])


def _early_jobs(config: Config, step: str, rates: Rates, candidates: Iterable[float]) -> list[Job]:
    """A run per candidate for the rate of the teacher, or of the refinement of the best teacher."""
    widths = [config.oskt.width] if step == "teacher" else config.comparison.widths
    changes = _held_out(config)
    changes |= {"oskt.students": student_entries([CHAIN_METHOD], widths), "oskt.finetune.max_epoch": 0}
    changes |= {"oskt.refine.max_epoch": 0} if step == "teacher" else _teacher(config, rates)
    key = "train.lr" if step == "teacher" else "oskt.refine.lr"
    return [
        Job("tuning", f"tuning/{step}-{rate:g}", {**changes, key: rate}, {"scenario": step, "rate": rate})
        for rate in candidates
    ]


def further_jobs(config: Config, rates: Rates, tried: Tried) -> list[Job]:
    """Runs that prolong a grid by one step, for whatever has its best rate at the first or last.

    Example: the best of 0.003, 0.009 and 0.027 is 0.027, so 0.081 is tried.

    Args:
        config: whole tree.
        rates: as for `tuning_jobs`.
        tried: mAP by scenario, method and rate.
    """
    wanted: dict[tuple[str, float], list[str]] = {}
    for scenario, methods in tried.items():
        for method, curve in methods.items():
            grid, best = sorted(map(float, curve)), float(max(curve, key=curve.__getitem__))
            if len(grid) > 1 and best in (grid[0], grid[-1]):
                neighbour = grid[1] if best == grid[0] else grid[-2]
                wanted.setdefault((scenario, float(f"{best * best / neighbour:g}")), []).append(method)
    early = [key for key in wanted if key[0] in EARLY_STEPS]
    jobs = [job for step, rate in early for job in _early_jobs(config, step, rates, [rate])]
    return jobs + _student_jobs(config, rates, [(*key, names) for key, names in wanted.items() if key not in early])


def _student_jobs(config: Config, rates: Rates, wanted: Sequence[tuple[str, float, Sequence[str]]]) -> list[Job]:
    """A run for each scenario, rate and list of methods; an empty list means all of the scenario's."""
    if not wanted:
        return []
    folder, node = Path(config.data.save_dir) / "tuning", config.comparison
    chain = folder / f"refine-{rates['refine'][CHAIN_METHOD]:g}" / CHAIN_NAME
    shared = {**_held_out(config), **_teacher(config, rates), "oskt.chain": str(chain)}
    every, jobs = scenarios(config), []
    for scenario, rate, methods in wanted:
        everyone, changes = every[scenario]
        width = 1.0 if scenario == "trained-on" else node.tuning_width
        students = {"oskt.students": student_entries(list(methods or everyone), [width])}
        changes = {**shared, **students, **changes, **_rates_alike(config, rate)}
        jobs.append(Job("tuning", f"tuning/{scenario}-{rate:g}", changes, {"scenario": scenario, "rate": rate}))
    return jobs


def _held_out(config: Config) -> Changes:
    """The settings that all tuning runs share."""
    node = config.comparison
    return {
        "validation.share": node.validation_share,
        "train.seed": node.seeds[0],
        "synthped.seed": node.data_seeds[0],
        "oskt.controls": [],
        "oskt.curves": False,
    }


def _teacher(config: Config, rates: Rates) -> Changes:
    """The teacher of the rate that was chosen."""
    folder = Path(config.data.save_dir) / "tuning" / f"teacher-{rates['teacher'][TEACHER]:g}"
    return {"oskt.teacher": str(folder / TEACHER_PLACE)}


def scenarios(config: Config) -> dict[str, tuple[list[str], Changes]]:
    """Methods and changed keys of every scenario that rates are chosen for."""
    node = config.comparison
    found: dict[str, tuple[list[str], Changes]] = {"finetune": ([CHAIN_METHOD, *node.methods], {})}
    if any(width < 1 for width in node.equal_passes_widths):
        found["passes"] = list(node.methods), passes_changes(config)
    if node.trained_on:
        found["trained-on"] = inheriting_at_1(node.methods), trained_on_changes(config)
    if node.transfer.identities:
        few = min(node.transfer.identities)
        changes = transfer_changes(config, few, node.data_seeds[0], 1 - node.validation_share)
        found["transfer"] = transferable(config), changes
    return found


def _rates_alike(config: Config, rate: float) -> Changes:
    return {"oskt.finetune.lr": rate, **{f"oskt.control_lr.{name}": rate for name in config.comparison.methods}}
