"""Clustering and expansion against files that the authors' own program wrote; skipped where they are not at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from oskt_torchreid.oskt.algebra import average_rows, gather_rows, sum_columns
from oskt_torchreid.oskt.clustering import ward_labels
from oskt_torchreid.oskt.layout import AxisMap
from oskt_torchreid.oskt.slots import make_slots

REFERENCE = Path(os.environ.get("OSKT_REFERENCE") or Path(__file__).parents[2] / "shared" / "fixtures")
FOLDER = REFERENCE / "official_resnet50_w8_chain2"
STUDENTS = ["2_2-4-8", "3_2-4-8", "4_2-3-4", "8_2-3-4", "8_2-4-8"]
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the authors' files are not there (OSKT_REFERENCE)")


@pytest.fixture(scope="module")
def labels():
    """Clusters by convolution, e.g. ``layer1.0.conv3``; the sides of a residual sum have the same."""
    stored = json.loads((FOLDER / "gene_matcher.json").read_text())
    return {name.removeprefix("base."): np.array(clusters) for name, clusters in stored.items()}


@pytest.fixture(scope="module")
def state():
    return torch.load(FOLDER / "resnet50_100.pth", map_location="cpu", weights_only=True)


def weight_name(convolution: str) -> str:
    return f"{convolution}.0.weight" if convolution.endswith("downsample") else f"{convolution}.weight"


def norm_name(convolution: str) -> str:
    if convolution.endswith("downsample"):
        return f"{convolution}.1"
    return convolution.replace("conv", "bn")


def producer_of_input(convolution: str, names) -> str | None:
    """The convolution whose channels another one reads."""
    if convolution == "conv1":
        return None
    block, _, part = convolution.rpartition(".")
    if part in ("conv2", "conv3"):
        return f"{block}.conv{int(part[-1]) - 1}"
    ends = [name for name in names if name.endswith("conv3")]
    before = [end for end in ends if end.rpartition(".")[0] < block]
    return before[-1] if before else "conv1"


def test_ward_gives_the_authors_clusters(labels, state):
    """The stored teacher is the one that was clustered; rows of a stage's sum stand side by side."""
    joined: dict[str, list[str]] = {}
    for name in labels:
        is_sum = name.endswith(("conv3", "downsample"))
        joined.setdefault(name.partition(".")[0] if is_sum else name, []).append(name)
    for names in joined.values():
        rows = torch.cat([state[f"base.{weight_name(name)}"].flatten(1) for name in names], 1).double()
        expected = labels[names[0]]
        own = ward_labels(rows, int(expected.max()) + 1)
        pairs = np.unique(np.stack([own, expected]), axis=1)
        assert pairs.shape[1] == expected.max() + 1, f"another partition of {names[0]}"
    assert len(joined) == 37


@pytest.mark.parametrize("student_name", STUDENTS)
def test_students_are_what_slots_and_algebra_give(labels, state, student_name):
    student = torch.load(FOLDER / f"student_{student_name}.pth", map_location="cpu", weights_only=True)
    checked = set()
    for name in labels:
        width = student[weight_name(name)].shape[0]
        slots = make_slots(labels[name], width)
        rows = state[f"base.GeneChain.{weight_name(name)}"]
        producer = producer_of_input(name, labels)
        if producer is not None:
            inputs = make_slots(labels[producer], student[weight_name(name)].shape[1])
            columns = AxisMap(1, len(inputs.slot_to_cluster), torch.from_numpy(inputs.teacher_to_slot))
            rows = sum_columns(rows, columns)
        expected = {weight_name(name): gather_rows(rows, torch.from_numpy(slots.slot_to_cluster))}
        axis = AxisMap(1, width, torch.from_numpy(slots.teacher_to_slot))
        for vector in ("weight", "bias"):
            norm = f"{norm_name(name)}.{vector}"
            expected[norm] = average_rows(state[f"base.{norm}"], axis)
        for key, tensor in expected.items():
            torch.testing.assert_close(
                tensor, student[key], rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
        checked |= expected.keys()
    assert checked == student.keys()
