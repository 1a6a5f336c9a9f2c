"""Code that moves or reduces channels by fixed numbers: its replacement in a student, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from backbones import build, input_size
from small_networks import IMAGE, ChannelMean, Head, Network, conv
from test_identity import collapse, logits, plans, random_labels
from torch import nn
from torch.nn import functional

from oskt_torchreid import graph
from oskt_torchreid.chain import network
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.sstudent import SStudent
from oskt_torchreid.chain.student_file import save_student
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.errors import GraphError
from oskt_torchreid.graph.surgery.rebuild import adapt_code, restore_code
from oskt_torchreid.graph.surgery.routing import Routed, weigh_input


class Block(nn.Module):
    """Half of the channels go through `branch`, the others pass; then both kinds take turns."""

    def __init__(self, width, between=lambda half: half):
        super().__init__()
        self.between = between
        self.branch = nn.Sequential(conv(width // 2, width // 2), nn.BatchNorm2d(width // 2), nn.ReLU(inplace=True))

    def forward(self, images):
        passed, changed = images.chunk(2, 1)
        joined = torch.cat([passed, self.branch(self.between(changed))], 1)
        return joined.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Down(nn.Module):
    """Two branches on the same input, then both kinds take turns, at half the size."""

    def __init__(self, columns, width):
        super().__init__()
        self.left = conv(columns, width // 2, stride=2)
        self.right = nn.Sequential(nn.ReLU(), conv(columns, width // 2, stride=2))

    def forward(self, images):
        return torch.stack([self.left(images), self.right(images)], 2).flatten(1, 2)


def attended(reduced):
    """A network whose second layer is scaled by a map that `reduced` makes of its input."""

    def forward(self, images):
        features = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(features * self.reduced(features))

    return Network(forward, first=conv(3, 10), second=conv(10, 12), reduced=reduced, head=Head(12))


def shuffled():
    return nn.Sequential(conv(3, 12), Block(12), Block(12), Down(12, 20), Block(20), Head(20))


def around(middle, width=12):
    return nn.Sequential(conv(3, width), Network(lambda self, images: middle(self, images)), Head(width))


def collapsed(model, size=IMAGE, seed=0):
    """A network in double precision with equal rows in random clusters, and its chain."""
    model = model.double()
    traced = network.trace(model, size)
    labels = random_labels(traced, seed)
    collapse(model, traced, labels)
    return model, WeightChain.from_labels(model, traced, labels)


def worst_error(model, chain, size=IMAGE):
    """Largest difference of any student's output, over the spread of the teacher's."""
    images = torch.randn(2, *size, dtype=torch.float64)
    expected = logits(model, images)
    students = [expand_to_plan(chain, widths) for widths in plans(chain.graph, chain).values()]
    return max(float((logits(student, images) - expected).abs().max() / expected.std()) for student in students)


# ---- routes ----------------------------------------------------------------------------------------------------------


def test_routes_of_hand_made_blocks():
    traced = graph.trace_module(nn.Sequential(conv(3, 4), Block(4), Down(4, 6), Head(6)), IMAGE)
    block, down = traced.routes
    assert (block.module, block.calls, block.reads) == ("1", ("branch",), ((0,), (0, 1)))
    assert [source.tolist() for source in block.sources] == [[0, 1, 2, 3], [4, 5]]
    assert [order.tolist() for order in block.orders] == [[2, 3], [0, 4, 1, 5]]
    assert (down.module, down.calls, down.reads) == ("2", ("left", "right"), ((0,), (0,), (1, 2)))
    assert [source.tolist() for source in down.sources] == [[0, 4, 1, 5], [6, 7, 8], [9, 10, 11]]
    assert [order.tolist() for order in down.orders] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 3, 1, 4, 2, 5]]


def test_index_buffers_of_a_narrower_block():
    """Of 0 1 2 3 and the branch's 4 5, the channels 1 and 5 are gone: 0 2 3 comes in, 2 3 go to the branch."""
    model = nn.Sequential(conv(3, 4), Block(4), Head(4))
    traced = graph.trace_module(model, IMAGE)
    adapt_code(model, traced, np.array([2, 0, 1, 1, 2, 0, 1, 1]))
    assert isinstance(model[1], Routed)
    assert model[1].route_0.tolist() == [1, 2]
    assert model[1].route_1.tolist() == [0, 3]
    assert model[1].between is not None, "attributes of the replaced module stay"


