"""Group norm and RMS norm: their channels, when students are exact under them, and the attributes that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import IMAGE, Head, conv, groups_of, ties_of
from test_identity import collapse, logits
from torch import nn

from oskt_torchreid import graph
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.errors import GraphError
from oskt_torchreid.graph.plans import ratio_plan


def network(norm: nn.Module) -> nn.Module:
    """Eight channels under a norm whose vectors are not neutral."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return nn.Sequential(conv(3, 8), norm, nn.ReLU(), Head(8)).eval().double()


class LastAxis(nn.Module):
    """A norm of the last axis on maps whose channels lie along axis 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def error(model: nn.Module, labels: dict[str, np.ndarray], widths: dict[str, int]) -> float:
    """Output difference of a student over the output's spread, after the rows of each cluster were made equal."""
    traced = graph.trace_module(model, IMAGE)
    images = torch.randn(4, *IMAGE, dtype=torch.float64)
    labels = {**{group.name: np.arange(group.size) for group in traced.groups}, **labels}
    collapse(model, traced, labels)
    expected = logits(model, images)
    student = expand_to_plan(WeightChain.from_labels(model, traced, labels), {**traced.sizes, **widths})
    return float((logits(student, images) - expected).abs().max() / expected.std())


def test_group_norm_parts_its_blocks():
    traced = graph.trace_module(network(nn.GroupNorm(2, 8)), IMAGE)
    blocks = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups_of(traced) | {"3.classifier": None} == {
        "0:0": (blocks[0], ""),
        "0:1": (blocks[1], ""),
        "3.classifier": None,
    }
    assert ties_of(traced)["1.weight"] == ties_of(traced)["1.bias"] == [(0, "row", blocks)]
    (norm,) = traced.norms
    assert (norm.module, norm.channels.tolist()) == ("1", blocks)
    assert ratio_plan(traced, 0.5) == {"0:0": 2, "0:1": 2, "3.classifier": 2}


PAIRS, UNEVEN = np.array([0, 1, 0, 1]), np.array([0, 1, 0, 0])


def test_group_norm_is_exact_where_slots_stand_for_equally_many_channels():
    pairs = {"0:0": PAIRS, "0:1": PAIRS}
    assert error(network(nn.GroupNorm(2, 8)), pairs, {"0:0": 2, "0:1": 2}) <= 1e-10
    assert error(network(nn.GroupNorm(2, 8)), pairs, {"0:0": 4, "0:1": 4}) <= 1e-10
    assert error(network(nn.GroupNorm(2, 8)), pairs, {"0:0": 3, "0:1": 3}) > 1e-3, "slots of two, one and one channels"
    uneven = {"0:0": UNEVEN, "0:1": UNEVEN}
    assert error(network(nn.GroupNorm(2, 8)), uneven, {"0:0": 2, "0:1": 2}) > 1e-3


def test_group_norm_channel_by_channel_is_exact_at_every_width():
    """As many groups as channels: nothing is normalised over channels, and the number of groups follows the width."""
    model = network(nn.GroupNorm(8, 8))
    traced = graph.trace_module(model, IMAGE)
    assert (traced.norms, traced.sizes) == ((), {"0": 8, "3.classifier": 2})
    labels = np.array([0, 1, 0, 0, 2, 2, 0, 1])
    assert error(model, {"0": labels}, {"0": 5}) <= 1e-10
    narrow = graph.shell(model, traced, {"0": 5, "3.classifier": 2})[1]
    assert (narrow.num_groups, narrow.num_channels) == (5, 5)


def test_group_norm_keeps_its_number_of_groups():
    model = network(nn.GroupNorm(2, 8))
    narrow = graph.shell(model, graph.trace_module(model, IMAGE), {"0:0": 3, "0:1": 3, "3.classifier": 2})[1]
    assert (narrow.num_groups, narrow.num_channels, narrow.weight.shape) == (2, 6, (6,))


def test_rms_norm_lies_along_the_channels_of_the_last_axis():
    model = network(LastAxis(nn.RMSNorm(8, eps=1e-6)))
    traced = graph.trace_module(model, IMAGE)
    assert ties_of(traced)["1.norm.weight"] == [(0, "row", list(range(8)))]
    assert [norm.module for norm in traced.norms] == ["1.norm"]
    assert graph.shell(model, traced, {"0": 5, "3.classifier": 2})[1].norm.normalized_shape == (5,)
    assert error(model, {"0": np.tile(PAIRS, 2) + 2 * np.repeat([0, 1], 4)}, {"0": 4}) <= 1e-10
    assert error(model, {"0": np.array([0, 1, 0, 0, 2, 3, 0, 0])}, {"0": 4}) > 1e-3


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (nn.GroupNorm(2, 8, affine=False), "'group_norm' in module '1' has no weight .*; make it affine"),
        (
            LastAxis(nn.LayerNorm(8, elementwise_affine=False)),
            "'layer_norm' in module '1.norm' has no weight .* affine",
        ),
        (nn.LayerNorm((8, 8, 8)), r"normalises over \[8, 8, 8\], not over the axis of its input's channels alone"),
        (nn.LayerNorm(8), r"normalises over \[8\], not over the axis of its input's channels alone; normalise over"),
    ],
)
def test_norms_that_cannot_be_followed_say_why(norm, message):
    with pytest.raises(GraphError, match=message):
        graph.trace_module(network(norm), IMAGE, unknown="refuse")


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 3), nn.BatchNorm2d(3), LastAxis(nn.LayerNorm(3))])
def test_a_norm_of_the_image_itself_keeps_its_shape(norm):
    model = nn.Sequential(norm, conv(3, 4), Head(4)).eval()
    traced = graph.trace_module(model, IMAGE)
    assert (traced.norms, traced.sizes) == ((), {"1": 4, "2.classifier": 2})
    student = graph.shell(model, traced, {"1": 3, "2.classifier": 2})
    assert student(torch.randn(2, *IMAGE)).shape == (2, 2)
