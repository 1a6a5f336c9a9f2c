"""Rules of what the field's networks use, each proved on a small network, and what stays whole, if anything."""

from __future__ import annotations

import pytest
import torch
from small_networks import Head, Network, conv
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.graph.grouping import OUTPUT

IMAGE = (3, 8, 8)


def around(forward, width=8, **parts):
    """A convolution of `width` rows, a forward function of its output, another convolution, and a classifier."""

    def run(self, images):
        return self.head(self.last(forward(self, torch.relu(self.first(images)))).relu())

    torch.manual_seed(0)
    return Network(run, first=conv(3, width), **parts, last=conv(width, 6), head=Head(6)).eval()


def whole(model):
    """Why groups of several channels keep their width in the proved graph of a network, by name."""
    graph = oskt.trace(model, IMAGE)
    assert not graph.unseen, "what lies along positions is used as well"
    groups = [group for group in graph.groups if group.size > 1 and group.fixed != OUTPUT]
    return {group.name: group.fixed for group in groups if group.fixed}


# ---- everything moves ------------------------------------------------------------------------------------------------


def tokens_mixed(self, x):
    """A layer over positions, as in MLP mixers."""
    return x + self.mix(x.flatten(2)).view(x.shape)


def parameter_at_the_right(self, x):
    return (x.flatten(2).transpose(1, 2) @ self.matrix).transpose(1, 2).view(x.shape)


def parameter_at_the_left(self, x):
    return (self.matrix @ x.flatten(2)).view(x.shape)


def spread_out(self, x):
    """Global response normalisation, as in ConvNeXt-V2."""
    lengths = x.norm(dim=(2, 3), keepdim=True)
    return x + self.factor * (x * lengths / (lengths.mean(1, keepdim=True) + 1e-6))


def attended(self, x):
    """A map of means and maxima over channels, as in CBAM."""
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * self.map(maps).sigmoid()


def radix(self, x):
    """Two groups of channels weighted by a softmax between them, as in ResNeSt."""
    both = self.both(x).unflatten(1, (2, -1))
    scores = self.scores(both.sum(1).mean((2, 3))).unflatten(1, (2, -1)).softmax(1)
    return (both * scores[..., None, None]).sum(1)


def pooled(self, x):
    """A generalised mean with a learned power beside a learned weighting of positions."""
    power = x.clamp(min=1e-6).pow(self.power).mean((2, 3), keepdim=True).pow(1 / self.power)
    attention = self.map(x).flatten(2).softmax(-1)
    context = x.flatten(2) @ attention.transpose(1, 2)
    return x + power + context.unsqueeze(3)


