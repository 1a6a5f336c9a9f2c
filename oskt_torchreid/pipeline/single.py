"""A run without a method: one network, trained and evaluated as torchreid's own script does, but for interruptions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from ..config import digest
from ..errors import GraphError
from ..files import sha256
from ..oskt.network import trace
from ..report import Results, Row, write_results
from .stages import Stage
from .training import Trainer, first_target, network_size

logger = logging.getLogger(__name__)


def train_only(config: Any, trainer: Trainer, model: nn.Module, folder: Path, method: str, resume: str = "") -> Results:
    """One network, trained and evaluated as torchreid's own script does; ``test.evaluate`` evaluates only.

    An interrupted run goes on where it was, or from the checkpoint ``resume``.
    """
    size = (3, config.data.height, config.data.width)
    try:
        heads = trace(model, size).heads
    except GraphError as error:
        logger.warning("parameters are counted with the classifier, which was not found: %s", error)
        heads = frozenset()
    if config.test.evaluate:
        facts = trainer.evaluate(model)
    else:
        facts = _stage(config, trainer, folder, method).complete(
            lambda continued: first_target(trainer.train(model, config.train, folder, continued, resume=resume))
        )
    params, flops = network_size(model, heads, size)
    epochs = 0 if config.test.evaluate else config.train.max_epoch
    row = Row(config.model.name, "teacher", params, flops, None, None, facts["mAP"], facts["rank1"], epochs)
    results = Results((row,), {"engine": method, "data": list(config.data.targets)})
    write_results(folder / "results.json", results.rows, results.facts)
    return results


def _stage(config: Any, trainer: Trainer, folder: Path, method: str) -> Stage:
    """The training of the network as a stage in the run's own folder."""
    weights = sha256(config.model.load_weights) if config.model.load_weights else ""
    key = digest("single", method, trainer.data_key, config.train, weights)
    return Stage(folder, key, (f"model/model.pth.tar-{config.train.max_epoch}",))
