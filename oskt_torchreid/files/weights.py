"""Weights of a checkpoint in a network that they fit in full, or not at all."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..networks import compare
from . import load_checkpoint

_NAMES_SHOWN = 5
_ADVICE = "give a checkpoint of the same backbone, class count and settings, or build the model it was saved from"


def load_weights(model: nn.Module, path: str | Path, ignore: Sequence[str] = ()) -> None:
    """Loads a checkpoint into `model`, which changes only if every tensor fits.

    Args:
        model: network to fill.
        path: a state dict, or a checkpoint of torchreid that holds one under 'state_dict'; names may begin with
            'module.'.
        ignore: tensor names that may be missing, unexpected or of another shape (a classifier of another label set);
            those keep the model's values.

    Raises:
        CheckpointError: unreadable file, or missing, unexpected or misshaped tensors, with counts and first names.
    """
    state = state_dict_of(load_checkpoint(path), path)
    own = model.state_dict()
    check_state_dict(state, own, source=f"'{path}'", target=type(model).__name__, ignore=ignore)
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    model.load_state_dict({**own, **fitting})


def state_dict_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint's content, without 'module.' prefixes.

    Raises:
        CheckpointError: there is none.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(_is_named_tensor(*item) for item in state.items()):
        raise CheckpointError(
            f"'{path}' holds no state dict; expected a mapping of names to tensors, alone or under 'state_dict'"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and torch.is_tensor(value)


def check_state_dict(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: str,
    target: str,
    ignore: Collection[str] = (),
    advice: str = _ADVICE,
) -> None:
    """Compares names, shapes and kinds of numbers, which must be finite.

    Args:
        state: tensors that were read.
        expected: tensors of the network.
        source: where the first are from, for the message.
        target: what the others are of.
        ignore: names that may be missing, unexpected or of another shape.
        advice: what to give instead.

    Raises:
        CheckpointError: counts and first names of missing, unexpected, misshaped and unusable tensors.
    """
    found = compare(state, expected, ignore)
    misshaped = [f"{n} {tuple(state[n].shape)} instead of {tuple(expected[n].shape)}" for n in found.misshaped]
    unusable = [f"{name} {fault}" for name, fault in found.unusable.items()]
    kinds = {"missing": found.missing, "unexpected": found.unexpected, "misshaped": misshaped, "unusable": unusable}
    account = "; ".join(f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names)
    if account:
        raise CheckpointError(
            f"{source} does not fit {target} ({len(expected)} tensors): {account}. Nothing was loaded; {advice}"
        )


def first_names(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are; "none" if there are none."""
    more = f", ... ({len(names) - _NAMES_SHOWN} more)" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more if names else "none"
