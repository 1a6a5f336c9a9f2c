"""The support table: what a channel graph says of widths and exactness, in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import stock_names
from small_networks import IMAGE, Head, Network, conv, of_everything
from torch import nn
from vits import IMAGE as VIT_IMAGE
from vits import tiny

import oskt_torchreid as oskt
from oskt_torchreid.graph.plans import rounded_down
from oskt_torchreid.host.models import model_names
from oskt_torchreid.lab.support import exactness, support_table, width_grid


def traced(*modules: nn.Module):
    return oskt.trace(nn.Sequential(*modules), IMAGE)


def gated(self, images: torch.Tensor) -> torch.Tensor:
    x = self.first(images)
    gate = self.gate(x.mean((2, 3))).sigmoid()
    return self.head(x * gate[:, :, None].repeat(1, 1, x.shape[1] // 2).view(-1, x.shape[1], 1, 1))


def distinct_plans(graph) -> int:
    """Plans of ten thousand ratios, counted one by one."""
    return len({tuple(rounded_down(graph, step / 10_000).values()) for step in range(1, 10_001)})


def test_width_grid_counts_the_plans_of_all_ratios():
    graph = traced(conv(3, 4), conv(4, 6), Head(6))
    assert width_grid(graph) == "7 plans; coarsest 1/4 (1 group)", "the example of its docstring"
    assert distinct_plans(graph) == 7


@pytest.mark.parametrize(
    ("modules", "grid"),
    [
        ((conv(3, 12), conv(12, 12, groups=3), Head(12)), "4 plans; coarsest 1/4 (6 convolution groups)"),
        ((conv(3, 8), nn.GroupNorm(2, 8), conv(8, 6), Head(6)), "7 plans; coarsest 1/4 (2 norm blocks)"),
        ((Head(3),), "one width only"),
        ((conv(3, 1), conv(1, 5), Head(5)), "5 plans; coarsest 1/5 (1 group)"),
    ],
)
def test_width_grid_names_the_coarsest_groups(modules, grid):
    graph = traced(*modules)
    assert width_grid(graph) == grid
    assert grid == "one width only" or distinct_plans(graph) == int(grid.split()[0])


def test_width_grid_of_attention():
    assert width_grid(oskt.trace(tiny(), VIT_IMAGE)).endswith("(6 heads)")


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (nn.Sequential(conv(3, 4), Head(4)), "exact"),
        (
            nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.GroupNorm(1, 8), Head(8)),
            "exact where slots stand for equally many channels (2 norms over channels)",
        ),
        (of_everything(), "exact; 1 module routed; 1 split point moved"),
        (
            Network(gated, first=conv(3, 10), gate=nn.Linear(10, 2), head=Head(10)),
            "exact; 1 group whole: gates several channels each",
        ),
    ],
)
def test_exactness_says_what_holds_and_what_is_done(model, note):
    assert exactness(oskt.trace(model, IMAGE)) == note


def test_exactness_of_attention():
    note = exactness(oskt.trace(tiny(), VIT_IMAGE))
    assert "exact where slots stand for equally many channels (5 norms over channels); 2 attentions folded" in note


def test_table_in_markdown():
    head, _, row, neck = support_table(["osnet_x0_25", "oskt_osnet_x0_25"]).splitlines()
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells == ["backbone", "parameters", "channels", "groups", "width grid", "students", "BNNeck"]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["osnet_x0_25", "587 k", "3015", "63", "575 plans; coarsest 1/2 (2 groups)", "exact", "yes"]
    assert neck.strip("| ").endswith("has one")


def test_the_page_shows_every_backbone():
    """Made by `python tools/graph.py --support`; one row is made again here."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    table = page.partition("<!-- support:begin -->")[2].partition("<!-- support:end -->")[0]
    rows = {cells[0]: cells for cells in map(_cells, table.strip().splitlines()[2:])}
    assert set(stock_names()) | {name for name in model_names() if name.startswith("vit_")} == rows.keys()
    assert rows["osnet_x0_25"] == _cells(support_table(["osnet_x0_25"]).splitlines()[2])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]
