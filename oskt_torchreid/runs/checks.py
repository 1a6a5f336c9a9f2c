"""Checks before the first stage of a run: whether every stage has batches, matches, pictures and memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..config import Config, get
from ..datasets.checks import check_batches, check_matches, check_pictures
from ..errors import ConfigError, TrainingError
from ..host.distributed import is_rank_zero
from ..host.interfaces import DataManager
from ..host.losses import loss_from_config
from ..host.optimization import build_optimizer, build_scheduler, check_layers
from ..host.run_checks import check_batch
from .memory import check_stage_memory, training_memory
from .oskt.plan import RunPlan
from .trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageToCome:
    """What is known about a training stage before it begins.

    Attributes:
        key: of its node.
        model: the network whose training is estimated.
        share: memory of the stage as a multiple of that network's; 1 is the network alone.
        images: of one item in a batch; views of a set.
    """

    key: str
    model: nn.Module
    share: float = 1.0
    images: int = 1


def stages_to_come(config: Config, plan: RunPlan) -> list[StageToCome]:
    """The training stages of a run of OSKT, in order."""
    oskt, teacher = config.oskt, plan.teacher
    narrow = _ratio(plan, plan.chain_widths)
    stages = []
    if not oskt.chain:
        stages += [] if oskt.teacher else [StageToCome("train", teacher)]
        stages.append(StageToCome("oskt.refine", teacher, 1 + narrow))
    widest = max([_ratio(plan, student.widths) for student in plan.students if student.widths], default=narrow)
    if plan.students or plan.controls:
        stages.append(StageToCome("oskt.finetune", teacher, max(widest, narrow)))
    recalibrated = oskt.recalibrate > 0 and any(student.spec.of_chain for student in plan.students)
    return [
        stage
        for stage in stages
        if get(config, stage.key).max_epoch > 0 or (stage.key == "oskt.finetune" and recalibrated)
    ]


def _ratio(plan: RunPlan, widths: dict[str, int]) -> float:
    """Channels of some widths as a share of the teacher's."""
    return sum(widths.values()) / sum(plan.graph.sizes.values())


def check_stages(trainer: Trainer, stages: Sequence[StageToCome], no_camera: bool = False) -> None:
    """Checks everything that stages need, before the first of them begins.

    Args:
        trainer: of the run.
        stages: those that will train.
        no_camera: whether cameras leave nothing out of a gallery.

    Raises:
        ConfigError: a stage that takes more memory than there is, a network that cannot take the images, names of
            layers that it does not have, or a loss without terms.
        DataError: a stage without a batch, no query with a match, unreadable pictures.
    """
    config, needed = trainer.config, {}
    size = (3, config.data.height, config.data.width)
    for stage in stages:
        node = get(config, stage.key)
        manager = trainer.stage_datamanager(node, stage.key)
        check_batches(manager, stage.key, f"{stage.key}.batch_size")
        _check_training(config, stage, manager)
        images = node.batch_size * stage.images
        if images == 1:
            _check_single(stage, size)
        needed[stage.key] = (int(training_memory(stage.model, size, images, stage.key) * stage.share), images)
        if node.half_resolution_epochs:
            training_memory(stage.model, (3, size[1] // 2, size[2] // 2), images, stage.key)
    check_evaluation(trainer, no_camera)
    check_stage_memory(needed, config.use_gpu)


def _check_training(config: Config, stage: StageToCome, manager: DataManager) -> None:
    """Builds the loss and optimiser of a stage; raises `ConfigError` if that fails. The network is not changed."""
    node, loss = get(config, stage.key), loss_from_config(config, manager.num_train_pids, use_gpu=False)
    build_scheduler(build_optimizer(stage.model, config, node), node, len(manager.train_loader))
    if node.get("fixbase_epoch", 0):
        check_layers(stage.model, list(config.train.open_layers), "train.open_layers")
    sampler, identities = manager.train_loader.sampler, manager.num_train_pids
    if hasattr(sampler, "num_instances"):
        identities = min(identities, node.batch_size // sampler.num_instances)
    if loss.weight_t > 0 and min(identities, node.batch_size) < 2:
        raise ConfigError(
            f"the triplet loss compares identities, and a batch of '{stage.key}' holds only one: "
            f"{stage.key}.batch_size is {node.batch_size}, sampler.num_instances {config.sampler.num_instances}, and "
            f"the data have {manager.num_train_pids} identities; raise the batch size, or lower num_instances"
        )


def _check_single(stage: StageToCome, size: tuple[int, int, int]) -> None:
    """Raises `ConfigError` if a network cannot be trained on one image at a time."""
    try:
        check_batch(stage.model, size, 1)
    except TrainingError as reason:
        raise ConfigError(f"{stage.key}.batch_size is 1: {reason}") from reason


def check_evaluation(trainer: Trainer, no_camera: bool = False) -> None:
    """Checks what an evaluation needs: queries with matches, and pictures as `data.check` requires.

    Raises:
        DataError: no query with a match, or unreadable pictures.
    """
    data = trainer.config.data
    check_matches(trainer.first_datamanager, no_camera=no_camera)
    if is_rank_zero():
        looked_at = check_pictures(trainer.first_datamanager, data.check, data.workers)
        logger.info("pictures: %d looked at (data.check=%s)", looked_at, data.check)
