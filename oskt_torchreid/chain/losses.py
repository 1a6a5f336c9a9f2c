"""The refining loss and its weight over time (paper: weight chain refinement)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ConfigError

RowPair = tuple[Tensor, Tensor, Tensor]
"""A teacher's weight `[N, ...]`, its chain rows `[K, ...]`, and the chain row of each teacher row `[N]`."""

LambdaSchedule = Callable[[float], float]


class _RowDistance(torch.autograd.Function):
    """`between + share * within`: one difference, of which the backward pass makes the gradient in place."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, chain_rows: Tensor, index: Tensor, share: float) -> Tensor:
        difference = torch.sub(weight, chain_rows.index_select(0, index))
        flat = difference.reshape(-1)
        whole = torch.dot(flat, flat)
        ctx.share, ctx.difference, ctx.chain_shape = share, difference, chain_rows.shape
        if share == 1:
            ctx.save_for_backward(index)
            return whole
        sums = torch.zeros_like(chain_rows).index_add_(0, index, difference)
        means = sums / _members(index, chain_rows)
        ctx.save_for_backward(index, sums, means)
        between = torch.dot(sums.reshape(-1), means.reshape(-1))
        return between + share * (whole - between)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, *split = ctx.saved_tensors
        of_weight = ctx.difference.mul_(2 * gradient * ctx.share)
        ctx.difference = None
        if not split:
            of_chain = of_weight.new_zeros(ctx.chain_shape).index_add_(0, index, of_weight, alpha=-1)
            return of_weight, of_chain, None, None
        sums, means = split
        of_weight.add_(means.mul_(2 * gradient * (1 - ctx.share)).index_select(0, index))
        return of_weight, sums.mul_(-2 * gradient), None, None


def _members(index: Tensor, chain_rows: Tensor) -> Tensor:
    """Teacher rows per chain row, in a shape that broadcasts."""
    counts = torch.bincount(index, minlength=len(chain_rows)).clamp(min=1)
    return counts.to(chain_rows).reshape(-1, *[1] * (chain_rows.dim() - 1))


def row_distance(weight: Tensor, chain_rows: Tensor, index: Tensor, within: float = 1.0) -> Tensor:
    """How far the rows of one layer are from their chain rows; both sides receive gradient.

    With `Wm_a` the mean of the teacher's rows of cluster `a`, and `n_a` their number::

        sum_i ||W_i - C_a(i)||^2  =  sum_i ||W_i - Wm_a(i)||^2  +  sum_a n_a ||Wm_a - C_a||^2
                                     within: makes rows alike      between: ties chain and teacher

    The paper takes both alike. Without the first, the teacher keeps rows that differ, and wide students what they say.

    Args:
        weight: teacher's weight `W`, `[N, ...]`.
        chain_rows: chain `C`, `[K, ...]` with the same row shape.
        index: `a`, chain row of each teacher row, `[N]`.
        within: weight of the first part; the second one's is 1.

    Returns:
        Scalar. Its backward pass can run once.

    Example with 4 rows of one number: `W = (1, 2, 3, 4)`, `C = (2, 2)`, `a = (0, 1, 0, 1)` gives `1+0+1+4 = 6`,
    the gradient `(-2, 0, 2, 4)` for `W` and `(0, -4)` for `C`. The means are 2 and 3, so that 4 of the 6 are
    within and 2 between; with `within=0` the gradient is `(0, 2, 0, 2)` for `W`, and that of `C` stays.
    """
    return _RowDistance.apply(weight, chain_rows, index, within)


def refining_loss(pairs: Iterable[RowPair], within: float = 1.0) -> Tensor:
    """`L_refine`: `row_distance` summed over layers."""
    return torch.stack([row_distance(*pair, within) for pair in pairs]).sum()


@torch.no_grad()
def row_dispersion(pairs: Iterable[RowPair]) -> float:
    """`sum ||W - C||^2 / sum ||W||^2` over layers: 0 where every row equals its chain row."""
    distance, norm = 0.0, 0.0
    for weight, chain_rows, index in pairs:
        distance += float((weight - chain_rows.index_select(0, index)).pow(2).sum())
        norm += float(weight.pow(2).sum())
    return distance / norm if norm else 0.0


def lambda_schedule(name: str, weight: float) -> LambdaSchedule:
    """The weight of the refining loss as a function of progress in `[0, 1]`.

    Args:
        name: `constant` (the paper's choice for CNNs, made for long schedules) or `linear`, from 0 to `weight`
            over all iterations (the paper's progressive refinement; the better choice for short schedules, where a
            constant weight dominates Adam's second moment).
        weight: final weight, at least 0.

    Raises:
        ConfigError: unknown name or negative weight.
    """
    if weight < 0:
        raise ConfigError(f"lambda is {weight}; the weight of the refining loss is at least 0")
    schedules: dict[str, LambdaSchedule] = {
        "constant": lambda progress: weight,
        "linear": lambda progress: weight * progress,
    }
    if name not in schedules:
        raise ConfigError(f"lambda_schedule is '{name}'; allowed: {', '.join(schedules)}")
    return schedules[name]
