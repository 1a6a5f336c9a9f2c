"""Norms over channels: when a student is exact under them, and the clustering that makes it so."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from test_identity import collapse, logits, random_labels
from torch import nn
from vits import IMAGE, equal_labels, tiny

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.clustering import balanced_labels, ward_labels
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.network import trace
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.graph.plans import balanced


def errors(labels_of, parts=(4, 2, 1), vary=1.0):
    """Output differences at widths N/j over the output's spread, in a network whose clusters have equal rows."""
    model = tiny().double()
    traced = trace(model, IMAGE)
    labels = labels_of(traced)
    collapse(model, traced, labels)
    images = vary * torch.randn(8, *IMAGE, dtype=torch.float64)
    expected = logits(model, images)
    chain = WeightChain.from_labels(model, traced, labels)
    result = {}
    for part in parts:
        widths = {g.name: g.size if g.fixed else max(chain.widths[g.name], g.size // part) for g in traced.groups}
        student = expand_to_plan(chain, balanced(traced, widths))
        result[part] = float((logits(student, images) - expected).abs().max() / expected.std())
    return result


def test_clusters_of_equal_size_are_exact_where_every_slot_stands_for_equally_many():
    assert max(errors(lambda traced: equal_labels(traced, 4)).values()) <= 1e-10


def test_between_those_widths_they_are_not():
    model = tiny().double()
    traced = trace(model, IMAGE)
    labels = equal_labels(traced, 4)
    collapse(model, traced, labels)
    chain = WeightChain.from_labels(model, traced, labels)
    images = torch.randn(8, *IMAGE, dtype=torch.float64)
    student = expand_to_plan(chain, {**traced.sizes, "dw": 9})  # 3 of 6 clusters in two slots
    error = float((logits(student, images) - logits(model, images)).abs().max() / logits(model, images).std())
    assert error > 1e-2


def test_clusters_of_unequal_size_are_not_exact():
    found = errors(random_labels, parts=(4, 2, 1))
    assert found[1] <= 1e-10, "nothing is merged at full width"
    assert found[4] > 0.1, found


def weighted(module, weights, tokens):
    """A layer norm whose mean and variance count every slot as often as it has members."""
    mean = (tokens * weights).sum(-1, keepdim=True)
    variance = ((tokens - mean).square() * weights).sum(-1, keepdim=True)
    return (tokens - mean) / (variance + module.eps).sqrt() * module.weight + module.bias


def test_a_norm_that_counts_members_would_be_exact_for_any_clusters():
    """What is missing for unequal clusters is these weights alone; without them the error is as large as the output."""
    model = tiny().double()
    traced = trace(model, IMAGE)
    labels = random_labels(traced)
    collapse(model, traced, labels)
    images = torch.randn(8, *IMAGE, dtype=torch.float64)
    expected = logits(model, images)
    chain = WeightChain.from_labels(model, traced, labels)
    student = expand_to_plan(chain, chain.widths)
    error = float((logits(student, images) - expected).abs().max() / expected.std())
    assert 0.1 < error < 2, error
    for norm in traced.norms:
        members = chain.layout.members[norm.channels[0]]
        weights = torch.from_numpy(members[members > 0] / members.sum())
        module = student.get_submodule(norm.module)
        module.forward = partial(weighted, module, weights)
    torch.testing.assert_close(logits(student, images), expected)


# ---- balanced clustering -----------------------------------------------------------------------------------------


def test_the_documented_example():
    rows = torch.tensor([[0.0], [1.0], [2.0], [9.0]], dtype=torch.float64)
    assert balanced_labels(rows, np.array([0, 0, 0, 1])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("size", "count"), [(24, 6), (24, 24), (25, 6), (7, 2), (10, 1)])
def test_sizes_differ_by_one_at_most(size, count):
    rows = torch.randn(size, 5, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    labels = balanced_labels(rows, ward_labels(rows, count))
    sizes = np.bincount(labels)
    assert len(sizes) == count and sizes.max() - sizes.min() <= 1
    assert np.array_equal(labels, balanced_labels(rows, ward_labels(rows, count)))
    _, first = np.unique(labels, return_index=True)
    assert (np.diff(first) > 0).all(), "clusters are numbered by their first row"


def test_clusters_that_lie_apart_are_found():
    centers = 10 * torch.eye(4, dtype=torch.float64)
    rows = centers.repeat(6, 1) + 0.1 * torch.randn(24, 4, dtype=torch.float64)
    unbalanced = np.array([0, 1, 2, 3] * 5 + [0, 0, 0, 0])
    assert balanced_labels(rows, unbalanced).tolist() == [0, 1, 2, 3] * 6


def test_it_ends_at_a_sum_of_squares_no_larger_than_any_exchange_gives():
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = balanced_labels(rows, ward_labels(rows, 3))

    def spread(labels, means_of):
        means = torch.stack([rows[torch.from_numpy(means_of == c)].mean(0) for c in range(3)])
        return float((rows - means[torch.from_numpy(labels)]).pow(2).sum())

    best = spread(labels, labels)
    for i in range(12):
        for j in range(i):
            exchanged = labels.copy()
            exchanged[[i, j]] = labels[[j, i]]
            assert spread(exchanged, labels) >= best - 1e-9


def test_only_what_norms_read_is_balanced():
    model = tiny()
    chain = WeightChain.from_teacher(model, 0.25, graph=trace(model, IMAGE), clustering="balanced")
    sizes = {name: np.bincount(labels) for name, labels in chain.teacher_to_chain.items()}
    assert set(sizes["dw"]) == {4}
    assert len(set(sizes["blocks.0.mlp.fc1"])) > 1


def test_a_balanced_chain_of_a_collapsed_teacher_is_exact():
    """End to end: rows in equal clusters are found again, and students of widths N/j compute what the teacher does."""
    model = tiny().double()
    traced = trace(model, IMAGE)
    collapse(model, traced, equal_labels(traced, 4))
    widths = {g.name: g.size if g.fixed else g.size // 4 for g in traced.groups}
    chain = WeightChain.from_teacher(model, widths, graph=traced, clustering="balanced")
    images = torch.randn(4, *IMAGE, dtype=torch.float64)
    torch.testing.assert_close(logits(expand_to_plan(chain, chain.widths), images), logits(model, images))


def test_an_unknown_clustering():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="clustering is 'spectral'; allowed: ward, balanced"):
        WeightChain.from_teacher(model, 0.5, input_size=(3, 4, 4), clustering="spectral")
