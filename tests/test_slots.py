"""Slots and members against a literal reading of the definition, one slot and one member at a time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oskt_torchreid.chain.layout import Slots, slots_of_groups
from oskt_torchreid.errors import WidthError


def slots_of(labels: list[int], width: int) -> Slots:
    """Slots and members of a group by itself."""
    return slots_of_groups([np.array(labels)], [width])[0]


def literal_slots(labels: list[int], width: int) -> tuple[list[int], list[int]]:
    """The definition word by word, with exact ratios: append slots greedily, then deal out members."""
    members = {cluster: [i for i, label in enumerate(labels) if label == cluster] for cluster in sorted(set(labels))}
    slots = list(members)
    while len(slots) < width:
        slots.append(min(members, key=lambda cluster: (Fraction(slots.count(cluster), len(members[cluster])), cluster)))
    teacher_to_slot = [-1] * len(labels)
    for cluster, channels in members.items():
        own = [slot for slot, owner in enumerate(slots) if owner == cluster]
        start = 0
        for turn, slot in enumerate(own):
            share = len(channels) // len(own) + (turn < len(channels) % len(own))
            for channel in channels[start : start + share]:
                teacher_to_slot[channel] = slot
            start += share
    return slots, teacher_to_slot


@st.composite
def labels_and_width(draw):
    """Labels 0..K-1, each in use, in any order, and any width from K to N."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=7))
    labels = draw(st.permutations([cluster for cluster, size in enumerate(sizes) for _ in range(size)]))
    return labels, draw(st.integers(len(sizes), len(labels)))


@given(labels_and_width())
def test_slots_and_members_are_those_of_the_definition(case):
    labels, width = case
    slots = slots_of(labels, width)
    assert (slots.slot_to_cluster.tolist(), slots.teacher_to_slot.tolist()) == literal_slots(labels, width)


@given(labels_and_width())
def test_every_slot_stands_for_members_of_its_own_cluster(case):
    labels, width = case
    slots = slots_of(labels, width)
    assert np.array_equal(slots.slot_to_cluster[slots.teacher_to_slot], labels)
    assert np.bincount(slots.teacher_to_slot, minlength=width).min() >= 1


@given(st.lists(labels_and_width(), min_size=1, max_size=4))
def test_groups_together_are_as_each_by_itself(cases):
    found = slots_of_groups([np.array(labels) for labels, _ in cases], [width for _, width in cases])
    assert [(s.slot_to_cluster.tolist(), s.teacher_to_slot.tolist()) for s in found] == [
        literal_slots(*case) for case in cases
    ]


def test_a_width_out_of_range_among_others():
    with pytest.raises(WidthError, match=r"width 5 is outside of \[2, 4\]"):
        slots_of_groups([np.array([0, 0]), np.array([0, 1, 0, 0])], [1, 5])


def test_the_worked_example_of_four_channels():
    slots = slots_of([0, 1, 0, 0], 3)
    assert slots.slot_to_cluster.tolist() == [0, 1, 0]
    assert slots.teacher_to_slot.tolist() == [0, 1, 0, 2]


def test_ties_go_to_the_lowest_cluster_and_ratios_are_followed():
    """Sizes 2, 4, 2: ratios 1/2, 1/4, 1/2 give slots 1; then all are at 1/2: 0, 1, 2; then 3/4 goes to 1."""
    labels = [0, 0, 1, 1, 1, 1, 2, 2]
    assert slots_of(labels, 8).slot_to_cluster.tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert slots_of(labels, 4).teacher_to_slot.tolist() == [0, 0, 1, 1, 3, 3, 2, 2]


def test_the_ends_of_the_range():
    labels = [1, 0, 1, 2, 1]
    assert slots_of(labels, 3).teacher_to_slot.tolist() == labels
    assert sorted(slots_of(labels, 5).teacher_to_slot.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [1, 5])
def test_a_width_out_of_range_says_the_range(width):
    with pytest.raises(WidthError, match=rf"width {width} is outside of \[2, 4\]: a student is at least as wide"):
        slots_of([0, 1, 0, 0], width)
