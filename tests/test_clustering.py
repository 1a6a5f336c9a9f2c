"""Clustering: Ward's partitions, their numbering, and what is clustered together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from small_networks import IMAGE, Head, Network, conv
from torch import nn

from oskt_torchreid import graph
from oskt_torchreid.chain.clustering import cluster_teacher, ward_labels
from oskt_torchreid.errors import ChainError
from oskt_torchreid.graph.plans import ratio_plan


def numbered_by_first_row(labels) -> list[int]:
    """The same partition, clusters numbered in the order in which they are met."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(label), len(seen)) for label in np.ravel(labels)]


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_partitions_are_those_of_scipy_on_raw_rows(num_rows, columns, seed, data):
    rows = np.random.default_rng(seed).normal(size=(num_rows, columns))
    count = data.draw(st.integers(1, num_rows))
    tree = linkage(rows, method="ward")
    labels = ward_labels(torch.from_numpy(rows), count)
    assert labels.tolist() == numbered_by_first_row(cut_tree(tree, n_clusters=count))
    assert labels.tolist() == numbered_by_first_row(fcluster(tree, count, criterion="maxclust"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=20), st.data())
def test_equal_rows_still_give_exactly_as_many_clusters_as_asked_for(values, data):
    count = data.draw(st.integers(1, len(values)))
    labels = ward_labels(torch.tensor(values, dtype=torch.float64)[:, None], count)
    assert np.bincount(labels, minlength=count).min() >= 1
    assert labels.max() == count - 1
    assert labels.tolist() == numbered_by_first_row(labels)


def test_an_example_by_hand():
    """Two far pairs and a single: at three clusters each is its own, at two the nearer pair takes the single."""
    rows = torch.tensor([[10.0], [0.0], [10.5], [3.0], [0.5]], dtype=torch.float64)
    assert ward_labels(rows, 3).tolist() == [0, 1, 0, 2, 1]
    assert ward_labels(rows, 2).tolist() == [0, 1, 0, 1, 1]


def test_rows_of_all_producers_are_clustered_together():
    """Each producer alone would pair other channels: only side by side are 0, 1 and 2, 3 alike."""

    def forward(self, images):
        x = self.first(images)
        return self.head(x + self.second(x))

    model = Network(forward, first=conv(3, 4), second=conv(4, 4), head=Head(4))
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None, None, None].expand(4, 3, 1, 1))
        model.second.weight.copy_(torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None].expand(4, 4, 1, 1))
    traced = graph.trace_module(model, IMAGE)
    widths = {"first": 2, "head.classifier": 2}
    assert cluster_teacher(traced, model.state_dict(), widths)["first"].tolist() == [0, 0, 1, 1]
    with torch.no_grad():
        model.second.weight.mul_(100)
    assert cluster_teacher(traced, model.state_dict(), widths)["first"].tolist() == [0, 1, 0, 1]


def test_rows_of_unit_length_forget_their_scale():
    model = nn.Sequential(conv(3, 4), Head(4))
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [9, 0, 0], [0, 9, 0]])
    with torch.no_grad():
        model[0].weight.copy_(rows[:, :, None, None])
    traced = graph.trace_module(model, IMAGE)
    widths = {"0": 2, "1.classifier": 2}
    state = model.state_dict()
    assert cluster_teacher(traced, state, widths, normalize_rows=True)["0"].tolist() == [0, 1, 0, 1]
    assert cluster_teacher(traced, state, widths)["0"].tolist() == [0, 0, 0, 1], "as raw rows, the large ones stand out"


def test_convolution_groups_are_clustered_apart():
    """Rows of the two convolution groups are equal, yet no cluster holds channels of both."""

    def forward(self, images):
        return self.head(self.last(self.grouped(self.first(images))))

    parts = {"first": conv(3, 4), "grouped": conv(4, 8, groups=2), "last": conv(8, 3), "head": Head(3)}
    model = Network(forward, **parts)
    with torch.no_grad():
        model.grouped.weight.copy_(torch.tensor([0.0, 5, 0, 5, 0, 0, 5, 5])[:, None, None, None].expand(8, 2, 1, 1))
    traced = graph.trace_module(model, IMAGE)
    widths = ratio_plan(traced, 0.5)
    assert widths == {"first:0": 1, "first:1": 1, "grouped[0]": 2, "grouped[1]": 2, "last": 1, "head.classifier": 2}
    labels = cluster_teacher(traced, model.state_dict(), widths)
    assert labels["grouped[0]"].tolist() == [0, 1, 0, 1]
    assert labels["grouped[1]"].tolist() == [0, 0, 1, 1]


def test_widths_of_one_and_all_need_no_clustering():
    model = nn.Sequential(conv(3, 4), Head(4))
    traced = graph.trace_module(model, IMAGE)
    labels = cluster_teacher(traced, model.state_dict(), {"0": 1, "1.classifier": 2})
    assert labels["0"].tolist() == [0, 0, 0, 0]
    assert labels["1.classifier"].tolist() == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(value):
    rows = torch.zeros(4, 2, dtype=torch.float64)
    rows[1, 1] = value
    with pytest.raises(ChainError, match="weights that are NaN or infinite; a chain needs a sound teacher checkpoint"):
        ward_labels(rows, 2)
