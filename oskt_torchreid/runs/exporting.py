"""Networks of files and names for export, images of a data set to calibrate with, and what an export costs in mAP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..chain.chain import WeightChain
from ..chain.expansion import expand, width_plan
from ..chain.measured import table_to_fill
from ..chain.student_reading import load_student
from ..config import Config, merged
from ..deploy import Exported, ExportedNetwork, export, open_exported
from ..deploy.deployment import OUTPUTS, Deployment
from ..deploy.eight_bits import ALL_LAYERS
from ..deploy.export import SUFFIXES, format_of
from ..deploy.feeding import INPUTS, Feeding
from ..deploy.lifting import FEATURES
from ..deploy.quantization import CALIBRATION_IMAGES
from ..errors import CheckpointError, ConfigError
from ..files import atomic, load_checkpoint, weights
from ..host import models
from ..host.data import unaugmented_loader
from ..host.interfaces import DataManager
from ..models import build_model
from ..networks import is_classifier
from .trainer import Trainer

logger = logging.getLogger(__name__)

CHAIN_SUFFIX = ".safetensors"
GRID_NAME = "latency.csv"


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
        raise ConfigError(f"'{source}' is a chain, not a network; make a student of it first: oskt expand")
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
    model: nn.Module,
    path: str | Path,
    config: Config,
    calibration_images: int = CALIBRATION_IMAGES,
    max_drop: float | None = None,
    **options: Any,
) -> ExportReport:
    """Exports a network for the pictures of a data set, and measures network and file on it.

    Args:
        model: not changed.
        path: file to write.
        config: whole tree; `data` says size, mean and std, its sources give images to calibrate with, its first
            target is evaluated.
        calibration_images: how many training images show the ranges of activations for `int8`, spread over the set.
        max_drop: in eight bits, how many points of mAP the file may be below single precision, see `deploy.EightBits`;
            `None`: not limited.
        **options: of `deploy.export`.

    Raises:
        OsktError: see `deploy.export` and `host.data.build_datamanager`.
    """
    if max_drop is not None and options.get("precision") != "int8":
        raise ConfigError("max_drop is about int8; export in that precision, or leave it out")
    trainer = Trainer(config)
    data = config.data
    loader = None
    if options.get("precision") == "int8":
        loader = _spread_loader(trainer.datamanager(config.train.batch_size), calibration_images)
        if max_drop is not None:
            limits = {"max_drop": max_drop, "score": lambda network: 100 * trainer.evaluate(network)["mAP"]}
            options["eight_bits"] = replace(options.get("eight_bits", ALL_LAYERS), **limits)
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
    feeding = Feeding(
        (3, data.height, data.width),
        tuple(data.norm_mean),
        tuple(data.norm_std),
        options.get("input", INPUTS[0]),
        options.get("batch"),
    )
    before = trainer.evaluate(deployment.network)["mAP"]
    after = trainer.evaluate(ExportedNetwork(open_exported(exported.path, exported.format), feeding))["mAP"]
    return ExportReport(exported, before, after)


def export_grid(
    chain: str | Path, widths: Sequence[float], folder: str | Path, format: str = "onnx", **options: Any
) -> list[Exported]:
    """Exports students of a chain, and a table for the latencies that a device measures with these files.

    Args:
        chain: its file.
        widths: ratios of the teacher's channels.
        folder: of the files and of `latency.csv`, see `chain.MeasuredTable`.
        format: of the files.
        **options: of `deploy.export`.

    Raises:
        ConfigError: a folder that is a file, int8, which needs images, or a format that does not exist.
        ChainError: a chain that cannot be read.
        WidthError: a width that it does not allow.
        ExportError: see `deploy.export`.
    """
    folder, loaded = Path(folder), WeightChain.load(chain)
    if folder.is_file():
        raise ConfigError(f"-o is '{folder}', a file; give a folder for a file per width")
    if options.get("precision") == "int8":
        raise ConfigError("files of a grid of widths are not written in int8, which needs images; export them singly")
    suffix = next((suffix for suffix, kind in SUFFIXES.items() if kind == format_of("", format)), "")
    for width in widths:
        width_plan(loaded, width)
    names = [f"width-{width:g}{suffix}" for width in widths]
    written = [
        export(expand(loaded, width), folder / name, format, **options)
        for width, name in zip(widths, names, strict=True)
    ]
    with atomic(folder / GRID_NAME) as temporary:
        temporary.write_text(table_to_fill(widths, names), encoding="utf-8")
    return written


def _spread_loader(datamanager: DataManager, count: int) -> DataLoader:
    """Evenly spaced training images, as they are seen in evaluation."""
    loader, there = unaugmented_loader(datamanager), len(datamanager.train_loader.dataset)
    places = np.unique(np.linspace(0, there - 1, min(count, there)).astype(int))
    images = Subset(loader.dataset, places.tolist())
    return DataLoader(images, loader.batch_size, num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn)


def _untrained(config: Config) -> Config:
    return merged(config, {"model.pretrained": False})
