"""Families of networks that the package does not know: each traced, proved, expanded, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import REST
from families import ATTENTION, CONVOLUTIONAL, FAMILIES, HYBRID

import oskt_torchreid as oskt
from oskt_torchreid.graph.grouping import OUTPUT

QUICK = ("lcnet_050", "vit_tiny_patch16_224", "resmlp_12_224")
"""Seconds each; the others are slow tests."""
IN_PARTS = (
    "ecaresnet26t",
    "resnetv2_50x1_bit",
    "nfnet_l0",
    "dm_nfnet_f0",
    "edgenext_xx_small",
    "efficientvit_b0",
    "coat_lite_tiny",
    "vit_tiny_r_s16_p8_224",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
    "davit_tiny",
)
"""Families with parts that are kept whole, and said: weights that are computed, and what mixes channels."""
WHOLE = (
    *IN_PARTS,
    "gcresnet33ts",
    "focalnet_tiny_srf",
    "mobilevitv2_050",
    "efficientformerv2_s0",
    "mvitv2_tiny",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "vit_small_patch16_dinov3",
    "vit_relpos_small_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "convit_tiny",
    "gcvit_xxtiny",
    "torchvision swin_v2_t",
)
"""Families with channels that stay whole, which the summary of the graph says of them; all others move everywhere."""
NOTHING_MOVES = ("resnetv2_50x1_bit",)
"""All weights but the classifier's are computed from others: a student of it is as large as it."""


LARGE = (
    "resnetv2_50x1_bit",
    "dm_nfnet_f0",
    "nfnet_l0",
    "volo_d1_224",
    "davit_tiny",
    "vgg11_bn",
    "swin_small_patch4_window7_224",
    "mobilenetv4_hybrid_medium",
    "levit_128s",
)
"""More than ten seconds each."""
ALWAYS = {*QUICK, *IN_PARTS, *sorted(FAMILIES)[::9]} - {*LARGE}
"""What every run of the suite tries: most that have parts kept whole, and every ninth of the list. All others are in
docs/families.md, which `oskt graph --support` proves."""


def marked(names):
    slow = {name: [] if name in QUICK else [pytest.mark.slow] for name in names}
    return [pytest.param(name, marks=slow[name] + ([] if name in ALWAYS else [REST])) for name in names]


def test_the_list_is_long_and_of_all_kinds() -> None:
    assert len(FAMILIES) >= 90
    assert min(len(CONVOLUTIONAL), len(HYBRID), len(ATTENTION)) >= 20
    assert len(FAMILIES.keys() - set(WHOLE)) >= 80
    assert FAMILIES.keys() >= {*QUICK, *WHOLE}


@pytest.mark.parametrize("name", marked(FAMILIES))
def test_a_family(name: str, tmp_path: Path) -> None:
    """`oskt.trace` proves the identity at three widths in both modes; a student of half the width is a file."""
    torch.manual_seed(0)
    build, size = FAMILIES[name]
    model = build().eval()
    graph = oskt.trace(model, size, unknown="keep" if name in IN_PARTS else "refuse")
    whole = [group.name for group in graph.groups if group.fixed and group.fixed != OUTPUT]
    assert bool(whole) == (name in WHOLE), whole[:3]
    assert bool(graph.kept) == (name in IN_PARTS), graph.kept[:3]
    chain = oskt.WeightChain.from_teacher(model, 0.5, graph=graph, input_size=size)
    student = oskt.expand(chain, 0.5)
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=build())
    with torch.no_grad():
        images = torch.randn(2, *size)
        torch.testing.assert_close(loaded(images), student(images), rtol=0, atol=0)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (student, model)]
    assert sizes[0] < sizes[1] or (sizes[0] == sizes[1] and name in NOTHING_MOVES)


def test_the_page_shows_every_family() -> None:
    """Made by `python tools/graph.py --support`."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    table = page.partition("<!-- families:begin -->")[2].partition("<!-- families:end -->")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()[2:]]
    rows = {cells[0]: cells[5] for cells in lines}
    assert rows.keys() == FAMILIES.keys()
    assert {name for name, students in rows.items() if " whole: " in students} == set(WHOLE)
    assert not [name for name, students in rows.items() if students.startswith("none: ")]
