"""Memory of the training stages of a run, estimated before any of them begins."""

from __future__ import annotations

import copy
import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..chain.budgets import show_amount
from ..errors import ConfigError, first_line
from ..host.compat import device

logger = logging.getLogger(__name__)

_IMAGES = 2  # images of the measured pass: norms need two
_PER_PARAMETER = 4 * 4  # bytes: weight, gradient, and two moments of Adam


def training_memory(model: nn.Module, image_size: tuple[int, int, int], images: int, key: str = "train") -> int:
    """Bytes that training a network takes: weights, gradients, moments, and activations kept for the backward pass.

    One forward pass of two images shows what is kept, scaled to the batch. Buffers of single operations are not
    counted, so a real step takes somewhat more.

    Args:
        model: not changed.
        image_size: `(channels, height, width)`.
        images: of a batch.
        key: of the stage's node, for messages.

    Raises:
        ConfigError: a network that cannot take such images.
    """
    probe = copy.deepcopy(model).train()
    if any(parameter.is_meta for parameter in probe.parameters()):  # shapes without numbers, of a given chain's teacher
        probe.to_empty(device="cpu")
    probe.cpu()
    fixed = {parameter.untyped_storage().data_ptr() for parameter in probe.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = _passed(probe, image_size, key)
    del outputs  # the kept activations live as long as the outputs
    parameters = sum(parameter.numel() for parameter in probe.parameters())
    return _PER_PARAMETER * parameters + sum(kept.values()) * images // _IMAGES


def _passed(model: nn.Module, image_size: tuple[int, int, int], key: str) -> Any:
    """The output of a network in training for images."""
    try:
        return model(torch.zeros(_IMAGES, *image_size))
    except (RuntimeError, ValueError, IndexError, AssertionError) as reason:  # networks raise different errors
        height, width = image_size[1:]
        raise ConfigError(
            f"{key}: {type(model).__name__} cannot be trained on images of {height}x{width} ({first_line(reason)}); "
            f"raise data.height and data.width, or set {key}.half_resolution_epochs to 0 where it halves them"
        ) from reason


def check_stage_memory(stages: dict[str, tuple[int, int]], use_gpu: bool) -> None:
    """Logs the memory of stages, and refuses one that does not fit on this machine.

    Args:
        stages: by the key of each node, bytes and images of a batch.
        use_gpu: whether they run on the GPU, if there is one.

    Raises:
        ConfigError: a stage that takes more than the whole memory.
    """
    total, available = _memory(use_gpu)
    for key, (needed, images) in stages.items():
        text = f"{key}: batches of {images} take about {show_amount('size', needed)}"
        if needed > total:
            raise ConfigError(
                f"{text}, and this machine has {show_amount('size', total)}; lower {key}.batch_size, or data.height "
                "and data.width"
            )
        if needed > available:
            logger.warning("%s, and only %s are free", text, show_amount("size", available))
        else:
            logger.info("%s", text)


def _memory(use_gpu: bool) -> tuple[int, int]:
    """Bytes of memory in total, and free ones."""
    where = device(use_gpu)
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        return total, free
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 2**63, 2**63  # a system without this information
    page, names = os.sysconf("SC_PAGE_SIZE"), ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
    total, free = (page * os.sysconf(name) for name in names)
    return total, max(free, _reclaimable())


def _reclaimable() -> int:
    """What Linux can free at once, caches of files included; 0 elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
