"""Compute of a training, in multiply-adds: what methods that get equal compute have equal.

A network that is trained is run forward once and backward twice, for the gradients of its activations and of its
weights; one that only gives scores or features to learn from is run forward once. Classifiers, losses and optimisers
are left out.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from ..chain.chain import WeightChain
from ..chain.counting import Costs, multiply_adds
from ..chain.levels import level_plans
from ..config import Config
from .trainer import Trainer

_TRAINED, _HALF_RESOLUTION = 3, 0.25


def epoch_images(trainer: Trainer, node: Config) -> int:
    """Images of one epoch of a schedule."""
    return len(trainer.datamanager(node.batch_size).train_loader) * node.batch_size


def full_epochs(node: Config, since: float = 0.0) -> float:
    """Epochs of a schedule at full resolution; one at half of it counts a quarter.

    Example: of 4 epochs, 2 of them at half resolution, there are 2.5; since a quarter of them, 2.25.

    Args:
        node: of the schedule.
        since: share of the epochs that is left out.
    """
    begin, low = since * node.max_epoch, min(node.half_resolution_epochs, node.max_epoch)
    return _HALF_RESOLUTION * max(0.0, low - begin) + node.max_epoch - max(low, begin)


def schedule_epochs(full: float, low: int) -> int:
    """The inverse of `full_epochs`: epochs of a schedule, at least 1, of which `low` are at half resolution.

    Example: 2.5 full ones, 2 at half resolution, are 4 epochs.
    """
    return max(1, round(full + (1 - _HALF_RESOLUTION) * low))


def training_compute(
    trainer: Trainer, node: Config, network: nn.Module, teacher: nn.Module | None = None, class_means: bool = False
) -> float:
    """Multiply-adds of one network's training.

    Args:
        trainer: of the run.
        node: of the schedule.
        network: that is trained; not changed.
        teacher: that it learns from, if any; not changed.
        class_means: whether the teacher's features of all training images are averaged first.
    """
    size = (3, trainer.config.data.height, trainer.config.data.width)
    own, read = multiply_adds(network, size), 0 if teacher is None else multiply_adds(teacher, size)
    return epoch_images(trainer, node) * epochs_compute(full_epochs(node), own, read, class_means)


def epochs_compute(epochs: float, own: float, read: float = 0, class_means: bool = False) -> float:
    """Multiply-adds per image of an epoch, of a training of so many epochs.

    Args:
        epochs: at full resolution.
        own, read: multiply-adds of an image in the network that is trained, and in the one that it learns from.
        class_means: whether the latter sees every image once before.
    """
    return epochs * (_TRAINED * own + read) + class_means * read


def refining_compute(trainer: Trainer, node: Config, chain: WeightChain) -> float:
    """Multiply-adds of a refinement: teacher, S-student, a level in every step that trains one, and the first teacher.

    Args:
        trainer: of the run.
        node: `oskt.refine`.
        chain: that is refined; not changed.
    """
    graph = chain.graph
    size = (3, trainer.config.data.height, trainer.config.data.width)
    levels = level_plans(chain, node.levels) if node.levels else []
    teacher, sstudent, *of_levels = Costs(chain, size).count([graph.sizes, chain.widths, *levels]).flops
    read = teacher if node.distil_weight and node.distil_from == "first" else 0
    compute = epochs_compute(full_epochs(node), teacher + sstudent, read)
    if levels:
        compute += epochs_compute(full_epochs(node, node.level_start), float(np.mean(of_levels)))
    return float(epoch_images(trainer, node) * compute)