@pytest.mark.parametrize("seed", range(3))
def test_routed_blocks_keep_identity_at_any_width(seed):
    torch.manual_seed(seed)
    model, chain = collapsed(shuffled().eval(), seed=seed)
    assert [route.module for route in chain.graph.routes] == ["1", "2", "3", "4"]
    assert worst_error(model, chain) < 1e-12


def test_state_dict_names_stay_and_index_buffers_are_added():
    model, chain = collapsed(shuffled().eval())
    student = expand_to_plan(chain, chain.widths)
    added = student.state_dict().keys() - model.state_dict().keys()
    assert model.state_dict().keys() <= student.state_dict().keys()
    assert added and all(".route_" in name for name in added)


def test_routed_students_can_be_copied_and_pickled():
    block = Routed(nn.Sequential(conv(2, 2)), ("0",), ((0,), (0, 1)), (torch.tensor([2, 3]), torch.tensor([0, 2, 1])))
    images = torch.randn(2, 4, 3, 3)
    for again in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(again(images), block(images))


def test_unequal_slices_between_layers_are_routed():
    def forward(self, images):
        return torch.cat([self.wide(images[:, 5:]), images[:, 2:3], self.narrow(images[:, :5])], 1)

    middle = Network(forward, wide=conv(7, 6), narrow=conv(5, 5))
    model, chain = collapsed(nn.Sequential(conv(3, 12), middle, Head(12)))
    assert chain.graph.routes[0].reads == ((0,), (0,), (0, 1, 2))
    assert worst_error(model, chain) < 1e-12


def test_a_block_that_is_called_twice_keeps_one_route():
    def forward(self, images):
        return self.head(self.block(self.block(self.first(images))))

    model, chain = collapsed(Network(forward, first=conv(3, 12), block=Block(12), head=Head(12)).eval())
    assert len(chain.graph.routes) == 1
    assert worst_error(model, chain) < 1e-12


def _write(half):
    return half.mul_(2)


@pytest.mark.parametrize(
    "between",
    [torch.relu, lambda half: half + 1, lambda half: half.transpose(2, 3), lambda half: half.flip(0) * 1.5, _write],
    ids=["relu", "constant", "turned map", "mixed batch", "in place"],
)
def test_code_that_does_more_than_move_runs_on_equal_parts(between):
    """No index buffer stands in for it; both halves are equally wide in every student, as its own code needs."""
    layers = conv(3, 12), Block(12, between), conv(12, 10), Head(10)
    traced = graph.trace_module(nn.Sequential(*layers).eval(), IMAGE)
    assert not traced.routes
    assert [part.channels.shape for part in traced.parts if part.module == "1"]
    model, chain = collapsed(nn.Sequential(*layers).eval())
    assert worst_error(model, chain) < 1e-12


def test_code_that_depends_on_training_runs_on_equal_parts():
    class Moody(Block):
        def forward(self, images):
            return super().forward(images) * (0.5 if self.training else 1)

    traced = graph.trace_module(nn.Sequential(conv(3, 12), Moody(12), Head(12)).eval(), IMAGE)
    assert not traced.routes and traced.parts


def test_fixed_places_with_constants_are_refused():
    def forward(self, images):
        return torch.cat([self.a(images[:, :7]) + 1, self.b(images[:, 7:])], 1)

    middle = Network(forward, a=conv(7, 6), b=conv(5, 6))
    with pytest.raises(GraphError, match="'slice' in '1'"):
        graph.trace_module(nn.Sequential(conv(3, 12), middle, Head(12)), IMAGE, unknown="refuse")


