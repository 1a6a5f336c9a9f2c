"""Bottleneck attention: its gates by hand, and their places in the registered networks."""

import pytest
import torch
from torch import nn

from oskt_torchreid import trace
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host import models
from oskt_torchreid.models import BAM, load_backbone_weights


def constant_gates(combine, channel, place):
    """Gates that give two numbers whatever they see."""
    gate = BAM(4, reduction=2, combine=combine).eval()
    for last, value in ((gate.channel_gate[-1], channel), (gate.spatial_gate[-1], place)):
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, value)
    return gate


@pytest.mark.parametrize(("combine", "expected"), [("product", -6.0), ("sum", -1.0)])
def test_gates_by_hand(combine, expected):
    maps = torch.randn(2, 4, 3, 2)
    factor = 1 + torch.sigmoid(torch.tensor(expected))
    torch.testing.assert_close(constant_gates(combine, -3.0, 2.0)(maps), maps * factor)


def test_each_gate_sees_what_it_should():
    gate = BAM(4, reduction=2).eval()
    for layer in gate.spatial_gate:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)  # whatever changes, its rectifications let it through
    maps = torch.rand(1, 4, 20, 20)
    by_place = gate.spatial_gate(maps)
    assert by_place.shape == (1, 1, 20, 20)
    moved = maps.clone()
    moved[:, :, 0, 0] += 5
    changed = (gate.spatial_gate(moved) - by_place).abs()[0, 0] > 0
    rows, columns = changed.nonzero().unbind(1)
    assert set(rows.tolist()) | set(columns.tolist()) == {0, 4, 8}, "two 3x3 convolutions of dilation 4"
    shuffled = maps.flatten(2)[:, :, torch.randperm(400)].reshape(maps.shape)
    torch.testing.assert_close(gate.channel_gate(shuffled.mean((2, 3))), gate.channel_gate(maps.mean((2, 3))))


@pytest.mark.parametrize(("name", "gates"), [("resnet50_bam", {"layer1": 256, "layer2": 512, "layer3": 1024})])
def test_after_the_first_three_stages(name, gates, tmp_path):
    model = models.build(name, 3)
    found = {stage: module for stage, module in model.named_modules() if isinstance(module, BAM)}
    assert {stage: gate.channel_gate[0].in_features for stage, gate in found.items()} == {
        f"{stage}.bam": width for stage, width in gates.items()
    }
    stock = models.build(name.removesuffix("_bam"), 9)
    torch.save(stock.state_dict(), tmp_path / "stock.pth")
    account = load_backbone_weights(model, tmp_path / "stock.pth")
    assert all(".bam." in kept or kept.startswith("classifier") for kept in account.initialised)
    assert torch.equal(model.layer4[0].conv1.weight, stock.layer4[0].conv1.weight)


def test_channel_graph():
    """A gate's own channels may be narrowed; the one channel of the spatial gate is whole."""
    traced = trace(models.build("resnet50_bam", 3), (3, 64, 32))
    sizes = {group.name: (group.size, bool(group.fixed)) for group in traced.groups if ".bam." in group.name}
    assert sizes["layer1.bam.channel_gate.0"] == (16, False) and sizes["layer1.bam.spatial_gate.9"] == (1, True)
    assert len(traced.groups) == 38 + 3 * 5


def test_bad_arguments():
    with pytest.raises(ConfigError, match="combine of BAM is 'max'; allowed: product, sum"):
        BAM(64, combine="max")
    with pytest.raises(ConfigError, match="BAM narrows 8 channels 16 times; give a reduction of 8 or less"):
        BAM(8)
