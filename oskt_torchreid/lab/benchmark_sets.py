"""The cost of a step of view distillation, and of its parts: the teacher's forward pass, and a step of the student."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ..host.models import build
from ..host.vkd_engine import VKDEngine
from ..vkd.model import SET_PREFIX
from ..vkd.students import student_from

NUM_CLASSES, INSTANCES = 625, 4  # identities of MARS, sets of an identity
WARM_UP = 2


@dataclass(frozen=True)
class DistillationCost:
    """Median milliseconds, measured in turn in one process.

    Attributes:
        teacher_ms: the frozen teacher's forward pass on all views of a batch.
        student_ms: one training step of the student on its views, without a teacher.
        step_ms: one step of distillation.
    """

    teacher_ms: float
    student_ms: float
    step_ms: float

    @property
    def ratio(self) -> float:
        """A step of distillation over the sum of its parts."""
        return self.step_ms / (self.teacher_ms + self.student_ms)


def measure_distillation(
    backbone: str, sets: int, views: tuple[int, int], size: tuple[int, int], rounds: int, use_gpu: bool = False
) -> DistillationCost:
    """Times a step of the engine and, between two of them, both of its parts, so that a busy machine slows all alike.

    Args:
        backbone: registered name, of teacher and student.
        sets: in a batch, of 4 sets per identity.
        views: frames of a set for the teacher and for the student.
        size: `(height, width)` of a frame.
        rounds: how often each is timed, after a warm-up.
        use_gpu: run on the GPU if there is one.
    """
    torch.manual_seed(0)
    pids = torch.arange(sets) // INSTANCES % NUM_CLASSES
    batches = [{"img": torch.randn(sets, count, 3, *size), "pid": pids} for count in views]
    teacher = build(SET_PREFIX + backbone, NUM_CLASSES, "triplet")
    student = student_from(teacher)
    alone = _engine(batches[1], student_from(teacher), use_gpu)
    whole = _engine(batches[0], student, use_gpu, teacher=teacher, num_student_views=views[1])

    def teach() -> None:
        images, _ = whole.prepare(batches[0])
        with torch.no_grad():
            whole.outputs_of(images, whole.teacher)

    tasks = (teach, lambda: alone.forward_backward(batches[1]), lambda: whole.forward_backward(batches[0]))
    seconds: list[list[float]] = [[] for _ in tasks]
    for round_ in range(WARM_UP + rounds):
        for task, times in zip(tasks, seconds, strict=True):
            elapsed = _timed(task, whole.device)
            if round_ >= WARM_UP:
                times.append(elapsed)
    return DistillationCost(*(1e3 * statistics.median(times) for times in seconds))


def _engine(batch: dict[str, torch.Tensor], model: torch.nn.Module, use_gpu: bool, **options: Any) -> VKDEngine:
    """An engine in training mode on one batch in memory."""
    manager = SimpleNamespace(train_loader=[batch], test_loader={}, num_train_pids=NUM_CLASSES)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    engine = VKDEngine(manager, model, optimizer, use_gpu=use_gpu, **options)
    engine.set_model_mode("train")
    return engine


def _timed(task: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
