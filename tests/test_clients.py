"""Students in programs that know nothing of this package, from files alone."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from backbones import build
from chains import arbitrary_chain
from PIL import Image
from test_tools import command
from torchvision import transforms

import oskt_torchreid as oskt
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host import models
from oskt_torchreid.runs.clients import export_for_client

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "students.md").read_text(encoding="utf-8")
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
STRANGER = '\nassert not [name for name in sys.modules if name.startswith("oskt_torchreid")]\n'


def run(script, *arguments, folder):
    """A script in a separate process, which may import what this one may."""
    paths = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def student():
    """A student like a stock model, of a teacher with a neck, in the stock form."""
    teacher = models.build("oskt_osnet_x0_5", 7)
    teacher.backbone.load_state_dict(build("osnet_x0_5").state_dict(), strict=False)
    chain = arbitrary_chain(teacher.eval(), 0.5, (3, 64, 32))
    return oskt.models.without_neck(oskt.expand(chain, like="osnet_x0_25"))


def draw(folder, count, size=(60, 30)):
    """Files of different pictures, as blurred noise."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        picture = cv2.resize(random.integers(0, 256, (6, 3, 3), dtype=np.uint8), size[::-1])
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), picture)
    return paths


# ---- torchreid -----------------------------------------------------------------------------------------------------

EXTRACT = """
import sys
import numpy as np
import torchreid

for path in sys.argv[1:3]:
    extractor = torchreid.utils.FeatureExtractor(
        model_name="osnet_x0_25", model_path=path, image_size=(64, 32), device="cpu", verbose=False
    )
    np.save(path + ".npy", extractor(sys.argv[3:]).numpy())
"""


def test_torchreids_feature_extractor(tmp_path, student):
    """It takes stock weights alone, and the file that this package saves."""
    saved = oskt.expand(arbitrary_chain(build("osnet_x0_5"), 0.5, (3, 64, 32)), like="osnet_x0_25")
    paths = [tmp_path / "plain.pth", tmp_path / "saved.pth"]
    oskt.chain.save_plain(student, paths[0])
    oskt.save_student(saved, paths[1])
    pictures = draw(tmp_path, 3)
    said = run(EXTRACT + STRANGER, *paths, *pictures, folder=tmp_path)
    assert said.count("Successfully loaded") == 2
    discarded = re.findall(r"layer size: (\[.*\])", said)
    assert len(discarded) == 2, "those of one class there"
    assert all(name.startswith("classifier.") for names in discarded for name in ast.literal_eval(names))
    steps = transforms.Compose([transforms.Resize((64, 32)), transforms.ToTensor(), NORMALIZE])
    images = torch.stack([steps(Image.open(path).convert("RGB")) for path in pictures])
    for path, network in zip(paths, (student, saved), strict=True):
        with torch.no_grad():
            expected = network(images)
        torch.testing.assert_close(torch.from_numpy(np.load(f"{path}.npy")), expected)


# ---- BoxMOT --------------------------------------------------------------------------------------------------------

TRACK = """
import sys
import cv2
import numpy as np
from boxmot.reid.core.runtime import ReID

reid = ReID(sys.argv[1], device="cpu")
boxes = np.array([[0, 0, 128, 256], [100, 30, 228, 286]], np.float32)
np.save(sys.argv[2], reid(cv2.imread(sys.argv[3]), boxes))
"""


