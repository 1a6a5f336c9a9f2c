"""A run of VKD: a teacher of many views, then one student of few views after another, each under the one before."""

from __future__ import annotations

import logging
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from ..config import digest
from ..files import save_checkpoint, sha256
from ..host.compat import seed_everything
from ..host.distributed import first_before_others
from ..host.weights import load_weights
from ..oskt.network import trace
from ..oskt.students import save_student
from ..report import Results
from ..report.protocols import SetRow, write_set_report
from ..vkd.engine import VKDEngine
from ..vkd.manager import build_set_datamanager
from .set_plan import SetPlan, plan_sets, start_student, wish_of
from .stages import Facts, Stage
from .training import Trainer, network_size

logger = logging.getLogger(__name__)

NETWORK_NAME = "network.pth"


class SetTrainer(Trainer):
    """Trains and evaluates networks of sets on the data of one configuration."""

    def datamanager(self, batch_size: int, num_views: int = 0, strategy: str = "") -> Any:
        """The data manager of sets for a training batch; made once per size, number of views and strategy.

        Args:
            batch_size: sets in a batch.
            num_views: frames of a set; 0: ``vkd.num_views``.
            strategy: where they come from; empty: ``vkd.strategy``.
        """
        key = (batch_size, num_views or self.config.vkd.num_views, strategy or self.config.vkd.strategy)
        if key not in self._managers:
            with first_before_others():
                self._managers[key] = build_set_datamanager(self.config, *key)
        return self._managers[key]

    def stage_datamanager(self, stage: Any) -> Any:
        """That of a stage; the teacher's may have views of its own."""
        return self.datamanager(stage.batch_size, stage.get("num_views", 0), stage.get("strategy", ""))

    @property
    def first_datamanager(self) -> Any:
        """That of the teacher's stage."""
        return self.stage_datamanager(self.config.vkd.teacher_stage)

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
        engine = self.engine()(self.first_datamanager, model, use_gpu=self.config.use_gpu)
        engine.test()
        return next(iter(engine.protocols.values()))


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
        views = node.num_views if given else node.teacher_stage.num_views or node.num_views
        self._row("teacher", "teacher", teacher.cpu(), views, facts, epochs)
        return teacher, key

    def _student(self, generation: int, teacher: nn.Module, teacher_key: str) -> tuple[nn.Module, str]:
        """Distils one student; it is the next one's teacher."""
        node = self.config.vkd
        settings = {key: node[key] for key in ("temperature", "alpha", "beta", "num_student_views")}
        start = {key: node[key] for key in ("student", "student_width", "reinit_last_stage", "last_stage_weights")}
        if generation > 1:
            start["student"] = ""  # it is of its teacher's architecture
        files = [path for path in (node.student, node.last_stage_weights) if Path(path).is_file()]
        key = digest("set student", teacher_key, settings, start, [sha256(path) for path in files], node.student_stage)
        name = "student" if node.generations == 1 else f"student-{generation}"
        stage = Stage(self.folder / name, key, (NETWORK_NAME,))
        seed_everything(self.config.train.seed + generation)
        student = start_student(self.config, self.plan, teacher, self.trainer.num_classes, generation)

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
        label = f"{name} ({wish_of(self.config)})" if generation == 1 and node.student else name
        self._row(label, "student", student.cpu(), node.num_student_views, facts, node.student_stage.max_epoch)
        return student, key

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
    trainer.stage_datamanager(config.vkd.student_stage)  # whether its batches can be made is known before training
    plan = plan_sets(config, trainer.num_classes)
    job = VKDRun(config, trainer, plan, folder)
    trainer.record(folder)
    return job.complete()
