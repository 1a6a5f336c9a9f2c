"""Eight bits: which layers lose what, and which have to stay out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.deploy import Deployment, EightBits, ExportedNetwork, open_exported, writing
from oskt_torchreid.deploy.eight_bits import least_kept
from oskt_torchreid.deploy.quantization import calibration_batches
from oskt_torchreid.deploy.runtimes import run_onnx, run_openvino
from oskt_torchreid.deploy.writing import Conversion
from oskt_torchreid.errors import ConfigError, DataError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = (3, 16, 8)


class Fragile(nn.Module):
    """Between two harmless layers one that is given a channel fifty times as large as the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.fragile = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 32, 1)
        with torch.no_grad():
            self.fragile.weight[:, 0] /= 50

    def forward(self, images):
        hidden = torch.relu(self.first(images))
        hidden = torch.cat([50 * hidden[:, :1], hidden[:, 1:]], 1)  # it leaves the others few levels
        return self.last(self.fragile(hidden)).mean((2, 3))


def loader(count=2):
    generator = torch.Generator().manual_seed(0)
    return [{"img": torch.randn(16, *SIZE, generator=generator)} for _ in range(count)]


def exported(path, **how):
    options = {"precision": "int8", "input_size": SIZE, "calibration": loader()}
    return oskt.export(Fragile().eval(), path, eight_bits=EightBits(**how), **options)


def error_of(file):
    """Mean difference of features as a share of their length."""
    pictures = torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = Fragile().eval()(pictures).numpy()
    found = open_exported(file.path, file.format)(pictures.numpy())
    return np.linalg.norm(found - expected, axis=1).mean() / np.linalg.norm(expected, axis=1).mean()


def test_what_each_layer_loses(tmp_path):
    found = exported(tmp_path / "net.onnx", equalize=False, report=True)
    names = [error.name for error in found.layers]
    assert sorted(names) == ["first", "fragile", "last"] and found.kept == ()
    relative = [error.relative for error in found.layers]
    assert relative == sorted(relative, reverse=True) and relative[-1] > 0
    assert all(error.cosine <= 1 for error in found.layers)


def test_layers_that_are_kept_have_weights_in_half_precision(tmp_path):
    plain = exported(tmp_path / "plain.onnx", equalize=False)
    kept = exported(tmp_path / "kept.onnx", equalize=False, kept=("fragile",))
    assert kept.kept == ("fragile",) and "kept in fp16: fragile" in str(kept)
    types = {each.name: each.data_type for each in onnx.load(kept.path).graph.initializer}
    half = [name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16]
    assert half == ["network.fragile.weight_fp16"]
    assert not [name for name in types if name.startswith("network.fragile.weight_quantized")]
    assert error_of(kept) < error_of(plain)
    every = exported(tmp_path / "all.onnx", kept=("first", "fragile", "last"))
    assert error_of(every) < 1e-3 and "QuantizeLinear" not in {n.op_type for n in onnx.load(every.path).graph.node}


@pytest.fixture(scope="module")
def conversion():
    images = calibration_batches(loader(), SIZE, 32)
    return Conversion(Deployment.of(Fragile().eval(), SIZE), images, eight_bits=EightBits(equalize=False))


def score(network):
    """What remains of the features, measured on other pictures."""
    pictures = torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = Fragile().eval()(pictures)
    return -100 * float((network(pictures) - expected).norm(dim=1).mean() / expected.norm(dim=1).mean())


@pytest.fixture(scope="module")
def drops(conversion):
    """What the score falls by with so many of the worst layers kept."""
    order = [error.name for error in conversion.layer_errors]
    models = [conversion.quantizer.quantised(order[:count]).SerializeToString() for count in range(4)]
    return [-score(ExportedNetwork(run_onnx(model))) for model in models]


@pytest.mark.parametrize("least", range(4))
def test_the_fewest_layers_stay_out_for_a_budget(conversion, drops, least):
    order = [error.name for error in conversion.layer_errors]
    how = EightBits(equalize=False, max_drop=1.0001 * drops[least] + 1e-4, score=score)
    kept = least_kept(conversion.quantizer, conversion.deployment.feeding, lambda: conversion.layer_errors, how)
    assert list(kept) == order[: len(kept)], "those first that lose most"
    assert len(kept) == next(count for count, drop in enumerate(drops) if drop <= drops[least])