def test_boxmots_loader(student, tmp_path):
    """It knows a network by the name of its file, crops boxes of a frame and gives features of length 1."""
    pytest.importorskip("boxmot", reason="BoxMOT is not installed (pip install 'oskt_torchreid[clients]')")
    oskt.chain.save_plain(student, tmp_path / "osnet_x0_25_mine.pt")
    (path,) = draw(tmp_path, 1, size=(300, 240))
    run(TRACK + STRANGER, tmp_path / "osnet_x0_25_mine.pt", tmp_path / "found.npy", path, folder=tmp_path)
    frame = transforms.ToTensor()(Image.open(path).convert("RGB"))
    crops = torch.stack([frame[:, :256, :128], frame[:, 30:286, 100:228]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(student(NORMALIZE(crops)))
    found = torch.from_numpy(np.load(tmp_path / "found.npy"))
    assert found.shape == (2, 512)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_boxmots_loader_of_a_file_of_any_width(tmp_path):
    """An ONNX file says itself what it is; BoxMOT normalises crops as the file expects."""
    pytest.importorskip("boxmot", reason="BoxMOT is not installed (pip install 'oskt_torchreid[clients]')")
    wide = oskt.expand(arbitrary_chain(build("osnet_x0_25"), 0.5, (3, 64, 32)), 0.75)
    oskt.export(wide, tmp_path / "student.onnx", input_size=(3, 64, 32))
    (path,) = draw(tmp_path, 1, size=(300, 240))
    run(TRACK + STRANGER, tmp_path / "student.onnx", tmp_path / "found.npy", path, folder=tmp_path)
    found = np.load(tmp_path / "found.npy")
    frame = cv2.imread(str(path))
    crops = [frame[:256, :128], frame[30:286, 100:228]]
    images = [NORMALIZE(transforms.ToTensor()(cv2.resize(crop, (32, 64))[..., ::-1].copy())) for crop in crops]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(wide(torch.stack(images)))
    assert (torch.from_numpy(found) * expected).sum(1).min() > 0.999


# ---- Ultralytics' trackers -----------------------------------------------------------------------------------------

FOLLOW = """
import sys
import cv2
import numpy as np
from ultralytics.trackers.bot_sort import BOTSORT
from ultralytics.utils import YAML, IterableSimpleNamespace

tracker = BOTSORT(IterableSimpleNamespace(**YAML.load(sys.argv[1]), device="cpu"))
boxes = np.array([[64, 128, 128, 256], [164, 158, 128, 256]], np.float32)
np.save(sys.argv[2], np.stack(tracker.encoder(cv2.imread(sys.argv[3]), boxes)))
"""


def test_ultralytics_tracker_takes_file_and_settings(student, tmp_path, capsys):
    """The command of docs/clients.md; the crop is cut as that library does, with a margin of its own."""
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    pytest.importorskip("onnxruntime")
    oskt.save_student(
        oskt.expand(arbitrary_chain(build("osnet_x0_25"), 0.5, (3, 64, 32)), 0.75), tmp_path / "student.pth"
    )
    words = [str(tmp_path / "student.pth"), "-o", str(tmp_path / "student.onnx"), "--client", "ultralytics"]
    assert command("export").main(words) == 0
    settings = tmp_path / "student-botsort.yaml"
    assert f"wrote {settings}, which ultralytics is given" in capsys.readouterr().out
    (path,) = draw(tmp_path, 1, size=(300, 240))
    run(FOLLOW + STRANGER, settings, tmp_path / "found.npy", path, folder=tmp_path)
    found = torch.from_numpy(np.load(tmp_path / "found.npy")).float()
    network, frame = oskt.load_student(tmp_path / "student.pth"), cv2.imread(str(path))[..., ::-1].copy()
    (height, width), cut = frame.shape[:2], []
    for x, y, w, h in ((64, 128, 128, 256), (164, 158, 128, 256)):
        w, h = w * 1.02 + 10, h * 1.02 + 10  # ultralytics' save_one_box
        left, top = max(int(x - w / 2), 0), max(int(y - h / 2), 0)
        crop = frame[top : min(int(y + h / 2), height), left : min(int(x + w / 2), width)]
        image = transforms.ToTensor()(crop)[None]
        cut.append(NORMALIZE(torch.nn.functional.interpolate(image, (64, 32), mode="bilinear")[0]))
    with torch.no_grad():
        expected = network(torch.stack(cut))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.995


# ---- Roboflow's reid -----------------------------------------------------------------------------------------------

EMBED = """
import sys
import numpy as np
from reid import ReIDModel

model = ReIDModel.from_pretrained(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.extract_embeddings_from_paths(sys.argv[3:]))
"""


def test_roboflows_reid_takes_a_folder(student, tmp_path):
    pytest.importorskip("reid", reason="reid is not installed")
    oskt.chain.save_plain(student, tmp_path / "plain.pth")
    words = [str(tmp_path / "plain.pth"), "--model", "osnet_x0_25", "--size", "64", "32"]
    assert command("export").main([*words, "-o", str(tmp_path / "student"), "--client", "roboflow"]) == 0
    pictures = draw(tmp_path, 3)
    run(EMBED + STRANGER, tmp_path / "student", tmp_path / "found.npy", *pictures, folder=tmp_path)
    steps = transforms.Compose([transforms.Resize((64, 32)), transforms.ToTensor(), NORMALIZE])
    with torch.no_grad():
        expected = student(torch.stack([steps(Image.open(path).convert("RGB")) for path in pictures]))
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "found.npy")), expected, rtol=1e-3, atol=1e-4)


