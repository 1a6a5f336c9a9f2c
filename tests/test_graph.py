"""The channel graph of small networks whose channels are counted by hand, and what the tracer refuses."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from small_networks import IMAGE, HalfAndHalf, Head, Network, Shuffle, conv, groups_of, ties_of
from torch import nn

from oskt_torchreid import graph
from oskt_torchreid.chain import network
from oskt_torchreid.errors import WidthError
from oskt_torchreid.graph.building import build_graph
from oskt_torchreid.graph.grouping import OUTPUT
from oskt_torchreid.graph.plans import balanced, check_plan
from oskt_torchreid.graph.storage import to_arrays
from oskt_torchreid.graph.surgery import rebuild
from oskt_torchreid.graph.tracer import run
from oskt_torchreid.host import models

# ---- small networks ----------------------------------------------------------------------------------------------


def test_two_linear_layers():
    traced = graph.trace_module(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (1, 1, 3))
    assert groups_of(traced) == {"0": ([0, 1, 2, 3], ""), "1": ([4, 5], OUTPUT)}
    assert ties_of(traced) == {
        "0.weight": [(0, "row", [0, 1, 2, 3])],
        "0.bias": [(0, "row", [0, 1, 2, 3])],
        "1.weight": [(0, "row", [4, 5]), (1, "column", [0, 1, 2, 3])],
        "1.bias": [(0, "row", [4, 5])],
    }
    assert traced.matrices == {"0.weight", "1.weight"}
    assert traced.heads == {"1.weight"}
    assert (traced.num_channels, traced.sizes, traced.unused) == (6, {"0": 4, "1": 2}, ())


def test_residual_sum_makes_one_group_of_both_producers():
    def forward(self, images):
        x = self.norm(self.first(images)).relu()
        return self.head(x + self.second(x))

    parts = {"first": conv(3, 4), "norm": nn.BatchNorm2d(4), "second": conv(4, 4), "head": Head(4)}
    traced = graph.trace_module(Network(forward, **parts), IMAGE)
    stream = [0, 1, 2, 3]
    assert groups_of(traced) == {"first": (stream, ""), "head.classifier": ([4, 5], OUTPUT)}
    assert ties_of(traced)["second.weight"] == [(0, "row", stream), (1, "column", stream)]
    assert ties_of(traced)["first.weight"] == [(0, "row", stream)], "the image's columns are no channels"
    assert all(ties_of(traced)[f"norm.{name}"] == [(0, "row", stream)] for name in ("weight", "bias", "running_var"))
    assert "norm.num_batches_tracked" not in ties_of(traced)


def test_concatenation_keeps_groups_apart():
    def forward(self, images):
        return self.head(self.last(torch.cat([self.left(images), self.right(images)], 1)))

    traced = graph.trace_module(
        Network(forward, left=conv(3, 2), right=conv(3, 3), last=conv(5, 1), head=Head(1)), IMAGE
    )
    assert groups_of(traced) == {
        "left": ([0, 1], ""),
        "right": ([2, 3, 4], ""),
        "last": ([5], ""),
        "head.classifier": ([6, 7], OUTPUT),
    }
    assert ties_of(traced)["last.weight"][1] == (1, "column", [0, 1, 2, 3, 4])


def test_depthwise_convolution_belongs_to_its_producer():
    def forward(self, images):
        return self.head(self.deep(self.first(images)))

    traced = graph.trace_module(Network(forward, first=conv(3, 4), deep=conv(4, 4, groups=4), head=Head(4)), IMAGE)
    assert groups_of(traced) == {"first": ([0, 1, 2, 3], ""), "head.classifier": ([4, 5], OUTPUT)}
    assert ties_of(traced)["deep.weight"] == [(0, "row", [0, 1, 2, 3])]


def test_grouped_convolution_makes_groups_per_block():
    def forward(self, images):
        return self.head(self.grouped(self.first(images)))

    model = Network(forward, first=conv(3, 4), grouped=conv(4, 6, groups=2), head=Head(6))
    traced = graph.trace_module(model, IMAGE)
    assert groups_of(traced) == {
        "first:0": ([0, 1], ""),
        "first:1": ([2, 3], ""),
        "grouped[0]": ([4, 5, 6], ""),
        "grouped[1]": ([7, 8, 9], ""),
        "head.classifier": ([10, 11], OUTPUT),
    }
    rows, columns = ties_of(traced)["grouped.weight"]
    assert rows == (0, "row", [[4, 5, 6], [7, 8, 9]])
    assert columns == (1, "column", [[0, 1], [2, 3]])
    plan = {**traced.sizes, "grouped[0]": 1}
    assert balanced(traced, plan)["grouped[1]"] == 1, "blocks of one convolution stay equally wide"
    with pytest.raises(
        WidthError,
        match=r"'grouped.1.' would get 3 channels and 'grouped.0.' beside it 1; legal .* of the 2, from 1 to 3",
    ):
        graph.shell(model, traced, plan)


def test_module_called_twice_unites_what_it_consumes():
    def forward(self, images):
        return self.head(self.shared(self.left(images)) + self.shared(self.right(images)))

    traced = graph.trace_module(
        Network(forward, left=conv(3, 4), right=conv(3, 4), shared=conv(4, 3), head=Head(3)), IMAGE
    )
    assert groups_of(traced)["left"] == ([0, 1, 2, 3], "")
    assert ties_of(traced)["right.weight"] == [(0, "row", [0, 1, 2, 3])]
    assert ties_of(traced)["shared.weight"] == [(0, "row", [4, 5, 6]), (1, "column", [0, 1, 2, 3])]


def test_squeeze_and_excitation_gate_has_the_channels_it_scales():
    def forward(self, images):
        x = self.first(images)
        gate = self.widen(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x * gate)

    traced = graph.trace_module(
        Network(forward, first=conv(3, 4), squeeze=conv(4, 2), widen=conv(2, 4), head=Head(4)), IMAGE
    )
    assert groups_of(traced) == {
        "first": ([0, 1, 2, 3], ""),
        "squeeze": ([4, 5], ""),
        "head.classifier": ([6, 7], OUTPUT),
    }
    assert ties_of(traced)["widen.weight"] == [(0, "row", [0, 1, 2, 3]), (1, "column", [4, 5])]


def test_gate_over_several_channels_is_fixed_and_parts_what_it_gates():
    def forward(self, images):
        x = self.first(images)
        gate = self.gate(x.mean((2, 3)))
        return self.head(x * gate[:, :, None].repeat(1, 1, x.shape[1] // 2).view(-1, x.shape[1], 1, 1))

    traced = graph.trace_module(Network(forward, first=conv(3, 10), gate=nn.Linear(10, 2), head=Head(10)), IMAGE)
    assert groups_of(traced) == {
        "first:0": ([0, 1, 2, 3, 4], ""),
        "first:1": ([5, 6, 7, 8, 9], ""),
        "gate": ([10, 11], "gates several channels each"),
        "head.classifier": ([12, 13], OUTPUT),
    }
    with pytest.raises(WidthError, match=r"width 1 of group 'gate' is outside of \[2, 2\] \(the group is fixed: gates"):
        check_plan(traced, {**traced.sizes, "gate": 1})


def test_flattened_map_repeats_each_channel():
    model = nn.Sequential(conv(3, 2), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
    traced = graph.trace_module(model, (3, 2, 2))
    assert ties_of(traced)["2.weight"][1] == (1, "column", [0, 0, 0, 0, 1, 1, 1, 1])
    assert traced.sizes == {"0": 2, "2": 4, "3": 2}


def test_bare_parameters_lie_along_the_channels_they_meet():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = conv(3, 4), Head(4)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.map = nn.Parameter(torch.ones(1, 4, 8, 8))
            self.number = nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.head(self.first(images) * self.scale + self.map * self.number)

    traced = graph.trace_module(Scaled(), IMAGE)
    assert traced.sizes == {"first": 4, "head.classifier": 2}
    assert ties_of(traced)["scale"] == [(0, "row", [0, 1, 2, 3])]
    assert ties_of(traced)["map"] == [(1, "row", [0, 1, 2, 3])]
    assert "number" not in ties_of(traced)


def test_bare_parameter_that_varies_along_two_axes_of_channels_is_fixed():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = conv(3, 6), Head(6)
            self.table = nn.Parameter(torch.ones(2, 3, 1, 1))

        def forward(self, images):
            x = self.first(images)
            return self.head((x.reshape(-1, 2, 3, 8, 8) * self.table).reshape(x.shape))

    model = Table()
    traced = build_graph(model, run(model, IMAGE), IMAGE)
    assert groups_of(traced)["first"] == ([0, 1, 2, 3, 4, 5], "'table' differs along several axes")


def test_split_by_an_attribute_is_recorded():
    traced = graph.trace_module(nn.Sequential(conv(3, 8), HalfAndHalf(8), Head(8)), IMAGE)
    assert groups_of(traced)["0:0"] == ([0, 1, 2, 3], "")
    assert groups_of(traced)["0:1"] == ([4, 5, 6, 7], "")
    (split,) = traced.splits
    assert (split.module, split.attribute) == ("1", "half")
    assert [part.tolist() for part in split.parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_module_that_only_reorders_channels_is_recorded():
    traced = graph.trace_module(nn.Sequential(conv(3, 4), Shuffle(), conv(4, 3), Head(3)), IMAGE)
    (route,) = traced.routes
    assert (route.module, route.calls, route.reads) == ("1", (), ((0,),))
    assert [part.tolist() for part in (*route.sources, *route.orders)] == [[0, 1, 2, 3], [0, 2, 1, 3]]
    assert ties_of(traced)["2.weight"][1] == (1, "column", [0, 2, 1, 3])


def test_features_may_be_narrowed_and_results_may_not():
    """The feature is an output too, but the classifier consumes it."""

    def forward(self, images):
        feature = self.first(images).mean((2, 3))
        return self.classifier(feature), feature

    traced = graph.trace_module(Network(forward, first=conv(3, 4), classifier=nn.Linear(4, 2)), IMAGE)
    assert groups_of(traced) == {"first": ([0, 1, 2, 3], ""), "classifier": ([4, 5], OUTPUT)}


# ---- known networks ----------------------------------------------------------------------------------------------

KNOWN_COUNTS = {
    "resnet18": (2900, 13),
    "resnet50": (11476, 38),
    "se_resnet50": (12420, 54),
    "resnext50_32x4d": (19028, 1030),
    "resnet50_ibn_a": (11476, 51),
    "densenet121": (10260, 121),
    "osnet_x1_0": (7544, 63),
    "osnet_ain_x0_5": (4038, 63),
    "mobilenetv2_x1_0": (9180, 27),
    "shufflenet": (3140, 151),
    "squeezenet1_0": (2996, 26),
    "pcb_p6": (11832, 44),
    "mlfn": (28436, 1079),
}


@pytest.mark.parametrize(("name", "counts"), KNOWN_COUNTS.items())
def test_known_numbers_of_channels_and_groups(name, counts):
    traced = network.trace(models.build(name, 20), (3, 64, 32))
    assert (traced.num_channels, len(traced.groups)) == counts


def test_image_size_does_not_change_the_graph():
    model = models.build("osnet_x0_25", 5)
    small, large = (to_arrays(network.trace(model, size)) for size in ((3, 64, 32), (3, 96, 64)))
    assert all(np.array_equal(small[0][name], large[0][name]) for name in large[0])
    assert {**small[1], "input_size": None} == {**large[1], "input_size": None}


def test_tracing_again_gives_the_same_graph_quickly():
    """ResNet-50 at its own size, beside passes of two images; the best of both, for other work only ever adds time."""
    model, images = models.build("resnet50", 5).eval(), torch.zeros(2, 3, 256, 128)
    seconds, passes, found = [], [], []
    for _ in range(3):
        start = time.process_time()
        found.append(network.trace(model, (3, 256, 128)))
        traced = time.process_time()
        with torch.no_grad():
            model(images)
        seconds.append(traced - start)
        passes.append(time.process_time() - traced)
    assert min(seconds) <= 5 * min(passes), (seconds, passes)
    assert all(to_arrays(other)[1] == to_arrays(found[0])[1] for other in found[1:])


def test_summary_lists_every_group():
    traced = graph.trace_module(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (1, 1, 3))
    lines = traced.summary().splitlines()
    assert lines[0] == "6 channels in 2 groups, 5 ties"
    assert lines[-2].split() == ["0", "4", "2", "1"]
    assert lines[-1].split() == ["1", "2", "2", "0", *OUTPUT.split()]


class Scale(nn.Module):
    """A factor per channel; its code needs to know how many there are, and keeps a number that says so in its way."""

    def __init__(self, width):
        super().__init__()
        self.rows, self.factor = f"{width}", nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, images):
        return images * self.factor.view(1, int(self.rows), 1, 1)


def test_a_module_with_a_size_of_its_own(monkeypatch):
    """A rule sets what the package cannot know; a subclass follows it too."""
    rules = "oskt_torchreid.graph.surgery.rebuild._ATTRIBUTE_RULES"
    monkeypatch.setattr(rules, dict(rebuild._ATTRIBUTE_RULES))
    model = nn.Sequential(conv(3, 8), type("Other", (Scale,), {})(8), Head(8)).eval()
    traced, images = graph.trace_module(model, IMAGE), torch.zeros(2, *IMAGE)
    with pytest.raises(RuntimeError, match="shape"):
        graph.shell(model, traced, graph.ratio_plan(traced, 0.5))(images)

    def follow(scale):
        scale.rows = str(len(scale.factor))

    graph.register_attribute_rule(Scale, follow)
    student = graph.shell(model, traced, graph.ratio_plan(traced, 0.5))
    assert student[1].rows == "4" and model[1].rows == "8"
    assert student(images).shape == (2, 2)
