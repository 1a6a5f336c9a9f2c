"""What no student is rid of is said: parameters that no pass touches, and channels that cannot be merged."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from small_networks import IMAGE, Head, Network, conv
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.graph.plans import parameters_left, ratio_plan
from oskt_torchreid.graph.storage import from_arrays, to_arrays


def with_more(**parts):
    return Network(lambda self, images: self.head(self.first(images)), first=conv(3, 8), head=Head(8), **parts)


def test_parameters_that_no_pass_touches(caplog):
    """`spare` has 12 + 4 numbers; `evaluated` is touched in evaluation alone, and is not among them."""

    def forward(self, images):
        x = self.first(images)
        return self.head(x if self.training else self.evaluated(x))

    parts = {"first": conv(3, 8), "evaluated": conv(8, 8), "spare": nn.Linear(3, 4), "head": Head(8)}
    graph = oskt.trace(Network(forward, **parts), IMAGE)
    assert graph.unseen == ("spare.weight", "spare.bias")
    message = "Network never uses 2 of its parameters (spare.weight, spare.bias): every student keeps their 16 numbers"
    assert message in caplog.text
    assert ("evaluated.weight", 1, "column") in graph.ties_by_key, "students narrow it as well"


def test_a_layer_of_evaluation_alone_is_narrowed():
    def forward(self, images):
        feature = self.first(images).mean((2, 3))
        return self.classifier(feature) if self.training else self.neck(feature)

    model = Network(forward, first=conv(3, 8), neck=nn.BatchNorm1d(8), classifier=nn.Linear(8, 5)).eval()
    student = oskt.expand(oskt.WeightChain.from_teacher(model, width=0.5, input_size=IMAGE), width=0.5)
    assert student(torch.randn(2, *IMAGE)).shape == (2, 4) and len(student.neck.weight) == 4


def test_channels_that_cannot_be_merged_by_hand(caplog):
    """Of 8 channels 2 stand alone, each in its own convolution group of one channel of the second layer's four."""

    def forward(self, images):
        wide, single = self.wide(images), self.single(images)
        return self.head(torch.cat([wide, single], 1))

    parts = {"wide": conv(3, 6), "single": conv(3, 1), "head": Head(7)}
    graph = oskt.trace(Network(forward, **parts), IMAGE)
    assert graph.immovable.tolist() == [False] * 6 + [True] + [False] * 2, "class scores are results"
    assert graph.parameters == {
        "wide.weight": 18,
        "single.weight": 3,
        "head.classifier.weight": 14,
        "head.classifier.bias": 2,
    }
    assert graph.immovable_share == pytest.approx((3 + 14 / 7) / 37)
    assert "1 of the 9 channels of Network cannot be merged" in caplog.text and "14 % of the param" in caplog.text
    half = parameters_left(graph, ratio_plan(graph, 0.5))
    assert half == pytest.approx((9 + 3 + 2 * 4 + 2) / 37)
    assert f"half the width has {100 * half:.0f} % of the parameters" in caplog.text


def test_nothing_is_said_of_a_network_all_of_which_moves(caplog):
    graph = oskt.trace(with_more(), IMAGE)
    assert not graph.unseen and not graph.immovable.any() and graph.immovable_share == 0
    assert not caplog.text


def test_a_feature_that_nothing_reads_is_whole_and_said(caplog):
    model = nn.Sequential(conv(3, 8), conv(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = oskt.trace(model, IMAGE)
    assert (graph.immovable.sum(), graph.heads) == (4, frozenset())
    assert graph.immovable_share == pytest.approx(32 / (24 + 32))
    assert "4 of the 12 channels" in caplog.text


@pytest.mark.slow
def test_a_network_that_hardly_moves(caplog):
    """Its products over tokens mix channels, and its code takes their number off the residual stream."""
    model, size = timm.create_model("xcit_nano_12_p16_224", num_classes=7, img_size=64, depth=2), (3, 64, 64)
    graph = oskt.trace(model, size)
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, graph=graph), 0.5)
    found = [sum(parameter.numel() for parameter in network.parameters()) for network in (student, model)]
    left = round(100 * found[0] / found[1])
    assert left > 55 and graph.immovable_share > 0.9
    assert f"half the width has {left} % of the parameters" in caplog.text


def test_the_facts_are_in_a_chains_file(tmp_path):
    chain = oskt.WeightChain.from_teacher(with_more(spare=nn.Linear(3, 4)), width=0.5, input_size=IMAGE)
    chain.save(tmp_path / "chain.safetensors")
    graph = oskt.WeightChain.load(tmp_path / "chain.safetensors", model=with_more(spare=nn.Linear(3, 4))).graph
    assert graph.unseen == chain.graph.unseen != () and graph.parameters == chain.graph.parameters
    arrays, description = to_arrays(chain.graph)
    del description["parameters"]  # as in files of earlier versions
    earlier = from_arrays(arrays, description)
    assert earlier.unseen == () and earlier.immovable_share == 0
    assert np.array_equal(earlier.immovable, graph.immovable)


# ---- budgets of networks without a classifier ------------------------------------------------------------------------


def ends_in_a_convolution(act=nn.Hardswish):
    return nn.Sequential(conv(3, 16), conv(16, 16), nn.AdaptiveAvgPool2d(1), conv(16, 32), act(), nn.Flatten())


@pytest.mark.parametrize(
    "build",
    [
        ends_in_a_convolution,
        lambda: ends_in_a_convolution(lambda: nn.ReLU(inplace=True)),
        lambda: nn.Sequential(conv(3, 16), conv(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: nn.Sequential(conv(3, 16), conv(16, 32), nn.BatchNorm2d(32), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    ],
    ids=["activation", "in place", "map", "norm"],
)
def test_the_last_convolution_is_a_layer_like_any_other(build):
    model = build()
    chain = oskt.WeightChain.from_teacher(model, width=0.125, input_size=IMAGE)
    assert not chain.graph.heads
    budget = 0.6 * sum(parameter.numel() for parameter in model.parameters())
    assert sum(p.numel() for p in oskt.expand(chain, params=budget).parameters()) <= budget
    flops = [oskt.chain.counting.multiply_adds(oskt.expand(chain, flops=amount), IMAGE) for amount in ("9k", "11k")]
    assert flops[0] <= 9000 and flops[1] <= 11000


def test_a_network_of_timm_without_a_classifier_meets_its_budget():
    model = timm.create_model("mobilenetv3_small_100", num_classes=0)
    chain = oskt.WeightChain.from_teacher(model, width=0.1, input_size=(3, 128, 64))
    assert sum(p.numel() for p in oskt.expand(chain, params="500k").parameters()) <= 500_000


@pytest.mark.parametrize(
    ("last", "heads"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), {"2.1.weight"}),
        (lambda: nn.Sequential(conv(8, 5), nn.Flatten()), {"2.0.weight"}),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Softmax(1)), set()),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5)), set()),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Dropout()), {"2.1.weight"}),
    ],
    ids=["linear", "convolution", "softmax", "norm", "dropout"],
)
def test_a_classifier_is_what_the_network_returns_as_it_is(last, heads):
    model = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), last())
    assert oskt.trace(model, IMAGE).heads == heads
