"""Baselines: networks of a width plan that inherit otherwise than students of a chain, or nothing."""

import numpy as np
import pytest
import torch
from backbones import REST, build, input_size, one_of_each_kind
from small_networks import HalfAndHalf, Head, conv, of_everything
from test_identity import logits, plans
from torch import nn

from oskt_torchreid.baselines import BASELINES, Baseline, make_baseline, register_baseline
from oskt_torchreid.baselines.selection import by_score, row_norms, select_channels
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.network import trace
from oskt_torchreid.config.nodes import oskt as oskt_node
from oskt_torchreid.config.tree import default_tree
from oskt_torchreid.errors import ChainError, ConfigError, WidthError
from oskt_torchreid.graph import trace_module
from oskt_torchreid.graph.plans import ratio_plan

SELECTIONS = {"slice": [0, 2], "first": [0, 1], "norm": [0, 3]}  # of 4 channels whose rows have the norms 3, 1, 2, 5
MERGES_AND_SELECTIONS = [*SELECTIONS, "kmeans", "scratch"]
NAMES = ["osnet_x0_25", "shufflenet", "resnet50_ibn_a", "densenet121"]


def of_four(bias=True):
    """Four hidden channels with rows of the norms 3, 1, 2, 5."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 4, bias=bias), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[3.0, 0, 0], [0, 1, 0], [2, 0, 0], [0, 3, 4]]))
    return network


@pytest.fixture(scope="module")
def traced():
    """Backbones and their graphs, made once."""
    made = {}

    def get(name):
        if name not in made:
            teacher = build(name)
            made[name] = teacher, trace(teacher, input_size(name))
        return made[name]

    return get


@pytest.mark.parametrize(("method", "kept"), SELECTIONS.items())
def test_selections_keep_rows_biases_and_columns(method, kept):
    teacher = of_four()
    graph = trace_module(teacher, (3, 1, 1))
    student = make_baseline(method, teacher, graph, {"1": 2, "3": 2})
    assert torch.equal(student[1].weight, teacher[1].weight[kept])
    assert torch.equal(student[1].bias, teacher[1].bias[kept])
    assert torch.equal(student[3].weight, teacher[3].weight[:, kept])
    assert (student[1].out_features, student[3].in_features) == (2, 2)


def test_norms_count_every_layer_that_produces_a_channel():
    """Two layers that are added: norms sqrt(9+16), sqrt(1+0), sqrt(25+0), sqrt(4+144)."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = conv(3, 4), conv(3, 4), Head(4)

        def forward(self, images):
            return self.head(self.left(images) + self.right(images))

    teacher = Sum()
    with torch.no_grad():
        teacher.left.weight.zero_()
        teacher.right.weight.zero_()
        teacher.left.weight[:, 0, 0, 0] = torch.tensor([3.0, 1, 5, 2])
        teacher.right.weight[:, 1, 0, 0] = torch.tensor([4.0, 0, 0, 12])
    graph = trace_module(teacher, (3, 8, 8))
    group = next(group for group in graph.groups if group.name == "left")
    np.testing.assert_allclose(row_norms(teacher, graph)[group.channels], np.sqrt([25, 1, 25, 148]))
    student = make_baseline("norm", teacher, graph, {"left": 2, "head.classifier": 2})
    assert torch.equal(student.left.weight, teacher.left.weight[[0, 3]]), "of equal norms the first"


def test_norms_of_grouped_and_transposed_rows():
    teacher = nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2, bias=False), Head(4))
    with torch.no_grad():  # [columns, rows per block]: block 0 holds the columns 0, 1 and the rows 0, 1
        teacher[0].weight[:, :, 0, 0] = torch.tensor([[3.0, 1], [4, 0], [6, 2], [8, 0]])
    network = nn.Sequential(conv(3, 4), *teacher)
    graph = trace_module(network, (3, 8, 8))
    names = [group.name for group in graph.groups if group.name.startswith("1")]
    channels = np.concatenate([group.channels for group in graph.groups if group.name in names])
    np.testing.assert_allclose(row_norms(network, graph)[channels], [5, 1, 10, 2])


