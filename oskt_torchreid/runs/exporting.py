"""Networks of files and names for export, images of a data set to calibrate with, and what an export costs in mAP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..chain.student_reading import load_student
from ..config import Config, merged
from ..deploy import Exported, ExportedNetwork, export, open_exported
from ..deploy.deployment import OUTPUTS, Deployment
from ..deploy.lifting import FEATURES
from ..deploy.quantization import CALIBRATION_IMAGES
from ..errors import CheckpointError, ConfigError
from ..files import load_checkpoint, weights
from ..host import models
from ..host.data import unaugmented_loader
from ..host.interfaces import DataManager
from ..models import build_model
from ..networks import is_classifier
from .trainer import Trainer

logger = logging.getLogger(__name__)

CHAIN_SUFFIX = ".safetensors"


class ExportReport(NamedTuple):
    """A written file, and the mAP on a data set of the network before and of the file after, where one was given."""

    exported: Exported
    map_before: float | None = None
    map_after: float | None = None


def load_network(source: str, model_name: str = "", config: Config | None = None, num_classes: int = 1) -> nn.Module:
    """The network of a file, or the one that a registered name builds.

    Args:
        source: a student's file, another checkpoint, or a registered name (whose weights are initial).
        model_name: registered name of the network whose checkpoint it is; a student's file needs none, unless its
            teacher was not registered.
        config: whole tree whose `model` node builds the network of a checkpoint, where no name is given.

        num_classes: of its classifier, whose weights are not taken from a checkpoint.

    Raises:
        ConfigError: neither a file nor a registered name, or a checkpoint without the name of its network.
        CheckpointError: a file that does not fit.
    """
    path = Path(source)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise CheckpointError(f"no file at '{source}' (looked in '{path.parent.absolute()}'); check the path")
        models.builder_of(source)  # a word: an unknown one is answered with the nearest name
        logger.warning("'%s' is built with initial weights; give a checkpoint, and --model %s", source, source)
        return models.build(source, 1)
    if path.suffix == CHAIN_SUFFIX:
        raise ConfigError(f"'{source}' is a chain, not a network; make a student of it first: tools/expand.py")
    content = load_checkpoint(path)
    if isinstance(content, dict) and "oskt" in content:
        return load_student(path, model=models.build(model_name, 1) if model_name else None)
    if not (model_name or config):
        raise ConfigError(f"'{source}' does not say what network it is of; name it: --model osnet_x1_0")
    model = models.build(model_name, num_classes) if model_name else build_model(_untrained(config), num_classes)
    names = [*model.state_dict(), *weights.state_dict_of(content, path)]
    weights.load_weights(model, path, ignore=[name for name in names if is_classifier(name)])
    return model


def export_with_data(
    model: nn.Module, path: str | Path, config: Config, calibration_images: int = CALIBRATION_IMAGES, **options: Any
) -> ExportReport:
    """Exports a network for the pictures of a data set, and measures network and file on it.

    Args:
        model: not changed.
        path: file to write.
        config: whole tree; `data` says size, mean and std, its sources give images to calibrate with, its first
            target is evaluated.
        calibration_images: how many training images show the ranges of activations for `int8`, spread over the set.
        **options: `format`, `precision`, `output`, `feature`, `normalize`, `opset` of `deploy.export`.

    Raises:
        OsktError: see `deploy.export` and `host.data.build_datamanager`.
    """
    trainer = Trainer(config)
    data = config.data
    loader = None
    if options.get("precision") == "int8":
        loader = _spread_loader(trainer.datamanager(config.train.batch_size), calibration_images)
    exported = export(
        model,
        path,
        input_size=(3, data.height, data.width),
        mean=data.norm_mean,
        std=data.norm_std,
        calibration=loader,
        calibration_images=calibration_images,
        **options,
    )
    deployment = Deployment.of(
        model,
        (3, data.height, data.width),
        normalized=options.get("normalize", False),
        output=options.get("output", OUTPUTS[0]),
        feature=options.get("feature", FEATURES[0]),
    )
    before = trainer.evaluate(deployment.network)["mAP"]
    after = trainer.evaluate(ExportedNetwork(open_exported(exported.path, exported.format)))["mAP"]
    return ExportReport(exported, before, after)


def _spread_loader(datamanager: DataManager, count: int) -> DataLoader:
    """Evenly spaced training images, as they are seen in evaluation."""
    loader, there = unaugmented_loader(datamanager), len(datamanager.train_loader.dataset)
    places = np.unique(np.linspace(0, there - 1, min(count, there)).astype(int))
    images = Subset(loader.dataset, places.tolist())
    return DataLoader(images, loader.batch_size, num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn)


def _untrained(config: Config) -> Config:
    return merged(config, {"model.pretrained": False})
