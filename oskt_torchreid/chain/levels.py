"""Levels: students of further widths that are trained in the refinement of a nested chain, beside the S-student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError
from ..graph import adapt_code, rebuild
from ..graph.plans import Width, balanced, full_plan
from .chain import WeightChain
from .layout import Layout
from .narrowing import Narrowing


def empty_shell(chain: WeightChain, layout: Layout, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network of some widths that holds buffers alone: its parameters are emptied, for they are given at every call.

    Args:
        chain: of the teacher.
        layout: of the widths.
        tensors: that the buffers start from, by state-dict name.
    """
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    shell = rebuild(chain.model, tensors)
    adapt_code(shell, chain.graph, layout.members)
    for module in shell.modules():
        for name in [name for name, parameter in module._parameters.items() if parameter is not None]:
            del module._parameters[name]
            module.register_buffer(name, torch.empty(0), persistent=False)
    return shell


def level_plans(chain: WeightChain, levels: int | Sequence[Width]) -> list[dict[str, int]]:
    """Width plans of levels; from narrow to wide where only their number is given.

    Example: 3 levels of a chain of 4 of 8 channels are 5, 6 and 7 channels wide.

    Args:
        chain: nested.
        levels: widths; or a number of them, evenly spaced between the chain's and the teacher's.

    Raises:
        WidthError: a level outside of the chain's widths.
        ConfigError: a negative number.
    """
    graph, narrow = chain.graph, chain.widths
    if isinstance(levels, Sequence):
        plans = [full_plan(graph, level) for level in levels]
        for plan in plans:
            chain.check_range(plan)
        return plans
    if levels < 0:
        raise ConfigError(f"levels is {levels}; give a number from 0, or a list of widths")
    shares = [number / (int(levels) + 1) for number in range(1, int(levels) + 1)]
    spaced = [{n: round(k + share * (graph.sizes[n] - k)) for n, k in narrow.items()} for share in shares]
    found: list[dict[str, int]] = []
    for plan in (balanced(graph, plan, narrow) for plan in spaced):
        if plan not in (narrow, graph.sizes, *found):  # of few channels there are fewer widths
            found.append(plan)
    return found


class Level(nn.Module):
    """A student of one width. It has no parameters: they are those of the adjusted teacher, narrowed at every call.

    Attributes:
        narrowing: from the adjusted teacher to the student.
        shell: the network, which holds the statistics of this width.

    Args:
        chain: nested.
        widths: width per group name.
    """

    def __init__(self, chain: WeightChain, widths: Mapping[str, int]) -> None:
        super().__init__()
        layout = chain.layout_of(widths)
        self.narrowing = Narrowing(chain.graph, chain.layout, layout, chain.attention, nested=True)
        self.shell = empty_shell(chain, layout, self.narrowing(chain.rows, chain.vectors) | chain.fixed)

    def forward(self, images: Tensor, weights_of: Callable[[Narrowing], dict[str, Tensor]]) -> Any:
        """Output of the student, in the form of the teacher's own; `weights_of` narrows the adjusted teacher's."""
        return functional_call(self.shell, weights_of(self.narrowing), (images,))
