"""Which tensor of a network an export gives: a feature, or class scores on request; never one of several by chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torchvision
from small_networks import IMAGE, Network, TinyNet, conv
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.deploy import open_exported, read_metadata
from oskt_torchreid.errors import ConfigError, ExportError
from oskt_torchreid.networks import parse_outputs

BEFORE = "the feature before the classifier 'classifier'"


class Plain(nn.Module):
    """Class scores in either mode, as networks of torchvision and timm give them."""

    def __init__(self, returned=lambda feature, scores: scores, convolution=False):
        super().__init__()
        self.layer, self.convolution, self.returned = conv(3, 8), convolution, returned
        self.classifier = nn.Conv2d(8, 5, 1) if convolution else nn.Linear(8, 5)

    def forward(self, images):
        feature = self.layer(images).relu().mean((2, 3), keepdim=self.convolution)
        return self.returned(feature, self.classifier(feature).flatten(1))


class Embeds(nn.Module):
    """A linear layer makes the feature; a classifier reads it in training, with a norm between, or directly."""

    def __init__(self, norm):
        super().__init__()
        self.layer, self.embed, self.norm, self.classifier = conv(3, 8), nn.Linear(8, 6), norm, nn.Linear(6, 5)

    def forward(self, images):
        feature = self.embed(self.layer(images).relu().mean((2, 3)))
        return (self.classifier(self.norm(feature)), feature) if self.training else feature


def exported(model, tmp_path, **options):
    result = oskt.export(model, tmp_path / "network.torchscript", input_size=IMAGE, **options)
    images = torch.randn(2, *IMAGE)
    return result, open_exported(result.path, result.format)(images.numpy()), images


@pytest.mark.parametrize("convolution", [False, True])
def test_a_plain_network_gives_the_feature_before_its_classifier(convolution, tmp_path):
    model = Plain(convolution=convolution).eval()
    result, found, images = exported(model, tmp_path)
    assert (result.feature_dim, result.output) == (8, BEFORE) and f"output: {BEFORE} (8)" in str(result)
    np.testing.assert_allclose(found, model.layer(images).relu().mean((2, 3)).detach(), rtol=1e-5, atol=1e-6)
    assert read_metadata(result.path, result.format)["output"] == "feature"
    assert isinstance(model.classifier, (nn.Conv2d, nn.Linear)), "the network itself keeps it"


@pytest.mark.parametrize("convolution", [False, True])
def test_class_scores_on_request(convolution, tmp_path):
    model = Plain(convolution=convolution).eval()
    result, found, images = exported(model, tmp_path, output="scores")
    assert (result.feature_dim, result.output) == (5, "class scores of 'classifier'")
    np.testing.assert_allclose(found, model(images).detach(), rtol=1e-5, atol=1e-6)
    assert read_metadata(result.path, result.format)["output"] == "scores"


def test_a_student_of_a_plain_network_gives_its_feature(tmp_path):
    student = oskt.expand(oskt.WeightChain.from_teacher(Plain().eval(), width=0.5, input_size=IMAGE), width=0.5)
    assert exported(student, tmp_path)[0].feature_dim == 4
    assert exported(student, tmp_path, output="scores")[0].feature_dim == 5


@pytest.mark.parametrize(
    ("build", "length"),
    [
        (lambda: TinyNet(4), 24),
        (lambda: TinyNet(4, "triplet"), 24),
        (lambda: Embeds(nn.Identity()), 6),
        (lambda: Embeds(nn.BatchNorm1d(6)), 6),
        (lambda: Plain(lambda feature, scores: functional.normalize(scores)), 5),
        (lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), conv(8, 6), nn.Hardswish(True), nn.Flatten()), 6),
    ],
    ids=["torchreid", "triplet", "embedding", "neck", "normalised", "activation"],
)
def test_a_network_that_gives_a_feature_gives_it(build, length, tmp_path):
    model = build().eval()
    result, found, images = exported(model, tmp_path)
    assert (result.feature_dim, result.output) == (length, "what the network returns in evaluation")
    np.testing.assert_allclose(found, model(images).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="gives no class scores in evaluation"):
        oskt.export(model, tmp_path / "scores.torchscript", input_size=IMAGE, output="scores")


class Pair(NamedTuple):
    feature: torch.Tensor
    scores: torch.Tensor


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda feature, scores: {"map": feature, "scores": scores}, r"a dict of 'map' \[2, 8\] and 'scores' \[2, 5\]"),
        (lambda feature, scores: (feature, scores), r"a tuple of \[2, 8\] and \[2, 5\]"),
        (lambda feature, scores: [feature, scores], r"a list of \[2, 8\] and \[2, 5\]"),
        (Pair, r"a Pair of \[2, 8\] and \[2, 5\]"),
        (lambda feature, scores: ((feature, scores),), "a tuple of tuple"),
        (lambda feature, scores: None, "a NoneType"),
        (lambda feature, scores: [], "a list of nothing"),
    ],
    ids=["dict", "tuple", "list", "named", "nested", "none", "empty"],
)
def test_several_outputs_are_refused_and_named(returned, message, tmp_path):
    with pytest.raises(ExportError, match=f"Plain returns {message} in evaluation, and an exported network has one"):
        oskt.export(Plain(returned), tmp_path / "network.onnx", input_size=IMAGE)
    assert not list(tmp_path.iterdir())


def test_a_list_of_one_tensor_is_that_tensor(tmp_path):
    assert exported(Plain(lambda feature, scores: [scores]).eval(), tmp_path)[0].feature_dim == 8


@pytest.mark.parametrize("output", ["logits", "", None, 3])
def test_an_unknown_output(output, tmp_path):
    with pytest.raises(ConfigError, match=r"output of an export is .*; allowed: feature, scores"):
        oskt.export(Plain(), tmp_path / "network.onnx", input_size=IMAGE, output=output)


def test_a_network_that_cannot_be_traced_says_so(tmp_path, caplog):
    remembered = nn.Linear(8, 8).requires_grad_(False)
    model = Network(
        lambda self, images: self.classifier(remembered(self.layer(images).mean((2, 3)))),
        layer=conv(3, 8),
        classifier=nn.Linear(8, 5),
    )
    assert exported(model.eval(), tmp_path)[0].feature_dim == 5
    assert "whether 'classifier' of Network gives class scores or features cannot be told" in caplog.text


class Bare(nn.Module):
    """A classifier of bare parameters in the network's own code."""

    def __init__(self):
        super().__init__()
        self.layer, self.weight = conv(3, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, images):
        return functional.linear(self.layer(images).mean((2, 3)), self.weight)