def test_new_orders_are_seen_as_movement():
    """No extent changes, only the order does. Reversing is right at any width, rolling is not."""
    assert graph.trace_module(around(lambda self, images: torch.relu(images.flip(1))), IMAGE).sizes["0"] == 12
    with pytest.raises(GraphError, match="'roll' in '1'"):
        graph.trace_module(around(lambda self, images: torch.relu(images.roll(1, 1))), IMAGE, unknown="refuse")


# ---- reductions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["mean", "sum"])
def test_reductions_over_channels_are_weighted(operator):
    torch.manual_seed(0)
    model, chain = collapsed(attended(ChannelMean(operator)))
    (reduction,) = chain.graph.reductions
    assert (reduction.module, reduction.operator, len(reduction.channels)) == ("reduced", operator, 12)
    assert worst_error(model, chain) < 1e-12
    student = expand_to_plan(chain, chain.widths)
    student.reduced._forward_pre_hooks.clear()
    images = torch.randn(2, *IMAGE, dtype=torch.float64)
    expected = logits(model, images)
    changed = (logits(student, images) - expected).abs().max() / expected.std()
    assert changed > 1e-4, "without weights the output is another"


@pytest.mark.parametrize(("operator", "weights"), [("mean", [4 / 3, 2 / 3]), ("sum", [2.0, 1.0])])
def test_weights_of_a_reduction(operator, weights):
    model = nn.Sequential(conv(3, 3), ChannelMean(operator), Head(1))
    traced = graph.trace_module(model, IMAGE)
    members = np.ones(traced.num_channels, np.int64)
    members[:3] = 2, 1, 0
    adapt_code(model, traced, members)
    assert model[1].channel_weight.tolist() == pytest.approx(weights)
    assert list(model[1]._forward_pre_hooks.values()) == [weigh_input]


def test_reduced_channels_do_not_merge_with_others():
    """The first four channels are reduced, too; all eight are otherwise alike."""

    def forward(self, images):
        features = self.first(images)
        return self.head(features * self.reduced(self.pick(features)))

    pick = Network(lambda self, images: images[:, :4])
    traced = graph.trace_module(
        Network(forward, first=conv(3, 8), pick=pick, reduced=ChannelMean(), head=Head(8)), IMAGE
    )
    assert traced.sizes["first:0"] == traced.sizes["first:1"] == 4


def _centred(self, images):
    return images - images.mean(1, keepdim=True)


def _late(self, images):
    return images * torch.relu(images).mean(1, keepdim=True)


@pytest.mark.parametrize("middle", [_centred, _late])
def test_other_means_over_channels_count_them_as_norms_do(middle):
    """They are exact where all slots stand for equally many channels, as a proof tries."""
    traced = network.trace(around(middle), IMAGE)
    (norm,) = traced.norms
    assert norm.module == "1" and norm.channels.shape == (1, 12)
    assert traced.sizes["0"] == 12 and not any(group.fixed for group in traced.groups if group.name == "0")


def test_a_maximum_over_channels_is_that_of_merged_ones():
    model, chain = collapsed(around(lambda self, images: images * images.amax(1, keepdim=True)))
    assert not chain.graph.norms and not chain.graph.reductions
    assert worst_error(model, chain) < 1e-12


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda self, images: images / images.var(1, keepdim=True), "summed over in '1'"),
        (lambda self, images: images + torch.relu(images).sum(1, keepdim=True), "summed over in '1'"),
        (lambda self, images: images.softmax(1), "normalised over in '1'"),
    ],
    ids=["variance", "sum", "softmax"],
)
def test_what_would_count_merged_channels_once_keeps_them(middle, reason):
    model = around(middle)
    traced = network.trace(model, IMAGE)
    assert {group.name: group.fixed for group in traced.groups}["0"] == reason


# ---- what leaves the network's channels ------------------------------------------------------------------------------