def test_a_file_within_a_budget(tmp_path, drops):
    allowed = 1.01 * drops[2]
    found = exported(tmp_path / "net.onnx", equalize=False, max_drop=allowed, score=score)
    assert 0 < len(found.kept) < 3 and 100 * error_of(found) <= allowed


def test_a_budget_is_that_of_the_files_own_runtime(tmp_path, conversion, drops, monkeypatch):
    """OpenVINO's file has layers that stay out in any case, and is scored by OpenVINO."""
    pytest.importorskip("openvino")
    allowed, ran = 1.01 * drops[2], []
    monkeypatch.setattr(writing, "run_openvino", lambda model: ran.append(len(model)) or run_openvino(model))
    found = exported(tmp_path / "net.xml", equalize=False, max_drop=allowed, score=score)
    worst = [error.name for error in conversion.layer_errors if error.name != "first"]
    assert list(found.kept) == ["first", *worst][: len(found.kept)] and len(found.kept) > 1
    assert 100 * error_of(found) <= allowed and len(ran) > 1


@pytest.mark.parametrize("ranges", ["percentile", "entropy"])
def test_other_ranges(tmp_path, ranges):
    """Steps are others; where outliers are cut off, they are smaller."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    steps = {}
    for kind in ("largest", ranges):
        how = {"calibration": loader(), "eight_bits": EightBits(kind)}
        file = oskt.export(network.eval(), tmp_path / f"{kind}.onnx", precision="int8", input_size=SIZE, **how)
        model = onnx.load(file.path)
        values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        steps[kind] = [values[n.input[1]].item() for n in model.graph.node if n.op_type == "QuantizeLinear"]
    changes = [cut / whole for cut, whole in zip(steps[ranges], steps["largest"], strict=True)]
    assert max(abs(change - 1) for change in changes) > 0.01
    if ranges == "percentile":
        assert max(changes) <= 1


def test_activations_have_zeros_of_their_own(tmp_path):
    """Where no ReLU makes them positive, the zero point is inside of the range."""
    model = onnx.load(exported(tmp_path / "net.onnx").path)
    values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    zeros = {
        int(values[node.input[2]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and values[node.input[2]].dtype == np.uint8
    }
    assert 0 in zeros, "after a ReLU"
    assert any(40 < zero < 215 for zero in zeros), "of the image"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ranges": "min"}, "ranges of int8 are 'min'; allowed: largest, percentile, entropy"),
        ({"max_drop": -1.0, "score": len}, "max_drop of int8 is -1.0; give 0 or more"),
        ({"max_drop": float("nan"), "score": len}, "max_drop of int8 is nan; give 0 or more"),
        ({"max_drop": "1", "score": len}, "max_drop of int8 is '1'; give 0 or more"),
        ({"max_drop": 0.5}, "max_drop of int8 needs a score to measure"),
        ({"max_drop": 0.5, "score": len, "kept": ("first",)}, "max_drop, which chooses .* and kept, which names them"),
        ({"kept": ("firsts",)}, "there is no layer 'firsts'; did you mean 'first'"),
    ],
)
def test_choices_that_cannot_be(tmp_path, how, message):
    with pytest.raises(ConfigError, match=message):
        exported(tmp_path / "net.onnx", **how)
    assert not list(tmp_path.iterdir())


def test_choices_of_another_precision(tmp_path):
    with pytest.raises(ConfigError, match="eight_bits is about int8, and the precision is 'fp16'"):
        oskt.export(Fragile().eval(), tmp_path / "net.onnx", precision="fp16", eight_bits=EightBits("entropy"))
    few = {"precision": "int8", "input_size": SIZE, "calibration": [{"img": torch.randn(3, *SIZE)}], "batch": 4}
    with pytest.raises(DataError, match="3 images cannot calibrate a file that always takes 4"):
        oskt.export(Fragile().eval(), tmp_path / "net.onnx", **few)
    assert not list(tmp_path.iterdir())


# ---- OpenVINO ------------------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """A convolution of the image like OSNet's, 7x7 with steps of two, and layers behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 32, 1)

    def forward(self, images):
        return self.last(torch.relu(self.inner(torch.relu(self.stem(images))))).mean((2, 3))


