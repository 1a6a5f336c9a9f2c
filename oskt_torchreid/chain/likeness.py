"""Widths that give a student the shapes of another network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from ..errors import WidthError
from ..graph import ChannelGraph, Tie
from ..graph.surgery.shell import student_shapes
from ..networks import inner_names, is_classifier, is_foreign_classifier, resolver, unwrapped
from .chain import WeightChain

StateShapes = Mapping[str, tuple[int, ...]]
Like = str | nn.Module | Mapping[str, Tensor]
"""A network whose widths a student takes: a registered name, a module, or a state dict."""


def plan_like(chain: WeightChain, like: Like) -> dict[str, int]:
    """Widths that give a student the shapes of another network.

    Args:
        chain: only its graph and widths are read.
        like: a registered model name, a network, or a state dict; one of the two networks may be inside a wrapper.

    Raises:
        WidthError: other depth or names, shapes that no widths give, or widths out of range.
        ConfigError: an unknown model name.
    """
    shapes, what = _shapes_of(chain, like)
    own = _shapes(chain.model.state_dict())
    theirs = _shared_names(chain, own, shapes, what)
    plan = _solve(chain.graph, theirs, what)
    chain.check_range(plan)
    expected = {**own, **student_shapes(chain.graph, plan, own)}
    wrong = [name for name in theirs if tuple(theirs[name]) != expected[name] and name not in _head_tensors(chain)]
    if wrong:
        first = wrong[0]
        raise WidthError(
            f"no widths make a student like {what}: {len(wrong)} tensors would differ, first '{first}' with "
            f"{expected[first]} instead of {tuple(theirs[first])}; give a network of the same family and depth"
        )
    return plan


def _shapes_of(chain: WeightChain, like: Like) -> tuple[StateShapes, str]:
    """Shape per state-dict name of the other network, and what it is called in messages."""
    if isinstance(like, str):
        most = max((chain.rows[name].shape[0] for name in chain.graph.heads), default=1)
        skeleton = resolver().skeleton(like, chain.spec.num_classes if chain.spec else most)
        return _shapes(skeleton.state_dict()), f"'{like}'"
    if isinstance(like, nn.Module):
        return _shapes(unwrapped(like).state_dict()), f"the given {type(like).__name__}"
    if not isinstance(like, Mapping):
        raise WidthError(f"like is {like!r:.100}; give the name of a model, a network, or a state dict")
    state = like.get("state_dict", like)  # what torch.load gives of a checkpoint
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WidthError("like is a dictionary of other things than tensors; give the state dict of a network")
    return _shapes(state), "the given state dict"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _shared_names(chain: WeightChain, own: StateShapes, shapes: StateShapes, what: str) -> dict[str, tuple[int, ...]]:
    """The other network's shapes under the teacher's names; all but heads and statistics must be present."""
    mine, theirs = inner_names(own), inner_names(shapes)
    heads = {inner for inner, name in mine.items() if name in _head_tensors(chain)}
    if (len(mine) < len(own)) != (len(theirs) < len(shapes)):  # only one is wrapped: its classifier is outside
        heads |= {name for name in (*mine, *theirs) if is_classifier(name)}
    # Statistics have the shapes of the parameters of the same norm, and a neck those of the feature before it.
    neck = tuple(f"{name}." for name in getattr(chain.model, "head_modules", ()))
    silent = {name for name, _ in chain.model.named_buffers()} | {name for name in own if name.startswith(neck)}
    missing = [name for name in mine if name not in theirs and name not in heads and mine[name] not in silent]
    unexpected = [name for name in theirs if name not in mine and name not in heads and not is_foreign_classifier(name)]
    if missing or unexpected:
        raise WidthError(
            f"{what} is of another depth or family than the teacher: {len(missing)} tensors are missing in it "
            f"{missing[:3]}, {len(unexpected)} are unknown to the teacher {unexpected[:3]}; a student has all of the "
            "teacher's layers and no others"
        )
    for inner, name in mine.items():
        if inner in theirs and len(shapes[theirs[inner]]) != len(own[name]):
            raise WidthError(
                f"'{theirs[inner]}' of {what} has the shape {tuple(shapes[theirs[inner]])}, the teacher's "
                f"{tuple(own[name])}; give a network of the same family"
            )
    return {name: tuple(shapes[theirs[inner]]) for inner, name in mine.items() if inner in theirs}


def _head_tensors(chain: WeightChain) -> set[str]:
    """Tensors whose rows are results: their class count may differ."""
    rows = chain.graph.row_ties
    results = {rows[name].axis for name in chain.graph.heads}
    return {name for name, tie in rows.items() if tie.axis in results}


def _solve(graph: ChannelGraph, shapes: StateShapes, what: str) -> dict[str, int]:
    """Widths from axis lengths: a group alone on an axis has its length; the last unknown one of several, the rest.

    Heads of one attention, and parts that code cuts alike, are equally wide, so they count as one unknown.
    """
    first_head = _first_heads(graph)
    widths: dict[int, int] = {index: group.size for index, group in enumerate(graph.groups) if group.fixed}
    tied = [tie for tie in graph.ties if tie.tensor in shapes]
    equations = [equation for tie in tied for equation in _equations(graph, tie, shapes)]
    progress = True
    while progress and len(widths) < len(graph.groups):
        progress = False
        for counts, length in equations:
            unknown = [index for index in counts if index not in widths]
            if len(unknown) > 0 and len({first_head.get(index, index) for index in unknown}) == 1:
                rest = length - sum(counts[index] * widths[index] for index in counts if index in widths)
                widths.update(dict.fromkeys(unknown, rest // sum(counts[index] for index in unknown)))
                progress = True
    missing = [group.name for index, group in enumerate(graph.groups) if index not in widths]
    if missing:
        raise WidthError(f"the shapes of {what} do not fix the widths of {len(missing)} groups: {missing[:3]}")
    return {group.name: widths[index] for index, group in enumerate(graph.groups)}


def _first_heads(graph: ChannelGraph) -> dict[int, int]:
    """Index of the first group for each group that is a whole head of an attention, or a whole part of equal ones."""
    first: dict[int, int] = {}
    alike_in = [attention.channels for attention in graph.attentions] + [parts.channels for parts in graph.parts]
    for channels in alike_in:
        blocks = [np.unique(graph.group_of_channel[block]) for block in channels]
        if any(len(groups) > 1 for groups in blocks):
            continue
        alike = {int(groups[0]) for groups in blocks}
        known = {first.get(index, index) for index in alike}
        alike |= {index for index, other in first.items() if other in known}
        first.update(dict.fromkeys(alike, min(known)))
    return first


def _equations(graph: ChannelGraph, tie: Tie, shapes: StateShapes) -> list[tuple[dict[int, int], int]]:
    """`(how often each group's channels occur in a block, length of the block)` for each block of an axis."""
    length = shapes[tie.tensor][tie.dimension]
    length = length // tie.blocks if tie.dimension == 0 else length
    result = []
    for block in tie.channels:
        groups, totals = np.unique(graph.group_of_channel[block], return_counts=True)
        sizes = [len(np.unique(block[graph.group_of_channel[block] == group])) for group in groups]
        counts = {int(group): int(total // size) for group, total, size in zip(groups, totals, sizes, strict=True)}
        result.append((counts, length))
    return result