def test_kmeans_merges_rows_and_sums_columns():
    """Rows 0, 10, 0.2, 10.4 make the clusters {0, 2} and {1, 3}: means 0.1 and 10.2, columns added."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        teacher[1].weight.copy_(torch.tensor([[0.0], [10], [0.2], [10.4]]))
        teacher[1].bias.copy_(torch.tensor([1.0, 2, 3, 4]))
        teacher[3].weight.copy_(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    graph = trace_module(teacher, (1, 1, 1))
    student = make_baseline("kmeans", teacher, graph, {"1": 2, "3": 2})
    torch.testing.assert_close(student[1].weight, torch.tensor([[0.1], [10.2]]))
    torch.testing.assert_close(student[1].bias, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(student[3].weight, torch.tensor([[4.0, 6], [12, 14]]))


# HACNN's attention is a mean over all channels, which leaving some out changes.
OTHERS = [pytest.param(name, marks=REST) for name in one_of_each_kind() if name not in (*NAMES, "hacnn")]


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_what_is_left_out_is_all_that_is_lost(name):
    """With the columns of the other channels at zero, a selection computes what its teacher computes."""
    teacher, images = build(name), torch.randn(2, *input_size(name))
    graph = trace(teacher, input_size(name))
    random = np.random.default_rng(0)
    score = random.random(graph.num_channels)
    widths = ratio_plan(graph, 0.5)
    kept = np.zeros(graph.num_channels, bool)
    for group in graph.groups:
        kept[group.channels[by_score(score)(group, widths[group.name])]] = True
    state = teacher.state_dict()
    for tie in graph.ties:
        if tie.role == "column":
            weight = state[tie.tensor].unflatten(0, (tie.blocks, -1)).movedim(2, 1)
            weight[torch.from_numpy(~kept[tie.channels])] = 0
    expected = logits(teacher, images)
    student = select_channels(teacher, graph, widths, by_score(score)).eval()
    error = (logits(student, images) - expected).abs().max() / expected.std()
    assert expected.std() > 1e-3 and float(error) < 1e-4


@pytest.mark.parametrize("name", ["osnet_x0_25", "resnext50_32x4d"])
@pytest.mark.parametrize("method", [*SELECTIONS, "kmeans"])
def test_at_full_width_it_is_the_teacher(traced, name, method):
    teacher, graph = traced(name)
    student = make_baseline(method, teacher, graph, graph.sizes).state_dict()
    assert all(torch.equal(tensor, student[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("method", MERGES_AND_SELECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_a_chains_student(traced, name, method):
    teacher, graph = traced(name)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    widths = ratio_plan(graph, 0.5)
    labels = {group.name: np.arange(group.size) % widths[group.name] for group in graph.groups}
    of_chain = expand_to_plan(WeightChain.from_labels(teacher, graph, labels), widths)
    student = make_baseline(method, teacher, graph, widths).eval()
    shapes = {key: tensor.shape for key, tensor in student.named_parameters()}
    assert shapes == {key: tensor.shape for key, tensor in of_chain.named_parameters()}
    assert torch.isfinite(student(torch.randn(2, *input_size(name)))).all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("method", [*SELECTIONS, "kmeans"])
def test_networks_with_everything(method):
    """Convolution groups, a split point, a reordering and fixed channels at half width."""
    teacher = of_everything().eval()
    graph = trace_module(teacher, (3, 8, 8))
    for plan in plans(graph, WeightChain.from_teacher(teacher, 0.5, graph=graph)).values():
        student = make_baseline(method, teacher, graph, plan).eval()
        assert student(torch.randn(2, 3, 8, 8)).shape == (2, 2)
        split = next(module for module in student.modules() if isinstance(module, HalfAndHalf))
        assert split.half == split.instance.num_features


@pytest.mark.parametrize("method", ["scratch", "kmeans"])
def test_what_is_random_follows_the_seed(traced, method):
    teacher, graph = traced("osnet_x0_25")
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(make_baseline(method, teacher, graph, ratio_plan(graph, 0.5)).state_dict())
    weight = next(name for name in networks[0] if name.endswith("conv.weight"))
    assert torch.equal(networks[0][weight], networks[1][weight])
    assert not torch.equal(networks[0][weight], networks[2][weight])


def test_scratch_is_initialised_as_the_network_itself(traced):
    teacher, graph = traced("osnet_x0_25")
    state = make_baseline("scratch", teacher, graph, ratio_plan(graph, 0.5)).state_dict()
    assert np.isclose(float(state["conv1.bn.weight"].std()), 0)


def test_every_method_has_a_name_a_summary_and_a_rate():
    assert set(oskt_node.STOCK_BASELINES) == set(BASELINES) == set(default_tree()["oskt"]["control_lr"])
    assert len({method.summary for method in BASELINES.values()}) == len(BASELINES)


def test_networks_that_are_distilled_are_made_as_their_names_say():
    assert set(oskt_node.DISTILLED) == {name for name, method in BASELINES.items() if method.distils}
    teacher = of_four()
    graph = trace_module(teacher, (3, 1, 1))
    for name in ("norm", "kmeans"):
        torch.manual_seed(3)
        plain = make_baseline(name, teacher, graph, {"1": 2, "3": 2}).state_dict()
        torch.manual_seed(3)
        distilled = make_baseline(f"{name}+kd", teacher, graph, {"1": 2, "3": 2}).state_dict()
        assert plain.keys() == distilled.keys() and all(torch.equal(plain[key], distilled[key]) for key in plain)


def test_a_method_is_added_in_one_line():
    network = of_four()
    register_baseline("whole", Baseline(lambda teacher, graph, widths: teacher, "none at all"))
    assert make_baseline("whole", network, trace_module(network, (3, 1, 1)), {}) is network
    with pytest.raises(ConfigError, match="baseline name 'norm' is taken .channels with the largest rows."):
        register_baseline("norm", Baseline(lambda teacher, graph, widths: teacher, "another"))


def test_unknown_method():
    with pytest.raises(ConfigError, match="unknown baseline 'scrach'; did you mean 'scratch'"):
        make_baseline("scrach", nn.Linear(1, 1), None, {})


@pytest.mark.parametrize("method", [*MERGES_AND_SELECTIONS, "kd++"])
def test_widths_out_of_range(method):
    teacher = of_four()
    with pytest.raises(WidthError, match=r"width 5 of group '1' is outside of \[1, 4\]"):
        make_baseline(method, teacher, trace_module(teacher, (3, 1, 1)), {"1": 5, "3": 2})


@pytest.mark.parametrize("method", ["norm", "kmeans"])
def test_a_teacher_that_is_not_finite(method):
    teacher = of_four()
    graph = trace_module(teacher, (3, 1, 1))
    with torch.no_grad():
        teacher[1].weight[0, 0] = float("nan")
    with pytest.raises(ChainError, match="NaN or infinite; .* sound teacher checkpoint"):
        make_baseline(method, teacher, graph, {"1": 2, "3": 2})
