"""The stage of a run's teacher: trained, taken from a file, or evaluated as it is."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ...config import Config
from ...files import save_checkpoint, sha256
from ...files.weights import load_weights
from ...host.distributed import broadcast
from ..recipes import Recipe
from ..stages import Facts
from ..trainer import Trainer, measured

logger = logging.getLogger(__name__)

TEACHER_NAME = "teacher.pth"


def make_teacher(config: Config, trainer: Trainer, teacher: nn.Module, folder: Path) -> tuple[Facts | None, str]:
    """Trains the teacher, or takes the given one; with `test.evaluate` measures the existing one.

    Args:
        config: whole tree.
        trainer: of the run.
        teacher: network, with the weights of a given file, if any; it holds the teacher's afterwards.
        folder: of the stage.

    Returns:
        The stage's facts, `None` if there is no teacher and none is to be trained; and the digest of its file.
    """
    given = sha256(config.oskt.teacher) if config.oskt.teacher else ""
    stage = trainer.stage(folder, _recipe(config, trainer, given), TEACHER_NAME)
    if given and stage.made(config.oskt.teacher):
        stage.keep_as_made()
    path = folder / TEACHER_NAME

    def work(continued: bool) -> Facts:
        if given:
            facts = trainer.evaluate(teacher, folder)
        else:
            facts = measured(trainer.train(teacher, config.train, folder, continued))
        save_checkpoint(path, {"state_dict": teacher.state_dict()})
        return facts

    def evaluate(facts: Facts) -> Facts:
        load_weights(teacher, path)
        return {"seconds": 0.0, **facts, **trainer.evaluate(teacher, folder)}

    if not config.test.evaluate:
        facts: Facts | None = stage.complete(work, evaluate)
        load_weights(teacher, path)
    elif given:
        facts = {"seconds": 0.0, **trainer.evaluate(teacher, folder)}
    else:
        facts = stage.evaluated(evaluate)
    if facts is None:
        logger.info("teacher: there is none, so it is not evaluated")
    teacher.cpu()
    return facts, broadcast(lambda: sha256(path) if path.is_file() else given)


def _recipe(config: Config, trainer: Trainer, given: str) -> Recipe:
    """The source of the teacher: a file, or its training."""
    if given:
        return trainer.recipe(**{"the file oskt.teacher": given})
    weights = config.model.load_weights
    return trainer.recipe("train", **{"the file model.load_weights": sha256(weights) if weights else None})