def test_the_folder_says_what_it_is(student, tmp_path, capsys):
    export_for_client(student, "roboflow", tmp_path / "student", input_size=(3, 64, 32))
    config = json.loads((tmp_path / "student" / "reid_config.json").read_text())
    assert config["architecture"] == "osnet_x0_25" and config["preprocessing"]["input_size"] == [64, 32]
    odd = oskt.expand(arbitrary_chain(build("osnet_x0_25"), 0.5, (3, 64, 32)), 0.6)
    with pytest.raises(ConfigError, match="has the shapes of none of osnet_x0_25, .*--like osnet_x0_25"):
        export_for_client(odd, "roboflow", tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


# ---- DeepStream ----------------------------------------------------------------------------------------------------

REID_KEYS = {
    *("reidType", "batchSize", "workspaceSize", "reidFeatureSize", "reidHistorySize", "inferDims", "networkMode"),
    *("inputOrder", "colorFormat", "offsets", "netScaleFactor", "keepAspc", "addFeatureNormalization", "onnxFile"),
    *("modelEngineFile", "calibrationTableFile", "tltEncodedModel", "tltModelKey", "useVPICropScaler"),
    *("outputReidTensor", "minVisibility4GalleryUpdate"),
}
"""Keys of the section `ReID` in the documentation of Gst-nvtracker."""


@pytest.mark.parametrize("normalize", [False, True])
def test_the_section_of_deepstreams_tracker(tmp_path, tiny_net, normalize):
    """Not run by DeepStream: keys are those it documents, and its arithmetic gives the file what it expects."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    wide = oskt.expand(arbitrary_chain(build(tiny_net), 0.5, (3, 32, 16)), 0.75)
    made = export_for_client(wide, "deepstream", tmp_path / "student.onnx", normalize=normalize, input_size=(3, 32, 16))
    section = yaml.safe_load(made.given.read_text())["ReID"]
    assert set(section) <= REID_KEYS and section["addFeatureNormalization"] == int(not normalize)
    session = onnxruntime.InferenceSession(section["onnxFile"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == section["inferDims"] == [3, 32, 16]
    pixels = np.random.default_rng(0).integers(0, 256, (2, *section["inferDims"])).astype(np.float32)
    offsets = np.float32(section["offsets"]).reshape(3, 1, 1)
    (found,) = session.run(None, {"images": np.float32(section["netScaleFactor"]) * (pixels - offsets)})
    with torch.no_grad():
        expected = wide(NORMALIZE(torch.from_numpy(pixels / 255)))
    expected = torch.nn.functional.normalize(expected) if normalize else expected
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
    assert found.shape[1] == section["reidFeatureSize"]


@pytest.mark.parametrize(
    ("client", "path", "message"),
    [
        ("ultralytics", "student.xml", "client 'ultralytics' takes a file that ends in .onnx"),
        ("roboflow", "student.pth", "client 'roboflow' takes a folder"),
        ("boxmott", "student.onnx", "allowed: ultralytics, deepstream, roboflow"),
    ],
)
def test_clients_that_are_given_something_else(student, tmp_path, client, path, message):
    with pytest.raises(ConfigError, match=message):
        export_for_client(student, client, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


# ---- NumPy, ONNX Runtime and PIL -----------------------------------------------------------------------------------


def test_the_pages_consumer_runs_as_it_is_written(tmp_path, tiny_net):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    script = re.search(r"```python\n(import json.*?)```", PAGE, re.DOTALL).group(1)
    assert len(script.splitlines()) <= 20
    nodes = [node for node in ast.walk(ast.parse(script)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, "module", None) or alias.name for node in nodes for alias in node.names}
    assert modules == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    student = oskt.expand(oskt.WeightChain.from_teacher(models.build(tiny_net, 5), 0.5), 0.75)
    oskt.export(student, tmp_path / "student.onnx")
    query, *gallery = draw(tmp_path, 4)
    alone = '\nassert "torch" not in sys.modules and "oskt_torchreid" not in sys.modules\n'
    said = run(script + alone, query, *gallery, folder=tmp_path).splitlines()
    steps = transforms.Compose([transforms.Resize((32, 16)), transforms.ToTensor(), NORMALIZE])
    with torch.no_grad():
        features = student(torch.stack([steps(Image.open(path).convert("RGB")) for path in (query, *gallery)]))
    similarities = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(features[0], dim=0)
    expected = sorted(zip(similarities[1:].tolist(), map(str, gallery), strict=True), reverse=True)
    assert [line.split(maxsplit=1)[1] for line in said] == [path for _, path in expected]
    assert [float(line.split()[0]) for line in said] == pytest.approx([value for value, _ in expected], abs=1e-3)
