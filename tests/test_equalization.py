"""Ranges of channels made alike: nothing changes but for them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_networks import TinyNet, conv
from torch import nn

from oskt_torchreid.deploy.equalization import _largest_inputs, _Ranges, equalized
from oskt_torchreid.errors import GraphError
from oskt_torchreid.graph import ScalePath, scale_paths, trace_module
from oskt_torchreid.host import models

SIZE = (3, 64, 32)
BACKBONES = [
    "osnet_x0_25",
    "osnet_ain_x1_0",
    "resnet18",
    "mobilenetv2_x1_0",
    "shufflenet",
    "squeezenet1_1",
    "pcb_p4",
]  # of each another kind of block


def uneven(network):
    """Statistics and factors as far apart as those of trained networks."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator))
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.3)
            module.weight.data.copy_(torch.exp(torch.randn(shape, generator=generator)))
    return network.eval()


def spread(network, names, batches):
    """Standard deviation of the binary logarithm of ranges, mean over layers; channels that are 0 left out."""
    largest = _largest_inputs(network, names, batches).values()
    return np.mean([torch.log2(values[values > 0]).std().item() for values in largest if (values > 0).sum() > 1])


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_computes_the_same_to_the_last_bit(name):
    torch.manual_seed(0)
    network = uneven(models.build(name, 5))
    state = copy.deepcopy(network.state_dict())
    batches = [torch.randn(2, *SIZE)]
    found = equalized(network, batches)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), "not changed"
    changed = [key for key, tensor in found.state_dict().items() if not torch.equal(tensor, state[key])]
    assert changed, "there is something to equalise"
    with torch.no_grad():
        for images in (*batches, torch.randn(3, *SIZE)):
            assert torch.equal(found(images), network(images))
    paths = scale_paths(network, trace_module(network, SIZE))
    names = {key for path in paths for key in path.columns}
    assert spread(found, names, batches) < spread(network, names, batches)


def test_a_worked_example():
    """Ranges 8, 1, 2, 8 and column weights 1/2, 1, 1/2, 1/8: factors 1, 4, 2, 1/2."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = trace_module(network, (3, 2, 2))
    (path,) = [path for path in scale_paths(network, graph) if path.columns == ("2.weight",)]
    assert path == ScalePath(("0.bias", "0.weight"), ("2.weight",))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[0.5, 1, -0.5, 0.125], [0.1, -0.2, 0.3, 0.1]])[:, :, None, None])
    first = network[0].weight.detach().clone()
    before = network[2].weight.detach().clone()
    ranges = _Ranges(network, graph, {"2.weight": torch.tensor([8.0, 1, 2, 8])})
    ranges.equalize(path)
    factors = torch.tensor([1, 4, 2, 0.5])
    torch.testing.assert_close(network[0].weight, first * factors[:, None, None, None])
    torch.testing.assert_close(network[2].weight, before / factors[None, :, None, None])
    assert ranges._inputs["2.weight"].tolist() == [8, 4, 4, 4]


class Gated(nn.Module):
    """A gate per channel, of the pooled image, that multiplies it: the image carries a factor, or the gate does."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = conv(3, 8), nn.Conv2d(8, 8, 1), conv(8, 4)

    def forward(self, images):
        images = torch.relu(self.first(images))
        gated = images * torch.sigmoid(self.gate(images.mean((2, 3), keepdim=True)))
        return self.last(gated).mean((2, 3))


@pytest.mark.parametrize("network", [Gated(), TinyNet(5)], ids=["gate", "tiny"])
def test_small_networks(network):
    network = uneven(network)
    batches = [torch.randn(2, *SIZE)]
    found = equalized(network, batches)
    assert any(not torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(found(batches[0]), network(batches[0]))


def test_a_network_that_cannot_be_followed_stays_as_it_is(monkeypatch, caplog):
    def refuse(*_):
        raise GraphError("no way")

    monkeypatch.setattr("oskt_torchreid.deploy.equalization.trace_module", refuse)
    network = TinyNet(5).eval()
    with caplog.at_level("INFO"):
        found = equalized(network, [torch.randn(2, *SIZE)])
    assert "ranges of channels are not equalised: no way" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))