class Looks(nn.Module):
    """Samples its input at a place that it computes from it."""

    def __init__(self, width, written):
        super().__init__()
        self.written, self.places = written, nn.Linear(width, 2 if written else 6)

    def forward(self, images):
        places = torch.tanh(self.places(images.mean((2, 3))))
        theta = places.view(-1, 2, 3) if not self.written else torch.zeros(len(images), 2, 3).to(images)
        if self.written:
            theta[:, :, :2] = torch.eye(2)
            theta[:, :, -1] = places
        grid = functional.affine_grid(theta, images.shape, align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


@pytest.mark.parametrize("written", [True, False])
def test_sampling_grids_stay_as_they_are(written):
    torch.manual_seed(0)
    model, chain = collapsed(nn.Sequential(conv(3, 12), nn.ReLU(), Looks(12, written), conv(12, 8), Head(8)))
    (places,) = (group for group in chain.graph.groups if group.name == "2.places")
    assert places.fixed
    assert chain.widths["0"] < 12
    assert worst_error(model, chain) < 1e-12


def test_channels_that_are_lost_sight_of_are_no_input():
    def lost(self, images):
        result = torch.zeros(1, 12, 8, 8)
        result[:, :6] = images[:, :6]
        return torch.relu(result)

    with pytest.raises(GraphError, match="module '1' copies channels into a part.*'2.classifier' takes them"):
        graph.trace_module(around(lost), IMAGE, unknown="refuse")


# ---- students --------------------------------------------------------------------------------------------------------


def test_a_student_of_a_student():
    """Its index buffers are those of its own widths, its weights count the members of both steps."""
    torch.manual_seed(0)
    features = nn.Sequential(conv(3, 12), Block(12), nn.ReLU())

    def forward(self, images):
        features = self.features(images)
        return self.head(features * self.reduced(features))

    model, chain = collapsed(Network(forward, features=features, reduced=ChannelMean(), head=Head(12)).eval())
    first = expand_to_plan(chain, plans(chain.graph, chain)["between"])
    again, chain_again = collapsed(first, seed=1)
    assert worst_error(again, chain_again) < 1e-12
    statistics = SStudent(chain_again).to_chain(again).statistics
    assert statistics and not any("channel_weight" in name for name in statistics)


def test_a_description_of_another_network_is_refused():
    with pytest.raises(GraphError, match="not one of this network"):
        restore_code(Head(2), {"routes": [["1", ["branch"], [[0], [0]]]]}, {})
    with pytest.raises(GraphError, match="not one of this network"):
        restore_code(Head(2), {"weighted": ["classifier"]}, {})


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "hacnn"])
def test_backbones_expand_save_and_load(name, tmp_path):
    model = build(name)
    images = torch.randn(2, *input_size(name))
    chain = WeightChain.from_teacher(model, width=0.4, input_size=input_size(name))
    assert len(chain.graph.routes) == (16 if name != "hacnn" else 0)
    assert len(chain.graph.reductions) == (3 if name == "hacnn" else 0)
    chain.save(tmp_path / "chain.safetensors")
    widths = plans(chain.graph, chain)["between"]
    student = expand_to_plan(chain, widths)
    save_student(student, tmp_path / "student.pth")
    twins = [expand_to_plan(WeightChain.load(tmp_path / "chain.safetensors"), widths)]
    twins.append(load_student(tmp_path / "student.pth"))
    with torch.no_grad():
        expected = student(images)
        assert all(torch.equal(twin(images), expected) for twin in twins)
        sstudent = SStudent(chain).eval()
        assert torch.allclose(sstudent(images, model), expand_to_plan(chain, chain.widths)(images), atol=1e-5)
    sstudent.train()
    output = sstudent(images, model)
    sum(part.square().mean() for part in (output if isinstance(output, tuple) else (output,))).backward()
    assert all(rows.grad is not None and torch.isfinite(rows.grad).all() for rows in sstudent.rows.values())
