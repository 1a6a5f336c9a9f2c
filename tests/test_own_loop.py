"""Refinement in a training loop of one's own, as the how-to page has it; it never mentions torchreid."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from small_networks import TinyNet
from torch.nn.functional import cross_entropy

from oskt_torchreid.chain import Refinement, WeightChain
from oskt_torchreid.chain.losses import refining_loss

ROOT = Path(__file__).resolve().parents[1]


def page():
    """The code of the page's section."""
    text = (ROOT / "docs" / "how-to.md").read_text()
    section = text[text.index("## A training loop of your own") :]
    return re.search("```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_loop_of_the_page_runs_where_torchreid_is_absent(tmp_path):
    assert "torchreid" not in page().replace("oskt_torchreid", "") and len(page().splitlines()) <= 20
    script = f"""
        import sys
        sys.modules["torchreid"] = None
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import torch
        from small_networks import TinyNet
        torch.manual_seed(0)
        teacher, epochs = TinyNet(4), 3
        batches = [torch.randn(8, 3, 64, 32) for _ in range(4)]
        loader = [(images, torch.arange(8) % 4) for images in batches]
        before = [parameter.clone() for parameter in teacher.parameters()]
    """
    after = """
        assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
        assert any(not torch.equal(p, b) for p, b in zip(teacher.parameters(), before))
        assert torch.isfinite(student.eval()(batches[0])).all()
        again = WeightChain.load("chain.safetensors", model=teacher)
        assert all(torch.equal(rows, again.rows[name]) for name, rows in chain.rows.items())
        print(float(losses.refine), float(loss))
    """
    parts = (textwrap.dedent(script), page(), textwrap.dedent(after))
    command = [sys.executable, "-c", "\n".join(parts)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment())
    assert result.returncode == 0, result.stderr
    refine, loss = map(float, result.stdout.split())
    assert refine > 0 and 0 < loss < 100


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def refinement():
    torch.manual_seed(0)
    teacher = TinyNet(4)
    return Refinement(teacher, WeightChain.from_teacher(teacher, 0.5, input_size=(3, 32, 16))).train()


def test_the_terms_are_those_of_the_definitions(refinement):
    images, labels = torch.randn(6, 3, 32, 16), torch.arange(6) % 4

    def criterion(scores):
        return cross_entropy(scores, labels)

    losses = refinement.losses(images, criterion)
    assert torch.equal(losses.teacher, criterion(refinement.teacher(images)))
    assert torch.equal(losses.sstudent, criterion(refinement.sstudent(images, refinement.teacher)))
    assert torch.equal(losses.refine, refining_loss(refinement.sstudent.row_pairs(refinement.teacher)))
    total = losses.teacher + 0.5 * losses.sstudent + 0.25 * losses.refine
    assert torch.equal(losses.total(lambda_weight=0.25, sstudent_weight=0.5), total)
    other = refinement.losses(images, criterion, lambda scores: 3 * criterion(scores))
    assert torch.allclose(other.sstudent, 3 * losses.sstudent) and torch.equal(other.teacher, losses.teacher)


def test_everything_is_trained(refinement):
    images, labels = torch.randn(6, 3, 32, 16), torch.arange(6) % 4
    refinement.losses(images, lambda scores: cross_entropy(scores, labels)).total().backward()
    assert all(parameter.grad is not None for parameter in refinement.parameters())
