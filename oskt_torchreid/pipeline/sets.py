"""A run of VKD: a teacher of many views, then one student of few views after another, each under the one before."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from ..config import digest
from ..errors import ConfigError
from ..files import save_checkpoint, sha256
from ..host.compat import seed_everything
from ..host.models import build, load_weights
from ..oskt.chain import WeightChain
from ..oskt.network import trace
from ..oskt.students import expand, save_student
from ..report import Results
from ..report.protocols import SetRow, write_set_report
from ..vkd.engine import VKDEngine
from ..vkd.manager import build_set_datamanager
from ..vkd.model import PREFIX, as_set_model, load_set_model
from ..vkd.students import KEEP, SCRATCH, student_from
from .stages import Facts, Stage
from .training import Trainer, network_size
from .wishes import parse_wish

logger = logging.getLogger(__name__)

NETWORK_NAME = "network.pth"
CHAIN_SUFFIX = ".safetensors"
_NARROWEST = 1e-6  # a chain of one channel per group allows every width


class SetTrainer(Trainer):
    """Trains and evaluates networks of sets on the data of one configuration."""

    def datamanager(self, batch_size: int) -> Any:
        """The data manager of sets for a training batch of so many sets; made once per size."""
        if batch_size not in self._managers:
            self._managers[batch_size] = build_set_datamanager(self.config, batch_size)
        return self._managers[batch_size]

    @cached_property
    def num_classes(self) -> int:
        """Training identities of the data."""
        return self.datamanager(self.config.vkd.teacher_stage.batch_size).num_train_pids

    @cached_property
    def data_key(self) -> str:
        """Digest of all that decides what a network of sets learns and is measured by, but schedules."""
        node = self.config.vkd
        views = ("num_views", "strategy", "no_camera", "test_frames", "protocols", "query_in_gallery")
        return digest("sets", super().data_key, self.config.synthped_video, {key: node[key] for key in views})

    def engine(self, **options: Any) -> Any:
        """What builds a VKD engine with the configuration's evaluation."""
        node = self.config.vkd
        evaluation = {"protocols": tuple(node.protocols), "query_in_gallery": node.query_in_gallery}
        return partial(VKDEngine, no_camera=node.no_camera, **evaluation, **options)

    def protocols(self, model: nn.Module) -> Facts:
        """Numbers of every protocol on the first target."""
        manager = self.datamanager(self.config.vkd.teacher_stage.batch_size)
        engine = self.engine()(manager, model, use_gpu=self.config.use_gpu)
        engine.test()
        return next(iter(engine.protocols.values()))


@dataclass(frozen=True)
class SetPlan:
    """What a run will do, checked beforehand.

    Attributes:
        teacher: the teacher's network, with its checkpoint's weights where one is given.
        student: how the first student is made: ``self`` (from its teacher), ``cross`` (another backbone) or ``chain``.
        chain: the chain that the student is expanded from, where it is made so and the chain is there already.
    """

    teacher: nn.Module
    student: str
    chain: WeightChain | None = None


def plan_sets(config: Any, num_classes: int) -> SetPlan:
    """Builds the teacher and reads what the student is made of.

    Raises:
        ConfigError: an unknown backbone or width, or settings that do not go together.
        CheckpointError: a teacher's checkpoint of another network, or without a head.
        ChainError: a chain that cannot be read.
    """
    node = config.vkd
    if config.loss.name != "triplet":
        raise ConfigError(
            f"engine vkd needs embeddings in training, but loss.name is '{config.loss.name}': set triplet"
        )
    seed_everything(config.train.seed)
    name = PREFIX + config.model.name.removeprefix(PREFIX)
    if node.teacher:
        teacher = load_set_model(name, node.teacher)
    else:
        teacher = build(name, num_classes, "triplet", bool(config.model.pretrained))
    if not node.student:
        return SetPlan(teacher, "self")
    if node.student.endswith(CHAIN_SUFFIX):
        return SetPlan(teacher, "chain", WeightChain.load(node.student))
    if "=" in node.student:
        parse_wish(node.student, "vkd.student")
        return SetPlan(teacher, "chain")
    build(PREFIX + node.student.removeprefix(PREFIX), num_classes, "triplet")
    return SetPlan(teacher, "cross")


