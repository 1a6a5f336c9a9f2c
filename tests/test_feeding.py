"""Files that take pixels, and files that always take as many images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_networks import TinyNet

import oskt_torchreid as oskt
from oskt_torchreid.deploy import ExportedNetwork, open_exported, read_metadata
from oskt_torchreid.deploy.feeding import Feeding
from oskt_torchreid.errors import ConfigError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = (3, 32, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(count):
    return torch.randint(0, 256, (count, 32, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalised(pictures):
    """As torchvision does it: `ToTensor`, then `Normalize`."""
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (MEAN, STD))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.torchscript"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_that_normalises(tmp_path, name, precision):
    if name.endswith("xml"):
        pytest.importorskip("openvino")
    network = TinyNet(5).eval()
    exported = oskt.export(network, tmp_path / name, precision=precision, input_size=SIZE, input="uint8")
    seen = pixels(3)
    found = open_exported(exported.path, exported.format)(seen.numpy())
    with torch.no_grad():
        expected = network(normalised(seen)).numpy()
    np.testing.assert_allclose(found, expected, atol=(1e-4 if precision == "fp32" else 2e-2) * np.abs(expected).max())
    said = read_metadata(exported.path, exported.format)
    assert (said["input"], said["layout"]) == ("uint8", "NHWC") and "batch" not in said


def test_a_file_that_normalises_colours_of_0_to_1(tmp_path):
    network = TinyNet(5).eval()
    exported = oskt.export(network, tmp_path / "net.onnx", input_size=SIZE, input="unit")
    seen = pixels(3).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = network(normalised(pixels(3)))
    found = torch.from_numpy(open_exported(exported.path, "onnx")(seen.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    said = read_metadata(exported.path, "onnx")
    assert (said["input"], said["layout"]) == ("unit", "NCHW")
    feeding = Feeding(SIZE, MEAN, STD, "unit")
    torch.testing.assert_close(feeding.fed(normalised(pixels(3))), seen)


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_eight_bits_of_pixels_in_a_fixed_number(tmp_path, name):
    if name.endswith("xml"):
        pytest.importorskip("openvino")
    network = TinyNet(5).eval()
    batches = [{"img": normalised(pixels(8))}]
    how = {"precision": "int8", "calibration": batches, "input": "uint8", "batch": 2}
    exported = oskt.export(network, tmp_path / name, input_size=SIZE, **how)
    assert set(exported.parity.batches) == {2}
    run = open_exported(exported.path, exported.format)
    with torch.no_grad():
        expected = network(normalised(pixels(2)))
    found = torch.from_numpy(run(pixels(2).numpy()))
    assert float(torch.nn.functional.cosine_similarity(found, expected).min()) > 0.98
    said = read_metadata(exported.path, exported.format)
    assert (said["precision"], said["input"], said["batch"]) == ("int8", "uint8", 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_number_of_images(tmp_path, batch):
    network = TinyNet(5).eval()
    exported = oskt.export(network, tmp_path / "net.onnx", input_size=SIZE, batch=batch)
    model = onnx.load(exported.path)
    shapes = [[length.dim_value for length in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert shapes == [[batch, *SIZE]] and set(exported.parity.batches) == {batch}
    given = normalised(pixels(5))
    feeding = Feeding(SIZE, MEAN, STD, batch=batch)
    found = ExportedNetwork(open_exported(exported.path, "onnx"), feeding)(given)
    with torch.no_grad():
        np.testing.assert_allclose(found.numpy(), network(given).numpy(), atol=1e-4)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["batch"]) == batch


def test_pixels_become_what_they_were():
    """Normalised pixels and back; a fixed number leaves out what is over."""
    feeding = Feeding(SIZE, MEAN, STD, "uint8", 2)
    seen = pixels(5)
    assert torch.equal(torch.cat(feeding.batches([normalised(seen)[:3], normalised(seen)[3:]])), seen[:4])
    assert torch.equal(feeding.first(seen[:1]).round(decimals=4), normalised(seen[:1]).round(decimals=4))
    assert feeding.example().shape == (2, 32, 16, 3) and feeding.layout == "NHWC"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "bgr"}, "input of an export is 'bgr'; allowed: float, unit, uint8"),
        ({"batch": 0}, "batch of an export is 0; give 1 or more, or None for any number"),
        ({"batch": 2.5}, "batch of an export is 2.5; give 1 or more"),
        ({"batch": 1, "path": "net.torchscript"}, "TorchScript has no fixed batch"),
    ],
)
def test_what_cannot_be_fed(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        oskt.export(TinyNet(5).eval(), tmp_path / options.pop("path", "net.onnx"), input_size=SIZE, **options)
    assert not list(tmp_path.iterdir())
