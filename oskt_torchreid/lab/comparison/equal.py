"""Jobs in which baselines are trained for as much as the chain, counted in one of four ways.

passes      every width for as many epochs as refinement and fine-tuning take together
trained-on  the teacher itself for as many epochs as refinement takes, by labels alone and with its own scores
compute     several widths with as many multiply-adds, all of them together, as the chain's refinement and its students
            of these widths take
total       the narrowest network from its first weights on, for the epochs of teacher, refinement and fine-tuning
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...baselines import baseline
from ...config import Config, get
from ...errors import ConfigError
from ...report import read_results
from ...runs.compute import epochs_compute, full_epochs, schedule_epochs
from .parts import CHAIN_METHOD, RESULTS_NAME, TEACHER, Changes, Rates, student_entries, tuned

Named = tuple[str, str, Changes]
"""Scenario, folder and changed keys."""


def check_equal(config: Config) -> None:
    """Raises `ConfigError` unless everything that these jobs start from is chosen or measured in others."""
    node = config.comparison
    for key, methods in (("compute.methods", node.compute.methods), ("total_methods", node.total_methods)):
        if foreign := [name for name in methods if name not in node.methods]:
            raise ConfigError(
                f"comparison.{key} has {', '.join(foreign)}, whose rate is not chosen; add it to comparison.methods"
            )
        if methods and not any(width < 1 for width in node.equal_passes_widths):
            raise ConfigError(
                f"comparison.{key} takes the rates of equal passes; give comparison.equal_passes_widths one below 1"
            )
    if foreign := [f"{width:g}" for width in node.compute.widths if width not in node.widths]:
        raise ConfigError(
            f"comparison.compute.widths has {', '.join(foreign)}, and comparison.widths has not; the sizes of "
            "networks are taken from there, so add it"
        )
    if any(width >= 1 for width in node.compute.widths):
        raise ConfigError("comparison.compute.widths has 1, the teacher's own width; leave it out")
    if bool(node.compute.widths) != bool(node.compute.methods):
        raise ConfigError("comparison.compute needs both, widths and methods; give the other, or neither")
    if (node.trained_on or node.compute.widths) and not get(config, "oskt.refine").max_epoch:
        raise ConfigError(
            "comparison.trained_on and comparison.compute give others what the refinement takes, and "
            "oskt.refine.max_epoch is 0; set it to 1 or more"
        )
    if foreign := [name for name in node.total_methods if baseline(name).inherits]:
        raise ConfigError(
            f"comparison.total_methods has {', '.join(foreign)}, whose networks begin as the trained teacher; give "
            "methods that begin anew, such as kd++"
        )
    if node.trained_on and not any(baseline(name).inherits and not baseline(name).distils for name in node.methods):
        raise ConfigError(
            f"comparison.trained_on needs a method by which the teacher is trained on by labels; add slice to "
            f"comparison.methods ({', '.join(node.methods)})"
        )
    if 1.0 in node.equal_passes_widths and not node.trained_on:
        raise ConfigError(
            "comparison.equal_passes_widths has 1, the teacher's own width, whose rate comparison.trained_on chooses; "
            "set that to True"
        )


def methods_at(methods: Sequence[str], width: float) -> list[str]:
    """Methods that are different networks at a width.

    At the teacher's all that inherit are the teacher itself: one stands for those that are trained by labels, and one
    for those that also learn from it.

    Example: of `slice`, `norm`, `norm+kd`, `kmeans+kd` and `scratch`, these are `slice`, `norm+kd` and `scratch`.
    """
    if width < 1:
        return list(methods)
    found: dict[object, str] = {}
    for name in methods:
        method = baseline(name)
        found.setdefault(method.distils if method.inherits else name, name)
    return list(found.values())


def inheriting_at_1(methods: Sequence[str]) -> list[str]:
    """The ways to train the teacher on: by labels, and by its own scores, as far as these methods do."""
    return [name for name in methods_at(methods, 1) if baseline(name).inherits]


def with_epochs(epochs: int, half_resolution: int = 0) -> Changes:
    """The students' schedule for other epochs."""
    return {"oskt.finetune.max_epoch": epochs, "oskt.finetune.half_resolution_epochs": min(half_resolution, epochs)}


