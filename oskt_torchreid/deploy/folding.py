"""Batch norms of a traced network, folded into the convolutions before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

_CONVOLUTION = torch.ops.aten.conv2d.default
_NORM = torch.ops.aten.batch_norm.default


def fold_norms(program: ExportedProgram) -> int:
    """Folds every norm over channels whose input is a convolution's output, in place.

    With running mean ``m`` and variance ``v``, the norm of ``W x + b`` is ``(s W) x + (b - m) s + bias`` where
    ``s = weight / sqrt(v + eps)`` multiplies the rows of ``W``, ``[rows, columns, height, width]``; all others are
    ``[rows]``. Example, 4 rows: ``s = (2, 1, 1/2, 0)``, ``b = 5``, ``m = 1``, ``bias = 3`` give ``(11, 7, 5, 3)``.

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
    norms = [node for node in program.graph.nodes if node.target is _NORM and _foldable(node, kept)]
    for norm in norms:
        _fold(norm, program.state_dict, kept)
        norm.replace_all_uses_with(norm.args[0])
        program.graph.erase_node(norm)
    program.graph_module.recompile()
    return len(norms)


def _foldable(norm: Node, names: dict[str, str]) -> bool:
    convolution, weight, bias, *statistics, training = norm.args[:6]
    if training or convolution.target is not _CONVOLUTION or len(convolution.users) > 1:
        return False
    _, kernel, offset = _inputs(convolution)
    needed = (kernel, weight, bias, *statistics, *([] if offset is None else [offset]))
    known = all(isinstance(node, Node) and node.name in names for node in needed)
    return known and len(kernel.users) == len(bias.users) == 1


def _fold(norm: Node, state: dict[str, Tensor], names: dict[str, str]) -> None:
    """Rows of the kernel are scaled; the norm's bias takes the place of the convolution's."""
    convolution = norm.args[0]
    images, kernel, offset = _inputs(convolution)
    weight, bias, mean, variance = (state[names[node.name]].detach() for node in norm.args[1:5])
    scale = weight / (variance + norm.args[7]).sqrt()
    before = 0 if offset is None else state[names[offset.name]].detach()
    state[names[kernel.name]] = nn.Parameter(state[names[kernel.name]].detach() * scale[:, None, None, None])
    state[names[norm.args[2].name]] = nn.Parameter((before - mean) * scale + bias)
    convolution.args = (images, kernel, norm.args[2], *convolution.args[3:])


def _inputs(convolution: Node) -> tuple[Node, Node, Node | None]:
    images, kernel, offset, *_ = (*convolution.args, None)
    return images, kernel, offset
