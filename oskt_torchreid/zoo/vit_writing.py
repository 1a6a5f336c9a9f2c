"""A vision transformer's chain as the authors' program keeps it; the inverse of `vit_format.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..chain.chain import WeightChain
from ..chain.narrowing import average_rows, sum_columns
from ..errors import ZooError
from .vit_format import NECKS, NORM, POSITIONS, TEACHER_PREFIX, TOKENS, matrices, norms

_BATCHES = "num_batches_tracked"
_FRAME = (*TOKENS, *POSITIONS, "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


def vit_content(chain: WeightChain, teacher: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Labels and state dict of a vision transformer's chain in the authors' names, without the program's scratch.

    Args:
        chain: of `vit_*_patch16`, with part tokens.
        teacher: the teacher's state dict. Students take the chain's tensors, so the bias of `proj` is the chain's, too.

    Raises:
        ZooError: a chain of another network.
    """
    depth = len({match.group() for name in teacher if (match := re.match(r"blocks\.\d+\.", name))})
    _check_names(chain, depth)
    labels = _labels(chain, depth)
    state = {f"{TEACHER_PREFIX}{name}": teacher[name] for name in _FRAME}
    for part in matrices(depth):
        weight, bias = f"{part.name}.weight", f"{part.name}.bias"
        state[TEACHER_PREFIX + weight] = teacher[weight]
        state[f"{part.chain}weight_gene"] = chain.rows[weight]
        if part.bias:
            state[TEACHER_PREFIX + bias] = chain.vectors[bias] if part.takes_teachers_bias else teacher[bias]
            state[f"{part.chain}bias_gene"] = chain.vectors[bias]
    for name in norms(depth):
        for end in ("weight", "bias"):
            state[f"{TEACHER_PREFIX}{name}.{end}"] = teacher[f"{name}.{end}"]
            state[f"{TEACHER_PREFIX}{name}_gene.{end}"] = chain.vectors[f"{name}.{end}"]
    state.update(_head(chain, teacher))
    return labels, state


def _check_names(chain: WeightChain, depth: int) -> None:
    names = set(chain.model.state_dict())
    expected = {*_FRAME, "classifier.weight"}
    expected |= {f"{part.name}.weight" for part in matrices(depth)}
    expected |= {f"{part.name}.bias" for part in matrices(depth) if part.bias}
    expected |= {f"{name}.{end}" for name in norms(depth) for end in ("weight", "bias")}
    expected |= {f"{neck}.{name}" for neck in NECKS for name in (*NORM, _BATCHES)}
    if names != expected:
        raise ZooError(
            "this vision transformer cannot be written in the authors' format, which has three part tokens and no "
            f"other tensors; they differ in '{min(names ^ expected)}'"
        )


def _labels(chain: WeightChain, depth: int) -> dict[str, Any]:
    """The four maps of the file: channel to cluster, and cluster to its channels."""
    channel_to_row: dict[str, list[int]] = {}
    row_to_channels: dict[str, dict[str, list[int]]] = {}
    for part in matrices(depth):
        rows = chain.layout.axis(chain.graph.row_ties[f"{part.name}.weight"]).teacher_to_student.numpy()
        channel_to_row[part.labels] = rows.tolist()
        row_to_channels[part.labels] = {
            str(row): np.flatnonzero(rows == row).tolist() for row in range(int(rows.max()) + 1)
        }
        if part.rows == 3:
            queries = rows[: len(rows) // 3].tolist()
            channel_to_row.update({part.labels.removesuffix("qkv") + letter: queries for letter in "qkv"})
    return {"o2g": channel_to_row, "g2o": row_to_channels, "s1_2_g": {}, "entire_2_g": {}}


def _head(chain: WeightChain, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Necks and classifier of the teacher, and the S-student's at the chain's width."""
    state = {}
    axis = chain.layout.axis(chain.graph.row_ties["dw.weight"])
    for neck in NECKS:
        for name in NORM:
            ours = f"{neck}.{name}"
            state[ours] = teacher[ours]
            own = chain.statistics.get(ours)
            state[f"{neck}s.s1.{name}"] = average_rows(chain.vectors[ours], axis) if own is None else own
        state[f"{neck}.{_BATCHES}"] = state[f"{neck}s.s1.{_BATCHES}"] = teacher[f"{neck}.{_BATCHES}"]
    state["classifier.weight"] = teacher["classifier.weight"]
    columns = chain.layout.axis(chain.graph.column_ties["classifier.weight"])
    state["classifiers.s1.weight"] = sum_columns(chain.rows["classifier.weight"], columns)
    return state
