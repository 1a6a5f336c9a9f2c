"""Networks that draw random numbers: their draws made alike for every width, and the user's random state kept."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_CONSTANT = 0.5  # what takes the place of a real number that is drawn


@contextlib.contextmanager
def own_random_state(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside this block Python, NumPy and torch draw from a seed; what they would have drawn next is restored.

    Args:
        model: its devices' generators are kept as well.
        seed: of all generators.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = {parameter.get_device() for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class Undisturbed(TorchDispatchMode):
    """Inside this block dropout drops nothing, and drawn real numbers are a constant, whatever their shape.

    So two networks of different widths can be compared in training mode. Drawn whole numbers (permutations, places)
    are drawn from one seed: they are alike where their number does not depend on the width.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids the import of torch's compiler

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, names = kwargs or {}, [argument.name for argument in function._schema.arguments]
        if torch.Tag.nondeterministic_seeded not in function.tags and "dropout" not in function._schema.name:
            return function(*args, **kwargs)
        torch.manual_seed(0)
        if not _OFF.keys() & set(names):
            return _constant(function(*args, **kwargs), dict(zip(names, args, strict=False)) | kwargs)
        off = [_OFF.get(name, value) for name, value in zip(names, args, strict=False)]
        return function(*off, **{name: _OFF.get(name, value) for name, value in kwargs.items()})


_OFF = {"train": False, "training": False, "dropout_p": 0.0, "dropout": 0.0}
"""Arguments by which operators draw numbers or leave it, and what makes them leave it."""


def _constant(drawn: Any, arguments: dict[str, Any]) -> Any:
    """What an operator has drawn, its real numbers replaced, in place: by their probability, where they are 0 or 1."""
    probability = arguments.get("p")
    for tensor in drawn if isinstance(drawn, (list, tuple)) else (drawn,):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.copy_(torch.as_tensor(_CONSTANT if probability is None else probability))
    return drawn
