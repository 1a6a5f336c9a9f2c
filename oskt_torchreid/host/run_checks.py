"""Checks of the arguments of a training run, from a configuration or a script."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import ConfigError, TrainingError
from .losses import ReidLoss
from .ranking import METRICS

logger = logging.getLogger(__name__)

_LOWEST = {"max_epoch": 0, "start_epoch": 0, "print_freq": 1, "fixbase_epoch": 0, "start_eval": 0, "visrank_topk": 1}
_LOWEST["eval_freq"] = -1
_TOO_FEW = "more than 1 value per channel"  # part of torch's message for a norm on a batch of one


def check_number(name: str, value: Any, lowest: float = 0.0, above: bool = False) -> None:
    """Raises ConfigError unless an argument is a finite number, at least the lowest or above it."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < lowest or (above and value == lowest):
        raise ConfigError(f"{name} is {value!r}; allowed: numbers {'above' if above else 'of at least'} {lowest:g}")


def check_parts(datamanager: Any, model: Any, optimizer: Any, scheduler: Any, loss: Any) -> None:
    """Raises ConfigError unless an engine gets a data manager, a network, and valid other parts or none."""
    if not all(hasattr(datamanager, name) for name in ("train_loader", "test_loader", "num_train_pids")):
        raise ConfigError(
            f"datamanager of an engine is {datamanager!r:.100}; expected one of torchreid's, such as "
            "torchreid.data.ImageDataManager(...)"
        )
    kinds = (
        ("model", model, nn.Module),
        ("optimizer", optimizer, Optimizer),
        ("scheduler", scheduler, LRScheduler),
        ("loss", loss, ReidLoss),
    )
    for name, part, kind in kinds:
        if not isinstance(part, kind) and (part is not None or name == "model"):
            raise ConfigError(f"{name} of an engine is {part!r:.100}; expected {kind.__module__}.{kind.__name__}")


def check_arguments(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for arguments of `run` that are out of range, or that would make it do nothing.

    Args:
        settings: all arguments of `run` by name.
    """
    for name, lowest in _LOWEST.items():
        if not _is_whole(settings[name], lowest):
            raise ConfigError(f"{name} of a run is {settings[name]!r}; allowed: whole numbers from {lowest}")
    ranks = settings["ranks"]
    if not isinstance(ranks, (list, tuple)) or not all(_is_whole(rank, 1) for rank in ranks):
        raise ConfigError(f"ranks of a run are {ranks!r}; allowed: a list of whole numbers from 1")
    if settings["dist_metric"] not in METRICS:
        raise ConfigError(f"dist_metric of a run is {settings['dist_metric']!r}; allowed: {', '.join(METRICS)}")
    if not settings["test_only"]:
        _check_training(settings)


def _check_training(settings: Mapping[str, Any]) -> None:
    last, first = settings["max_epoch"], settings["start_epoch"]
    if last < max(1, first):
        raise ConfigError(
            f"max_epoch of a run is {last} and start_epoch {first}, so that nothing would be trained; set max_epoch "
            "above start_epoch, or test_only to evaluate the network as it is"
        )
    names, frozen = settings["open_layers"], settings["fixbase_epoch"]
    if frozen > 0 and not (names and _are_names(names)):
        raise ConfigError(
            f"fixbase_epoch of a run is {frozen}, and open_layers is {names!r}, so that nothing would be frozen; name "
            "the layers that these epochs train, such as ['classifier']"
        )
    if frozen >= last:
        logger.warning("all %d epochs train nothing but %s, for fixbase_epoch is %d", last, names, frozen)
    if settings["visrank"]:
        raise ConfigError("visrank of a run is True while it trains; pictures of ranked lists go with test_only=True")
    if settings["rerank"]:
        logger.warning("rerank is for runs with test_only=True; this one reports plain numbers")


def make_folder(name: str, folder: Any) -> None:
    """Makes a folder, if there is none; raises ConfigError unless it can be written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, TypeError, ValueError) as reason:
        said = getattr(reason, "strerror", None) or reason
        raise ConfigError(f"{name} '{folder}' cannot be written ({said}); give another folder") from reason
    if not writable:
        raise ConfigError(f"{name} '{folder}' cannot be written (no permission); give another folder")


def _are_names(names: Any) -> bool:
    return isinstance(names, str) or (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names))


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def require_optimizer(optimizer: Optimizer | None) -> Optimizer:
    """The optimiser itself; raises TrainingError if there is none."""
    if optimizer is None:
        raise TrainingError(
            "there is no optimiser, so that nothing would be trained; give the engine one (optimizer=...), or set "
            "test_only to evaluate the network as it is"
        )
    return optimizer


def check_optimizer(optimizer: Optimizer | None, model: nn.Module) -> None:
    """Raises TrainingError unless an optimiser trains anything of a network."""
    optimizer = require_optimizer(optimizer)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise TrainingError(
            f"the optimiser holds no parameter of this {type(model).__name__}, so that nothing would be trained; build "
            "it from the very network that the engine is given"
        )


def check_loader(loader: Any, engine: str) -> None:
    """Raises TrainingError for a loader without a batch, with which a run would silently train nothing.

    Args:
        loader: of training batches.
        engine: who trains, for the message.
    """
    if loader is not None and len(loader):
        return
    dataset, size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
    items = f"its {len(dataset)} pictures fill no batch of {size}" if dataset is not None else "it has no batches"
    raise TrainingError(
        f"{engine} has a training loader, and {items}, so that nothing would be trained; lower the batch size "
        "(batch_size_train of the data manager, train.batch_size), or give more pictures"
    )


def check_batch(model: nn.Module, size: tuple[int, int, int], images: int, device: torch.device | None = None) -> None:
    """Raises TrainingError if a network cannot be trained on such small batches: one image, with a batch norm.

    Args:
        model: a copy of it is run once; neither the model nor the random state changes.
        size: (channels, height, width) of an image.
        images: of a batch.
        device: where the network is; None: the CPU.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    trained = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices), torch.no_grad(), too_few_images(images):
        trained(torch.zeros(images, *size, device=device))


@contextlib.contextmanager
def too_few_images(images: int) -> Iterator[None]:
    """Says what to do if torch refuses to normalise a batch of one."""
    try:
        yield
    except ValueError as reason:
        if _TOO_FEW not in str(reason):
            raise
        raise TrainingError(
            f"a batch norm cannot be trained on {images} image{'s' * (images != 1)} at a time; raise the batch size to "
            "2 or more (batch_size_train of the data manager, train.batch_size)"
        ) from reason
