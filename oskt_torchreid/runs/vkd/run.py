"""A run of VKD: a teacher of many views, then generations of students of few views, each taught by the one before.

With `vkd.controls` every generation has two networks beside its student, see `learners`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...chain.network import traced_alone
from ...chain.student_file import save_student
from ...config import Config
from ...files import save_checkpoint, sha256
from ...files.weights import load_weights
from ...host.data import dataset_class
from ...host.distributed import broadcast
from ...host.models import builder_of
from ...report import Results
from ...report.protocols import SetRow, write_set_report
from ...vkd.model import SET_PREFIX
from ..checks import StageToCome, check_evaluation, check_stages
from ..page import environment, finish_page
from ..processes import check_known, in_processes, logged, processes_of
from ..stages import Facts, Stage, require_any
from ..trainer import EngineBuilder, network_size
from .learners import Generation, Learner, student_name, teacher_sets
from .plan import CROSS, SetPlan, plan_sets, start_student, student_kind
from .trainer import NETWORK_NAME, STUDENT_STAGE, TEACHER_STAGE, SetTrainer

logger = logging.getLogger(__name__)


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
        for number in range(1, self.config.vkd.generations + 1):
            generation = Generation(number, self.plan, self.trainer, teacher, key)
            self._learn_apart(generation)
            teacher, key = [self._learner(learner) for learner in generation.learners()][0]
        if self.config.test.evaluate:
            require_any(bool(self.rows), self.folder, "name a trained network as vkd.teacher, or train")
        about: dict[str, Any] = {"engine": "vkd", "backbone": self.config.model.name}
        about |= {"data": list(self.config.data.targets), "environment": environment()}
        write_set_report(self.folder, self.rows, self.config, about)
        finish_page(self.folder, self.config)
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
        views = node.num_views if given else teacher_sets(self.config)[0]
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

    def _learn_apart(self, generation: Generation) -> None:
        """Trains a student and its controls in processes of their own, if the configuration asks for several."""
        processes, count = processes_of(self.config.vkd), len(generation.learners())
        if min(processes, count) > 1 and not self.config.test.evaluate:
            job = (self.config, self.folder, generation.number, generation.teacher_key)
            pieces = [(*job, place) for place in range(count)]
            in_processes(_learn, pieces, processes, "student and controls", self.config.imports)

    def _learner(self, learner: Learner) -> tuple[nn.Module, str]:
        """A student or a control, trained here or already; returns it, and the digest of its file."""
        network, facts, key = self.learn(learner)
        if facts is not None:
            about = (learner.label, learner.kind)
            self._row(*about, network.cpu(), learner.views, facts, learner.stage.max_epoch, learner.beside)
        return network, key

    def learn(self, learner: Learner) -> tuple[nn.Module, Facts | None, str]:
        """The stage of a student or a control: the network, what was measured, and the digest of its file."""
        stage = self.trainer.stage(self.folder / learner.folder, learner.recipe, NETWORK_NAME)
        network = learner.start()

        def work(continued: bool) -> Facts:
            facts = self._trained(network, learner.stage, stage.folder, continued, learner.engine, STUDENT_STAGE)
            if hasattr(network, "student_record"):
                save_student(network.cpu().eval(), stage.folder / NETWORK_NAME)
            else:
                save_checkpoint(stage.folder / NETWORK_NAME, {"state_dict": network.state_dict()})
            return facts

        def evaluate(facts: Facts) -> Facts:
            load_weights(network, stage.folder / NETWORK_NAME)
            return {"train_seconds": 0.0, **facts, "protocols": self.trainer.protocols(network)}

        facts = self._complete(stage, work, evaluate)
        if facts is not None:
            load_weights(network, stage.folder / NETWORK_NAME)
        return network, facts, self._key(stage)

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

    def _row(
        self, name: str, kind: str, network: nn.Module, views: int, facts: Facts, epochs: int, beside: str = ""
    ) -> None:
        size = (3, self.config.data.height, self.config.data.width)
        params, flops = network_size(network, traced_alone(network, size).heads, size)
        targets = facts["protocols"]
        protocols = next(iter(targets.values()))
        row = SetRow(name, kind, params, flops, views, protocols, epochs, facts["train_seconds"], targets, beside)
        self.rows.append(row)
        logger.info("%s: %s", name, row.summary())


def _learn(config: Config, folder: Path, number: int, teacher_key: str, place: int) -> None:
    """One of a generation's learners, in a separate process, which reads the generation's teacher from its file."""
    with logged(folder / "log.txt"):
        trainer = SetTrainer(config)
        plan = plan_sets(config, trainer.num_classes)
        teacher = plan.teacher
        for generation in range(1, number):
            teacher = start_student(config, plan, teacher, trainer.num_classes, generation)
        load_weights(teacher, folder / student_name(number - 1) / NETWORK_NAME)
        learners = Generation(number, plan, trainer, teacher, teacher_key).learners()
        VKDRun(config, trainer, plan, folder).learn(learners[place])


def _find_names(config: Config) -> None:
    """Raises `ConfigError` unless this process knows every name that the run needs."""
    for name in (*config.data.sources, *config.data.targets):
        dataset_class(name, config.data.type)
    for name in (config.model.name, config.vkd.student if student_kind(config) == CROSS else ""):
        if name:
            builder_of(SET_PREFIX + name.removeprefix(SET_PREFIX))


def run_sets(config: Config, folder: Path) -> Results:
    """Runs what `engine: vkd` asks for; finished stages are not made again."""
    trainer = SetTrainer(config)
    plan = plan_sets(config, trainer.num_classes)
    if config.test.evaluate:
        check_evaluation(trainer, config.vkd.no_camera)
    else:
        check_known("vkd.processes", processes_of(config.vkd), config.imports, _find_names, (config,))
        check_stages(trainer, _stages_to_come(config, plan), config.vkd.no_camera)
    job = VKDRun(config, trainer, plan, folder)
    trainer.record(folder)
    return job.complete()


def _stages_to_come(config: Config, plan: SetPlan) -> list[StageToCome]:
    node = config.vkd
    views, _ = teacher_sets(config)
    stages = [] if node.teacher else [StageToCome(TEACHER_STAGE, plan.teacher, images=views)]
    most = max(views, node.num_student_views) if node.controls else node.num_student_views
    return [*stages, StageToCome(STUDENT_STAGE, plan.teacher, images=most)]
