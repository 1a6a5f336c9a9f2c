"""A run without a method: one network, trained and evaluated as torchreid's own script does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import GraphError
from ..oskt.network import trace
from ..report import Results, Row, write_results
from .training import Trainer, first_target, network_size

logger = logging.getLogger(__name__)


def train_only(config: Any, trainer: Trainer, model: nn.Module, folder: Path, method: str) -> Results:
    """One network, trained and evaluated as torchreid's own script does; ``test.evaluate`` evaluates only."""
    size = (3, config.data.height, config.data.width)
    try:
        heads = trace(model, size).heads
    except GraphError as error:
        logger.warning("parameters are counted with the classifier, which was not found: %s", error)
        heads = frozenset()
    if config.test.evaluate:
        facts = trainer.evaluate(model)
    else:
        facts = first_target(trainer.train(model, config.train, folder))
    params, flops = network_size(model, heads, size)
    epochs = 0 if config.test.evaluate else config.train.max_epoch
    row = Row(config.model.name, "teacher", params, flops, None, None, facts["mAP"], facts["rank1"], epochs)
    results = Results((row,), {"engine": method, "data": list(config.data.targets)})
    write_results(folder / "results.json", results.rows, results.facts)
    return results
