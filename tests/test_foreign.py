"""Unregistered networks, of torchvision, timm and a user: traced, chained, expanded, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchreid
import torchvision
from backbones import calibrate
from small_networks import IMAGE, Head, Network, conv
from tensors import same_tensors
from test_identity import collapse, logits, random_labels
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain import Refinement
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.losses import refining_loss
from oskt_torchreid.chain.narrowing import rows_first
from oskt_torchreid.graph import ChannelGraph
from oskt_torchreid.graph.plans import balanced, check_plan, rounded_down
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import host_table

NUM_CLASSES = 7


class Decoder(nn.Module):
    """A small network with group norm and transposed convolutions: plain, grouped, depthwise, and one that widens."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.stem_norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 24, 2, stride=2)
        self.up_norm = nn.GroupNorm(1, 24)
        self.grouped = nn.ConvTranspose2d(24, 32, 3, padding=1, groups=2, bias=False)
        self.grouped_norm = nn.GroupNorm(32, 32)  # channel by channel: nothing is normalised over channels
        self.deep = nn.ConvTranspose2d(32, 32, 4, stride=2, groups=32)
        self.skip = nn.Conv2d(24, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(images)).relu()
        up = nn.functional.silu(self.up_norm(self.up(x)))
        x = nn.functional.hardswish(self.grouped_norm(self.grouped(up))) + self.skip(up)
        feature = self.norm(self.deep(x)).mean((2, 3))
        return self.classifier(feature) if self.training else feature


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "decoder": (Decoder, (3, 16, 8)),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(weights=None, num_classes=7), (3, 64, 32)),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(weights=None, num_classes=7), (3, 64, 32)),
    "regnet_y_400mf": (lambda: torchvision.models.regnet_y_400mf(weights=None, num_classes=7), (3, 64, 32)),
    "timm mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), (3, 64, 32)),
}
NAMES = [name if name == "decoder" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with random weights in which nothing is at a neutral value."""
    torch.manual_seed(0)
    builder, size = MODELS[name]
    model = builder().eval()
    for key, parameter in model.named_parameters():
        if "layer_scale" in key:
            nn.init.uniform_(parameter, 0.2, 0.6)
        elif parameter.dim() == 1:
            low, high = (-0.3, 0.3) if key.endswith("bias") else (0.6, 1.4)
            nn.init.uniform_(parameter, low, high)
    return calibrate(model, torch.randn(2, *size)).to(dtype)


def under_norms(graph: ChannelGraph) -> set[str]:
    """Names of the groups that a layer norm or group norm counts, where students are exact at some widths only."""
    indices = {int(i) for norm in graph.norms for i in np.unique(graph.group_of_channel[norm.channels])}
    return {graph.groups[i].name for i in indices}


def exact_labels(graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Random clusters; under norms a quarter as many as channels, four channels each."""
    labels = random_labels(graph)
    for group in graph.groups:
        if group.name in under_norms(graph):
            assert group.size % 4 == 0
            labels[group.name] = np.random.default_rng(0).permutation(np.arange(group.size) % (group.size // 4))
    return labels


def exact_plans(graph: ChannelGraph, chain: oskt.WeightChain) -> dict[str, dict[str, int]]:
    """Three widths at which every slot under a norm stands for equally many channels: 4, 2 and 1."""
    normed, sizes = under_norms(graph), graph.sizes
    middle = {n: sizes[n] // 2 if n in normed else (width + sizes[n]) // 2 for n, width in chain.widths.items()}
    plans = {"chain": chain.widths, "between": middle, "full": dict(sizes)}
    assert all(balanced(graph, plan) == plan for plan in plans.values())
    return plans


@pytest.mark.parametrize("name", NAMES)
def test_identity(name: str) -> None:
    dtype = torch.float64 if name == "decoder" else torch.float32
    model, size = build(name, dtype), MODELS[name][1]
    images = torch.randn(2, *size, dtype=dtype)
    graph = oskt.trace(model, size)
    before = logits(model, images)
    labels = exact_labels(graph)
    collapse(model, graph, labels)
    expected = logits(model, images)
    assert float((before - expected).abs().max() / expected.std()) > 1e-2, "a collapse that changes nothing is blind"
    chain = oskt.WeightChain.from_labels(model, graph, labels)
    for kind, widths in exact_plans(graph, chain).items():
        error = float((logits(expand_to_plan(chain, widths), images) - expected).abs().max() / expected.std())
        assert error <= (1e-10 if dtype == torch.float64 else 1e-4), (kind, error)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_covered(name: str) -> None:
    """Rows and columns of every layer are channels; nothing but the class scores keeps its width."""
    model, size = build(name), MODELS[name][1]
    graph = oskt.trace(model, size)
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    weights = {f"{key}.weight": module for key, module in model.named_modules() if isinstance(module, layers)}
    assert graph.matrices == weights.keys()
    for key, module in weights.items():
        first = key == next(iter(weights))
        deep = getattr(module, "groups", 1) > 1 and module.weight.shape[1] == 1
        assert key in graph.row_ties
        assert (key not in graph.column_ties) == bool(first or deep), key
    norms = (nn.GroupNorm, nn.LayerNorm)
    assert {n.module for n in graph.norms} == {
        key for key, m in model.named_modules() if isinstance(m, norms) and getattr(m, "num_groups", 1) != 32
    }
    assert [group.name for group in graph.groups if group.fixed] == [graph.groups[-1].name]


@pytest.mark.parametrize("name", NAMES)
def test_chain_and_student_files_with_the_network_itself(name: str, tmp_path) -> None:
    model, size = build(name), MODELS[name][1]
    images = torch.randn(2, *size)
    chain = oskt.WeightChain.from_teacher(model, width=0.5, input_size=size)
    assert chain.spec is None
    chain.save(tmp_path / "chain.safetensors")
    with pytest.raises(oskt.errors.ChainError, match=r"not a registered model; pass the teacher's network: .*model="):
        oskt.WeightChain.load(tmp_path / "chain.safetensors")
    again = oskt.WeightChain.load(tmp_path / "chain.safetensors", model=MODELS[name][0]())
    assert all(torch.equal(rows, chain.rows[key]) for key, rows in again.rows.items())
    student = oskt.expand(again, width=0.75)
    oskt.save_student(student, tmp_path / "student.pth")
    with pytest.raises(oskt.errors.CheckpointError, match=r"not a registered model; pass its network: model="):
        oskt.load_student(tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=MODELS[name][0]())
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded(images), student(images))
    params = [sum(p.numel() for p in network.parameters()) for network in (student, model)]
    assert 0.4 < params[0] / params[1] < 0.7


def test_files_of_a_network_with_other_norm_blocks(tmp_path) -> None:
    chain = oskt.WeightChain.from_teacher(build("decoder"), width=0.5, input_size=(3, 16, 8))
    chain.save(tmp_path / "chain.safetensors")
    other = Decoder()
    other.stem_norm.num_groups = 2
    with pytest.raises(
        oskt.errors.ChainError, match="module 'stem_norm' of Decoder splits its channels into 2 heads or n"
    ):
        oskt.WeightChain.load(tmp_path / "chain.safetensors", model=other)


def test_refinement_of_a_network_with_transposed_convolutions() -> None:
    """The S-student computes what the student of the chain's width computes, and gradient reaches rows and teacher."""
    model = build("decoder")
    chain = oskt.WeightChain.from_teacher(model, width=0.5, input_size=(3, 16, 8))
    refinement = Refinement(model, chain)
    refinement.sstudent.shell.eval()
    images = torch.randn(2, 3, 16, 8)
    output = refinement.sstudent(images, model)
    torch.testing.assert_close(output, expand_to_plan(chain, chain.widths)(images))
    loss = output.square().sum() + refining_loss(refinement.sstudent.row_pairs(model))
    loss.backward()
    assert model.grouped.weight.grad.abs().max() > 0
    assert refinement.sstudent.rows["grouped/weight"].grad.abs().max() > 0
    refined = refinement.to_chain()
    assert all(torch.equal(refined.rows[name], rows) for name, rows in chain.rows.items())


def test_a_transposed_weight_turned_rows_first() -> None:
    """The worked example of `rows_first`: each row's columns are those of its block, and turning twice is nothing."""
    layer = nn.ConvTranspose2d(6, 4, 1, groups=2, bias=False)
    row = oskt.graph.Tie("weight", dimension=1, role="row", axis=oskt.graph.Axis(np.arange(4).reshape(2, 2)))
    turned = rows_first(layer.weight, row)
    assert turned.shape == (4, 3, 1, 1)
    images = torch.randn(1, 6, 1, 1)
    as_convolution = nn.functional.conv2d(images, turned, groups=2)
    torch.testing.assert_close(as_convolution, layer(images))
    assert torch.equal(rows_first(turned, row), layer.weight)


# ---- names -------------------------------------------------------------------------------------------------------


def plain(num_classes: int) -> nn.Module:
    return Decoder(num_classes)


def full(num_classes: int, loss: str, pretrained: bool, use_gpu: bool) -> nn.Module:
    model = Decoder(num_classes)
    model.loss = loss
    return model


@pytest.fixture
def registered():
    """`registered(builder)` gives a builder a name that leaves torchreid's factory after the test."""
    factory = host_table(torchreid.models.build_model, "__model_factory")
    before = dict(factory)

    def register(builder: Callable[..., nn.Module], name: str = "my_net") -> str:
        oskt.register_backbone(name, builder, input_size=(3, 16, 8))
        return name

    yield register
    for name in factory.keys() - before.keys():
        del factory[name]
    models.skeleton.cache_clear()


@pytest.mark.parametrize("builder", [plain, full, lambda num_classes, **_: Decoder(num_classes)])
def test_a_registered_network_is_a_name_everywhere(builder, registered, tmp_path) -> None:
    name = registered(builder)
    assert registered(builder) == name, "registering again changes nothing"
    model = torchreid.models.build_model(name, num_classes=5, loss="softmax", pretrained=False)
    assert models.identify(model) == models.ModelSpec(name, 5, "softmax")
    chain = oskt.WeightChain.from_teacher(model, width=0.5)
    assert chain.input_size == (3, 16, 8)
    chain.save(tmp_path / "chain.safetensors")
    student = oskt.expand(oskt.WeightChain.load(tmp_path / "chain.safetensors"), width=0.75)
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth")
    assert same_tensors(loaded, student)


def test_a_registered_network_has_a_neck(registered) -> None:
    name = registered(plain)
    model = torchreid.models.build_model(f"oskt_{name}", num_classes=5, loss="triplet", pretrained=False)
    assert isinstance(model, oskt.models.NeckModel)
    assert models.identify(model) == models.ModelSpec(f"oskt_{name}", 5, "triplet")
    assert models.input_size(f"oskt_{name}") == (3, 16, 8)
    chain = oskt.WeightChain.from_teacher(model, width=0.5)
    scores, feature = oskt.expand(chain, width=0.5).train()(torch.randn(2, 3, 16, 8))
    assert (scores.shape, feature.shape) == ((2, 5), (2, 16))


def test_where_a_name_is_not_registered_the_network_itself_will_do(registered, tmp_path) -> None:
    chain = oskt.WeightChain.from_teacher(build_registered(registered(plain)), width=0.5)
    chain.save(tmp_path / "chain.safetensors")
    host_table(torchreid.models.build_model, "__model_factory").pop("my_net")
    with pytest.raises(oskt.errors.ChainError, match="'my_net'.*cannot be built here: unknown model 'my_net'"):
        oskt.WeightChain.load(tmp_path / "chain.safetensors")
    assert oskt.WeightChain.load(tmp_path / "chain.safetensors", model=Decoder()).widths == chain.widths


def build_registered(name: str) -> nn.Module:
    return models.build(name, NUM_CLASSES)


def test_a_plain_builder_says_that_it_cannot_load_weights(registered, caplog) -> None:
    models.build(registered(plain), 5, pretrained=True)
    assert "the builder of 'my_net' takes no argument 'pretrained'" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", plain), "the name of a backbone is ''; give a word"),
        (
            ("oskt_net", plain),
            "'oskt_net' cannot be the name of a backbone: 'oskt_<name>' is a network around",
        ),
        (("resnet18", plain), "model name 'resnet18' belongs to .*resnet18; choose another name"),
        (("my_net", 3), "the builder of 'my_net' is 3; give a function of num_classes"),
        (("my_net", lambda: plain(2)), r"the builder of 'my_net' takes \(\); it is called with num_classes, loss"),
        (
            ("my_net", lambda num_classes: num_classes),
            "the builder of 'my_net' gave 'int', which is no torch.nn.Module",
        ),
        (
            ("my_net", lambda num_classes: plain(num_classes / 0)),
            "'my_net' fails with num_classes=2: ZeroDivisionError",
        ),
        (("my_net", plain, (3, 64)), r"input_size of 'my_net' is \(3, 64\); give \(channels, height, width\)"),
        (("my_net", plain, (3, 64, 0)), r"input_size of 'my_net' is \(3, 64, 0\); give"),
    ],
)
def test_what_cannot_be_registered(arguments, message) -> None:
    known = set(models.model_names())
    with pytest.raises(oskt.errors.ConfigError, match=message):
        oskt.register_backbone(*arguments)
    assert set(models.model_names()) == known


# ---- what cannot be traced, and widths that no network has ----------------------------------------------------------


def with_middle(forward: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.Sequential(Network(lambda self, images: forward(images))), Head(4))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (
            lambda: with_middle(lambda x: x.missing),
            r"in module '1.0' \(AttributeError: .*\); this is an error of .* own code",
        ),
        (
            lambda: with_middle(lambda x: x / 0 if x.dim() < 4 else 1 / 0),
            r"\(ZeroDivisionError: .* own code: it fails .* without",
        ),
        (
            lambda: with_middle(lambda x: x.reshape(7, -1)),
            r"in module '1.0' \(RuntimeError: shape .*\); give the input_size that",
        ),
        (
            lambda: nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(9, 2)),
            r"in module '2' \(RuntimeError: .*; give the input_size",
        ),
        (
            lambda: timm.create_model("mixer_s32_224"),
            r"in module 'stem' \(AssertionError: Input height .*; give the input_size",
        ),
        (
            lambda: with_middle(lambda x: torch.from_numpy(x.numpy())),
            r"module '1.0' takes channels out of torch \(numpy or tolist",
        ),
        (
            lambda: nn.Sequential(nn.LazyConv2d(4, 1), Head(4)),
            r"'0.weight' has no shape yet; run the network once on an image",
        ),
        (
            lambda: nn.Sequential(torch.jit.trace(conv(3, 4), torch.zeros(1, 3, 8, 8)), Head(4)),
            "module '0' is compiled by Torch",
        ),
        (lambda: {"a": 1}, "a torch.nn.Module is traced, got 'dict'"),
    ],
    ids=["bug", "zero", "reshape", "linear", "fixed size", "numpy", "lazy", "scripted", "no module"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_an_untraceable_network_says_why_and_what_to_do(builder, message) -> None:
    model = builder()
    with pytest.raises(oskt.errors.GraphError, match=message):
        oskt.trace(model, IMAGE, unknown="refuse")


def test_what_fails_only_while_it_is_traced_is_told_apart() -> None:
    def forward(images: torch.Tensor) -> torch.Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("wrong shape of things")
        return images

    with pytest.raises(
        oskt.errors.GraphError, match="fails .* in module '1.0' .* while it is traced, and runs otherwise"
    ) as info:
        oskt.trace(with_middle(forward), IMAGE)
    assert isinstance(info.value.__cause__, RuntimeError)


@pytest.mark.parametrize("size", [(3, 64), (3, 0, 8), (3.0, 8, 8), 64])
def test_an_impossible_input_size(size) -> None:
    with pytest.raises(oskt.errors.GraphError, match=r"input_size is .*; give \(channels, height, width\)"):
        oskt.trace(Decoder(), size)


def test_a_wrong_number_of_channels_of_the_image() -> None:
    with pytest.raises(
        oskt.errors.GraphError, match=r"\(4, 16, 8\) in module 'stem' .* 3 channels, but got 4 .*give the input_size"
    ):
        oskt.trace(Decoder(), (4, 16, 8))


def uneven() -> nn.Module:
    """A grouped convolution whose blocks hold 2 + 2 channels of two producers, and 4 of a third."""

    def forward(self, images):
        return self.head(self.grouped(torch.cat([self.left(images), self.right(images), self.whole(images)], 1)))

    parts = {"left": conv(3, 2), "right": conv(3, 2), "whole": conv(3, 4), "grouped": conv(8, 6, groups=2)}
    return Network(forward, **parts, head=Head(6))


def test_a_width_that_would_make_blocks_unequal_is_lowered_and_reported(caplog) -> None:
    model = uneven()
    chain = oskt.WeightChain.from_teacher(model, width=0.5, input_size=IMAGE)
    assert "lowered" not in caplog.text, "a ratio that fits is nothing to report"
    student = oskt.expand(chain, width=0.75)
    assert rounded_down(chain.graph, 0.75)["whole"] == 3
    assert student.grouped.weight.shape == (4, 2, 1, 1)
    assert "widths lowered to the next legal ones" in caplog.text
    assert "'whole' 3 -> 2" in caplog.text


def test_an_impossible_plan_names_groups_and_legal_sizes() -> None:
    graph = oskt.trace(uneven(), IMAGE)
    plan = {**graph.sizes, "left": 1}
    message = r"'whole' would get 4 channels and 'left' \+ 'right' beside it 3; legal is .* each of the 2, from 2 to 4"
    with pytest.raises(oskt.errors.WidthError, match=message):
        check_plan(graph, plan)
    assert balanced(graph, plan)["whole"] == 3
    chain = oskt.WeightChain.from_teacher(uneven(), width=1.0, input_size=IMAGE)
    with pytest.raises(oskt.errors.WidthError, match=r"'grouped\[0\]' would get 3 .* 'grouped\[1\]' beside it 2"):
        expand_to_plan(chain, {**graph.sizes, "grouped[1]": 2})


def test_blocks_of_a_group_norm_are_equally_wide() -> None:
    graph = oskt.trace(Decoder(), (3, 16, 8))
    with pytest.raises(oskt.errors.WidthError, match=r"blocks of a norm .* each of the 4, from 1 to 4"):
        check_plan(graph, {**graph.sizes, "stem:1": 2})
    assert balanced(graph, {**graph.sizes, "stem:1": 2})["stem:3"] == 2