class VKDRun:
    """One run of the method.

    Args:
        config: whole tree.
        trainer: of sets.
        plan: already checked.
        folder: where everything is kept.
    """

    def __init__(self, config: Any, trainer: SetTrainer, plan: SetPlan, folder: Path) -> None:
        self.config = config
        self.trainer = trainer
        self.plan = plan
        self.folder = folder
        self.rows: list[SetRow] = []

    def complete(self) -> Results:
        """The teacher, then every generation of students, then the report."""
        teacher, key = self._teacher()
        for generation in range(1, self.config.vkd.generations + 1):
            teacher, key = self._student(generation, teacher, key)
        facts = {"engine": "vkd", "backbone": self.config.model.name, "data": list(self.config.data.targets)}
        write_set_report(self.folder, self.rows, self.config, facts)
        return Results(tuple(row.as_row() for row in self.rows), facts)

    def _teacher(self) -> tuple[nn.Module, str]:
        node, teacher = self.config.vkd, self.plan.teacher
        given = sha256(node.teacher) if node.teacher else ""
        key = digest("set teacher", self.trainer.data_key, self.config.model.name, given or node.teacher_stage)
        stage = Stage(self.folder / "teacher", key, (NETWORK_NAME,))

        def work(continued: bool) -> Facts:
            if given:
                facts = {"protocols": self.trainer.protocols(teacher), "train_seconds": 0.0}
            else:
                facts = self._trained(teacher, node.teacher_stage, stage.folder, continued, self.trainer.engine())
            save_checkpoint(stage.folder / NETWORK_NAME, {"state_dict": teacher.state_dict()})
            return facts

        facts = stage.complete(work)
        load_weights(teacher, stage.folder / NETWORK_NAME)
        epochs = 0 if given else node.teacher_stage.max_epoch
        self._row("teacher", "teacher", teacher.cpu(), node.num_views, facts, epochs)
        return teacher, key

    def _student(self, generation: int, teacher: nn.Module, teacher_key: str) -> tuple[nn.Module, str]:
        """Distils one student; it is the next one's teacher."""
        node = self.config.vkd
        settings = {key: node[key] for key in ("temperature", "alpha", "beta", "num_student_views")}
        start = {key: node[key] for key in ("student", "student_width", "reinit_last_stage", "last_stage_weights")}
        if generation > 1:
            start["student"] = ""  # it is of its teacher's architecture
        chain = sha256(node.student) if self.plan.chain is not None else ""
        key = digest("set student", teacher_key, settings, start, chain, node.student_stage)
        name = "student" if node.generations == 1 else f"student-{generation}"
        stage = Stage(self.folder / name, key, (NETWORK_NAME,))
        seed_everything(self.config.train.seed + generation)
        student = self._start(teacher, start)

        def work(continued: bool) -> Facts:
            build_engine = self.trainer.engine(teacher=teacher, **settings)
            facts = self._trained(student, node.student_stage, stage.folder, continued, build_engine)
            if hasattr(student, "student_record"):
                save_student(student.cpu().eval(), stage.folder / NETWORK_NAME)
            else:
                save_checkpoint(stage.folder / NETWORK_NAME, {"state_dict": student.state_dict()})
            return facts

        facts = stage.complete(work)
        load_weights(student, stage.folder / NETWORK_NAME)
        self._row(name, "student", student.cpu(), node.num_student_views, facts, node.student_stage.max_epoch)
        return student, key

    def _start(self, teacher: nn.Module, start: Facts) -> nn.Module:
        """The student before its training."""
        node = self.config.vkd
        if start["student"] and self.plan.student == "chain":
            size = (3, self.config.data.height, self.config.data.width)
            chain = self.plan.chain
            wish = {"width": node.student_width}
            if chain is None:  # clustered now, of this run's teacher
                chain, wish = WeightChain.from_teacher(teacher, _NARROWEST, input_size=size), parse_wish(node.student)
            return as_set_model(expand(chain, **wish), self.trainer.num_classes, size)
        if start["student"]:
            name = PREFIX + node.student.removeprefix(PREFIX)
            return build(name, self.trainer.num_classes, "triplet", bool(self.config.model.pretrained))
        last_stage = node.last_stage_weights or SCRATCH
        restarts = node.reinit_last_stage
        same = teacher.classifier.out_features == self.trainer.num_classes
        return student_from(teacher, self.trainer.num_classes, last_stage if restarts else KEEP, same and not restarts)

    def _trained(self, model: nn.Module, stage: Any, folder: Path, continued: bool, engine: Any) -> Facts:
        trained = self.trainer.train(model, stage, folder, continued, engine)
        measured = next(iter(trained.protocols.values()), None) or self.trainer.protocols(model)  # after no epoch
        return {"protocols": measured, "train_seconds": trained.train_seconds}

    def _row(self, name: str, kind: str, network: nn.Module, views: int, facts: Facts, epochs: int) -> None:
        size = (3, self.config.data.height, self.config.data.width)
        params, flops = network_size(network, trace(network, size).heads, size)
        row = SetRow(name, kind, params, flops, views, facts["protocols"], epochs, facts["train_seconds"])
        self.rows.append(row)
        logger.info("%s: %s", name, row.summary())


def run_sets(config: Any, folder: Path) -> Results:
    """Runs what ``engine: vkd`` asks for; finished stages are not made again."""
    trainer = SetTrainer(config)
    plan = plan_sets(config, trainer.num_classes)
    job = VKDRun(config, trainer, plan, folder)
    trainer.record(folder)
    return job.complete()
