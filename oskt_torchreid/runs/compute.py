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


def seen_images(trainer: Trainer, node: Config) -> float:
    """Images that a schedule shows to a network; one at half resolution counts a quarter.

    Args:
        trainer: of the run.
        node: of the schedule.
    """
    loader = trainer.datamanager(node.batch_size).train_loader
    epochs = node.max_epoch - (1 - _HALF_RESOLUTION) * min(node.half_resolution_epochs, node.max_epoch)
    return len(loader) * node.batch_size * epochs


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
    size, images = (3, trainer.config.data.height, trainer.config.data.width), seen_images(trainer, node)
    compute = _TRAINED * images * multiply_adds(network, size)
    if teacher is not None:
        means = len(trainer.datamanager(node.batch_size).train_loader) * node.batch_size if class_means else 0
        compute += (images + means) * multiply_adds(teacher, size)
    return compute


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
    each = _TRAINED * (teacher + sstudent)
    if levels:
        each += _TRAINED * (1 - node.level_start) * float(np.mean(of_levels))
    if node.distil_weight and node.distil_from == "first":
        each += teacher
    return float(seen_images(trainer, node) * each)
