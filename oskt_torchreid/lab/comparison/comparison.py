"""Runs the jobs of a comparison, several at a time, and gathers their results."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...config import Config, get, save_resolved
from ...errors import TrainingError
from ...files import write_json
from ...report import read_results
from ...runs.processes import in_processes, logged
from ...runs.run import run
from ..measurements import CHAIN_METHOD, Measurement
from .earlier import read_earlier
from .jobs import check_comparison, seed_jobs, source_jobs
from .parts import RESULTS_NAME, TEACHER, Job, Rates, split_name
from .report import write_comparison
from .tuning import EARLY_STEPS, further_jobs, tuning_jobs

logger = logging.getLogger(__name__)

RATES_NAME = "rates.json"
SOURCE_METHOD = "source-trained"
Work = Callable[[Config], None]


def run_comparison(config: Config, processes: int = 1) -> Path:
    """Runs a whole comparison; runs that were finished with the same configuration are not repeated.

    Args:
        config: whole tree; the node `comparison` configures the comparison, the others the training.
        processes: runs at a time, with one thread each; 1 runs them here, one after the other, with torch's threads.

    Returns:
        The folder, `data.save_dir`, with `comparison.json`, `comparison.md`, pictures, and a folder per run.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    check_comparison(config)
    earlier = read_earlier(config)
    folder = Path(config.data.save_dir)
    save_resolved(config, folder)
    rates = earlier.rates or tune(config, folder, processes)
    first = seed_jobs(config, rates, "finetune")
    run_all(config, first, processes, "teachers, chains and students")
    rest = seed_jobs(config, rates, "rest")
    run_all(config, rest, processes, "equal passes, transfer, ablations")
    last = source_jobs(config, rates)
    run_all(config, last, processes, "transfer from the source")
    measurements = [row for job in (*first, *rest, *last) for row in measurements_of(folder, job)]
    refinements = [read_results(folder / job.folder / RESULTS_NAME).facts["refine"] for job in first]
    if config.comparison.trained_on:
        epochs, whole = get(config, "oskt.refine").max_epoch, tuple(measurements)
        for job, refinement in zip(first, refinements, strict=True):
            measurements += refined_teacher(job, refinement, whole, epochs)
    measurements, refinements = [*earlier.measurements, *measurements], [*earlier.refinements, *refinements]
    write_comparison(folder, config, measurements, refinements, rates)
    return folder


def tune(config: Config, folder: Path, processes: int) -> Rates:
    """Chooses every learning rate on held-out training identities, and records all tried ones."""
    rates: dict[str, dict[str, float]] = {}
    tried: dict[str, dict[str, dict[str, float]]] = {}
    for step in (*EARLY_STEPS, "rates"):
        chosen, measured = _tune_step(config, folder, processes, step, rates)
        if step in EARLY_STEPS and step not in chosen:
            raise TrainingError(
                f"at none of the rates of comparison.{step}_rates a loss stayed finite; give lower ones (see "
                f"{folder / 'tuning'})"
            )
        rates, tried = rates | chosen, tried | measured
    write_json(folder / RATES_NAME, {"chosen": rates, "mAP": tried})
    return rates


def _tune_step(config: Config, folder: Path, processes: int, step: str, rates: Rates) -> tuple[dict, dict]:
    """The chosen rates of a step and what was tried, its grids prolonged where an end is best; see `choose_rates`."""
    candidates = tuning_jobs(config, step, rates)
    title = "students" if step == "rates" else step
    run_all(config, candidates, processes, f"tuning, {title}", try_apart)
    for _ in range(config.comparison.further_rates):
        further = further_jobs(config, rates, choose_rates(folder, candidates)[1])
        if not further:
            break
        run_all(config, further, processes, f"tuning, {title}, beyond the grid", try_apart)
        candidates += further
    return choose_rates(folder, candidates)


