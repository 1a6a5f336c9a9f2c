"""Building networks without the time that their initial weights take."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What ``torch.nn.init`` fills tensors with.
_FILLING = {"normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "sub_", "div_", "clamp_"}


class NoInitialization(TorchFunctionMode):
    """While active, tensors on the meta device are left as they are by what would only fill them with numbers.

    They have none; but torch works each such call out in Python, which for a deep network takes longer than all else.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Answers a call of torch as it is, or a filling one with its tensor."""
        if args and getattr(function, "__name__", "") in _FILLING and torch.is_tensor(args[0]) and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))
