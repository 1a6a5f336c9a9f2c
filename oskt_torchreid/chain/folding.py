"""What makes attention exact after merging: factors on the rows that produce queries and keys.

A head's product sums over its channels. Where a slot stands for ``n`` equal channels, its term counts once instead of
``n`` times; and a head narrowed from ``d`` to ``m`` channels scales the sum by ``m ** -0.5`` instead of ``d ** -0.5``.
Both are made good when the slot's rows (and biases) of queries and keys are multiplied, each, by

    sqrt(n) * (m / d) ** (1/4)

Example, one head of 4 channels in 2 slots of 3 and 1 members: the factors are ``sqrt(3) * 0.5 ** 0.25 = 1.4565`` and
``0.5 ** 0.25 = 0.8409``; ``(1.4565 ** 2 * a + 0.8409 ** 2 * b) / sqrt(2) = (3 a + b) / sqrt(4)``, as in the teacher.

The paper folds nothing (``attention="paper"``): a narrower head simply uses its own size.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..errors import ConfigError
from ..graph import ChannelGraph
from .layout import Layout

logger = logging.getLogger(__name__)

ATTENTIONS = ("folded", "paper")


def check_attention(attention: str) -> str:
    """The choice itself; raises ``ConfigError`` unless it is one of ``ATTENTIONS``."""
    if attention not in ATTENTIONS:
        raise ConfigError(
            f"attention is '{attention}'; allowed: folded (students are exact where their rows are equal) and paper "
            "(nothing is folded into queries and keys)"
        )
    return attention


def attention_factors(graph: ChannelGraph, layout: Layout, attention: str = "folded") -> dict[str, Tensor]:
    """Factor of every row of the tensors that produce queries and keys.

    Args:
        graph: the teacher's channel graph.
        layout: slots of the student's widths.
        attention: ``folded``, or ``paper`` for no factors.

    Returns:
        Per tensor ``[student's rows]`` in float64, 1 on the rows of values; tensors that nothing happens to are left
        out.
    """
    factors: dict[str, Tensor] = {}
    if check_attention(attention) == "paper":
        return factors
    for module in graph.attentions:
        size = module.channels.shape[1]
        width = int((layout.members[module.channels[0]] > 0).sum())
        if width == size:
            continue
        if not module.positions:
            logger.warning(
                "the heads of '%s' are narrowed without making their products exact: something stands between the "
                "layers of queries and keys and their product",
                module.module,
            )
        of_size = (width / size) ** 0.25 if module.scale_follows else 1.0
        for name, positions in module.positions.items():
            axis = layout.axis(graph.row_ties[name])
            slots = axis.teacher_to_student[torch.from_numpy(positions).long()].unique()
            factor = factors.setdefault(name, torch.ones(axis.blocks * axis.length, dtype=torch.float64))
            factor[slots] = axis.members[slots].double().sqrt() * of_size
    return factors


def fold(tensor: Tensor, factor: Tensor) -> Tensor:
    """Rows of a weight, or entries of a bias, times their factors; differentiable in ``tensor``."""
    return tensor * factor.to(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
