"""Students in programs that know nothing of this package, from files alone."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from backbones import build
from chains import arbitrary_chain
from PIL import Image
from torchvision import transforms

import oskt_torchreid as oskt
from oskt_torchreid.host import models

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
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


# ---- NumPy, ONNX Runtime and PIL -----------------------------------------------------------------------------------


def test_the_readmes_consumer_runs_as_it_is_written(tmp_path, tiny_net):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    script = re.search(r"```python\n(import json.*?)```", README, re.DOTALL).group(1)
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
