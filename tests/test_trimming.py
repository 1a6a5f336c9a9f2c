"""Trimmed chains: the same students up to a width, from a smaller file."""

import numpy as np
import pytest
import torch
from backbones import build, input_size
from vits import IMAGE, tiny

from oskt_torchreid.chain import Refinement, WeightChain, expand, trimmed
from oskt_torchreid.chain.network import trace
from oskt_torchreid.errors import ChainError, WidthError
from oskt_torchreid.graph.plans import balanced


def leaders_of(name):
    """A nested chain of half the width, refined by noise, whose slots have leaders."""
    torch.manual_seed(0)
    model = build(name)
    graph = trace(model, input_size(name))
    plain = WeightChain.from_teacher(model, 0.5, graph=graph, nested=True)
    importance = {group: np.random.default_rng(0).random(size) for group, size in graph.sizes.items()}
    chain = WeightChain.from_labels(model, graph, plain.teacher_to_chain, trees=plain.trees, importance=importance)
    return noisy(Refinement(model, chain, vector_copies=True)).to_chain()


def noisy(refinement):
    with torch.no_grad():
        for parameter in refinement.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return refinement


# What no width narrows fades with the mean of all groups, whose ratios differ by rounding where groups are tiny.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("osnet_x0_25", 1e-5), ("resnet18", 1e-5), ("shufflenet_v2_x0_5", 2e-3)]
)
def test_students_are_the_same_from_a_smaller_file(name, tolerance, tmp_path):
    chain = leaders_of(name)
    small = trimmed(chain, 0.75)
    for each, path in ((chain, tmp_path / "whole"), (small, tmp_path / "small")):
        each.save(path)
    assert (tmp_path / "small").stat().st_size < 0.85 * (tmp_path / "whole").stat().st_size
    read = WeightChain.load(tmp_path / "small")
    between = {group: (width + read.graph.sizes[group]) // 2 for group, width in read.widths.items()}
    images = torch.randn(2, *input_size(name))
    for plan in (read.widths, balanced(read.graph, between), read.graph.sizes):
        of_whole, of_small = (expand(each, plan).eval() for each in (chain, read))
        expected = of_whole.state_dict()
        for key, tensor in of_small.state_dict().items():
            assert torch.allclose(tensor, expected[key], rtol=1e-4, atol=tolerance), (plan == read.widths, key)
        with torch.no_grad():
            outputs, wanted = of_small(images), of_whole(images)
            assert (outputs - wanted).abs().max() < 10 * tolerance * wanted.std()
    middle = balanced(read.graph, between)
    twice = expand(trimmed(read, middle), middle).state_dict()
    expected = expand(chain, middle).state_dict()
    assert all(torch.allclose(tensor, expected[key], rtol=1e-4, atol=tolerance) for key, tensor in twice.items())


def test_what_cannot_be_trimmed():
    chain = leaders_of("resnet18")
    with pytest.raises(WidthError, match="ask for a ratio of at least 0.5"):
        trimmed(chain, 0.25)
    model = build("resnet18")
    graph = trace(model, input_size("resnet18"))
    for options in ({"nested": True}, {}):
        with pytest.raises(ChainError, match="only a nested chain whose slots have leaders"):
            trimmed(WeightChain.from_teacher(model, 0.5, graph=graph, **options), 0.75)
    vit = tiny()
    graph = trace(vit, IMAGE)
    nested = WeightChain.from_teacher(vit, 0.5, graph=graph, nested=True)
    importance = {group: np.ones(size) for group, size in graph.sizes.items()}
    chain = WeightChain.from_labels(vit, graph, nested.teacher_to_chain, trees=nested.trees, importance=importance)
    with pytest.raises(ChainError, match="network with attention"):
        trimmed(chain, 0.75)