def refined_teacher(
    job: Job, refinement: Mapping[str, Any], measurements: Sequence[Measurement], epochs: int
) -> list[Measurement]:
    """The teacher that was refined with the chain in a job, for comparison with one that went on alone.

    It is left out where its evaluation has changed since, for its weights are not kept.
    """
    numbers = refinement.get("refined_teacher")
    if numbers is None:
        logger.warning("%s: the refined teacher is not there to be evaluated again, so it is left out", job.folder)
        return []
    seeds = job.labels["data_seed"], job.labels["seed"]
    of_seed = next(m for m in measurements if m.method == TEACHER and (m.data_seed, m.seed) == seeds)
    row = replace(
        of_seed.row,
        name="refined teacher",
        map_after=numbers["mAP"],
        rank1_after=numbers["rank1"],
        epochs=epochs,
        seconds=refinement["seconds"],
        training_flops=refinement.get("training_flops"),
        curve=(),
        targets={},
    )
    return [replace(of_seed, scenario="trained-on", method=CHAIN_METHOD, row=row)]


def run_all(config: Config, jobs: Sequence[Job], processes: int, title: str, work: Work | None = None) -> None:
    """Runs independent jobs; the first failure stops those that have not begun."""
    in_processes(work or _run_apart, [(job.config(config),) for job in jobs], processes, title, config.imports)


def _run_apart(config: Config) -> None:
    """One run, possibly in a separate process; its messages go to its own folder."""
    folder = Path(config.data.save_dir)
    try:
        with logged(folder / "log.txt"):
            run(config)
    finally:
        clear_checkpoints(folder)


def try_apart(config: Config) -> None:
    """The same of a candidate: a rate at which a loss stops being finite is not chosen, and stops nothing else."""
    try:
        _run_apart(config)
    except TrainingError as error:
        logger.warning("%s is no candidate: %s", Path(config.data.save_dir).name, error)


def clear_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of training, which nothing needs once a run is whole, and which add up."""
    for path in folder.rglob("model.pth.tar-*"):
        path.unlink()


def choose_rates(folder: Path, candidates: Sequence[Job]) -> tuple[dict, dict]:
    """The rate of the highest mAP on the held-out identities, on average of a method's students.

    Args:
        folder: of the comparison.
        candidates: runs that are done; one that failed left nothing to choose from.

    Returns:
        Rate by scenario and method; and the mAP of every candidate, by scenario, method and rate.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for job in candidates:
        scenario, rate = job.labels["scenario"], job.labels["rate"]
        path = folder / job.folder / RESULTS_NAME
        for row in read_results(path).rows if path.is_file() else ():
            method, _ = split_name(row.name) or (TEACHER, 1.0)
            if row.map_after is not None and (method == TEACHER) == (scenario == "teacher"):
                found[scenario, method, f"{rate:g}"].append(row.map_after)
    tried: dict[str, dict[str, dict[str, float]]] = {}
    for (scenario, method, rate), values in found.items():
        tried.setdefault(scenario, {}).setdefault(method, {})[rate] = fmean(values)
    chosen = {
        scenario: {method: float(max(curve, key=curve.__getitem__)) for method, curve in methods.items()}
        for scenario, methods in tried.items()
    }
    return chosen, tried


def measurements_of(folder: Path, job: Job) -> list[Measurement]:
    """All rows of a job that is done, each with the scenario, method, width and seeds it belongs to."""
    found = []
    for row in read_results(folder / job.folder / RESULTS_NAME).rows:
        if row.name.startswith("file="):
            width = float(Path(row.name).parent.name.rpartition("=")[2])
            named: tuple[str, float] | None = (SOURCE_METHOD, width)
        else:
            named = split_name(row.name)
        if named is None:
            if job.scenario != "finetune":
                continue
            named = TEACHER, 1.0
        found.append(Measurement(job.scenario, *named, job.labels["data_seed"], job.labels["seed"], row))
    return found