@pytest.mark.parametrize("input", ["float", "uint8"])
def test_openvino_reads_the_image_in_half_precision(tmp_path, input):
    """It computes a quantised convolution of images wrongly where a processor has no dot products of bytes."""
    pytest.importorskip("openvino")
    options = {"precision": "int8", "input_size": (3, 32, 16), "input": input}
    images = [torch.randn(16, 3, 32, 16, generator=torch.Generator().manual_seed(0))]
    by_openvino = oskt.export(Stem().eval(), tmp_path / "net.xml", calibration=images, **options)
    by_onnx = oskt.export(Stem().eval(), tmp_path / "net.onnx", calibration=images, **options)
    assert by_openvino.kept == ("stem",) and by_onnx.kept == ()
    assert min(by_openvino.parity.cosine, by_onnx.parity.cosine) > 0.99
    named = oskt.export(
        Stem().eval(), tmp_path / "named.xml", calibration=images, eight_bits=EightBits(kept=("last",)), **options
    )
    assert named.kept == ("stem", "last")


class Tokens(nn.Module):
    """Places of the image after a token of its own, their products with each other, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.places, self.token = nn.Conv2d(3, 16, 8, stride=8), nn.Parameter(torch.randn(1, 1, 16))
        self.narrow, self.last = nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, images):
        places = self.places(images).flatten(2).transpose(1, 2)
        tokens = self.narrow(torch.cat([self.token.expand(places.shape[0], -1, -1), places], 1))
        weights = (tokens @ tokens.transpose(1, 2)).softmax(2)
        return self.last(weights @ tokens).mean(1)


def test_layers_that_openvino_refuses_stay_in_half_precision(tmp_path):
    """It cannot prepare a product of tokens whose parts were quantised one by one."""
    pytest.importorskip("openvino")
    options = {"precision": "int8", "input_size": (3, 32, 16)}
    images = [torch.randn(16, 3, 32, 16, generator=torch.Generator().manual_seed(0))]
    report = EightBits(report=True)
    by_openvino = oskt.export(Tokens().eval(), tmp_path / "net.xml", calibration=images, eight_bits=report, **options)
    assert by_openvino.kept == ("places", "narrow") and by_openvino.parity.cosine > 0.95
    by_onnx = oskt.export(Tokens().eval(), tmp_path / "net.onnx", calibration=images, **options)
    assert by_onnx.kept == () and by_onnx.parity.cosine > 0.95
    names = [error.name for error in by_openvino.layers]
    assert {"places", "narrow", "last"} < set(names) and len(names) == 5, names


class Twice(nn.Module):
    """One module that multiplies by two weights of its own, one of them transposed, and calls a linear layer twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.here, self.there = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16, 8))
        self.back, self.shared = nn.Parameter(torch.randn(16, 16)), nn.Linear(16, 16)

    def forward(self, tokens):
        tokens = self.shared(self.shared(tokens))
        return (tokens @ self.here + tokens @ self.there) @ self.there.t() @ self.back.t()


class TwiceOfTokens(nn.Module):
    """The same over the places of an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.places, self.products = nn.Conv2d(3, 16, 8, stride=8), Twice()

    def forward(self, images):
        return self.products(self.places(images).flatten(2).transpose(1, 2)).mean(1)


def test_weights_of_one_module_keep_names_of_their_own(tmp_path):
    size, network = (3, 32, 16), TwiceOfTokens().eval()
    file = oskt.export(network, tmp_path / "net.onnx", input_size=size)
    model = onnx.load(file.path)
    onnx.checker.check_model(model)
    names = [each.name for each in model.graph.initializer]
    assert len(names) == len(set(names)) and {"network.products.here", "network.products.there"} < set(names)
    pictures = torch.randn(4, *size)
    with torch.no_grad():
        expected = network(pictures).numpy()
    np.testing.assert_allclose(open_exported(file.path, "onnx")(pictures.numpy()), expected, rtol=1e-4, atol=1e-3)
