"""The record of a run in its checkpoint, checked before anything in it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import CheckpointError
from .losses import ReidLoss
from .random_state import State, check_random_state


@dataclass(frozen=True)
class Position:
    """The position at which a run resumes.

    Attributes:
        epoch: number of completed epochs.
        batches: number of completed batches of the next epoch.
        random: states of the generators of every process at this place.
        epoch_random: those at the beginning of the epoch, if any batch is completed: they determine the sampler's order
            and the images of its batches.
        evaluated: number of completed epochs at the last evaluation.
        curve: evaluations so far.
    """

    epoch: int
    batches: int
    random: list[State]
    epoch_random: list[State]
    evaluated: int
    curve: tuple[dict[str, float], ...]


def training_state(position: Position, run_key: str, losses: Sequence[ReidLoss], method: dict) -> dict[str, Any]:
    """The entry `training` of a checkpoint, besides weights, optimiser and schedule: plain values and tensors.

    Args:
        position: where the run resumes.
        run_key: digest of the settings that decide its result.
        losses: whose centers are stored.
        method: state of the method.
    """
    return {
        "run": run_key,
        "batches": position.batches,
        "random": position.random,
        "epoch_random": position.epoch_random,
        "evaluated": position.evaluated,
        "curve": list(position.curve),
        "losses": [loss.learned() for loss in losses],
        "method": method,
    }


def position_of(content: Mapping[str, Any], source: str) -> Position | None:
    """The position at which a checkpoint's run resumes; None if it has none (torchreid's own).

    Args:
        content: of the file.
        source: the file, for messages.

    Raises:
        CheckpointError: damaged.
    """
    try:
        epoch, _ = int(content.get("epoch", 0)), float(content.get("train_seconds", 0))
        if "training" not in content:
            return None
        training = content["training"]
        curve = tuple({name: float(value) for name, value in point.items()} for point in training["curve"])
        batches, evaluated = int(training["batches"]), int(training["evaluated"])
        position = Position(epoch, batches, training["random"], training["epoch_random"], evaluated, curve)
        typed = {"run": str, "losses": list, "method": dict, "random": list, "epoch_random": list}
        if (
            min(epoch, batches) < 0
            or not position.random
            or not position.epoch_random
            or not all(isinstance(training[name], kind) for name, kind in typed.items())
        ):
            raise ValueError("a value of another type")
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise CheckpointError(
            f"{source} is damaged: it does not say where its run resumes ({type(reason).__name__}: {reason}). "
            "Nothing was loaded; resume from another checkpoint"
        ) from reason
    for state in (*position.random, *position.epoch_random):
        check_random_state(state, source)
    return position


def check_training(training: Mapping[str, Any], run_key: str, losses: Sequence[ReidLoss], source: str) -> None:
    """Raises CheckpointError unless a run with these settings and losses wrote a checkpoint's `training`.

    Args:
        training: as `position_of` has seen it.
        run_key: of the resumed run; empty: not compared.
        losses: of the resumed run.
        source: the file, for messages.
    """
    key, learned = training["run"], training["losses"]
    if run_key and key and key != run_key:
        raise CheckpointError(
            f"{source} is a checkpoint of another run: its settings have the digest {key}, this run's {run_key}. "
            "Nothing was loaded; resume with the configuration that it was written with (config.yaml of its "
            "run), or start again in another folder (data.save_dir), with its weights by model.load_weights"
        )
    if len(learned) != len(losses):
        raise CheckpointError(f"{source} is a checkpoint of another run: of another engine. Nothing was loaded")
    for loss, part in zip(losses, learned, strict=True):
        loss.check_learned(part, source)


def check_optimizer_state(state: Any, optimizer: Optimizer, source: str) -> None:
    """Raises CheckpointError unless an optimiser can continue from a state: the same groups, tensors of their shapes.

    Args:
        state: of `optimizer.state_dict()` when it was saved.
        optimizer: not changed.
        source: the file, for messages.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    sizes = [len(group) for group in groups]
    try:
        given = [len(group["params"]) for group in state["param_groups"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        shapes = {
            number: [tensor.shape for tensor in values.values() if torch.is_tensor(tensor) and tensor.dim()]
            for number, values in state["state"].items()
        }
    except (AttributeError, KeyError, TypeError) as reason:
        raise CheckpointError(
            f"{source} is damaged: it holds no optimiser state ({type(reason).__name__}: {reason}). Nothing was "
            "loaded; resume from another checkpoint"
        ) from reason
    if given != sizes:
        raise CheckpointError(
            f"{source} is a checkpoint of another run: its optimiser has groups of {given} parameters, this one's of "
            f"{sizes}. Nothing was loaded; resume with the settings that it was written with"
        )
    for number, parameter in zip(numbers, [parameter for group in groups for parameter in group], strict=True):
        wrong = next((tuple(shape) for shape in shapes.get(number, ()) if shape != parameter.shape), None)
        if wrong is not None:
            raise CheckpointError(
                f"{source} is a checkpoint of another run: its optimiser keeps {wrong} for parameter {number} of shape "
                f"{tuple(parameter.shape)}. Nothing was loaded; resume with the settings that it was written with"
            )
