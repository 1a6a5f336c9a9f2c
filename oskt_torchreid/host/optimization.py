"""Optimisers and learning rate schedules: torchreid's own, and what it lacks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import ConfigError
from ..registry import nearest
from .compat import torchreid

SCHEDULES = ("single_step", "multi_step", "cosine", "one_cycle")


def build_optimizer(parameters: nn.Module | Iterable[Any], config: Any, stage: Any = None) -> Optimizer:
    """Builds torchreid's optimiser.

    Args:
        parameters: a module, or a list of modules, parameters and parameter groups (dicts with 'params' and own
            settings such as 'lr').
        config: whole tree; nodes train (optim, staged_lr, ...), sgd, rmsprop and adam are read.
        stage: node with `lr` and `weight_decay`, such as `config.oskt.refine`; None: the train node.

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
    if isinstance(parameters, nn.Module) and config.train.staged_lr:
        return torchreid.optim.build_optimizer(
            parameters,
            staged_lr=True,
            new_layers=list(config.train.new_layers),
            base_lr_mult=config.train.base_lr_mult,
            **settings,
        )
    groups = _groups([parameters] if isinstance(parameters, nn.Module) else parameters)
    # torchreid takes whole modules only: a stand-in chooses the class and its settings, the groups come after.
    optimizer = torchreid.optim.build_optimizer(nn.Linear(1, 1, device="meta"), **settings)
    optimizer.param_groups.clear()
    if isinstance(optimizer, torch.optim.Adam):
        # One kernel for all tensors: a network of hundreds of small ones spends a tenth of its step here otherwise.
        optimizer.defaults["fused"] = True
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer


def _groups(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameter groups of modules, parameters and groups; those without own settings share one group."""
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


def build_scheduler(optimizer: Optimizer, stage: Any, iterations_per_epoch: int) -> LRScheduler:
    """Builds the learning rate schedule of a training stage.

    Args:
        optimizer: its learning rates are the schedule's start (one_cycle: its top).
        stage: node with lr_scheduler, max_epoch, stepsize, gamma, per_iteration and warmup_share; step sizes are
            given in epochs in either mode.
        iterations_per_epoch: batches of an epoch.

    Returns:
        Scheduler to be stepped after every batch if `stage.per_iteration`, else after every epoch.

    Raises:
        ConfigError: unknown schedule.
    """
    steps_per_epoch = iterations_per_epoch if stage.per_iteration else 1
    # A schedule of no steps cannot be built, and a stage of no epochs never asks for its rates.
    total_steps = max(1, stage.max_epoch * steps_per_epoch)
    if stage.lr_scheduler not in SCHEDULES:
        raise ConfigError(
            f"unknown lr_scheduler '{stage.lr_scheduler}'{nearest(stage.lr_scheduler, SCHEDULES)}; allowed: "
            f"{', '.join(SCHEDULES)}"
        )
    if stage.lr_scheduler == "one_cycle":
        top = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, top, total_steps, pct_start=stage.warmup_share)
    return torchreid.optim.build_lr_scheduler(
        optimizer,
        lr_scheduler=stage.lr_scheduler,
        stepsize=[size * steps_per_epoch for size in stage.stepsize],
        gamma=stage.gamma,
        max_epoch=total_steps,
    )
