"""A run of VKD: a teacher of many views, then generations of students of few views, each taught by the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from ...chain.network import traced_alone
from ...chain.student_file import save_student
from ...config import Config, Effect, get, settings
from ...datasets.set_manager import build_set_datamanager
from ...files import save_checkpoint, sha256
from ...files.weights import load_weights
from ...host.compat import seed_everything
from ...host.distributed import broadcast, rank_zero_first
from ...host.interfaces import DataManager
from ...host.vkd_engine import VKDEngine
from ...report import Results
from ...report.protocols import SetRow, write_set_report
from ..checks import StageToCome, check_evaluation, check_stages
from ..recipes import Recipe
from ..stages import Facts, Stage, require_any
from ..trainer import EngineBuilder, Trainer, network_size
from .plan import SetPlan, plan_sets, start_student, student_label

logger = logging.getLogger(__name__)

NETWORK_NAME = "network.pth"
TEACHER_STAGE, STUDENT_STAGE = "vkd.teacher_stage", "vkd.student_stage"
_SET_KEYS = tuple(
    f"vkd.{key}" for key in ("num_views", "strategy", "no_camera", "test_frames", "protocols", "query_in_gallery")
)


class SetTrainer(Trainer):
    """Trains and evaluates networks of sets on the data of one configuration."""

    def datamanager(
        self,
        batch_size: int,
        batch_key: str = "vkd.teacher_stage.batch_size",
        num_views: int = 0,
        strategy: str = "",
    ) -> DataManager:
        """The data manager of sets for a training batch; made once per size, number of views and strategy.

        Args:
            batch_size: sets in a batch.
            batch_key: its key in the configuration.
            num_views: frames of a set; 0: `vkd.num_views`.
            strategy: where they come from; empty: `vkd.strategy`.
        """
        key = (batch_size, num_views or self.config.vkd.num_views, strategy or self.config.vkd.strategy)
        if key not in self._managers:
            with rank_zero_first():
                self._managers[key] = build_set_datamanager(self.config, *key, batch_key=batch_key)
        return self._managers[key]

    def stage_datamanager(self, stage: Config, key: str = TEACHER_STAGE) -> DataManager:
        """The data manager of a stage; the teacher's may have its own number of views."""
        views, strategy = stage.get("num_views", 0), stage.get("strategy", "")
        return self.datamanager(stage.batch_size, f"{key}.batch_size", views, strategy)

    @property
    def first_datamanager(self) -> DataManager:
        """The data manager of the first stage: the teacher's, or the student's if a teacher is given."""
        key = STUDENT_STAGE if self.config.vkd.teacher else TEACHER_STAGE
        return self.stage_datamanager(get(self.config, key), key)

    @cached_property
    def shared(self) -> Recipe:
        """The recipe shared by all networks of sets."""
        shared = super().shared
        weights = {**shared.weights, **settings(self.config, _SET_KEYS, Effect.WEIGHTS)}
        numbers = {**shared.numbers, **settings(self.config, _SET_KEYS, Effect.NUMBERS)}
        return Recipe(weights, numbers, shared.idle)

    def engine(self, **options: Any) -> partial[VKDEngine]:
        """A builder of VKD engines with the configuration's evaluation."""
        node = self.config.vkd
        evaluation = {"protocols": tuple(node.protocols), "query_in_gallery": node.query_in_gallery}
        return partial(VKDEngine, no_camera=node.no_camera, **evaluation, **options)

    def protocols(self, model: nn.Module) -> dict[str, Any]:
        """Numbers of every protocol on every target."""
        engine = self.engine()(self.first_datamanager, model, use_gpu=self.config.use_gpu)
        engine.test(rerank=self.config.test.rerank, ranks=list(self.config.test.ranks))
        return dict(engine.protocols)


