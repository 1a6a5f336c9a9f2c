"""The states of all random number generators that training draws from, as plain values and tensors."""

import random
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

State = dict[str, Any]


def random_state(device: torch.device) -> State:
    """States of Python's, NumPy's and torch's generators, and of the device's if it is a GPU.

    The result holds only tensors and plain values, so that a checkpoint with it is read without running code.
    """
    version, numbers, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    kind, words = numpy["bit_generator"], numpy["state"]
    has_gauss, cached = int(numpy["has_gauss"]), float(numpy["gauss"])
    state: State = {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [kind, torch.from_numpy(words["key"].astype(np.int64)), int(words["pos"]), has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: State, device: torch.device) -> None:
    """Restores the generators from a state of `random_state` that `check_random_state` has accepted."""
    random.setstate(_of_python(state))
    np.random.set_state(_of_numpy(state))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def check_random_state(state: Any, source: str) -> None:
    """Raises CheckpointError unless `set_random_state` can use a state; no generator in use is touched."""
    try:
        random.Random().setstate(_of_python(state))
        np.random.RandomState().set_state(_of_numpy(state))
        torch.Generator().set_state(state["torch"])
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as reason:
        raise CheckpointError(
            f"{source} is damaged: the states of its random number generators cannot be used ({reason}). Nothing was "
            "loaded; resume from another checkpoint"
        ) from reason


def _of_python(state: State) -> tuple[Any, ...]:
    version, numbers, gauss = state["python"]
    return version, tuple(numbers.tolist()), gauss


def _of_numpy(state: State) -> tuple[Any, ...]:
    kind, keys, *rest = state["numpy"]
    return kind, keys.numpy().astype(np.uint32), *rest
