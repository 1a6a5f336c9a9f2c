"""The identity property, proved for every network that is traced: what it catches, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
import torchvision
from small_networks import IMAGE, Head, Network, Shuffle, TinyNet, conv, of_everything
from test_foreign import Decoder
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.chain import equal_rows, network, proof
from oskt_torchreid.errors import GraphError
from oskt_torchreid.graph.randomness import Undisturbed
from oskt_torchreid.host import models

SIZE = (3, 128, 64)


def two_layers(between, **parts):
    """Eight channels whose code does something between two convolutions."""

    def forward(self, images):
        return self.head(self.second(between(self, self.first(images))).relu())

    return Network(forward, first=conv(3, 8), second=conv(8, 8), head=Head(8), **parts)


@pytest.fixture(autouse=True)
def nothing_proved(monkeypatch):
    """Every test proves for itself."""
    monkeypatch.setattr(proof, "_PROVED", set())


# ---- what it catches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        lambda self, x: x / math.sqrt(x.shape[1]),
        lambda self, x: x * (x.size(1) / 32),
        lambda self, x: x + x.shape[1],
        lambda self, x: x ** x.shape[1],
        lambda self, x: x * len(self.second.weight),
        lambda self, x: x if x.shape[1] > 6 else -x,
    ],
    ids=["root", "share", "sum", "power", "rows", "branch"],
)
def test_a_width_that_is_used_as_a_number(between):
    message = "the first output that differs is that of module 'second', a Conv2d, or what the code before it makes"
    with pytest.raises(GraphError, match=message):
        oskt.WeightChain.from_teacher(two_layers(between), width=0.5, input_size=IMAGE)


def test_a_width_that_is_used_as_a_number_in_one_mode_alone():
    with pytest.raises(GraphError, match="does not compute in training what its teacher does"):
        oskt.trace(two_layers(lambda self, x: x * x.shape[1] if self.training else x), IMAGE)
    with pytest.raises(GraphError, match="does not compute in evaluation what its teacher does"):
        oskt.trace(two_layers(lambda self, x: x if self.training else x * x.shape[1]), IMAGE)


class Keeps(nn.Module):
    """Scales its input by a parameter, whose shape it keeps."""

    def __init__(self, keep):
        super().__init__()
        self.scale, self.kept = nn.Parameter(torch.rand(8)), keep((8, 1, 1))

    def forward(self, images):
        return images * self.scale.view([self.kept[place] for place in range(3)])


def numbered(entries):
    return dict(enumerate(entries))


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda: two_layers(lambda self, x: self.scale(x), scale=Keeps(numbered)), "'scale', a Keeps"),
        (lambda: two_layers(lambda self, x: torch.cat([x, x], 1)[:, :8]), "'second', a Conv2d"),
    ],
    ids=["shape", "slice"],
)
def test_a_number_of_channels_that_code_keeps(build, where):
    with pytest.raises(GraphError, match=f"fails in evaluation, in module {where}|takes channels apart"):
        oskt.WeightChain.from_teacher(build(), width=0.25, input_size=IMAGE, unknown="refuse")


@pytest.mark.parametrize("keep", [tuple, list, torch.Size])
def test_a_number_of_channels_that_an_attribute_holds(keep):
    model = two_layers(lambda self, x: self.scale(x), scale=Keeps(keep))
    traced = oskt.trace(model, IMAGE)
    assert [(split.module, split.attribute) for split in traced.splits] == [("scale", "kept[0]")]
    student = oskt.expand(oskt.WeightChain.from_teacher(model, width=0.25, graph=traced), width=0.5)
    assert list(student.scale.kept) == [4, 1, 1] and type(student.scale.kept) is keep
    assert list(model.scale.kept) == [8, 1, 1]


def remembers():
    """Code that was made for one network alone: a function that remembers a layer, whose weight it scales by."""
    inner = nn.BatchNorm1d(8)
    model = two_layers(lambda self, x: x * inner.weight.detach().reshape(-1, 1, 1))
    model.inner = inner
    return model


def remembers_a_layer():
    layer = conv(8, 8)
    model = two_layers(lambda self, x: layer(x))
    model.layer = layer
    return model


@pytest.mark.parametrize("build", [remembers, remembers_a_layer])
def test_code_that_uses_the_originals_memory(build):
    with pytest.raises(GraphError, match="made for one network alone|past its own attributes"):
        oskt.trace(build(), IMAGE)


def test_a_failure_is_no_proof_and_is_told_again():
    model = two_layers(lambda self, x: x * x.shape[1])
    for _ in range(2):
        with pytest.raises(GraphError, match="'second'"):
            oskt.trace(model, IMAGE)
    assert oskt.trace(model, IMAGE, prove=False).sizes["first"] == 8


def test_a_network_that_fails_in_training():
    def forward(self, images):
        if self.training and len(images) > 1:
            raise ValueError("one image only")
        return self.head(self.first(images))

    with pytest.raises(GraphError, match=r"fails on 2 images in training mode, .* \(ValueError: one image only\)"):
        oskt.trace(Network(forward, first=conv(3, 8), head=Head(8)), IMAGE)


# ---- what is exact ---------------------------------------------------------------------------------------------------


class Draws(nn.Module):
    """Everything that is drawn in training: dropout of channels, whole branches, noise, an order of the images."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second, self.head = conv(3, 8), nn.Dropout(0.5), conv(8, 8), Head(8)

    def forward(self, images):
        x = functional.dropout2d(self.drop(self.first(images)), 0.5, self.training)
        if self.training:
            x = x + torch.randn_like(x) * random.random() * np.random.rand()
            x = x.index_select(0, torch.randperm(len(x))) * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5)
        return self.head(functional.rrelu(self.second(x), training=self.training))