class VKDRun:
    """One run of the method.

    Args:
        config: whole tree.
        trainer: of sets.
        plan: already checked.
        folder: where everything is kept.
    """

    def __init__(self, config: Config, trainer: SetTrainer, plan: SetPlan, folder: Path) -> None:
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
        if self.config.test.evaluate:
            require_any(bool(self.rows), self.folder, "name a trained network as vkd.teacher, or train")
        about = {"engine": "vkd", "backbone": self.config.model.name, "data": list(self.config.data.targets)}
        write_set_report(self.folder, self.rows, self.config, about)
        return Results(tuple(row.as_row() for row in self.rows), about)

    def _teacher(self) -> tuple[nn.Module, str]:
        node, teacher, trainer = self.config.vkd, self.plan.teacher, self.trainer
        given = sha256(node.teacher) if node.teacher else ""
        weights = self.config.model.load_weights
        if given:
            recipe = trainer.recipe(**{"the file vkd.teacher": given})
        else:
            start = {"the file model.load_weights": sha256(weights) if weights else None}
            own = ("num_views", "strategy")
            replaced = {f"vkd.{key}": None for key in own if node.teacher_stage[key]}  # by keys of its own stage
            recipe = trainer.recipe(TEACHER_STAGE, **start, **replaced)
        stage = trainer.stage(self.folder / "teacher", recipe, NETWORK_NAME)
        if given and stage.made(node.teacher):
            stage.keep_as_made()

        def work(continued: bool) -> Facts:
            if given:
                facts = {"protocols": trainer.protocols(teacher), "train_seconds": 0.0}
            else:
                facts = self._trained(teacher, node.teacher_stage, stage.folder, continued, trainer.engine())
            save_checkpoint(stage.folder / NETWORK_NAME, {"state_dict": teacher.state_dict()})
            return facts

        def evaluate(facts: Facts) -> Facts:
            if not (given and self.config.test.evaluate):
                load_weights(teacher, stage.folder / NETWORK_NAME)
            return {"train_seconds": 0.0, **facts, "protocols": trainer.protocols(teacher)}

        as_given = given and self.config.test.evaluate
        facts = evaluate({}) if as_given else self._complete(stage, work, evaluate)
        if facts is None:
            return teacher, ""
        if not as_given:
            load_weights(teacher, stage.folder / NETWORK_NAME)
        epochs = 0 if given else node.teacher_stage.max_epoch
        views = node.num_views if given else node.teacher_stage.num_views or node.num_views
        self._row("teacher", "teacher", teacher.cpu(), views, facts, epochs)
        return teacher, self._key(stage)

    def _complete(
        self, stage: Stage, work: Callable[[bool], Facts], evaluate: Callable[[Facts], Facts]
    ) -> Facts | None:
        """A stage's facts; with `test.evaluate` those of existing files, or `None` without them."""
        if not self.config.test.evaluate:
            return stage.complete(work, evaluate)
        facts = stage.evaluated(evaluate)
        if facts is None:
            logger.info("%s: it is not there, so it is not evaluated", stage.folder.name)
        return facts

    def _key(self, stage: Stage) -> str:
        """Digest of the network that a stage has made, part of the recipes of networks that learn from it."""
        path = stage.folder / NETWORK_NAME
        return broadcast(lambda: sha256(path) if path.is_file() else "")

    def _student(self, generation: int, teacher: nn.Module, teacher_key: str) -> tuple[nn.Module, str]:
        """Distils one student, the teacher of the next one."""
        node = self.config.vkd
        settings_of_loss = {key: node[key] for key in ("temperature", "alpha", "beta", "num_student_views")}
        name = "student" if generation == 1 else f"student-{generation}"
        stage = self.trainer.stage(self.folder / name, self._student_recipe(generation, teacher_key), NETWORK_NAME)
        seed_everything(self.config.train.seed + generation)
        student = start_student(self.config, self.plan, teacher, self.trainer.num_classes, generation)

        def work(continued: bool) -> Facts:
            build_engine = self.trainer.engine(teacher=teacher, **settings_of_loss)
            facts = self._trained(student, node.student_stage, stage.folder, continued, build_engine, STUDENT_STAGE)
            if hasattr(student, "student_record"):
                save_student(student.cpu().eval(), stage.folder / NETWORK_NAME)
            else:
                save_checkpoint(stage.folder / NETWORK_NAME, {"state_dict": student.state_dict()})
            return facts

        def evaluate(facts: Facts) -> Facts:
            load_weights(student, stage.folder / NETWORK_NAME)
            return {"train_seconds": 0.0, **facts, "protocols": self.trainer.protocols(student)}

        facts = self._complete(stage, work, evaluate)
        if facts is not None:
            load_weights(student, stage.folder / NETWORK_NAME)
            label = f"{name} ({student_label(self.config)})" if generation == 1 and node.student else name
            self._row(label, "student", student.cpu(), node.num_student_views, facts, node.student_stage.max_epoch)
        return student, self._key(stage)

    def _student_recipe(self, generation: int, teacher_key: str) -> Recipe:
        """The recipe of a student; from the second generation on it has its teacher's architecture."""
        node = self.config.vkd
        keys = ("temperature", "alpha", "beta", "num_student_views", "reinit_last_stage", "last_stage_weights")
        start = ("student", "student_width") if generation == 1 else ()
        files = [path for path in (node.student, node.last_stage_weights) if Path(path).is_file()]
        made = {"the files that it begins with": [sha256(path) for path in files] or None, "the teacher": teacher_key}
        return self.trainer.recipe(STUDENT_STAGE, *(f"vkd.{key}" for key in (*keys, *start)), **made)

    def _trained(
        self,
        model: nn.Module,
        stage: Config,
        folder: Path,
        continued: bool,
        engine: EngineBuilder,
        key: str = TEACHER_STAGE,
    ) -> Facts:
        trained = self.trainer.train(model, stage, folder, continued, engine, key=key)
        protocols = dict(trained.protocols) or self.trainer.protocols(model)  # after zero epochs
        return {"protocols": protocols, "train_seconds": trained.train_seconds}

    def _row(self, name: str, kind: str, network: nn.Module, views: int, facts: Facts, epochs: int) -> None:
        size = (3, self.config.data.height, self.config.data.width)
        params, flops = network_size(network, traced_alone(network, size).heads, size)
        targets = facts["protocols"]
        protocols = next(iter(targets.values()))
        row = SetRow(name, kind, params, flops, views, protocols, epochs, facts["train_seconds"], targets)
        self.rows.append(row)
        logger.info("%s: %s", name, row.summary())


def run_sets(config: Config, folder: Path) -> Results:
    """Runs what `engine: vkd` asks for; finished stages are not made again."""
    trainer = SetTrainer(config)
    plan = plan_sets(config, trainer.num_classes)
    if config.test.evaluate:
        check_evaluation(trainer, config.vkd.no_camera)
    else:
        check_stages(trainer, _stages_to_come(config, plan), config.vkd.no_camera)
    job = VKDRun(config, trainer, plan, folder)
    trainer.record(folder)
    return job.complete()


def _stages_to_come(config: Config, plan: SetPlan) -> list[StageToCome]:
    node = config.vkd
    views = node.teacher_stage.num_views or node.num_views
    stages = [] if node.teacher else [StageToCome(TEACHER_STAGE, plan.teacher, images=views)]
    return [*stages, StageToCome(STUDENT_STAGE, plan.teacher, images=node.num_student_views)]
