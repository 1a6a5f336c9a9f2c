"""The identity property over all backbones: equal rows inside every cluster, equal outputs at every width."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from backbones import build, every_stock_name, input_size, stock_names
from tensors import same_tensors
from torch import nn
from torch.nn import functional

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.network import trace
from oskt_torchreid.deploy import Lifted
from oskt_torchreid.graph import Axis, ChannelGraph
from oskt_torchreid.graph.plans import balanced
from oskt_torchreid.graph.tracer import tracing_mode

DOUBLE = ("resnet18", "osnet_ain_x0_25", "densenet121")


def random_labels(graph: ChannelGraph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random clusters, 0.4 to 0.6 of each group; groups of one producer's blocks get the same ratio."""
    generator = np.random.default_rng(seed)
    ratios: dict[str, float] = {}
    counts = {}
    for group in graph.groups:
        ratio = ratios.setdefault(group.name.partition("[")[0].partition(":")[0], generator.uniform(0.4, 0.6))
        counts[group.name] = group.size if group.fixed else max(1, round(ratio * group.size))
    counts = balanced(graph, counts)
    labels = {}
    for group in graph.groups:
        count = counts[group.name]
        label = np.concatenate([np.arange(count), generator.integers(0, count, group.size - count)])
        labels[group.name] = label if group.fixed else generator.permutation(label)
    return labels


def collapse(model: nn.Module, graph: ChannelGraph, labels: dict[str, np.ndarray]) -> None:
    """Gives the rows of each cluster one common value, in place: written apart from the package's own algebra."""
    cluster = np.empty(graph.num_channels, np.int64)
    for index, group in enumerate(graph.groups):
        cluster[group.channels] = labels[group.name] + index * graph.num_channels
    state = model.state_dict(keep_vars=True)
    keys: dict[Axis, torch.Tensor] = {}
    for tie in graph.ties:
        if tie.role == "column":
            continue
        if tie.axis not in keys:
            keys[tie.axis] = _common_values(tie.channels.reshape(-1), cluster)
        key = keys[tie.axis]
        view = state[tie.tensor].data.unflatten(0, (tie.blocks, -1)).movedim(tie.dimension + 1, 1)
        rows = view.flatten(0, 1)
        total = torch.zeros(int(key.max()) + 1, *rows.shape[1:], dtype=rows.dtype).index_add_(0, key, rows)
        mean = total / torch.bincount(key).reshape(-1, *[1] * (rows.dim() - 1))
        view.copy_(mean[key].reshape(view.shape))


def _common_values(channels: np.ndarray, cluster: np.ndarray) -> torch.Tensor:
    """One number per position of an axis: equal for the same occurrence of channels of one cluster."""
    order = np.argsort(channels, kind="stable")
    firsts = np.searchsorted(channels[order], channels[order])  # where each channel's occurrences begin
    occurrence = np.empty_like(order)
    occurrence[order] = np.arange(len(order)) - firsts
    _, key = np.unique(np.stack([cluster[channels], occurrence]), axis=1, return_inverse=True)
    return torch.from_numpy(key.reshape(-1))


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with tracing_mode(model), torch.no_grad():
        output = model(images)
    return torch.cat(output if isinstance(output, (list, tuple)) else [output], dim=1)


def feature_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


