"""Batch norms of a traced network, folded into the convolutions before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

_CONVOLUTION = torch.ops.aten.conv2d.default
_NORM = torch.ops.aten.batch_norm.default


def fold_norms(program: ExportedProgram) -> int:
    """Folds every norm over channels whose input is a convolution's output, in place.

    With running mean `m` and variance `v`, the norm of `W x + b` is `(s W) x + (b - m) s + bias` where
    `s = weight / sqrt(v + eps)` multiplies the rows of `W`, `[rows, columns, height, width]`; all others are
    `[rows]`. Example, 4 rows: `s = (2, 1, 1/2, 0)`, `b = 5`, `m = 1`, `bias = 3` give `(11, 7, 5, 3)`.

    ONNX's optimiser does the same in the end, but by then a third of a network's operators have gone through all of
    the exporter, which takes a quarter more time.

    Args:
        program: traced in evaluation; its weights are replaced, those of the network that was traced stay.

    Returns:
        How many norms were folded. One stays that has no weights or takes its statistics from the batch, and one whose
        input, kernel or bias is used elsewhere too.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    kept = {given: name for given, name in names.items() if name in program.state_dict}
    norms = [node for node in program.graph.nodes if node.target is _NORM]
    pairs = [pair for norm in norms if (pair := _pair_of(norm, kept))]
    for pair in pairs:
        _fold(pair, program.state_dict, kept)
        pair.norm.replace_all_uses_with(pair.convolution)
        program.graph.erase_node(pair.norm)
    program.graph_module.recompile()
    return len(pairs)


class _Pair(NamedTuple):
    """A convolution and the norm of its output, by the nodes that a fold reads.

    Attributes:
        convolution: its output goes to the norm alone.
        norm: in evaluation.
        kernel: of the convolution.
        offset: the convolution's own bias; empty if it has none.
        weights: of the norm: weight, bias, running mean and variance.
        epsilon: of the norm.
    """

    convolution: Node
    norm: Node
    kernel: Node
    offset: Sequence[Node]
    weights: Sequence[Node]
    epsilon: float


def _pair_of(norm: Node, names: Mapping[str, str]) -> _Pair | None:
    """A norm and the convolution that it can be folded into; `None` if there is none."""
    convolution, *weights, training, _, epsilon = norm.args[:8]
    if training or not (isinstance(convolution, Node) and convolution.target is _CONVOLUTION):
        return None
    inner = [argument for argument in convolution.args[1:3] if argument is not None]
    if not (_all_known(inner, names) and _all_known(weights, names) and isinstance(epsilon, (int, float))):
        return None
    kernel, *offset = inner
    pair = _Pair(convolution, norm, kernel, offset, weights, epsilon)
    used_once = all(len(node.users) == 1 for node in (convolution, kernel, weights[1]))
    return pair if used_once else None


def _all_known(arguments: Sequence[object], names: Mapping[str, str]) -> TypeGuard[Sequence[Node]]:
    return all(isinstance(argument, Node) and argument.name in names for argument in arguments)


def _fold(pair: _Pair, state: dict[str, Tensor], names: Mapping[str, str]) -> None:
    """Rows of the kernel are scaled; the norm's bias takes the place of the convolution's."""
    convolution, norm, kernel, offset, weights, epsilon = pair
    weight, bias, mean, variance = (state[names[node.name]].detach() for node in weights)
    scale = weight / (variance + epsilon).sqrt()
    before = state[names[offset[0].name]].detach() if offset else 0
    state[names[kernel.name]] = nn.Parameter(state[names[kernel.name]].detach() * scale[:, None, None, None])
    state[names[weights[1].name]] = nn.Parameter((before - mean) * scale + bias)
    convolution.args = (convolution.args[0], kernel, weights[1], *convolution.args[3:])