class Normalised(nn.Module):
    """A feature of length one, from a network without a classifier."""

    def __init__(self, evaluation=True):
        super().__init__()
        self.first, self.second, self.evaluation = conv(3, 8), conv(8, 6), evaluation
        self.classifier = None if evaluation else nn.Linear(6, 2)

    def forward(self, images):
        feature = self.second(self.first(images).relu()).mean((2, 3))
        if self.classifier is not None and self.training:
            return self.classifier(feature)
        return functional.normalize(feature)


NETWORKS = {
    "everything": (of_everything, IMAGE),
    "decoder": (Decoder, (3, 16, 8)),
    "draws": (Draws, IMAGE),
    "normalised": (Normalised, IMAGE),
    "normalised in evaluation": (lambda: Normalised(False), IMAGE),
    "several outputs": (lambda: Network(outputs_of_several_kinds, first=conv(3, 8), head=Head(8)), IMAGE),
    "shuffle": (lambda: nn.Sequential(conv(3, 8), Shuffle(), nn.PReLU(8), conv(8, 8, groups=2), Head(8)), IMAGE),
    "tiny": (lambda: TinyNet(4, "triplet"), (3, 32, 16)),
}


def outputs_of_several_kinds(self, images):
    maps = self.first(images)
    return {"map": maps, "scores": [self.head(maps), (self.head(maps.relu()),)]}


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_networks_are_proved(name):
    build, size = NETWORKS[name]
    found = oskt.prove(build(), size)
    assert found.differences.keys() == {
        (width, mode) for width in ("narrowest", "between", "full") for mode in ("training", "evaluation")
    }
    assert max(found.differences.values()) <= 1e-4
    counts = list(found.parameters.values())
    assert counts == sorted(counts) and counts[0] < counts[-1] == sum(p.numel() for p in build().parameters())
    assert "compute what their teacher does" in str(found)


def test_a_network_that_ends_in_a_length_of_one_works():
    model = Normalised().eval()
    student = oskt.expand(oskt.WeightChain.from_teacher(model, width=0.5, input_size=IMAGE), width=0.5)
    feature = student(torch.randn(2, *IMAGE))
    assert feature.shape == (2, 6), "nothing consumes the feature, so it is whole"
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(2))
    assert student.first.weight.shape[0] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "densenet121", "regnet_y_400mf", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision_are_proved(name):
    model = getattr(torchvision.models, name)(num_classes=7)
    assert max(oskt.prove(model, SIZE).differences.values()) <= 1e-4


