"""Nested chains: trees and their cuts, rows of every width, and what a student keeps of its teacher."""

from functools import partial

import numpy as np
import pytest
import torch
from backbones import REST
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage

from oskt_torchreid.chain import Refinement, WeightChain, expand, width_plan
from oskt_torchreid.chain.clustering import ward_labels
from oskt_torchreid.chain.layout import leaders
from oskt_torchreid.chain.levels import level_plans
from oskt_torchreid.chain.nesting import Tree, cut_trees, flat_tree, tree_over, ward_tree, weighted_ward
from oskt_torchreid.errors import ChainError, ConfigError, TrainingError, WidthError
from oskt_torchreid.graph import trace_module
from oskt_torchreid.host.models import build as build_registered


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


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_a_tree_over_given_clusters(labels):
    numbered = np.unique(labels, return_inverse=True)[1]
    first = {label: place for place, label in reversed(list(enumerate(numbered)))}
    numbered = np.array([sorted(first.values()).index(first[label]) for label in numbered])
    tree = tree_over(numbered)
    assert tree.is_sound and np.array_equal(cut_trees([tree], [numbered.max() + 1])[0], numbered)


def test_ward_with_masses_by_hand():
    merges = weighted_ward(np.array([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]), np.array([9.0, 9, 1]))
    mean, both = (9 * 1 + 3) / 10, 9 * 10 / 19
    assert np.allclose(merges, [[1, 2, 3.6, 2], [0, 3, both * mean**2, 3]])


@settings(deadline=None)
@given(st.integers(2, 25), st.integers(0, 10**6))
def test_masses_are_repeated_points(size, seed):
    generator = np.random.default_rng(seed)
    points, mass = generator.normal(size=(size, 3)), generator.integers(1, 4, size)
    repeated = np.repeat(points, mass, axis=0)
    squares = ((points[:, None] - points) ** 2).sum(2)
    heights = linkage(repeated, "ward")[:, 2] ** 2 / 2
    assert np.allclose(np.sort(weighted_ward(squares, mass)[:, 2]), heights[mass.sum() - size :])
    tree = ward_tree(torch.from_numpy(points), torch.from_numpy(mass).double())
    for width in range(1, size + 1):
        labels = cut_trees([tree], [width])[0]
        others = ward_labels(torch.from_numpy(repeated), width)[np.cumsum(mass) - mass]
        assert len({*zip(labels, others, strict=True)}) == width


def test_leaders_by_hand():
    assert leaders(np.array([0, 0, 1, 1]), np.array([1.0, 3, 2, 2])).tolist() == [1, 2]


# ---- chains ----------------------------------------------------------------------------------------------------------

NETWORKS = {
    "osnet_x0_25": (3, 64, 32),
    "resnet18": (3, 64, 32),
    "shufflenet_v2_x0_5": (3, 64, 32),
    "resnext50_32x4d": (3, 64, 32),
}


OFTEN = [name for name in NETWORKS if name != "resnext50_32x4d"]


@pytest.fixture(scope="module", params=[*OFTEN, pytest.param("resnext50_32x4d", marks=REST)])
def teacher(request):
    torch.manual_seed(0)
    model = build_registered(request.param, 5).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model, NETWORKS[request.param]


