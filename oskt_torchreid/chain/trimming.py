"""A chain without its widest students: a smaller file that gives all others, as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ChainError
from ..graph.plans import Width, full_plan
from . import lineage, network
from .chain import WeightChain
from .expansion import expand_to_plan
from .narrowing import Narrowing
from .nesting import Tree


def trimmed(chain: WeightChain, widest: Width) -> WeightChain:
    """The chain whose widest student is one of a given width, and whose other students are the same as before.

    The student takes the teacher's place. With the fade `g` of its width, the leader `W_u` of a slot and `W_a` of a
    cluster, its rows are `T_u = W_u + g (C_a - W_a)`; and a student of the fade `f` between it and the chain has
    `T_v + f (C_a - T_a) = W_v + (g + f - g f) (C_a - W_a)`, whose factor is that of its width in the whole chain.
    Example: of 8 channels and 2 clusters, trimmed to 6, width 4 has `g = 1/3` and `f = 1/2`, together `2/3`.

    Args:
        chain: nested, with leaders (`WeightChain.from_teacher` with contributions); not changed.
        widest: ratio of the teacher's channels, or a width per group name.

    Returns:
        A chain of that student, as `WeightChain.from_student` makes one: ratios are of *its* channels from now on,
        and it is no first chain of a `Ladder`.

    Raises:
        WidthError: a width outside of the chain's.
        ChainError: a chain of another kind: slots of the paper's chain are not parts of one another, and means would
            become means of means; or a network with attention, whose rows know how many channels a slot has.
    """
    if not chain.importance:
        raise ChainError(
            "only a nested chain whose slots have leaders can be trimmed: the students of others are not parts of one "
            "another; make it with nested=True and contributions"
        )
    if chain.graph.attentions:
        raise ChainError("a chain of a network with attention cannot be trimmed: its rows depend on the width")
    plan = full_plan(chain.graph, widest)
    chain.check_range(plan)
    student = expand_to_plan(chain, plan)
    graph = network.traced_alone(student, chain.input_size, chain.graph.keep)
    channels = lineage.student_channels(chain.graph, chain.layout_of, graph)
    labels = {name: _first_of(channels[name], clusters) for name, clusters in chain.teacher_to_chain.items()}
    trees = {name: _cut(tree, channels[name]) for name, tree in chain.trees.items()}
    importance = {name: _largest_of(channels[name], values) for name, values in chain.importance.items()}
    made = WeightChain.from_labels(student, graph, labels, chain.attention, trees, importance, chain.vectors_over)
    narrowing = Narrowing(chain.graph, chain.layout, chain.layout_of(plan), chain.attention)
    own = chain.own | {name: narrowing.summed(name, rows) for name, rows in chain.cluster_rows.items()}
    origin = lineage.composed(chain.origin_to_teacher, channels)
    made = replace(made, own=own, statistics=chain.statistics, spec=chain.spec, origin_to_teacher=origin)
    made.validate()
    return made


def _first_of(slots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each slot's first member: all members of a slot are in one cluster."""
    return values[np.unique(slots, return_index=True)[1]]


def _largest_of(slots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each slot's leader."""
    largest = np.full(slots.max() + 1, -np.inf, values.dtype)
    np.maximum.at(largest, slots, values)
    return largest


def _cut(tree: Tree, slots: np.ndarray) -> Tree:
    """The hierarchy above a cut. Example: ranks `0 3 1 2` of the channels `0 1 2 3`, cut at 3: ranks `0 1 2`."""
    begins = tree.rank < slots.max() + 1
    return Tree(slots[tree.order[begins]], tree.rank[begins])
