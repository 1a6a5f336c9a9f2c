"""Exports of backbones and of their students, those whose own code is adapted included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import vits
from chains import arbitrary_chain
from small_networks import IMAGE, ChannelMean, HalfAndHalf, Network, conv, of_everything

import oskt_torchreid as oskt
from oskt_torchreid.deploy import open_exported

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow


def attended():
    """Split norms as in ResNet-50-IBN, and a map of the mean over channels as in HA-CNN, which take long to export."""

    def forward(self, images):
        features = torch.relu(self.second(torch.relu(self.halves(self.first(images)))))
        return (features * self.reduced(features)).mean((2, 3))

    parts = {"first": conv(3, 10), "halves": HalfAndHalf(10), "second": conv(10, 12), "reduced": ChannelMean()}
    return Network(forward, **parts).eval()


def student_of(name):
    if name == "of everything":
        return oskt.expand(arbitrary_chain(of_everything().eval(), 0.5, IMAGE), 0.75), IMAGE
    if name == "split and mean":
        return oskt.expand(arbitrary_chain(attended(), 0.4, (3, 32, 16)), 0.6), (3, 32, 16)
    return oskt.expand(arbitrary_chain(vits.tiny(), 0.5, vits.IMAGE), 0.5), vits.IMAGE


@pytest.mark.parametrize("name", ["of everything", "split and mean", "vit"])
def test_a_student_exported(name, tmp_path):
    """Channels routed by index buffers, split points that move, a mean over channels with weights, fused attention."""
    student, size = student_of(name)
    images = torch.randn(5, *size)
    with torch.no_grad():
        expected = student(images).numpy()
    output = "scores" if name == "of everything" else "feature"  # what evaluation returns
    for suffix in ("onnx", "torchscript"):
        exported = oskt.export(student, tmp_path / f"student.{suffix}", output=output)
        assert exported.parity.relative < 1e-4 and exported.parity.confused == 0
        found = open_exported(exported.path, exported.format)(images.numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