def equal(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_ends_of_a_fresh_chain(teacher):
    """The widest student is the teacher, the narrowest that of the paper's chain, each bit for bit."""
    model, size = teacher
    graph = trace_module(model, size)
    nested = WeightChain.from_teacher(model, 0.5, graph=graph, nested=True)
    assert equal(expand(nested, width=1.0), model)
    plain = WeightChain.from_teacher(model, 0.5, graph=graph)
    assert all(np.array_equal(labels, plain.teacher_to_chain[name]) for name, labels in nested.teacher_to_chain.items())
    narrow, expected = (expand(chain, width=0.5).state_dict() for chain in (nested, plain))
    assert all(torch.allclose(tensor, expected[name], atol=1e-6) for name, tensor in narrow.items())


def test_a_file_gives_the_chain_back(teacher, tmp_path):
    model, size = teacher
    chain = WeightChain.from_teacher(model, 0.5, input_size=size, nested=True)
    chain.save(tmp_path / "chain.safetensors")
    again = WeightChain.load(tmp_path / "chain.safetensors", model=model)
    assert again.trees.keys() == chain.trees.keys() and "nested, not refined" in repr(again)
    assert equal(expand(again, width=0.7), expand(chain, width=0.7))


def test_wide_students_are_nearer_to_the_teacher(teacher):
    """Of a fresh chain: how far the rows of each width are from the teacher's."""
    model, size = teacher
    chain = WeightChain.from_teacher(model, 0.5, input_size=size, nested=True)
    kept = []
    for width in (0.5, 0.75, 1.0):
        layout = chain.layout_of(width_plan(chain, width))
        distance = 0.0
        for name, rows in chain.rows.items():
            axis = layout.axis(chain.graph.row_ties[name])
            mean = torch.zeros(axis.blocks * axis.length, *rows.shape[1:]).index_add(0, axis.teacher_to_student, rows)
            mean /= axis.members.reshape(-1, *[1] * (rows.dim() - 1))
            distance += float((rows - mean[axis.teacher_to_student]).square().sum())
        kept.append(distance)
    assert kept[0] > kept[1] > kept[2] == 0


@pytest.mark.parametrize("vector_copies", [False, True])
def test_a_refined_chain_is_nested_between_sstudent_and_teacher(vector_copies):
    """At the chain's width and at a trained level, its students are those that were trained."""
    torch.manual_seed(0)
    model = build_registered("osnet_x0_25", 5)
    chain = WeightChain.from_teacher(model, 0.5, input_size=(3, 64, 32), nested=True)
    refinement = Refinement(model, chain, vector_copies, within=0.0, levels=(0.75,))
    refinement.active = (0,)
    refinement.train()
    optimizer = torch.optim.SGD(refinement.parameters(), 0.05)
    for _ in range(2):
        labels = torch.randint(5, (4,))
        criterion = partial(torch.nn.functional.cross_entropy, target=labels)
        losses = refinement.losses(torch.randn(4, 3, 64, 32), criterion)
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    refined = refinement.to_chain()
    student = expand(refined, width=0.5).state_dict()
    weights = refinement.sstudent.weights(refinement.teacher)
    assert all(torch.allclose(student[name], tensor, atol=1e-5) for name, tensor in weights.items())
    level = refinement.sstudent.nested_weights(refinement.teacher, refinement.levels[0].narrowing)
    assert all(
        torch.equal(*pair) for pair in zip(expand(refined, width=1.0).parameters(), model.parameters(), strict=True)
    )
    wide = expand(refined, width=0.75).state_dict()
    assert all(torch.allclose(wide[name], tensor, atol=1e-5) for name, tensor in level.items())
    rows = refined.cluster_rows
    assert all(torch.allclose(rows[n], refinement.sstudent.rows[n.replace(".", "/")], atol=1e-5) for n in rows)


def test_a_level_reaches_teacher_and_chain():
    torch.manual_seed(0)
    model = build_registered("osnet_x0_25", 5)
    chain = WeightChain.from_teacher(model, 0.5, input_size=(3, 64, 32), nested=True)
    refinement = Refinement(model, chain, levels=(0.75,)).train()
    assert len(refinement(torch.randn(2, 3, 64, 32))) == 2, "a level is trained where it is active"
    weights = refinement.sstudent.nested_weights(refinement.teacher, refinement.levels[0].narrowing)
    sum(tensor.square().sum() for tensor in weights.values()).backward()
    assert refinement.teacher.conv2[0].conv1.conv.weight.grad.abs().max() > 0
    assert refinement.sstudent.rows["conv2/0/conv1/conv/weight"].grad.abs().max() > 0


def test_levels_are_evenly_spaced_by_group():
    """From 4 of 8 to 8 of 8 channels in three steps between, whatever ratio of each group the chain has."""
    model = build_registered("osnet_x0_25", 5)
    chain = WeightChain.from_teacher(model, 0.5, input_size=(3, 64, 32), nested=True)
    plans = level_plans(chain, 3)
    for name, size in chain.graph.sizes.items():
        steps = [plan[name] - chain.widths[name] for plan in plans]
        whole = size - chain.widths[name]
        assert all(abs(step - whole * share) <= 1 for step, share in zip(steps, (0.25, 0.5, 0.75), strict=True)), name
    assert len(level_plans(chain, np.int64(3))) == 3 and len(level_plans(chain, 10**4)) < 1000, "each once"
    assert level_plans(WeightChain.from_teacher(model, 1.0, input_size=(3, 64, 32), nested=True), 3) == []
    with pytest.raises(ConfigError, match="levels is -3; give a number from 0"):
        Refinement(model, chain, levels=-3)
    assert level_plans(chain, 0) == [] and level_plans(chain, [1.0]) == [chain.graph.sizes]
    assert len(Refinement(model, chain, levels=3).levels) == 3


def test_what_is_refused(tmp_path):
    model = build_registered("osnet_x0_25", 5)
    graph = trace_module(model, (3, 64, 32))
    with pytest.raises(ConfigError, match="clustering of a nested chain is 'balanced'"):
        WeightChain.from_teacher(model, 0.5, graph=graph, clustering="balanced", nested=True)
    plain = WeightChain.from_teacher(model, 0.5, graph=graph)
    with pytest.raises(ChainError, match="levels are students of a nested chain"):
        Refinement(model, plain, levels=(0.75,))
    nested = WeightChain.from_teacher(model, 0.5, graph=graph, nested=True)
    with pytest.raises(ChainError, match="levels is 0.75; give a list of widths, .* or how many"):
        Refinement(model, nested, levels=0.75)
    with pytest.raises(ConfigError, match="within is -1; .* at least 0"):
        Refinement(model, nested, within=-1)
    outputs = [torch.zeros(()) for _ in range(2)]
    with pytest.raises(TrainingError, match="2 criteria are given for 1 narrow students"):
        Refinement(model, nested).losses_of(outputs, torch.sum, [torch.sum, torch.sum])
    with pytest.raises(WidthError, match="ask for a ratio of at least 0.5"):
        Refinement(model, nested, levels=(0.25,))
    with pytest.raises(WidthError, match="ask for a ratio of at least 0.5"):
        expand(nested, width=0.25)
    first = next(iter(nested.trees))
    other = {**nested.trees, first: tree_over(np.arange(len(nested.trees[first].order)) % 2)}
    with pytest.raises(ChainError, match=f"clusters of group '{first}' are no cut of its hierarchy"):
        WeightChain.from_labels(model, graph, nested.teacher_to_chain, trees=other)
    with pytest.raises(ChainError, match=f"group '{first}' of .* channels has no hierarchy"):
        WeightChain.from_labels(model, graph, nested.teacher_to_chain, trees={**nested.trees, first: flat_tree(1)})


def test_the_four_channels_of_the_documentation():
    """docs/method.md: one group in the paper's chain, and in a nested one."""
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(1, 4, bias=False), torch.nn.Linear(4, 2, bias=False)
    )
    with torch.no_grad():
        model[1].weight.copy_(column(0, 2, 10, 14))
        model[2].weight.copy_(torch.tensor([[1.0, 2, 3, 4]] * 2))

    def student(chain, width):
        made = expand(chain, {"1": width})
        return made[1].weight.flatten().tolist(), made[2].weight[0].tolist()

    plain = WeightChain.from_teacher(model, {"1": 2}, input_size=(1, 1, 1))
    assert student(plain, 3) == ([1, 12, 1], [1, 7, 2]) and student(plain, 2) == ([1, 12], [3, 7])
    nested = WeightChain.from_teacher(model, {"1": 2}, input_size=(1, 1, 1), nested=True)
    refinement = Refinement(model, nested)
    with torch.no_grad():
        refinement.sstudent.rows["1/weight"].copy_(column(1, 13))
    chain = refinement.to_chain()
    assert student(chain, 2) == ([1, 13], [3, 7])
    assert student(chain, 3) == ([1, 10.5, 14.5], [3, 3, 4])
    assert student(chain, 4) == ([0, 2, 10, 14], [1, 2, 3, 4])
