"""A run without a method: one network, trained and evaluated as by torchreid's own script, but resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..chain.network import traced_alone
from ..config import Config
from ..errors import GraphError
from ..files import sha256
from ..files.weights import load_weights
from ..host.engine import TransferEngine
from ..registry import engine_class
from ..report import Results, Row, write_results
from .page import environment, finish_page, keep_ranked
from .stages import Facts, Stage
from .trainer import LISTS, Trainer, measured, network_size

logger = logging.getLogger(__name__)


def train_only(
    config: Config, trainer: Trainer, model: nn.Module, folder: Path, method: str, resume: str = ""
) -> Results:
    """One network, trained and evaluated as torchreid's own script does; `test.evaluate` evaluates only.

    A registered engine is called with the arguments of `TransferEngine`, with the loss of `loss.name`.

    An interrupted run resumes where it stopped, or from the checkpoint `resume`.
    """
    size = (3, config.data.height, config.data.width)
    try:
        heads = traced_alone(model, size).heads
    except GraphError as error:
        logger.warning("parameters are counted with the classifier, which was not found: %s", error)
        heads = frozenset()
    stage = _stage(config, trainer, folder, method)

    engine = engine_of(config)

    def work(continued: bool) -> Facts:
        return measured(trainer.train(model, config.train, folder, continued, engine, resume=resume))

    def evaluate(facts: Facts) -> Facts:
        load_weights(model, folder / stage.outputs[0])
        return {**facts, **trainer.evaluate(model, folder)}

    trained = config.train.max_epoch - (0 if resume else config.train.start_epoch)
    if resume:
        trainer.check_resume(model, config.train, resume, stage.digest)
    if config.test.evaluate:
        facts, trained = _evaluated(config, trainer, model, stage, evaluate)
    else:
        facts = stage.complete(work, evaluate)
    params, flops = network_size(model, heads, size)
    numbers = {"map_after": facts["mAP"], "rank1_after": facts["rank1"], "targets": facts["targets"]}
    row = Row(config.model.name, "teacher", params, flops, epochs=trained, **numbers)
    about = {"engine": method, "data": list(config.data.targets), "environment": environment()}
    results = Results((row,), about)
    write_results(folder / "results.json", results.rows, results.facts)
    keep_ranked(folder, trainer, {row.name: facts[LISTS]} if LISTS in facts else {})
    finish_page(folder, config)
    return results


def engine_of(config: Config) -> type[TransferEngine]:
    """The engine that trains one network: the registered one that `engine` names, else that of the loss."""
    method = config.engine or config.loss.name
    own = method not in (config.loss.name, "oskt", "vkd")
    return engine_class(method) if own else TransferEngine


def _evaluated(
    config: Config, trainer: Trainer, model: nn.Module, stage: Stage, evaluate: Callable[[Facts], Facts]
) -> tuple[Facts, int]:
    """Numbers without training, and the epochs trained: of the given weights, else of those in the folder."""
    facts = None if config.model.load_weights else stage.evaluated(evaluate)
    if facts is not None:
        return facts, config.train.max_epoch - config.train.start_epoch
    if not config.model.load_weights:
        logger.warning(
            "'%s' is evaluated with its initial weights: model.load_weights is empty, and '%s' holds no "
            "network of %d epochs",
            config.model.name,
            stage.folder,
            config.train.max_epoch,
        )
    return trainer.evaluate(model, stage.folder), 0


def _stage(config: Config, trainer: Trainer, folder: Path, method: str) -> Stage:
    """The training of the network as a stage in the run's own folder."""
    weights = sha256(config.model.load_weights) if config.model.load_weights else None
    recipe = trainer.recipe("train", engine=method, **{"the file model.load_weights": weights})
    return trainer.stage(folder, recipe, f"model/model.pth.tar-{config.train.max_epoch}")
