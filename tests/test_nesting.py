"""Nested chains: trees and their cuts, rows of every width, and what a student keeps of its teacher."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oskt_torchreid.chain.clustering import ward_labels
from oskt_torchreid.chain.nesting import Tree, cut_trees, flat_tree, ward_tree
from oskt_torchreid.errors import ChainError


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def test_the_worked_example():
    tree = ward_tree(column(0, 1, 10, 14))
    assert tree.order.tolist() == [0, 1, 2, 3] and tree.rank.tolist() == [0, 3, 1, 2]
    cuts = [cut_trees([tree], [width])[0].tolist() for width in (1, 2, 3, 4)]
    assert cuts == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 2], [0, 1, 2, 3]]


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.booleans())
def test_cuts_are_wards(size, seed, coarse):
    """At every width the partition of `ward_labels`, numbered alike, equal rows and equal distances included."""
    rows = torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = rows.round() if coarse else rows
    tree = ward_tree(rows)
    assert tree.is_sound
    for width in range(1, size + 1):
        assert np.array_equal(cut_trees([tree], [width])[0], ward_labels(rows, width))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 99), st.floats(0, 1)), min_size=1, max_size=5))
def test_groups_together_are_as_each_by_itself(groups):
    trees, widths = [], []
    for size, seed, share in groups:
        trees.append(ward_tree(torch.randn(size, 2, generator=torch.Generator().manual_seed(seed)).double()))
        widths.append(max(1, round(share * size)))
    together = cut_trees(trees, widths)
    for tree, width, labels in zip(trees, widths, together, strict=True):
        assert np.array_equal(labels, cut_trees([tree], [width])[0]) and labels.max() == width - 1


@given(st.integers(1, 20), st.integers(0, 10**6))
def test_wider_cuts_refine_narrower_ones(size, seed):
    tree = ward_tree(torch.randn(size, 2, generator=torch.Generator().manual_seed(seed)).double())
    cuts = [cut_trees([tree], [width])[0] for width in range(1, size + 1)]
    for narrow, wide in zip(cuts, cuts[1:], strict=False):
        assert len({*zip(narrow, wide, strict=True)}) == wide.max() + 1


def test_trees_that_are_none():
    assert flat_tree(3).is_sound and cut_trees([flat_tree(3)], [3])[0].tolist() == [0, 1, 2]
    for order, rank in (([0, 0], [0, 1]), ([0, 1], [1, 0]), ([0, 1], [0, 2]), ([0, 1], [0])):
        assert not Tree(np.array(order), np.array(rank)).is_sound
    with pytest.raises(ChainError, match="NaN or infinite"):
        ward_tree(column(0, torch.nan))
