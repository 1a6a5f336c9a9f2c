"""What is trained in the student's stage: the student of a generation, and two controls that it is measured against.

What a student gains has three sources: its teacher's knowledge, training on, and a start with a restarted last stage. A
teacher that is trained on for as many epochs, and a student that begins as it does and learns from labels alone, tell
them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...config import Config
from ...files import sha256
from ...host.compat import seed_everything
from ...vkd.model import class_count
from ...vkd.students import KEEP, student_from
from ..recipes import Recipe
from ..trainer import EngineBuilder
from .plan import SetPlan, start_student, student_label
from .trainer import STUDENT_STAGE, TAUGHT, SetTrainer

TEACHER, STUDENT, CONTROL = "teacher", "student", "control"
TRAINED_ON, UNDISTILLED = "trained on", "without distillation"
CONTROLS = {TRAINED_ON: "trained-on", UNDISTILLED: "undistilled"}
"""Kinds of control, and their folders."""

_STARTED = ("num_student_views", "reinit_last_stage", "last_stage_weights")


@dataclass(frozen=True)
class Learner:
    """A network to be trained.

    Attributes:
        folder: its name.
        label: of its row.
        kind: `student` or `control`.
        beside: of a control: label of the student that it is measured against.
        recipe: of its stage.
        stage: its schedule; a number of views of its own if it sees others than the run's.
        views: frames of a set that it sees.
        engine: builder of its engine.
        start: makes it, seeded.
    """

    folder: str
    label: str
    kind: str
    beside: str
    recipe: Recipe
    stage: Config
    views: int
    engine: EngineBuilder
    start: Callable[[], nn.Module]


@dataclass(frozen=True)
class Generation:
    """A teacher and what is trained after it.

    Attributes:
        number: from 1.
        plan: how the first generation's student is made.
        trainer: of sets.
        teacher: not changed.
        teacher_key: digest of its file.
    """

    number: int
    plan: SetPlan
    trainer: SetTrainer
    teacher: nn.Module
    teacher_key: str

    @property
    def config(self) -> Config:
        """The whole tree."""
        return self.trainer.config

    def student(self) -> Learner:
        """The student, which learns from labels and from its teacher."""
        name, node = student_name(self.number), self.config.vkd
        engine = self.trainer.distilling_engine(self.teacher)
        about = (name, self._label(name), STUDENT, "", self._recipe(*TAUGHT))
        return Learner(*about, node.student_stage, node.num_student_views, engine, self._start)

    def undistilled(self) -> Learner:
        """The student of the same start, sets, views and schedule, which learns from labels alone."""
        label, views = self._label(student_name(self.number)), self.config.vkd.num_student_views
        engine = self.trainer.engine(teacher=self.teacher, num_student_views=views, alpha=0.0, beta=0.0)
        about = (control_folder(UNDISTILLED, self.number), f"{label} {UNDISTILLED}", CONTROL, label, self._recipe())
        return Learner(*about, self.config.vkd.student_stage, views, engine, self._start)

    def trained_on(self) -> Learner:
        """The teacher itself, from where its training ended, with its own views, for the student's schedule.

        A trained network may want a lower rate than a student that begins anew (`vkd.trained_on_lr`).
        """
        node, name, label = self.config.vkd, student_name(self.number - 1), self._label(student_name(self.number))
        views, strategy = teacher_sets(self.config)
        if self.number > 1:  # its teacher is a student
            views, strategy = node.num_student_views, node.strategy
        stage = node.student_stage.clone()
        stage.defrost()
        stage.num_views, stage.strategy, stage.lr = views, strategy, node.trained_on_lr or stage.lr
        recipe = self.trainer.recipe(STUDENT_STAGE, **{"the teacher": self.teacher_key})
        own = {"vkd.num_views": views, "vkd.strategy": strategy, f"{STUDENT_STAGE}.lr": stage.lr}
        recipe = recipe.with_weights(**own)
        about = (control_folder(TRAINED_ON, self.number), f"{name} {TRAINED_ON}", CONTROL, label, recipe)
        return Learner(*about, stage, views, self.trainer.engine(), self._teacher_again)

    def learners(self) -> list[Learner]:
        """All of them, the student first."""
        return [self.student(), *([self.undistilled(), self.trained_on()] if self.config.vkd.controls else [])]

    def _label(self, name: str) -> str:
        of_other_widths = self.number == 1 and self.config.vkd.student
        return f"{name} ({student_label(self.config)})" if of_other_widths else name

    def _recipe(self, *taught: str) -> Recipe:
        """From the second generation on a student has its teacher's architecture."""
        node = self.config.vkd
        start = ("student", "student_width") if self.number == 1 else ()
        files = [path for path in (node.student, node.last_stage_weights) if Path(path).is_file()]
        made = {
            "the files that it begins with": [sha256(path) for path in files] or None,
            "the teacher": self.teacher_key,
        }
        return self.trainer.recipe(STUDENT_STAGE, *(f"vkd.{key}" for key in (*taught, *_STARTED, *start)), **made)

    def _start(self) -> nn.Module:
        seed_everything(self.config.train.seed + self.number)
        return start_student(self.config, self.plan, self.teacher, self.trainer.num_classes, self.number)

    def _teacher_again(self) -> nn.Module:
        seed_everything(self.config.train.seed + self.number)
        classes = self.trainer.num_classes
        return student_from(self.teacher, classes, KEEP, keep_head=class_count(self.teacher, TEACHER) == classes)


def student_name(generation: int) -> str:
    """`teacher` for 0, then `student`, `student-2`, ..."""
    return (TEACHER, STUDENT)[generation] if generation < 2 else f"{STUDENT}-{generation}"


def control_folder(control: str, generation: int) -> str:
    """The folder of one of `CONTROLS`: `undistilled`, then `undistilled-2`, ..."""
    return CONTROLS[control] + (f"-{generation}" if generation > 1 else "")


def teacher_sets(config: Config) -> tuple[int, str]:
    """Number of views, and where they come from, in the teacher's own training."""
    node = config.vkd
    return node.teacher_stage.num_views or node.num_views, node.teacher_stage.strategy or node.strategy
