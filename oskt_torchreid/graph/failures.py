"""Why a network fails while it is traced: the image's size, its own code, or the trace; each with what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import GraphError

# Words of torch's messages, and of networks' own checks, about tensors that do not fit each other.
_OF_SHAPES = re.compile(
    r"shape|size|dimension|channels|elements|height|width|resolution|out of range|match", re.IGNORECASE
)
_RAISED_FOR_SHAPES = (RuntimeError, ValueError, AssertionError, IndexError)


def check_model(model: nn.Module) -> None:
    """Raises ``GraphError`` for what can never be traced: no module, compiled code, layers without weights yet."""
    if not isinstance(model, nn.Module):
        raise GraphError(f"a torch.nn.Module is traced, got {type(model).__name__!r}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module '{name}'" if name else "the network"
            raise GraphError(
                f"{what} is compiled by TorchScript, whose code cannot be followed; give the network it was made of"
            )
    lazy = [name for name, tensor in model.state_dict(keep_vars=True).items() if is_lazy(tensor)]
    if lazy:
        raise GraphError(f"'{lazy[0]}' has no shape yet; run the network once on an image before it is traced")


def check_input_size(input_size: tuple[int, ...]) -> None:
    """Raises ``GraphError`` unless a size is ``(channels, height, width)``."""
    fits = isinstance(input_size, (tuple, list)) and len(input_size) == 3
    if not fits or not all(type(length) is int and length > 0 for length in input_size):
        raise GraphError(
            f"input_size is {input_size!r}; give (channels, height, width), each 1 or more, such as (3, 256, 128)"
        )


def forward_error(forward: Callable[[Tensor], Any], image: Tensor, module: str, error: Exception) -> GraphError:
    """The error of a forward pass that failed, worded after its cause.

    Args:
        forward: runs the network as it was run, but not traced.
        image: what it was given, ``[1, channels, height, width]``.
        module: name of the module whose code failed.
        error: what it raised.
    """
    what = (
        f"the network fails on one image of {tuple(image.shape[1:])} in module '{module}' "
        f"({type(error).__name__}: {error})"
    )
    if _runs(forward, image):
        return GraphError(
            f"{what} while it is traced, and runs otherwise: what this module does cannot be followed; write it with "
            "operators of torch on tensors"
        )
    if isinstance(error, _RAISED_FOR_SHAPES) and _OF_SHAPES.search(str(error)):
        return GraphError(f"{what}; give the input_size that it is made for, as (channels, height, width)")
    return GraphError(
        f"{what}; this is an error of the network's own code: it fails on such an image without a trace too"
    )


def unweighted(operator: str, module: str) -> GraphError:
    """The error of a reduction over channels that cannot be weighted."""
    return GraphError(
        f"operator '{operator}' in module '{module}' reduces over channels: merged channels would count once instead "
        "of as often as they were merged. A mean or sum is weighted where it is the one use that a module makes of its "
        "input; put it into such a module"
    )


def _runs(forward: Callable[[Tensor], Any], image: Tensor) -> bool:
    try:
        with torch.no_grad():
            forward(image)
    except Exception:  # foreign code; what it raised while it was traced is what the user is told
        return False
    return True
