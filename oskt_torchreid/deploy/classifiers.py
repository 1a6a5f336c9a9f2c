"""The classifiers that a network runs in evaluation, where torchreid's own networks give features."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError, GraphError, first_line
from ..graph import trace_module
from ..networks import describe_outputs, watched

logger = logging.getLogger(__name__)


def evaluated_classifiers(model: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Names of the modules whose class scores a network returns in evaluation.

    These are classifiers of its channel graph: they give an image one number per row, which nothing reads in training
    either. A network that cannot be traced is taken to return features, and a warning says so.

    Args:
        model: not changed.
        input_size: `(channels, height, width)`.

    Raises:
        ExportError: a network that fails on an image, that returns several tensors or none, or whose own code, rather
            than a module in it, makes the scores.
    """
    network = copy.deepcopy(model).cpu().float().eval()
    last = _last_layers(network, input_size)
    if not last:
        return []
    try:
        heads = {name.rpartition(".")[0] for name in trace_module(network, input_size).heads}
    except GraphError as error:
        logger.warning(
            "whether '%s' of %s gives class scores or features cannot be told, for it cannot be traced (%s): what the "
            "network returns is exported",
            last[0],
            type(model).__name__,
            first_line(error),
        )
        return []
    found = [name for name in last if name in heads]
    if "" in found:
        raise ExportError(
            f"the class scores of {type(model).__name__} are made by its own code, which cannot be left out; put the "
            "classifier into a module of its own"
        )
    return found


def _last_layers(network: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Names of the modules with a matrix whose output is the network's, moved at most."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    ]
    given: dict[str, Tensor] = {}

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            given[name] = output

    images = torch.rand(2, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode(), watched(layers, leave=leave):
            returned = network(images)
    except Exception as error:  # a user's code
        raise fails(network, input_size, error) from error
    result = _one_tensor(network, returned)
    memory = result.untyped_storage().data_ptr()
    return [name for name, output in given.items() if output.untyped_storage().data_ptr() == memory]


def _one_tensor(network: nn.Module, returned: Any) -> Tensor:
    tensors: Sequence[Any] = [returned] if isinstance(returned, Tensor) else returned
    if isinstance(tensors, (list, tuple)) and len(tensors) == 1 and isinstance(tensors[0], Tensor):
        return tensors[0]
    raise ExportError(
        f"{type(network).__name__} returns {describe_outputs(returned)} in evaluation, and an exported network has one "
        "output; give a module around it that returns one tensor, or joins them"
    )


def fails(network: nn.Module, input_size: tuple[int, ...], error: Exception) -> ExportError:
    """The error of a network that fails on images."""
    size = "x".join(map(str, input_size))
    return ExportError(
        f"{type(network).__name__} fails on images {size} ({first_line(error)}); give the size that it was made for"
    )