def looked_up(self, x):
    """Positions as an embedding, and as a table that is indexed."""
    places = torch.arange(64, device=x.device)
    added = self.table(places) + self.positions[places // 2]
    return x + added.t().reshape(-1, 8, 8)


def chosen(self, x):
    return torch.where(x > 0.5, self.one(x), torch.addcmul(self.shift, self.factor, x))


def limited(self, x):
    """Powers, limits and remainders by channel."""
    limited = torch.clamp((x + 1).pow(self.power), min=self.low).clamp(0, 6)
    return torch.hypot(limited, torch.fmod(x, self.low + 1)) ** self.low


def shaped_alike(self, x):
    """Other channels in the shape of these, and so as many of them."""
    return self.along(x.flatten(2)).view_as(x) + self.other(x).reshape_as(x)


def encoded(self, x):
    """Two layers with as many heads as channels in a head."""
    return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def own_heads(self, x):
    """As many heads as channels in a head, named by attributes."""
    b, c, h, w = x.shape
    tokens = self.qkv(x.flatten(2).transpose(1, 2)).reshape(b, h * w, 3, self.heads, self.size)
    joined = functional.scaled_dot_product_attention(*tokens.permute(2, 0, 3, 1, 4)).transpose(1, 2)
    return joined.reshape(b, h * w, self.heads * self.size).transpose(1, 2).reshape(b, -1, h, w)


class Blur(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", torch.full((channels, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x):
        return functional.conv2d(x, self.kernel, padding=1, groups=self.channels)


def pairs(self, x):
    """A depthwise layer that makes two rows of each channel, as in FastViT, and a gate of its output."""
    twice = self.twice(x)
    return self.back(twice * self.gate(twice.mean((2, 3), keepdim=True)).sigmoid())


def windows(self, x):
    """Cut into windows, rolled, and put together again, channels last, as in Swin."""
    x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
    cut = x.view(1 * len(x), 2, 4, 2, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, x.shape[-1])
    cut = self.norm(cut).view(-1, 2, 2, 4, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return functional.pad(cut.reshape(len(x), 8, 8, -1), (0, 0, 0, 1))[:, :, :8].permute(0, 3, 1, 2)


MOVING = {
    "tokens mixed": (tokens_mixed, lambda: {"mix": nn.Linear(64, 64)}),
    "parameter at the right": (parameter_at_the_right, lambda: {"matrix": nn.Parameter(torch.randn(8, 8))}),
    "parameter at the left": (parameter_at_the_left, lambda: {"matrix": nn.Parameter(torch.randn(8, 8))}),
    "response norm": (spread_out, lambda: {"factor": nn.Parameter(torch.rand(8, 1, 1))}),
    "maps of channels": (attended, lambda: {"map": nn.Conv2d(2, 1, 3, padding=1)}),
    "radix": (radix, lambda: {"both": conv(8, 16, groups=2), "scores": nn.Linear(8, 16)}),
    "pools": (pooled, lambda: {"power": nn.Parameter(torch.tensor([3.0])), "map": conv(8, 1)}),
    "tables": (looked_up, lambda: {"table": nn.Embedding(64, 8), "positions": nn.Parameter(torch.randn(32, 8))}),
    "choice": (
        chosen,
        lambda: {
            "one": conv(8, 8),
            "shift": nn.Parameter(torch.rand(8, 1, 1)),
            "factor": nn.Parameter(torch.rand(8, 1, 1)),
        },
    ),
    "blur": (lambda self, x: self.blur(x), lambda: {"blur": Blur(8)}),
    "pairs": (pairs, lambda: {"twice": conv(8, 16, groups=8), "gate": conv(16, 16), "back": conv(16, 8)}),
    "windows": (windows, lambda: {"norm": nn.LayerNorm(8)}),
    "limits": (
        limited,
        lambda: {"power": nn.Parameter(torch.rand(8, 1, 1) + 1), "low": nn.Parameter(torch.rand(8, 1, 1) + 0.1)},
    ),
    "shaped alike": (shaped_alike, lambda: {"along": nn.Conv1d(8, 8, 3, padding=1), "other": conv(8, 8)}),
}


@pytest.mark.parametrize("name", MOVING)
def test_all_channels_move(name):
    forward, parts = MOVING[name]
    model = around(forward, **parts())
    assert whole(model) == {}
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, input_size=IMAGE), 0.5)
    assert student.first.weight.shape[0] == 4
    assert student(torch.randn(2, *IMAGE)).shape == (2, 2)


@pytest.mark.parametrize("forward", [encoded, own_heads])
def test_as_many_heads_as_channels_in_a_head(forward):
    """Two numbers that are equal: students have as many heads as their teacher, of fewer channels."""
    layer = {"d_model": 16, "nhead": 4, "dim_feedforward": 12, "batch_first": True}
    parts = {"encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 2, enable_nested_tensor=False)}
    model = around(forward, width=16, **(parts if forward is encoded else {"qkv": nn.Linear(16, 48)}))
    model.heads, model.size = 4, 4
    assert whole(model) == {}
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, input_size=IMAGE), 0.5)
    assert student.first.weight.shape[0] == 8
    if forward is encoded:
        assert {layer.self_attn.num_heads for layer in student.encoder.layers} == {4}
    else:
        assert (student.heads, student.size) == (4, 2)


def test_a_constant_of_equal_values_is_cut_in_a_file_too(tmp_path):
    model = around(lambda self, x: self.blur(x), blur=Blur(8))
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, input_size=IMAGE), 0.5)
    assert student.blur.kernel.shape == (4, 1, 3, 3) and student.blur.channels == 4
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=around(lambda self, x: self.blur(x), blur=Blur(8)))
    images = torch.randn(2, *IMAGE)
    torch.testing.assert_close(loaded(images), student(images))


def test_rows_of_a_depthwise_layer_are_merged_all_or_none():
    forward, parts = MOVING["pairs"]
    traced = oskt.trace(around(forward, **parts()), IMAGE)
    rows = traced.row_ties["twice.weight"].channels[0]
    assert rows.tolist() == [channel for channel in traced.row_ties["first.weight"].channels[0] for _ in range(2)]


# ---- what stays whole ------------------------------------------------------------------------------------------------


def read_like_positions(self, x):
    """A convolution along channels, as in ECA."""
    pooled = x.mean((2, 3)).unsqueeze(1)
    return x * self.along(pooled).squeeze(1)[..., None, None].sigmoid()


def padded(self, x):
    return torch.cat([functional.pad(x, (0, 0, 0, 0, 0, 2))[:, 2:], x[:, :2]], 1)[:, :8]


def picked(self, x):
    return x[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])]


@pytest.mark.parametrize(
    ("forward", "parts", "reason"),
    [
        (read_like_positions, {"along": nn.Conv1d(1, 1, 3, padding=1)}, "read like positions in 'along'"),
        (padded, {}, "padded by channels in 'the network itself'"),
        (picked, {}, "picked one by one in 'the network itself'"),
    ],
)
def test_what_mixes_channels_keeps_them(forward, parts, reason):
    assert whole(around(forward, **parts))["first"] == reason
