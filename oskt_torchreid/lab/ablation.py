"""Students of VKD with single terms left out, or with other numbers of views, from one teacher, over several seeds.

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
from ..report.protocols import SetRow, read_set_rows
from ..runs.run import run
from ..runs.vkd.trainer import NETWORK_NAME
from .ablation_report import WHOLE, TermMeasurement, ViewsMeasurement, write_ablation
from .comparison import Job
from .comparison.comparison import run_all

FOLDER = "ablation"
RESULTS = "results.json"

TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "distillation": ("distillation", {"vkd.alpha": 0.0, "vkd.beta": 0.0}),
    "kd": ("L_KD", {"vkd.alpha": 0.0}),
    "dp": ("L_DP", {"vkd.beta": 0.0}),
    "triplet": ("L_TR", {"loss.triplet.weight_t": 0.0}),
    "ce": ("L_CE", {"loss.triplet.weight_x": 0.0}),
    "restart": ("restart", {"vkd.reinit_last_stage": False}),
}
"""Name on the command line: name in the table, and the changes that leave it out."""


def ablate(
    config: Config,
    terms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    processes: int = 1,
    teacher_views: Sequence[int] = (),
    student_views: Sequence[int] = (),
) -> Path:
    """Runs a configuration, then its student with each term left out, and writes a table.

    Args:
        config: whole tree of a run of VKD. Its seed (`train.seed`) is that of the teacher.
        terms: of `TERMS`; empty: `terms_of`, all that the configuration has.
        seeds: of students; empty: the configuration's own and the next two.
        processes: runs at a time, with one thread each; 1 runs them here, one after the other, with torch's threads.
        teacher_views: numbers of views that the teacher sees while it teaches, each combined with every one of
            `student_views` up to it, and the same students without distillation; empty: none of these.
        student_views: of those, how many a student sees.

    Returns:
        The folder `ablation` below the run's, with `ablation.json`, `ablation.md` and a folder per student.

    Raises:
        OsktError: everything that can be known beforehand is checked before anything is trained.
    """
    own = config.train.seed
    seeds = list(dict.fromkeys(seeds)) or [own, own + 1, own + 2]
    terms = list(dict.fromkeys(terms)) or terms_of(config)
    check_terms(config, terms, seeds)
    grid = _views_jobs(config, teacher_views, student_views, seeds)
    folder = Path(config.data.save_dir)
    run(config)
    teacher, _ = _teacher_and_student(folder)
    save_resolved(config, folder / FOLDER)
    jobs = _jobs(config, terms, seeds)
    places, new = _places(config, [*jobs, *grid])
    run_all(config, new, processes, "terms of the loss, and views" if grid else "terms of the loss")

    def student(job: Job) -> SetRow:
        return _teacher_and_student(places[_settings(config, job)])[1]

    measurements = [TermMeasurement(job.scenario, job.labels["seed"], student(job)) for job in jobs]
    order = [WHOLE, *(TERMS[term][0] for term in terms)]
    measurements.sort(key=lambda m: (order.index(m.term), seeds.index(m.seed)))
    views = [ViewsMeasurement(**job.labels, row=student(job)) for job in grid]
    write_ablation(folder / FOLDER, teacher, measurements, config, views)
    return folder / FOLDER


def _teacher_and_student(folder: Path) -> tuple[SetRow, SetRow]:
    """The teacher of a run, and its last student; controls are passed over."""
    rows = read_set_rows(folder / RESULTS)
    return rows[0], [row for row in rows if row.kind == "student"][-1]


def terms_of(config: Config) -> list[str]:
    """The terms that a configuration has, each once.

    Example: with `vkd.beta=0` there is no `dp` to leave out, and without `kd` there would be no distillation at all,
    which is what `distillation` stands for; so these are `distillation`, `triplet`, `ce`, `restart`.
    """
    found: dict[str, str] = {}
    for term, (_, changes) in TERMS.items():
        try:
            check_terms(config, [term], [0])
        except ConfigError:
            continue
        found.setdefault(merged(config, changes).dump(), term)
    return list(found.values())


def check_terms(config: Config, terms: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises `ConfigError` for terms that cannot be left out, no terms, or seeds below 0."""
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
        changes = TERMS[term][1]
        if all(get(config, key) == value for key, value in changes.items()):
            already = " and ".join(f"{key} is {value}" for key, value in changes.items())
            raise ConfigError(
                f"{already} already, so '{term}' cannot be left out; set it, or leave '{term}' out of the terms"
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


def _shared(config: Config) -> dict[str, Any]:
    """Changes of every run: the teacher is that of the run itself, and its student alone is trained."""
    return {"vkd.teacher": str(Path(config.data.save_dir) / "teacher" / NETWORK_NAME), "vkd.controls": False}


def _jobs(config: Config, terms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """A run per seed with all terms, then one per term and seed."""
    changed = {"all": (WHOLE, {}), **{term: TERMS[term] for term in terms}}
    return [
        Job(name, f"{FOLDER}/{term}-seed-{seed}", {**_shared(config), "train.seed": seed, **changes}, {"seed": seed})
        for term, (name, changes) in changed.items()
        for seed in seeds
    ]


def _settings(config: Config, job: Job) -> str:
    return str(merged(config, job.changes).dump())


def _places(config: Config, jobs: Sequence[Job]) -> tuple[dict[str, Path], list[Job]]:
    """Where the student of each job's settings is, and the jobs that make one: equal settings are one student.

    The run itself has made one with all terms, from its own seed.
    """
    folder = Path(config.data.save_dir)
    (own,) = _jobs(config, (), [config.train.seed])
    places, new = {_settings(config, own): folder}, []
    for job in jobs:
        if (settings := _settings(config, job)) not in places:
            places[settings] = folder / job.folder
            new.append(job)
    return places, new


def _views_jobs(
    config: Config, teacher_views: Sequence[int], student_views: Sequence[int], seeds: Sequence[int]
) -> list[Job]:
    """A run per seed and pair of views, and per seed and number of a student's views without distillation."""
    if not teacher_views:
        return []
    if not student_views or min(*teacher_views, *student_views) < 1 or min(student_views) > max(teacher_views):
        raise ConfigError(
            f"the teacher's views are {list(teacher_views)}, the student's {list(student_views)}; give one or more of "
            "each, from 1 on, and a student's number that is not above the teacher's"
        )
    most, undistilled = max(teacher_views), TERMS["distillation"][1]
    cells: list[tuple[int, int, dict[str, Any]]] = [
        (wide, few, {}) for wide in teacher_views for few in student_views if few <= wide
    ]
    cells += [(0, few, undistilled) for few in student_views if few <= most]
    return [
        Job(
            "views",
            f"{FOLDER}/views-{wide or 'none'}-{few}-seed-{seed}",
            {
                **_shared(config),
                "train.seed": seed,
                "vkd.num_views": wide or most,
                "vkd.num_student_views": few,
                **changes,
            },
            {"teacher_views": wide, "student_views": few, "seed": seed},
        )
        for wide, few, changes in cells
        for seed in seeds
    ]
