"""Networks in files: what the files compute and say, and what cannot be exported."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from small_networks import TinyNet, conv
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.deploy import open_exported, read_metadata
from oskt_torchreid.deploy import parity as parity_module
from oskt_torchreid.deploy.parity import check_parity
from oskt_torchreid.errors import ConfigError, DataError, ExportError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = (3, 32, 16)
NAMES = {"onnx": "net.onnx", "openvino": "net.xml", "torchscript": "net.torchscript"}


def tiny(seed=0):
    """A small network of torchreid's protocol whose features are of different size for different images."""
    torch.manual_seed(seed)
    return TinyNet(5).eval()


def images(count, seed=0):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def opened(exported):
    return open_exported(exported.path, exported.format)


def check_same(model, exported, tolerance, count=4):
    pictures = images(count, seed=5)
    with torch.no_grad():
        expected = model(pictures).numpy()
    found = opened(exported)(pictures.numpy())
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert len({row.tobytes() for row in found}) == count, "different images give different features"


# ---- formats and precisions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_computes_and_says_what_the_network_does(tmp_path, kind):
    if kind == "openvino":
        pytest.importorskip("openvino")
    model = tiny().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exported = oskt.export(model, tmp_path / NAMES[kind], input_size=SIZE, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert model.training and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (exported.format, exported.precision, exported.feature_dim) == (kind, "fp32", 24)
    assert exported.size == sum(path.stat().st_size for path in tmp_path.iterdir()) > 4 * 900
    assert exported.parity.relative < 1e-5 and exported.parity.cosine > 0.99999 and exported.parity.apart > 0
    assert exported.parity.batches == (1, 3, 2) and "max abs difference" in str(exported)
    check_same(model.eval(), exported, 1e-5)
    assert read_metadata(exported.path, kind) == {
        "network": "",
        "input": "float",
        "layout": "NCHW",
        "input_size": [3, 32, 16],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "color": "RGB",
        "interpolation": "bilinear",
        "output": "feature",
        "feature_dim": 24,
        "l2_normalized": False,
        "precision": "fp32",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [NAMES[kind], *(["net.bin"] if kind == "openvino" else [])]
    )


@pytest.mark.parametrize("kind", NAMES)
def test_half_precision_takes_half_the_bytes(tmp_path, kind):
    if kind == "openvino":
        pytest.importorskip("openvino")
    model = wide()
    sizes = {}
    for precision in ("fp32", "fp16"):
        exported = oskt.export(model, tmp_path / NAMES[kind], precision=precision, input_size=SIZE)
        sizes[precision] = exported.size
        found = opened(exported)(images(2).numpy())
        assert found.dtype == np.float32 and exported.parity.cosine > 0.999
    assert 0.45 < sizes["fp16"] / sizes["fp32"] < 0.6
    assert read_metadata(exported.path, kind)["precision"] == "fp16"
    check_same(model, exported, 1e-2)


def wide():
    """Weights that outweigh whatever else a file holds."""
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 512), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_eight_bits_are_calibrated_with_images(tmp_path, kind):
    if kind == "openvino":
        pytest.importorskip("openvino")
    model = wide()
    loader = [{"img": images(6, seed)} for seed in range(3)]
    whole = oskt.export(model, tmp_path / f"whole_{NAMES[kind]}", input_size=SIZE)
    exported = oskt.export(model, tmp_path / NAMES[kind], precision="int8", input_size=SIZE, calibration=loader)
    assert exported.size < (0.45 if kind == "onnx" else 0.55) * whole.size and exported.parity.batches == (1, 3, 4)
    assert exported.parity.cosine > 0.99 and exported.parity.relative > 1e-4, "it is not single precision under a name"
    check_same(model, exported, 0.1)
    assert read_metadata(exported.path, kind)["precision"] == "int8"