def passes_changes(config: Config) -> Changes:
    """As many epochs as refinement and fine-tuning take together, at low resolution where refinement had it."""
    refine, finetune = get(config, "oskt.refine"), get(config, "oskt.finetune")
    low = sum(min(node.half_resolution_epochs, node.max_epoch) for node in (refine, finetune))
    return with_epochs(refine.max_epoch + finetune.max_epoch, low)


def trained_on_changes(config: Config) -> Changes:
    """As many epochs as refinement takes."""
    refine = get(config, "oskt.refine")
    return with_epochs(refine.max_epoch, refine.half_resolution_epochs)


def equal_jobs(config: Config, rates: Rates) -> Iterator[Named]:
    """Baselines with equal passes, the teacher trained on, and narrow networks of their own for all epochs."""
    node = config.comparison
    narrow = [width for width in node.equal_passes_widths if width < 1]
    passes = {**passes_changes(config), "oskt.curves": True}
    if narrow:
        students = student_entries(list(node.methods), narrow)
        yield "passes", "passes", {**tuned(rates, "passes"), **passes, "oskt.students": students}
    if node.trained_on:
        students = student_entries(inheriting_at_1(node.methods), [1.0])
        chosen = tuned(rates, "trained-on")
        yield "trained-on", "trained-on", {**chosen, **trained_on_changes(config), "oskt.students": students}
        if len(narrow) < len(node.equal_passes_widths):
            entries = student_entries(methods_at(node.methods, 1), [1.0])
            yield "passes", "passes-1", {**tuned(rates, "passes"), **chosen, **passes, "oskt.students": entries}
    if node.total_methods:
        students = student_entries(list(node.total_methods), [min(node.widths)])
        low = config.train.half_resolution_epochs + passes["oskt.finetune.half_resolution_epochs"]
        whole = with_epochs(config.train.max_epoch + passes["oskt.finetune.max_epoch"], low)
        yield "total", "total", {**tuned(rates, "passes"), **whole, "oskt.students": students, "oskt.curves": False}


def compute_jobs(config: Config, rates: Rates, finetuned: Path) -> Iterator[Named]:
    """Baselines of several widths that are given, together, the compute of a chain and its students of these widths.

    Every width gets as many epochs. All of them were fine-tuned before, so that the size of each network is known.

    Args:
        config: whole tree.
        rates: as they were tuned.
        finetuned: folder of the finished job `finetune` of the same seeds.
    """
    node = config.comparison.compute
    if not node.widths:
        return
    results = read_results(finetuned / RESULTS_NAME)
    rows = {row.name: row for row in results.rows}
    refined, images = results.facts.get("refine", {}).get("training_flops"), results.facts.get("epoch_images")
    if images is None or refined is None:
        raise ConfigError(
            f"'{finetuned}' is of a version that did not count what training costs, which comparison.compute needs; "
            "move it away, or empty comparison.compute"
        )
    finetune, distillation = get(config, "oskt.finetune"), config.oskt.distillation
    teacher, means = rows[TEACHER].flops, distillation.weight_nd > 0

    def cost(method: str, epochs: float) -> float:
        distils = distillation.of_chain if method == CHAIN_METHOD else baseline(method).distils
        read = (teacher, means) if distils else ()
        entries = student_entries([method], list(node.widths))
        return images * sum(epochs_compute(epochs, rows[entry].flops, *read) for entry in entries)

    whole = refined + cost(CHAIN_METHOD, full_epochs(finetune))
    low = passes_changes(config)["oskt.finetune.half_resolution_epochs"]
    for method in node.methods:
        once, each = cost(method, 0), cost(method, 1) - cost(method, 0)
        changes = with_epochs(schedule_epochs((whole - once) / each, low), low)
        students = student_entries([method], list(node.widths))
        chosen = {**tuned(rates, "passes"), **changes, "oskt.students": students, "oskt.curves": False}
        yield "compute", f"compute-{method}", chosen