# ---- what it leaves alone --------------------------------------------------------------------------------------------


def test_the_network_and_the_random_state_stay_as_they_were():
    model = Draws()
    model.drop.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    oskt.prove(model, IMAGE)
    oskt.trace(model, IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_structure_is_proved_once_and_another_one_again(monkeypatch):
    proved = []
    monkeypatch.setattr(proof, "prove_graph", lambda model, graph: proved.append(model))
    for build in (Decoder, Decoder, lambda: Decoder(5)):
        oskt.trace(build(), (3, 16, 8))
    assert len(proved) == 2, "the second is the first, the third has another classifier"
    oskt.trace(Decoder(), (3, 32, 8))
    changed = Decoder()
    changed.stem_norm.num_groups = 2
    oskt.trace(changed, (3, 16, 8))
    assert len(proved) == 4, "another size, and a number that no tensor shows"
    for scale in (1.0, 2.0):
        oskt.trace(two_layers(lambda self, x, scale=scale: x * scale), IMAGE)
    assert len(proved) == 6, "the same modules, and other code"
    patched = Decoder()
    patched.stem.forward = patched.stem.forward
    oskt.trace(patched, (3, 16, 8))
    assert len(proved) == 7, "code of one network alone"


def test_networks_of_the_suite_are_not_proved_again(monkeypatch):
    monkeypatch.setattr(network, "prove_once", lambda model, graph: pytest.fail("it is in the suite's table"))
    model = models.build("resnet18", 7)
    oskt.trace(model, (3, 64, 32))
    with pytest.raises(pytest.fail.Exception):
        oskt.trace(TinyNet(4), (3, 32, 16))
    model.layer4.forward = model.layer4.forward
    with pytest.raises(pytest.fail.Exception):
        oskt.trace(model, (3, 64, 32))


def test_without_values_nothing_can_run():
    model = TinyNet(4).to("meta")
    assert oskt.trace(model, (3, 32, 16)).sizes["stem"] == 16
    with pytest.raises(GraphError, match=r"'stem\.weight' is on the meta device"):
        oskt.prove(model, (3, 32, 16))


def test_undisturbed_draws():
    with Undisturbed(), torch.inference_mode():
        ones = torch.ones(2, 4, 3, 3)
        for drop in (functional.dropout, functional.dropout2d, functional.alpha_dropout):
            torch.testing.assert_close(drop(ones, 0.5, True), ones)
        assert torch.rand(3).tolist() == [0.5] * 3 == torch.randn(3).tolist()
        torch.testing.assert_close(ones.new_empty(2).bernoulli_(0.9), torch.full((2,), 0.9))
        assert torch.equal(torch.randperm(9), torch.randperm(9))


def test_members_of_clusters_under_norms_are_equally_many():
    """Four channels each, or two, or three, if they divide the group; what a length is taken of likewise."""
    graph = oskt.trace(Decoder(), (3, 16, 8))
    even = equal_rows.even_members(graph, np.empty(0, int))
    assert even == {name: 4 for name in graph.sizes if name in ("stem", "up", "skip")} | {
        name: 4 for name in graph.sizes if name.startswith(("stem", "up"))
    }
    labels = equal_rows.random_clusters(graph, even, np.random.default_rng(0))
    assert {int(n) for name in even for n in np.bincount(labels[name])} == {4}
    assert [equal_rows._divisor(number) for number in (96, 6, 15, 7)] == [4, 2, 3, 1]


class SinglePrecision(nn.Module):
    """Casts in its own code, and norms of one number per image, which make much of rounding."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = conv(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, images):
        feature = self.norm(self.first(images.float()).mean((2, 3)) * 1e-4 + 1)
        return self.head(self.norm(feature))


def test_code_of_one_type_of_numbers_is_no_reason_to_refuse():
    assert max(oskt.prove(SinglePrecision(), IMAGE).differences.values()) <= proof.TOLERANCE
