"""Baselines in a run: checks, and the stage that makes, trains and evaluates a student of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...baselines import DistillationEngine, baseline, make_baseline
from ...chain.network import traced_alone
from ...chain.relabelling import relabel
from ...chain.student_file import save_student
from ...chain.student_reading import load_student
from ...config import Config, leaves
from ...config.nodes.oskt import DISTILLATION_KEYS, KD, KD_START
from ...deploy.lifting import lifting_of_student
from ...files import sha256
from ...graph import ChannelGraph
from ...host.compat import seed_everything
from ...host.engine import TransferEngine
from ..compute import training_compute
from ..recipes import Recipe
from ..stages import Facts
from ..trainer import EngineBuilder, Trainer, measured

STUDENT_NAME = "student.pth"


class Distillation(NamedTuple):
    """What a student is distilled from.

    Attributes:
        node: `oskt.distillation`.
        teacher: not changed.
        graph: the teacher's channel graph.
        taught: whether it learns from class scores and directions, as the node says.
        compatible: weight of what holds its lifted features to the teacher's.
    """

    node: Config
    teacher: nn.Module
    graph: ChannelGraph
    taught: bool = True
    compatible: float = 0.0

    @property
    def weight_nd(self) -> float:
        """Weight of the norm and direction loss, which needs the teacher's class means."""
        return self.node.weight_nd if self.taught else 0.0

    def engine(self, datamanager: Any, model: nn.Module, *arguments: Any, **options: Any) -> DistillationEngine:
        """The engine that trains a student by distillation, as the node says."""
        lifting = lifting_of_student(model) if self.compatible else ()
        return DistillationEngine(
            datamanager,
            model,
            *arguments,
            teacher=self.teacher,
            heads=self.graph.heads,
            weight_kl=self.node.weight_kl if self.taught else 0.0,
            weight_nd=self.weight_nd,
            weight_compatible=self.compatible,
            lifting=lifting,
            temperature=self.node.temperature,
            **options,
        )


def check_baselines(names: set[str], teacher: nn.Module, graph: ChannelGraph) -> None:
    """Raises a typed error unless every named baseline supports a teacher of this structure, whatever its weights."""
    for name in sorted(names):
        check = baseline(name).check
        if check is not None:
            check(teacher, graph)


def run_baseline(
    trainer: Trainer,
    method: str,
    teacher: nn.Module,
    graph: ChannelGraph,
    widths: dict[str, int],
    node: Config,
    folder: Path,
    teacher_key: str,
    evaluate_before: bool = True,
) -> tuple[nn.Module, Facts | None]:
    """Makes a student by a baseline, evaluates it, trains it and evaluates it again.

    Args:
        trainer: of the run.
        method: name of the baseline.
        teacher: not changed.
        graph: the teacher's channel graph.
        widths: of the student.
        node: schedule of its training.
        folder: of this student.
        teacher_key: digest of the teacher's file.
        evaluate_before: whether to evaluate it untrained.

    Returns:
        The student (trained, if this call trained it), and `before`, `expand_seconds` and what `finetuned` measures;
        `None` if nothing is to be trained and there is no such student.
    """
    config = trainer.config
    distils = baseline(method).distils
    distillation = config.oskt.distillation
    used = [KD_START] if method == KD else []
    nodes = ("oskt.curves", *((*DISTILLATION_KEYS, *used) if distils else ()))
    made = {"method": method, "widths": widths, "the teacher": teacher_key, **_schedule_of(node, method)}
    recipe = trainer.recipe(*nodes, **made)
    seed_everything(config.train.seed)
    start = time.perf_counter()
    student = make_baseline(distillation.start if method == KD else method, teacher, graph, widths)
    student = relabel(student, graph.heads, trainer.num_classes)
    making = {"expand_seconds": time.perf_counter() - start}
    knowledge = Distillation(distillation, teacher, graph) if distils else None
    return student, run_control(trainer, student, node, folder, recipe, knowledge, evaluate_before, making)


def _schedule_of(node: Config, method: str) -> dict[str, Any]:
    """The settings of a training under their keys; values may differ from the configuration's."""
    schedule = leaves(node, "oskt.finetune.")
    del schedule["oskt.finetune.compatible"]  # there is nothing that it could be compatible with
    return {f"oskt.control_lr.{method}": schedule.pop("oskt.finetune.lr"), **schedule}


def run_file(trainer: Trainer, path: Path, node: Config, folder: Path) -> tuple[nn.Module, Facts | None]:
    """A student that an earlier run saved, evaluated, trained on this run's data and evaluated again.

    Args:
        trainer: of the run.
        path: file of `save_student`; its classifiers are replaced if the identities differ.
        node: schedule of its training.
        folder: of this student.
    """
    recipe = trainer.recipe("oskt.finetune", "oskt.curves", **{"the file": sha256(path)})
    student = load_student(path)
    seed_everything(trainer.config.train.seed)
    heads = traced_alone(student, (3, trainer.config.data.height, trainer.config.data.width)).heads
    return relabel(student, heads, trainer.num_classes), run_control(trainer, student, node, folder, recipe)


def run_control(
    trainer: Trainer,
    student: nn.Module,
    node: Config,
    folder: Path,
    recipe: Recipe,
    distillation: Distillation | None = None,
    evaluate_before: bool = True,
    making: Facts | None = None,
) -> Facts | None:
    """The stage of a student without a chain: evaluates it, trains it in place, evaluates it again, saves it.

    The measurements of its making are kept among the stage's facts. With `test.evaluate` nothing is trained; if there
    is no such student yet, the result is `None`.
    """
    stage = trainer.stage(folder, recipe, STUDENT_NAME)

    def work(continued: bool) -> Facts:
        before = trainer.evaluate(student) if evaluate_before else {}
        facts = finetuned(trainer, student, node, folder, continued, distillation)
        save_student(student.cpu().eval(), folder / STUDENT_NAME)
        return {"before": before, **(making or {}), **facts}

    def evaluate(facts: Facts) -> Facts:
        before = trainer.evaluate(student) if evaluate_before else {}
        after = trainer.evaluate(load_student(folder / STUDENT_NAME), folder)
        return {"finetune_seconds": None, **facts, "before": before, "after": after, "curve": []}

    return stage.evaluated(evaluate) if trainer.config.test.evaluate else stage.complete(work, evaluate)


def finetuned(
    trainer: Trainer,
    network: nn.Module,
    node: Config,
    folder: Path,
    continued: bool,
    distillation: Distillation | None = None,
) -> Facts:
    """Fine-tunes a network in place.

    Returns:
        `after` (its numbers), `finetune_seconds` (of training), `training_flops` (multiply-adds of it) and `curve`
        ((epoch, mAP) of every evaluation).
    """
    if node.max_epoch == 0:
        after = trainer.evaluate(network, folder)
        return {"after": after, "finetune_seconds": 0.0, "training_flops": 0.0, "curve": []}
    engine: EngineBuilder = TransferEngine if distillation is None else distillation.engine
    learning = (distillation.teacher, distillation.weight_nd > 0) if distillation else ()
    compute = training_compute(trainer, node, network, *learning)
    trained = trainer.train(network, node, folder, continued, engine, curve=trainer.config.oskt.curves)
    curve = [(point["epoch"], point["mAP"]) for point in trained.curve]
    after, seconds = measured(trained), trained.train_seconds
    return {"after": after, "finetune_seconds": seconds, "training_flops": compute, "curve": curve}
