"""Norms folded into convolutions: which, what comes out, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from small_networks import Network, conv
from torch import nn

pytest.importorskip("onnxscript")

from oskt_torchreid.deploy.folding import fold_norms

IMAGES = torch.linspace(-1, 2, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def norm(width=4, **options):
    """A norm with statistics as after training."""
    made = nn.BatchNorm2d(width, **options)
    generator = torch.Generator().manual_seed(width)
    for tensor in (*made.parameters(), *made.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2, generator=generator)
    return made


def norms(program):
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes)


def straight(self, images):
    return self.norm(self.conv(images)).relu()


CASES = {
    "a norm after a convolution": (1, straight, {"conv": conv(3, 4), "norm": norm()}),
    "a convolution with bias": (1, straight, {"conv": conv(3, 4, bias=True), "norm": norm()}),
    "groups and strides": (1, straight, {"conv": nn.Conv2d(3, 6, 3, 2, 1, groups=3), "norm": norm(6)}),
    "a norm without weight": (0, straight, {"conv": conv(3, 4), "norm": norm(affine=False)}),
    "a norm of the batch": (0, straight, {"conv": conv(3, 4), "norm": norm(track_running_stats=False)}),
    "a norm of images": (0, lambda self, images: self.norm(images), {"norm": norm(3)}),
    "an output used twice": (
        0,
        lambda self, images: self.norm(output := self.conv(images)) + output,
        {"conv": conv(3, 4), "norm": norm()},
    ),
    "a convolution called twice": (
        0,
        lambda self, images: self.norm(self.conv(images)) + self.conv(images + 1),
        {"conv": conv(3, 4), "norm": norm()},
    ),
    "a norm called twice": (
        0,
        lambda self, images: self.norm(self.conv(images)) + self.norm(self.other(images)),
        {"conv": conv(3, 4), "other": conv(3, 4), "norm": norm()},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folded_program_computes_what_the_network_does(case):
    folded, forward, parts = CASES[case]
    network = Network(forward, **parts).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        expected = network(IMAGES)
        program = torch.export.export(network, (IMAGES,))
        before = norms(program)
        assert fold_norms(program) == folded == before - norms(program)
        torch.testing.assert_close(program.module()(IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


def test_rows_by_hand():
    """Channel `k`: scale `weight / sqrt(variance)` = 2, 1, 1/2, 0; mean 1, bias 3; kernel 1 and bias 5 before."""
    network = Network(straight, conv=conv(1, 4, bias=True), norm=nn.BatchNorm2d(4, eps=0.0)).eval()
    with torch.no_grad():
        network.conv.weight.fill_(1.0), network.conv.bias.fill_(5.0)
        network.norm.weight.copy_(torch.tensor([2.0, 2.0, 1.0, 0.0]))
        network.norm.running_var.copy_(torch.tensor([1.0, 4.0, 4.0, 1.0]))
        network.norm.running_mean.fill_(1.0), network.norm.bias.fill_(3.0)
        program = torch.export.export(network, (torch.ones(2, 1, 1, 1),))
        fold_norms(program)
    assert program.state_dict["conv.weight"].flatten().tolist() == [2.0, 1.0, 0.5, 0.0]
    assert program.state_dict["norm.bias"].tolist() == [11.0, 7.0, 5.0, 3.0]  # (5 - 1) s + 3
