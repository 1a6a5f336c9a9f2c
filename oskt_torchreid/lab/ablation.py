"""Students of VKD with single terms left out, from one teacher, over several seeds.

Every student is an ordinary run in its own folder below `ablation`, with a few changed keys, so students that were
finished with the same configuration are not run again. The run itself gives the teacher, and one student.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, get, merged, save_resolved
from ..errors import ConfigError
from ..registry import nearest
from ..report.protocols import read_set_rows
from ..runs.run import run
from ..runs.vkd.run import NETWORK_NAME
from .ablation_report import WHOLE, TermMeasurement, write_ablation
from .comparison import Job
from .comparison.comparison import run_all

FOLDER = "ablation"
RESULTS = "results.json"

TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("L_KD", {"vkd.alpha": 0.0}),
    "dp": ("L_DP", {"vkd.beta": 0.0}),
    "triplet": ("L_TR", {"loss.triplet.weight_t": 0.0}),
    "ce": ("L_CE", {"loss.triplet.weight_x": 0.0}),
    "restart": ("restart", {"vkd.reinit_last_stage": False}),
}
"""Name on the command line: name in the table, and the changes that leave it out."""


def ablate(config: Config, terms: Sequence[str] = tuple(TERMS), seeds: Sequence[int] = (), processes: int = 1) -> Path:
    """Runs a configuration, then its student with each term left out, and writes a table.

    Args:
        config: whole tree of a run of VKD. Its seed (`train.seed`) is that of the teacher.
        terms: of `TERMS`.
        seeds: of students; empty: the configuration's own and the next two.
        processes: runs at a time, with one thread each; 1 runs them here, one after the other, with torch's threads.

    Returns:
        The folder `ablation` below the run's, with `ablation.json`, `ablation.md` and a folder per student.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    own = config.train.seed
    seeds = list(dict.fromkeys(seeds)) or [own, own + 1, own + 2]
    terms = list(dict.fromkeys(terms))
    check_terms(config, terms, seeds)
    folder = Path(config.data.save_dir)
    run(config)
    teacher, *_, student = read_set_rows(folder / RESULTS)
    jobs = [job for job in _jobs(config, terms, seeds) if (job.scenario, job.labels["seed"]) != (WHOLE, own)]
    save_resolved(config, folder / FOLDER)
    run_all(config, jobs, processes, "terms of the loss")
    measurements = [TermMeasurement(WHOLE, own, student)] if own in seeds else []
    for job in jobs:
        measurements.append(
            TermMeasurement(job.scenario, job.labels["seed"], read_set_rows(folder / job.folder / RESULTS)[-1])
        )
    order = [WHOLE, *(TERMS[term][0] for term in terms)]
    measurements.sort(key=lambda m: (order.index(m.term), seeds.index(m.seed)))
    write_ablation(folder / FOLDER, teacher, measurements, config)
    return folder / FOLDER


def check_terms(config: Config, terms: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises `ConfigError` for terms that cannot be left out, or no terms."""
    if config.engine != "vkd":
        raise ConfigError(f"engine is '{config.engine}'; terms of the loss are left out of runs of engine 'vkd'")
    if not terms or min(seeds) < 0:
        raise ConfigError(f"terms are {list(terms)}, seeds {list(seeds)}; give at least one term, and seeds from 0 on")
    for term in terms:
        if term not in TERMS:
            raise ConfigError(f"unknown term '{term}'{nearest(term, TERMS)}; allowed: {', '.join(TERMS)}")
        if term == "restart" and config.vkd.student:
            raise ConfigError(
                f"vkd.student is '{config.vkd.student}', which does not start from its teacher, so there is no restart "
                "to leave out; leave 'restart' out of the terms"
            )
        unchanged = [key for key, value in TERMS[term][1].items() if get(config, key) == value]
        if unchanged:
            value = get(config, unchanged[0])
            raise ConfigError(
                f"{unchanged[0]} is {value} already, so '{term}' cannot be left out; set it, or leave '{term}' out of "
                "the terms"
            )
        check_loss(merged(config, TERMS[term][1]), term)


def check_loss(config: Config, term: str) -> None:
    """Raises `ConfigError` where nothing would be left of the loss of labels."""
    triplet = config.loss.triplet
    if not max(triplet.weight_t, triplet.weight_x):
        raise ConfigError(
            f"without '{term}' both loss.triplet.weight_t and loss.triplet.weight_x are 0, and nothing is learnt from "
            f"labels; set the other one, or leave '{term}' out of the terms"
        )


def _jobs(config: Config, terms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """A run per seed with all terms, then one per term and seed."""
    teacher = {"vkd.teacher": str(Path(config.data.save_dir) / "teacher" / NETWORK_NAME)}
    changed = {"all": (WHOLE, {}), **{term: TERMS[term] for term in terms}}
    return [
        Job(name, f"{FOLDER}/{term}-seed-{seed}", {**teacher, "train.seed": seed, **changes}, {"seed": seed})
        for term, (name, changes) in changed.items()
        for seed in seeds
    ]
