"""What the tracer refuses, what it leaves behind, and graphs as plain data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import IMAGE, HalfAndHalf, Head, Network, conv, groups_of, of_everything, ties_of
from torch import nn
from torch.nn import functional

from oskt_torchreid import graph
from oskt_torchreid.errors import GraphError
from oskt_torchreid.graph import calls
from oskt_torchreid.graph.building import build_graph
from oskt_torchreid.graph.storage import from_arrays, to_arrays
from oskt_torchreid.graph.tracer import run

# ---- what the tracer refuses, and what it leaves behind -------------------------------------------------------------


@pytest.fixture
def rule_table(monkeypatch):
    """Rules registered by a test are gone after it."""
    monkeypatch.setattr(calls, "_RULES", dict(calls._RULES))


def in_module(forward):
    """A small network whose module `middle` runs `forward` on four channels."""
    return nn.Sequential(conv(3, 4), nn.Sequential(Network(lambda self, images: forward(images))), Head(4))


def test_operator_without_a_rule_names_operator_module_and_hook(rule_table):
    model = in_module(lambda images: torch.logcumsumexp(images, 2))
    message = r"operator 'logcumsumexp' in module '1.0' has no rule .*graph.register_rule\('logcumsumexp', rule\)"
    with pytest.raises(GraphError, match=message):
        graph.trace_module(model, IMAGE, unknown="refuse")
    graph.register_rule("logcumsumexp", graph.keep)
    assert graph.trace_module(model, IMAGE).sizes == {"0": 4, "2.classifier": 2}


def test_in_place_variants_share_the_rule_and_a_wrong_rule_is_told(rule_table):
    model = in_module(lambda images: images.clone().cumprod_(2))
    graph.register_rule("aten::cumprod", graph.keep)
    assert graph.trace_module(model, IMAGE).sizes == {"0": 4, "2.classifier": 2}
    graph.register_rule("logcumsumexp", lambda tracer, call: tracer.mark(call.output, tracer.fresh(4)))
    with pytest.raises(GraphError, match=r"a rule gave channels of shape \(4,\) to a tensor of \(1, 4, 8, 8\)"):
        graph.trace_module(in_module(lambda images: images.logcumsumexp(2)), IMAGE)


def write_into_a_slice(images):
    result = torch.zeros(1, 6, 8, 8)
    result[:, :4] = images
    return result[:, :4]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (write_into_a_slice, "module '1.0' copies channels into a part of another tensor.*torch.cat or torch.stack"),
        (lambda images: functional.conv2d(images, torch.ones(4, 4, 1, 1) * 2), "uses a weight of shape .* computed"),
        (lambda images: images.reshape(7, -1), "fails on one image of .* in module '1.0' .*give the input_size"),
    ],
    ids=["slice", "computed weight", "failing forward"],
)
def test_what_cannot_be_followed_says_where_and_why(forward, message):
    with pytest.raises(GraphError, match=message):
        graph.trace_module(in_module(forward), IMAGE, unknown="refuse")


def test_network_without_layers():
    with pytest.raises(GraphError, match="no output of the network depends on a convolution or linear layer"):
        graph.trace_module(nn.Sequential(nn.ReLU()), IMAGE)


@pytest.mark.parametrize("key", [("1.weight", 1, "column"), ("1.weight", 0, "row"), ("0.weight", 0, "row")])
def test_coverage_a_missing_tie_raises(key):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    tracer = run(model, (1, 1, 3))
    del tracer.ties[key]
    with pytest.raises(GraphError, match=rf"tensor '{key[0]}' of shape .* its {key[2]} channels are unknown"):
        build_graph(model, tracer, (1, 1, 3))


def snapshot(model):
    return (
        {
            module: (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        },
        {name: (id(t), t._version, t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()},
        copy.deepcopy(model.state_dict()),
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(fails):
    last = (lambda images: images.logcumsumexp(1)) if fails else (lambda images: images)
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), HalfAndHalf(8), in_module(lambda images: images)[1]
    )
    model.append(Network(lambda self, images: last(images))).append(Head(8))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    if fails:
        with pytest.raises(GraphError, match="no rule"):
            graph.trace_module(model, IMAGE, unknown="refuse")
    else:
        graph.trace_module(model, IMAGE)
    after = snapshot(model)
    assert after[:2] == before[:2]
    assert all(torch.equal(after[2][name], tensor) for name, tensor in before[2].items())
    assert torch.equal(after[3], before[3])


# ---- plain data --------------------------------------------------------------------------------------------------


def everything():
    return graph.trace_module(of_everything(), IMAGE)


def test_round_trip_through_plain_arrays():
    traced = everything()
    arrays, description = to_arrays(traced)
    again = from_arrays(arrays, description)
    assert (ties_of(again), groups_of(again)) == (ties_of(traced), groups_of(traced))
    for name in ("matrices", "heads", "unused", "input_size"):
        assert getattr(again, name) == getattr(traced, name)
    assert len(again.axes) == len(traced.axes) < len(traced.ties)
    arrays_again, description_again = to_arrays(again)
    assert description_again == description
    assert all(np.array_equal(arrays_again[name], arrays[name]) for name in arrays)


def damaged(change):
    arrays, description = to_arrays(everything())
    change(arrays, description)
    return arrays, description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, text: text.pop("ties"), "KeyError: 'ties'"),
        (lambda arrays, text: arrays.update(axes=arrays["axes"][:-1]), r"entries where \d+ were announced"),
        (lambda arrays, text: arrays["groups"].__setitem__(0, 1), "do not hold each channel exactly once"),
        (lambda arrays, text: arrays["axes"].__setitem__(0, 999), "names unknown channels"),
        (lambda arrays, text: text["ties"][0].__setitem__(2, "diagonal"), "diagonal"),
        (lambda arrays, text: text["ties"][0].__setitem__(1, -1), "axis -1"),
        (lambda arrays, text: text["ties"][0].__setitem__(3, 99), "IndexError"),
        (lambda arrays, text: arrays["splits"].__setitem__(0, 999), "names unknown channels"),
        (lambda arrays, text: arrays["routes"].__setitem__(-1, 999), "the route of '3' leads nowhere"),
        (lambda arrays, text: text["routes"][0][2].append([0]), "the route of '3' leads nowhere"),
        (lambda arrays, text: text["groups"][0].__setitem__(1, -1), "announced"),
    ],
)
def test_damaged_arrays_are_refused(change, message):
    with pytest.raises(GraphError, match=f"stored channel graph is damaged.*{message}"):
        from_arrays(*damaged(change))


def test_a_reordering_network_has_the_same_groups_at_another_width():
    """A student's channel order is a buffer of whole numbers; it carries no channels."""
    model = of_everything()
    traced = graph.trace_module(model, IMAGE)
    widths = {name: size if name == "5.classifier" else size // 2 for name, size in traced.sizes.items()}
    narrow = graph.shell(model, traced, widths)
    assert build_graph(narrow, run(narrow, IMAGE), IMAGE).sizes == widths


VALUES = st.sampled_from([None, -1, 10**9, 1.5, "row", [], {}, [[]], [["x"]]])


@pytest.fixture(scope="module")
def stored():
    return to_arrays(everything())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_graph_error_or_harmless(stored, data):
    arrays, description = copy.deepcopy(stored)
    node = description
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if not isinstance(node[key], (list, dict)) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(VALUES)
    try:
        result = from_arrays(arrays, description)
    except GraphError as error:
        assert "damaged" in str(error)
    else:
        assert isinstance(result, graph.ChannelGraph)


def test_a_rule_that_marks_no_output_is_told(rule_table):
    model = in_module(lambda images: torch.logcumsumexp(images, 2))
    graph.register_rule("logcumsumexp", lambda tracer, call: None)
    with pytest.raises(GraphError, match=r"the rule of operator 'logcumsumexp' in module '1.0' marks no output"):
        graph.trace_module(model, IMAGE)