def test_the_norm_is_divided_by_inside_of_the_file(tmp_path):
    model = tiny()
    exported = oskt.export(model, tmp_path / "net.onnx", normalize=True, input_size=SIZE)
    pictures = images(3)
    found = opened(exported)(pictures.numpy())
    with torch.no_grad():
        expected = nn.functional.normalize(model(pictures)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert read_metadata(exported.path, "onnx")["l2_normalized"] is True


def test_onnx_states_its_opset_and_a_free_batch(tmp_path):
    onnx = pytest.importorskip("onnx")
    for opset in (18, 20):
        model = onnx.load(oskt.export(tiny(), tmp_path / "net.onnx", input_size=SIZE, opset=opset).path)
        onnx.checker.check_model(model)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
        (given,), (gives,) = model.graph.input, model.graph.output
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (given, gives)]
        assert (given.name, gives.name) == ("images", "features")
        assert shapes == [["batch", 3, 32, 16], ["batch", 24]]


class Viewing(nn.Module):
    """Flattens as torchreid's networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.pool = conv(3, 8), nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        pooled = self.pool(self.first(images))
        return pooled.view(pooled.size(0), -1)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_order_in_memory_does_not_reach_a_file(tmp_path, kind):
    """Networks that were trained with channels last become the same operators; positions are not computed."""
    pytest.importorskip(kind)
    files = []
    for order in (torch.contiguous_format, torch.channels_last):
        path = tmp_path / f"{len(files)}-{NAMES[kind]}"
        torch.manual_seed(0)
        oskt.export(Viewing().eval().to(memory_format=order), path, input_size=SIZE)
        files.append(path.read_bytes())
    assert files[0] == files[1] and b"Gather" not in files[1]


def test_the_classifier_stays_behind(tmp_path):
    """A deployed network has no use for class scores."""
    small, large = TinyNet(2).eval(), TinyNet(20_000).eval()
    sizes = [
        oskt.export(model, tmp_path / f"{kind}-{index}{suffix}", input_size=SIZE).size
        for index, model in enumerate((small, large))
        for kind, suffix in (("onnx", ".onnx"), ("torchscript", ".torchscript"))
    ]
    assert abs(sizes[0] - sizes[2]) < 100 and abs(sizes[1] - sizes[3]) < 2000


def test_a_student_says_what_size_it_takes(tmp_path, tiny_net):
    chain = oskt.WeightChain.from_teacher(oskt.host.models.build(tiny_net, 5), 0.5)
    exported = oskt.export(oskt.expand(chain, 0.75), tmp_path / "student.onnx")
    facts = read_metadata(exported.path, "onnx")
    assert facts["input_size"] == [3, 32, 16] and facts["network"] == tiny_net
    assert exported.feature_dim == 18


# ---- what cannot be exported ---------------------------------------------------------------------------------------


class Bessel(nn.Module):
    def forward(self, values):
        return torch.special.bessel_j0(values)


class Means(nn.Module):
    """Ends in features of a spatial mean, after whatever part is given."""

    def __init__(self, part):
        super().__init__()
        self.stem, self.part = conv(3, 8), part

    def forward(self, pictures):
        return self.part(self.stem(pictures)).mean((2, 3))


class Depends(nn.Module):
    def forward(self, values):
        return values * 2 if values.sum() > 0 else values - 1


class Noisy(nn.Module):
    """Never computes the same twice."""

    def forward(self, values):
        return values + torch.rand_like(values)


class Constant(nn.Module):
    def forward(self, pictures):
        return torch.ones(pictures.shape[0], 4) + 0 * pictures.mean((1, 2, 3))[:, None]


class Fixed(nn.Module):
    """The batch size is a plain number for a tracer."""

    def forward(self, pictures):
        return pictures.flatten(2).mean(2) + torch.zeros(len(pictures), 3)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_operator_that_is_not_there_is_named_with_its_module(tmp_path, kind):
    if kind == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ExportError, match=r"operator 'aten.special_bessel_j0.* of module 'part' \(Bessel\)"):
        oskt.export(Means(Bessel()), tmp_path / NAMES[kind], input_size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (
            Means(Depends()),
            "net.onnx",
            "Means cannot be traced for an export .*test_export.py:.*values.sum\\(\\) > 0.* values of tensors",
        ),
        (
            Fixed(),
            "net.onnx",
            r"Fixed cannot be traced .*specialized it to be a constant .*\(images.shape\[0\], not len",
        ),
        (Fixed(), "net.torchscript", r"gives features \(2, 3\) instead of \(1, 3\)"),
        (Constant(), "net.onnx", "does not distinguish images: 6 of 6 features .* The file was deleted"),
        (Means(Noisy()), "net.onnx", "does not compute what the network does: .* The file was deleted"),
        (Means(Noisy()), "net.torchscript", "does not compute what the network does: .* The file was deleted"),
        (nn.Conv2d(3, 4, 1), "net.onnx", r"Conv2d gives \(2, 4, 32, 16\) for 2 images in evaluation"),
        (nn.Sequential(conv(4, 3)), "net.onnx", "Sequential fails on images 3x32x16"),
        (Means(nn.Conv2d(8, 8, 1)), "net.onnx", "features that are NaN or infinite"),
    ],
)
def test_networks_that_cannot_be_exported(tmp_path, model, name, message):
    if "NaN" in message:
        model.part.bias.data[0] = float("nan")
    (tmp_path / name).write_bytes(b"an earlier export")
    with pytest.raises(ExportError, match=message):
        oskt.export(model, tmp_path / name, input_size=SIZE)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier export"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"path": "net.tflite"},
            ConfigError,
            r"the suffix '.tflite' of .* stands for no format; known: .onnx \(onnx\)",
        ),
        ({"format": "tensorrt"}, ConfigError, "format of an export is 'tensorrt'; allowed: onnx, openvino, torchscri"),
        ({"precision": "fp8"}, ConfigError, "precision of an export is 'fp8'; allowed: fp32, fp16, int8"),
        ({"precision": "int8"}, ConfigError, "precision 'int8' needs real images"),
        ({"precision": "int8", "path": "net.torchscript"}, ConfigError, "TorchScript is not written in int8"),
        ({"precision": "int8", "calibration": []}, DataError, "there are no images to calibrate with"),
        (
            {"precision": "int8", "calibration": [images(2)[:, :, :8]]},
            DataError,
            r"calibration images are \(3, 8, 16\)",
        ),
        ({"precision": "int8", "calibration": ["a.jpg"]}, DataError, "batch 1 holds str"),
        ({"opset": 11}, ConfigError, "opset of an export is 11; allowed: 18 to"),
        ({"path": "net.bin", "format": "openvino"}, ConfigError, "give 'net.xml', not 'net.bin'"),
        ({"input_size": (3, 0, 16)}, ConfigError, r"input size of an export is \(3, 0, 16\)"),
        ({"mean": (0.5,)}, ConfigError, "mean of an export has 1 numbers; images have 3 channels"),
        ({"std": (1, 0, 1)}, ConfigError, r"std of an export is \(1, 0, 1\)"),
        ({"model": "osnet_x0_25"}, ConfigError, "what is exported is a str"),
        ({"path": ""}, ExportError, "is a folder; give the path of a file in it"),
        ({"path": "file/net.onnx"}, ExportError, "'.*file' is a file, not a folder"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, options, error, message):
    (tmp_path / "file").write_text("")
    options = {"model": tiny(), "path": "net.onnx", "input_size": SIZE, **options}
    model, path = options.pop("model"), tmp_path / options.pop("path")
    if path == tmp_path:
        options["format"] = "onnx"
    with pytest.raises(error, match=message):
        oskt.export(model, path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="is not writable"):
        oskt.export(tiny(), tmp_path / "net.onnx", input_size=SIZE)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "openvino", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    kind = "openvino" if package == "openvino" else "onnx"
    with pytest.raises(
        ConfigError, match=rf"format '{kind}' needs the package '{package}'; .*oskt_torchreid\[export\]"
    ):
        oskt.export(tiny(), tmp_path / NAMES[kind], input_size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", NAMES)
def test_a_full_disk_leaves_nothing_behind(tmp_path, kind):
    """The system refuses to let a file grow, as it does on a full disk."""
    if kind == "openvino":
        pytest.importorskip("openvino")
    model = wide()
    (tmp_path / NAMES[kind]).write_bytes(b"an earlier export")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=f"'.*{NAMES[kind]}' cannot be (written|opened)"):
            oskt.export(model, tmp_path / NAMES[kind], input_size=SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier export"]


# ---- parity by hand ------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """Features that are stored in the images."""

    def forward(self, pictures):
        return pictures.flatten(1)[:, :2]


FEATURES = torch.tensor([[3.0, 4.0], [4.0, 3.0]])


def compared(found, precision="fp32"):
    return check_parity(Given(), lambda _: np.array(found, np.float32), [FEATURES], precision, "net.onnx")


def test_parity_by_hand():
    parity = compared([[3, 4.001], [4, 3]])
    assert parity.max_abs == pytest.approx(0.001, rel=1e-3) and parity.relative == pytest.approx(0.00025, rel=1e-3)
    assert parity.cosine == pytest.approx(1 - 0.0006**2 / 50, abs=1e-6)
    assert parity.apart == pytest.approx(2**0.5 / 5, rel=1e-3) and parity.confused == 0
    exact = parity_module._compare(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]), (1,))
    assert exact.cosine == pytest.approx(27 / (5 * 29.25**0.5)) and exact.relative == 0.125


@pytest.mark.parametrize(
    ("found", "precision", "message"),
    [
        ([[3, 4.1], [4, 3]], "fp32", "does not compute what the network does: max abs difference 0.1"),
        ([[3, 4.1], [4, float("nan")]], "int8", "does not compute"),
        ([[4, 3], [4, 3]], "int8", "does not distinguish images: 1 of 2"),
        ([[3, 4], [3, 4]], "int8", "does not distinguish images: 1 of 2"),
        ([[4, 3], [3, 4]], "fp16", "does not compute .* activations may leave the range of half precision"),
        ([[3, 4, 5], [4, 3, 5]], "fp32", r"gives features \(2, 3\) instead of \(2, 2\)"),
    ],
)
def test_files_that_are_off(found, precision, message):
    with pytest.raises(ExportError, match=message):
        compared(found, precision)


def test_metadata_is_json_for_every_client(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    oskt.export(tiny(), tmp_path / "net.onnx", input_size=SIZE)
    texts = onnxruntime.InferenceSession(tmp_path / "net.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(texts["mean"]) == [0.485, 0.456, 0.406] and json.loads(texts["color"]) == "RGB"


def test_an_int8_file_that_is_larger_than_in_fp32_says_so(tmp_path):
    body = (nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    small = nn.Sequential(*body, nn.Linear(4, 4)).eval()
    whole = oskt.export(small, tmp_path / "whole.onnx", input_size=SIZE)
    shrunk = oskt.export(small, tmp_path / "shrunk.onnx", precision="int8", input_size=SIZE, calibration=[images(8)])
    assert shrunk.size > whole.size and "it is larger than in fp32 (" in str(shrunk)
    assert "larger" not in str(whole) and whole.plain_size is None


def test_a_process_outlives_openvino(tmp_path):
    """Two networks that are open at once, and closed in the same order: afterwards signals are handled as before."""
    pytest.importorskip("openvino")
    script = """
        import faulthandler, gc, signal
        import torch
        import oskt_torchreid as oskt
        faulthandler.enable()  # signals have a stack of their own
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
        layers = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        exported = oskt.export(torch.nn.Sequential(*layers).eval(), "network.xml", input_size=(3, 16, 8))
        opened = [oskt.deploy.open_exported(exported.path, exported.format) for _ in range(3)]
        while opened:
            opened.pop(0)(torch.rand(1, 3, 16, 8).numpy())
            gc.collect()
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout[-12:]) == (0, "interrupted\n"), ended.stderr[-1000:]