def test_a_classifier_in_the_networks_own_code_cannot_be_left_out(tmp_path):
    with pytest.raises(ExportError, match="made by its own code"):
        oskt.export(Bare(), tmp_path / "network.onnx", input_size=IMAGE)


@pytest.mark.parametrize("outputs", [{"a": torch.ones(2, 3)}, [torch.ones(2, 3), None], None, ({"a": torch.ones(2)},)])
def test_outputs_that_are_no_branches(outputs):
    with pytest.raises(ConfigError, match="the network returned .*; torchreid's protocol has a tensor"):
        parse_outputs(outputs, training=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "length"),
    [
        (lambda: torchvision.models.resnet18(num_classes=751), 512),
        (lambda: torchvision.models.vgg11(num_classes=7), 4096),
        (lambda: timm.create_model("dla34", num_classes=7), 512),
        (lambda: timm.create_model("efficientnet_b0", num_classes=7), 1280),
    ],
)
def test_plain_networks_of_others(build, length, tmp_path):
    result = oskt.export(build().eval(), tmp_path / "network.torchscript", input_size=(3, 128, 64))
    assert result.feature_dim == length and "before the classifier" in result.output


def test_the_metadata_of_all_formats_say_which(tmp_path):
    for name in ("a.onnx", "a.xml"):
        result = oskt.export(Plain().eval(), tmp_path / name, input_size=IMAGE)
        facts = read_metadata(result.path, result.format)
        assert (facts["output"], facts["feature_dim"]) == ("feature", 8)