def plans(graph: ChannelGraph, chain: WeightChain) -> dict[str, dict[str, int]]:
    narrow = chain.widths
    middle = balanced(graph, {name: (width + graph.sizes[name]) // 2 for name, width in narrow.items()})
    return {"chain": narrow, "between": middle, "full": dict(graph.sizes)}


class Traced(NamedTuple):
    """A backbone of random weights with images for it, its graph and random clusters."""

    model: nn.Module
    images: torch.Tensor
    graph: ChannelGraph
    labels: dict[str, np.ndarray]


def traced(name: str, dtype: torch.dtype = torch.float32) -> Traced:
    model = build(name).to(dtype)
    graph = trace(model, input_size(name))
    return Traced(model, torch.randn(2, *input_size(name), dtype=dtype), graph, random_labels(graph))


def identity_errors(traced: Traced) -> tuple[dict[str, float], float]:
    """Worst difference of outputs and of lifted features at each width, and what the collapse itself changed.

    All are over the outputs' spread; features are more sensitive, and may differ ten times as much. The rows of the
    network are made equal, in place.
    """
    model, images, graph, labels = traced
    before = logits(model, images)
    collapse(model, graph, labels)
    expected = logits(model, images)
    spread = expected.std()
    features = functional.normalize(feature_of(model, images))
    chain = WeightChain.from_labels(model, graph, labels)
    errors = {}
    for kind, widths in plans(graph, chain).items():
        student = expand_to_plan(chain, widths)
        errors[kind] = float((logits(student, images) - expected).abs().max() / spread)
        if student.student_record.lifting:
            lifted = functional.normalize(feature_of(Lifted(student), images))
            errors[f"{kind}, lifted"] = float((lifted - features).abs().max() / features.std()) / 10
    return errors, float((before - expected).abs().max() / spread)


def sstudent_errors(traced: Traced) -> dict[str, float]:
    """How far students of any rows and vectors are from the S-student at each width, over its output's spread."""
    model, images, graph, labels = traced
    chain = WeightChain.from_labels(model, graph, labels)
    expected, *others = (logits(expand_to_plan(chain, widths), images) for widths in plans(graph, chain).values())
    slots = logits(expand_to_plan(chain, graph.sizes, vectors_over="slots"), images)
    kinds = {"between": others[0], "full": others[1], "slots": slots}
    return {kind: float((output - expected).abs().max() / expected.std()) for kind, output in kinds.items()}


def test_the_table_has_every_backbone_of_the_host():
    names = stock_names()
    assert len(names) == len(set(names)) >= 49, "torchreid registers 49"
    assert {"shufflenet", "shufflenet_v2_x1_0", "hacnn", "resnet50_ibn_a"} <= set(names), "those that need routing"


PARTS_APART = ("hacnn", "pcb_p6", "pcb_p4")
"""Networks that divide parts of their feature by their lengths: these are not lifted."""


@pytest.mark.slow
@pytest.mark.parametrize("name", every_stock_name())
def test_identity(name: str) -> None:
    """First of any rows: a chain's own are equal within clusters, as its clusters' vectors are. Then of equal rows."""
    backbone = traced(name)
    errors = sstudent_errors(backbone)
    assert errors["slots"] > 1e-2, "vectors that are all alike would make this test blind"
    assert max(errors["between"], errors["full"]) <= 1e-4, errors
    errors, changed = identity_errors(backbone)
    assert ("chain, lifted" in errors) == (name not in PARTS_APART)
    assert changed > 1e-2, "a collapse that changes nothing would make this test blind"
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("name", DOUBLE)
def test_identity_in_double_precision(name: str) -> None:
    errors, _ = identity_errors(traced(name, torch.float64))
    assert max(errors.values()) <= 1e-10, errors


def test_wrong_labels_break_identity() -> None:
    """The test is sharp: one wrong group is seen."""
    model = build("resnet18")
    images = torch.randn(2, *input_size("resnet18"))
    graph = trace(model, input_size("resnet18"))
    labels = random_labels(graph)
    collapse(model, graph, labels)
    name = graph.groups[3].name
    labels[name] = np.roll(labels[name], 1)
    student = expand_to_plan(chain := WeightChain.from_labels(model, graph, labels), chain.widths)
    expected = logits(model, images)
    assert float((logits(student, images) - expected).abs().max() / expected.std()) > 1e-2


def test_full_width_reproduces_the_teacher() -> None:
    model = build("osnet_x0_25")
    images = torch.randn(2, *input_size("osnet_x0_25"))
    chain = WeightChain.from_teacher(model, width=1.0, input_size=input_size("osnet_x0_25"))
    student = expand_to_plan(chain, chain.widths)
    assert same_tensors(student, model)
    with torch.no_grad():
        assert torch.equal(student(images), model(images))
