"""Optimisers and learning rate schedules: torchreid's own, and what torchreid lacks."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..config import Config
from ..errors import ConfigError
from ..registry import nearest
from .compat import torchreid
from .models import unwrapped

BIASES = "biases"  # marks the parameter group of the biases if they have their own rate
CHAIN = "chain"  # marks the parameter group of a chain, if its teacher has another rate
NEW_LAYERS = "new_layers"  # marks the parameter group of new layers, by their names
RateCurve = Callable[[float], float]


def build_optimizer(parameters: nn.Module | Iterable[Any], config: Config, stage: Config | None = None) -> Optimizer:
    """Builds torchreid's optimiser.

    Args:
        parameters: a module, or a list of modules, parameters and parameter groups (dicts with 'params' and own
            settings such as 'lr').
        config: whole tree; nodes train (optim, bias_lr_factor, staged_lr, ...), sgd, rmsprop and adam are read.
        stage: node with `lr` and `weight_decay`, such as `oskt.refine`; None: the train node. With a
            `teacher_lr_factor` the parameters have that multiple of the rate, and there is an empty group of the whole
            rate for a chain's, see `add_to_optimizer`.

    Returns:
        Optimiser over the parameters that require gradients.
    """
    stage = config.train if stage is None else stage
    settings = {
        "optim": config.train.optim,
        "lr": stage.lr,
        "weight_decay": stage.weight_decay,
        "momentum": config.sgd.momentum,
        "sgd_dampening": config.sgd.dampening,
        "sgd_nesterov": config.sgd.nesterov,
        "rmsprop_alpha": config.rmsprop.alpha,
        "adam_beta1": config.adam.beta1,
        "adam_beta2": config.adam.beta2,
    }
    factor = config.train.bias_lr_factor
    if isinstance(parameters, nn.Module) and config.train.staged_lr:
        if factor != 1:
            raise ConfigError(
                f"train.staged_lr and train.bias_lr_factor={factor} both divide the parameters into groups; use one"
            )
        parameters = unwrapped(parameters)
        check_layers(parameters, config.train.new_layers, "train.new_layers", leaves_some=True)
        parameters = _staged(parameters, config.train.new_layers, stage.lr * config.train.base_lr_mult)
    groups = _groups(_divided(parameters, stage.lr * factor) if factor != 1 else parameters)
    # torchreid takes whole modules only: a dummy selects the class and its settings, the groups are set afterwards.
    optimizer = torchreid.optim.build_optimizer(nn.Linear(1, 1, device="meta"), **settings)
    optimizer.param_groups.clear()
    if isinstance(optimizer, torch.optim.Adam):
        # One kernel for all tensors: otherwise a network of hundreds of small ones spends a tenth of its step here.
        optimizer.defaults["fused"] = True
    for group in groups:
        optimizer.add_param_group(group)
    if (share := stage.get("teacher_lr_factor", 1.0)) != 1:
        for group in optimizer.param_groups:
            group["lr"] *= share
        optimizer.add_param_group({"params": [], "lr": stage.lr, CHAIN: True})
    return optimizer


def check_layers(model: nn.Module, names: str | Sequence[str], key: str, leaves_some: bool = False) -> None:
    """Raises ConfigError unless every name is a child of a network, and the children have something to train.

    torchreid trains the children of these names alone, or faster than the others.

    Args:
        model: the network; not changed.
        names: of layers.
        key: the key or argument that names them, for messages.
        leaves_some: whether something must be left to train in the other children, too.
    """
    names = layer_names(names)
    trained = {name for name, child in model.named_children() if any(True for _ in child.parameters())}
    known = [name for name, _ in model.named_children()]
    listed = f"; the layers of {type(model).__name__} are {', '.join(name for name in known if name in trained)}"
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        # For a name inside a layer, the message suggests that layer: torchreid only looks at children.
        owner = str(unknown).partition(".")[0]
        hint = f"; name the whole '{owner}'" if owner in known else nearest(str(unknown), known)
        raise ConfigError(f"{key} is {names!r}, and {unknown!r} is no layer{hint}{listed}")
    if not trained & set(names):
        raise ConfigError(f"{key} is {names!r}, in which there is nothing to train{listed}")
    if leaves_some and trained <= set(names):
        raise ConfigError(f"{key} is {names!r}, which leaves no other layer; name only some{listed}")


def layer_names(names: str | Sequence[str]) -> list[str]:
    """Names of layers as a list, also of a single one."""
    return [names] if isinstance(names, str) else list(names)


def add_to_optimizer(optimizer: Optimizer, module: nn.Module, layer_of: Callable[[str], str] = lambda name: "") -> None:
    """Adds a module to an optimiser's existing groups: an existing schedule has one rate per group.

    All go to the group of a chain, if there is one. Else biases go to that of biases, and parameters of a new layer to
    that of new layers, if there are such groups; all others go to the first group.

    Args:
        optimizer: of the network that the module belongs to.
        module: whose parameters are added.
        layer_of: the network's layer that a parameter belongs to, by the parameter's name.
    """
    chain = next((group for group in optimizer.param_groups if group.get(CHAIN)), None)
    if chain is not None:
        chain["params"] += [parameter for parameter in module.parameters() if parameter.requires_grad]
        return
    first = optimizer.param_groups[0]
    biases = next((group for group in optimizer.param_groups if group.get(BIASES)), first)
    none: dict[str, Any] = {NEW_LAYERS: ()}
    new = next((group for group in optimizer.param_groups if NEW_LAYERS in group), none)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_new = layer_of(name) in new[NEW_LAYERS]
            group = new if is_new else biases if _is_bias(name) else first
            group["params"].append(parameter)


def _staged(model: nn.Module, new_layers: Sequence[str], base_lr: float) -> list[Any]:
    """torchreid's staged rates: a group of the base, including parameters outside all layers, and one of new layers.

    torchreid's own function would leave out parameters outside all layers, such as a transformer's class token.
    """
    new = [child for name, child in model.named_children() if name in new_layers]
    own = {id(parameter) for child in new for parameter in child.parameters()}
    base = [parameter for parameter in model.parameters() if id(parameter) not in own]
    faster = {"params": [p for child in new for p in child.parameters()], NEW_LAYERS: list(new_layers)}
    return [{"params": base, "lr": base_lr}, faster]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def _divided(items: nn.Module | Iterable[Any], bias_lr: float) -> list[Any]:
    """The items, with biases of modules in a separate group."""
    divided: list[Any] = []
    biases: list[nn.Parameter] = []
    for item in [items] if isinstance(items, nn.Module) else items:
        if not isinstance(item, nn.Module):
            divided.append(item)
            continue
        for name, parameter in item.named_parameters():
            (biases if _is_bias(name) else divided).append(parameter)
    return [*divided, {"params": biases, "lr": bias_lr, BIASES: True}]


def _groups(items: nn.Module | Iterable[Any]) -> list[dict[str, Any]]:
    """Parameter groups of modules, parameters and groups; those without own settings share one group."""
    items = [items] if isinstance(items, nn.Module) else items
    shared: list[nn.Parameter] = []
    groups = []
    for item in items:
        if isinstance(item, Mapping):
            groups.append({**item, "params": _trainable(item["params"])})
        else:
            shared += _trainable(item.parameters() if isinstance(item, nn.Module) else [item])
    groups = [group for group in [{"params": shared}, *groups] if group["params"]]
    if not groups:
        raise ConfigError("nothing to optimise: no parameter requires a gradient; unfreeze one before training")
    return groups


def _trainable(parameters: Any) -> list[nn.Parameter]:
    parameters = [parameters] if torch.is_tensor(parameters) else list(parameters)
    return [parameter for parameter in parameters if parameter.requires_grad]


def build_scheduler(optimizer: Optimizer, stage: Config, iterations_per_epoch: int) -> LRScheduler:
    """Builds the learning rate schedule of a training stage.

    Args:
        optimizer: its learning rates are the schedule's start (one_cycle, warmup_*: its top).
        stage: node with lr_scheduler, max_epoch, stepsize, gamma, per_iteration, warmup_share, warmup_epochs,
            warmup_factor and min_lr_factor; step sizes are given in epochs in either mode.
        iterations_per_epoch: batches of an epoch.

    Returns:
        Scheduler to be stepped after every batch if `stage.per_iteration`, else after every epoch.

    Raises:
        ConfigError: unknown schedule.
    """
    name = stage.lr_scheduler
    if name not in SCHEDULES:
        raise ConfigError(f"unknown lr_scheduler '{name}'{nearest(name, SCHEDULES)}; allowed: {', '.join(SCHEDULES)}")
    steps_per_epoch = iterations_per_epoch if stage.per_iteration else 1
    # A schedule of no steps cannot be built, and a stage of no epochs never reads its rates.
    total_steps = max(1, stage.max_epoch * steps_per_epoch)
    if name in _CURVES:
        curve = _CURVES[name](stage)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: curve(step / steps_per_epoch))
    if name == "one_cycle":
        top = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, top, total_steps, pct_start=stage.warmup_share)
    return torchreid.optim.build_lr_scheduler(
        optimizer,
        lr_scheduler=name,
        stepsize=[size * steps_per_epoch for size in stage.stepsize],
        gamma=stage.gamma,
        max_epoch=total_steps,
    )


def warmup_multi_step(stage: Config) -> RateCurve:
    """Share of the learning rate at an epoch: a linear warm-up, then `gamma` for every step size passed.

    Warm-up begins at `warmup_factor` and ends at 1 after `warmup_epochs`; milestones within it count already.

    Example: 10 epochs from 0.01 with milestones 40 and 70 give 0.01, 0.109, 0.208, ..., 1 at epoch 10, 0.1 at epoch 40
    and 0.01 at epoch 70 (epochs count from 0).
    """
    warmup, milestones = _warmup(stage), sorted(stage.stepsize)
    return lambda epoch: warmup(epoch) * stage.gamma ** bisect_right(milestones, epoch)


def warmup_cosine(stage: Config) -> RateCurve:
    """Share of the learning rate at an epoch: a linear warm-up, then half a cosine down to `min_lr_factor`.

    The cosine counts from epoch 0, as timm's and TransReID's does, so it is already falling when warm-up ends:
    `min + (1 - min) * (1 + cos(pi * epoch / max_epoch)) / 2`.

    Example: 120 epochs with 20 of warm-up: 0.01 at epoch 0, 0.505 at 10, 0.933 at 20, 0.5 at 60 (min_lr_factor 0).
    """
    warmup, low, last = _warmup(stage), stage.min_lr_factor, max(1, stage.max_epoch)

    def curve(epoch: float) -> float:
        if epoch < stage.warmup_epochs:
            return warmup(epoch)
        return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, epoch / last))) / 2

    return curve


def _warmup(stage: Config) -> RateCurve:
    length, start = stage.warmup_epochs, stage.warmup_factor
    return lambda epoch: start + (1 - start) * epoch / length if epoch < length else 1.0


_CURVES: dict[str, Callable[[Config], RateCurve]] = {
    "warmup_multi_step": warmup_multi_step,
    "warmup_cosine": warmup_cosine,
}
_STEPS = ("single_step", "multi_step", "warmup_multi_step")
SCHEDULE_KEYS: dict[str, tuple[str, ...]] = {
    "stepsize": _STEPS,
    "gamma": _STEPS,
    "warmup_share": ("one_cycle",),
    "warmup_epochs": tuple(_CURVES),
    "warmup_factor": tuple(_CURVES),
    "min_lr_factor": ("warmup_cosine",),
}
"""Keys of a stage that only some schedules read, with those schedules."""
SCHEDULES = ("single_step", "multi_step", "cosine", "one_cycle", *_CURVES)
