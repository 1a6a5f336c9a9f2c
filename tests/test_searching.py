"""Widths of single channel groups, searched by what pictures without labels say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_networks import TinyNet
from test_crops import draw
from test_tools import command
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain import MeasuredTable
from oskt_torchreid.chain.counting import Costs
from oskt_torchreid.chain.equal_rows import with_equal_rows
from oskt_torchreid.chain.searching import Agreement, measured_ratios, row_correlation, search_widths, similarities
from oskt_torchreid.datasets.unlabelled import pictures_below, unlabelled_batches
from oskt_torchreid.errors import ChainError, ConfigError, DataError, WidthError
from oskt_torchreid.graph import check_plan
from oskt_torchreid.host import models

SIZE = (3, 32, 16)


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    return oskt.WeightChain.from_teacher(TinyNet(5).eval(), 0.25, input_size=SIZE, nested=True)


@pytest.fixture
def images():
    return list(torch.randn(24, *SIZE, generator=torch.Generator().manual_seed(0)).split(10))


# ---- agreement -----------------------------------------------------------------------------------------------------


def test_similarities_and_their_correlation_by_hand():
    """Rows without their diagonals: `0.1 0.5` and `0.2 0.6` rise together, `0.4 0.1` falls."""
    first = torch.tensor([[1.0, 0.1, 0.5], [0.1, 1.0, 0.3], [0.5, 0.3, 1.0]])
    second = torch.tensor([[1.0, 0.2, 0.6], [0.2, 1.0, 0.4], [0.6, 0.4, 1.0]])
    third = torch.tensor([[1.0, 0.4, 0.1], [0.4, 1.0, 0.9], [0.1, 0.9, 1.0]])
    assert row_correlation(first, second) == pytest.approx(1)
    assert row_correlation(first, third) == pytest.approx((-1 + 1 - 1) / 3)
    network, images = nn.Flatten(), torch.tensor([[[[3.0, 4.0]]], [[[4.0, 3.0]]]])
    torch.testing.assert_close(similarities(network, [images]).float(), torch.tensor([[1, 0.96], [0.96, 1]]))


def test_the_teacher_agrees_with_itself(chain, images):
    agreement = Agreement(chain, images)
    assert agreement(chain.graph.sizes) == pytest.approx(1)
    assert -1 <= agreement(chain.widths) < 1


# ---- search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "budget"), [("params", 600), ("flops", 60_000), ("size", "12kB")])
def test_what_is_found_is_legal_within_the_budget_and_no_worse(chain, images, way, budget):
    found = search_widths(chain, images, way, budget, rounds=3)
    check_plan(chain.graph, found.widths)
    chain.check_range(found.widths)
    assert found.cost <= found.uniform.budget and found.uniform.cost <= found.uniform.budget
    agreement = Agreement(chain, images)
    assert found.agreement == pytest.approx(agreement(found.widths)) and found.agreement >= found.uniform_agreement
    assert found.uniform_agreement == pytest.approx(agreement(found.uniform.widths)) and found.tried > 3
    again = search_widths(chain, images, way, budget, rounds=3)
    assert again == found, "nothing is drawn"
    if way != "size":
        assert found.cost == getattr(Costs(chain).count([found.widths]), way)[0]


def test_a_group_that_matters_is_widened_at_the_cost_of_one_that_does_not(images):
    """More agreement at the same cost, by widths that differ from the uniform ones in both directions."""
    torch.manual_seed(1)
    teacher = TinyNet(5).eval()
    chain = oskt.WeightChain.from_teacher(teacher, 0.25, input_size=SIZE, nested=True)
    found = search_widths(chain, images, "flops", "60k", rounds=6)
    assert found.agreement > found.uniform_agreement
    assert any(found.widths[name] > width for name, width in found.uniform.widths.items())
    assert any(found.widths[name] < width for name, width in found.uniform.widths.items())


def test_latencies_of_a_table_and_of_this_machine(chain, images):
    table = MeasuredTable(((0.25, 1.0), (0.5, 2.0), (1.0, 5.0)))
    found = search_widths(chain, images, "latency", "2ms", table, rounds=2)
    assert found.cost <= 2 and found.agreement >= found.uniform_agreement

    def measure(network, size):
        return SimpleNamespace(median_ms=float(sum(p.numel() for p in network.parameters())), spread_ms=0.0)

    made = measured_ratios(chain, measure, 3)
    assert [ratio for ratio, _ in made.rows] == [0.25, 0.625, 1.0] and np.all(np.diff([ms for _, ms in made.rows]) > 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": 1}, WidthError, "params=1 cannot be met"),
        ({"images": [torch.randn(3, *SIZE)]}, DataError, "widths are searched on 3 pictures; give at least 8"),
        ({"images": ["no batch"]}, DataError, "batch 1 holds str"),
        ({"measure": "fast"}, ConfigError, "measure is 'fast'"),
    ],
)
def test_searches_that_cannot_be(chain, images, change, error, message):
    asked = {"images": images, "way": "params", "budget": 600, **change}
    with pytest.raises(error, match=message):
        search_widths(chain, **asked)


def test_students_that_all_compute_the_same_are_not_searched(images):
    """A chain of the paper's, refined until rows are equal: every width is the S-student."""
    graph = oskt.trace(TinyNet(5).eval(), SIZE)
    halves = {group.name: group.size if group.fixed else group.size // 2 for group in graph.groups}
    labels = {group.name: np.arange(group.size) % halves[group.name] for group in graph.groups}
    layout = oskt.WeightChain.from_labels(TinyNet(5).eval(), graph, labels).layout
    equal = with_equal_rows(TinyNet(5).eval(), graph, layout, torch.float32).eval()
    chain = oskt.WeightChain.from_labels(equal, graph, labels)
    with pytest.raises(ChainError, match="all compute the same .* there is nothing to search"):
        search_widths(chain, images, "params", 600)


# ---- pictures and the command --------------------------------------------------------------------------------------


def test_pictures_without_labels(tmp_path):
    draw(tmp_path, *(f"a/{n}.jpg" for n in range(6)), "b/c/1.png", ".hidden/1.jpg")
    (tmp_path / "notes.txt").write_text("none")
    assert len(pictures_below(tmp_path)) == 7
    batches = unlabelled_batches(tmp_path, SIZE, count=5, batch=2)
    assert [tuple(batch.shape) for batch in batches] == [(2, *SIZE), (2, *SIZE), (1, *SIZE)]
    with pytest.raises(DataError, match="is no folder of pictures"):
        pictures_below(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        unlabelled_batches(tmp_path / "empty", SIZE)


def test_the_command(tiny_net, tmp_path, capsys):
    chain = oskt.WeightChain.from_teacher(models.build(tiny_net, 5).eval(), 0.25, nested=True)
    chain.save(tmp_path / "chain.safetensors")
    draw(tmp_path / "crops", *(f"{n}.jpg" for n in range(20)))
    words = [str(tmp_path / "chain.safetensors"), "--pareto", str(tmp_path / "crops"), "-o", str(tmp_path / "s.pth")]
    assert command("expand").main([*words, "--flops", "60k"]) == 0
    printed = capsys.readouterr().out
    assert "uniform ratio" in printed and "searched" in printed and "students compared on 20 pictures" in printed
    assert oskt.load_student(tmp_path / "s.pth")(torch.randn(1, *SIZE)).shape[0] == 1
    assert command("expand").main([*words, "--latency", "100s", "--backend", "pytorch"]) == 0
    assert "measured" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("expand").main([*words, "--width", "0.5"])
    assert "--pareto searches within a budget; add one of --params" in capsys.readouterr().err
