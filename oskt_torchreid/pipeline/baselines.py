"""Baselines in a run: who makes a student, whether it can, and the stage that makes, trains and evaluates one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..baselines import DistillationEngine, baseline, make_baseline
from ..config import digest
from ..files import save_checkpoint
from ..graph import ChannelGraph
from ..host.compat import seed_everything
from ..host.engine import TransferEngine
from .stages import Facts, Stage
from .training import EngineBuilder, Trainer, first_target

STUDENT_NAME = "student.pth"


def method_of(name: str) -> str:
    """The baseline in ``slice:width=0.5``; empty for ``width=0.5``, a student of the chain.

    Raises:
        ConfigError: an unknown baseline.
    """
    method, colon, _ = name.partition(":")
    if colon:
        baseline(method)
    return method if colon else ""


def check_baselines(names: set[str], teacher: nn.Module, graph: ChannelGraph) -> None:
    """Raises a typed error unless every named baseline can serve a teacher of this structure, whatever its weights."""
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
    node: Any,
    folder: Path,
    teacher_key: str,
    evaluate_before: bool = True,
) -> tuple[nn.Module, Facts]:
    """Makes a student by a baseline, evaluates it, trains it and evaluates it again.

    Args:
        trainer: of the run.
        method: name of the baseline.
        teacher: not changed.
        graph: the teacher's channel graph.
        widths: of the student.
        node: schedule of its training.
        folder: of this student.
        teacher_key: digest of how the teacher was made.
        evaluate_before: whether to evaluate it untrained.

    Returns:
        The student (trained, if this call trained it), and ``before``, ``after`` and ``finetune_seconds``.
    """
    config = trainer.config
    distillation = config.oskt.distillation if baseline(method).distils else None
    key = digest("control", method, teacher_key, widths, node, distillation, evaluate_before)
    stage = Stage(folder, key, (STUDENT_NAME,))
    seed_everything(config.train.seed)
    student = make_baseline(distillation.start if distillation else method, teacher, graph, widths)
    engine = partial(_distilling, distillation, teacher, graph) if distillation else TransferEngine

    def work(continued: bool) -> Facts:
        before = trainer.evaluate(student) if evaluate_before else {}
        after, seconds = finetuned(trainer, student, node, folder, continued, engine)
        save_checkpoint(folder / STUDENT_NAME, {"state_dict": student.cpu().state_dict()})
        return {"before": before, "after": after, "finetune_seconds": seconds}

    return student, stage.complete(work)


def finetuned(
    trainer: Trainer,
    network: nn.Module,
    node: Any,
    folder: Path,
    continued: bool,
    engine: EngineBuilder = TransferEngine,
) -> tuple[Facts, float]:
    """Fine-tunes a network in place; its numbers afterwards, and the seconds that training took."""
    if node.max_epoch == 0:
        return trainer.evaluate(network), 0.0
    trained = trainer.train(network, node, folder, continued, engine)
    return first_target(trained), trained.train_seconds


def _distilling(
    node: Any, teacher: nn.Module, graph: ChannelGraph, *arguments: Any, **options: Any
) -> DistillationEngine:
    return DistillationEngine(
        *arguments,
        teacher=teacher,
        heads=graph.heads,
        weight_kl=node.weight_kl,
        weight_nd=node.weight_nd,
        temperature=node.temperature,
        **options,
    )
