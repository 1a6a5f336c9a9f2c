"""The pages of docs: current where they are made, commands that can be parsed, and the tutorial followed."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import TINY
from test_tools import command, tool

import oskt_torchreid
from oskt_torchreid.config.tree import every_key
from oskt_torchreid.host import models
from oskt_torchreid.lab.interface_reference import interface_reference
from oskt_torchreid.lab.reference import configuration_reference

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    "api",
    "architecture",
    "backbones",
    "changelog",
    "clients",
    "commands",
    "configuration",
    "distributed",
    "export",
    "families",
    "fidelity",
    "fleet",
    "glossary",
    "how-to",
    "index",
    "method",
    "performance",
    "recipes",
    "results",
    "students",
    "tutorial",
    "vkd",
]


def commands(page: Path) -> Iterator[list[str]]:
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("oskt "):
                yield shlex.split(line)[1:]


WRITTEN = [words for page in sorted(DOCS.glob("*.md")) for words in commands(page)]


def test_pages():
    assert [path.stem for path in sorted(DOCS.glob("*.md"))] == PAGES
    assert len(WRITTEN) >= 15


def test_pages_that_follow_from_the_code_are_current():
    assert tool("docs").main(["--check"]) == 0


def test_the_check_notices_a_page_that_is_not_current(monkeypatch, capsys):
    docs = tool("docs")
    monkeypatch.setattr(docs, "PAGES", {**docs.PAGES, "api.md": lambda: "other"})
    assert docs.main(["--check"]) == 1
    assert "not current: api.md; run `python tools/docs.py`" in capsys.readouterr().err


def test_the_configuration_page_has_every_key_with_its_meaning():
    text, keys = configuration_reference(), every_key()
    assert len(keys) > 150 and all(f"| `{name}` | " in text and key.meaning for name, key in keys.items())
    for line in (
        "| `oskt.attention` | `'folded'` | `folded`, `paper` | weights | queries and keys of students made exact;",
        "| `train.warmup_epochs` | `0` | from 0 | weights | warmup_multi_step, warmup_cosine: epochs in which the rate",
        "| `oskt.refine.warmup_epochs` | `0` | from 0 | weights | warmup_multi_step, warmup_cosine: epochs in which",
        "| `validation.share` | `0.0` | 0 to 0.9 | weights | ",
        "| `vkd.student` | `''` |  | weights | backbone; or a chain file, expanded to student_width; or width=0.5,",
    ):
        assert line in text, line
    assert "Added by this package: `model.neck`, `model.last_stride`.\n" in text
    assert text.count("Added by this package.\n") == 8


@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_commands_can_be_parsed(words):
    """Files that a command names in the repository are there, and the command knows its options."""
    for word in words[1:]:
        assert not word.startswith("configs/") or (ROOT / word).is_file(), word
    command(words[0]).parse_arguments(words[1:])


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_links_between_pages(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        assert (DOCS / target).is_file(), target


@pytest.mark.slow
def test_the_tutorial(tiny_net, market_root, tmp_path, monkeypatch, capsys):
    """Its commands in their order, on tiny pictures, a tiny teacher and one epoch of everything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "reid-data").symlink_to(market_root)
    torch.save({"state_dict": models.build(tiny_net, 6).state_dict(), "rank1": 0.1}, "teacher.pth.tar")
    small = [word for word in TINY if not word.startswith(("data.sources", "data.targets", "synthped", "engine"))]
    done = []
    for words in commands(DOCS / "tutorial.md"):
        name, *words = ["700" if word == "1M" else word for word in words]
        extra = small if name == "run" else ["--rows", "3", "--no-latency"] if "--table" in words else []
        assert command(name).main([*words, *extra]) == 0, (words, capsys.readouterr().err)
        done.append(name)
    assert done[:4] == ["run", "run", "expand", "expand"]
    assert os.path.getsize("student.pth") > 1000 and Path("log/mine/results.md").is_file()
    assert Path("student.onnx").is_file()


def test_the_site_is_built_without_a_warning(tmp_path):
    """Links, anchors and pictures included."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    words = ["-m", "mkdocs", "build", "--strict", "-f", str(ROOT / ".mkdocs.yml"), "-d", str(tmp_path / "site")]
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "configs" / "results").is_dir()


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 12_000 and len(text.splitlines()) <= 170
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_signatures_are_blocks_of_code_with_types():
    text = interface_reference(oskt_torchreid)
    assert "```python\nsave_student(student: nn.Module, path: str | Path, half: bool = False) -> None\n```" in text
    assert text.count("```") % 2 == 0


def test_the_interface_describes_each_name_once_and_the_types_of_signatures():
    text = interface_reference(oskt_torchreid)
    names = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert {"Recording", "Width", "Like", "Measure", "Clustering", "Criterion", "Rule"} <= set(names)
    assert {"check_widths", "evaluate_protocols", "cache_folder", "EngineData", "Outputs"} <= set(names)
    assert "\n#### Deployment.metadata" in text and "nearest" not in names
    assert set(re.findall(r"\]\(#(.+?)\)", text)) <= {name.lower() for name in names}
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert "ForwardRef" not in code and "oskt_torchreid." not in code


def test_pictures_of_the_method_show_what_the_package_computes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    figures = importlib.import_module("figures")
    wide, nested = figures.student(3), figures.nested_student(3)
    assert wide.rows.tolist() == [1, 12, 1] and wide.columns.tolist() == [1, 7, 2]
    assert nested.rows.tolist() == [1, 10.5, 14.5] and nested.columns.tolist() == [3, 3, 4]
    assert [figures.nested_student(width).rows.tolist() for width in (2, 4)] == [[1, 13], [0, 2, 10, 14]]
    texts = {name: (ROOT / "docs" / "figures" / name).read_text() for name in ("chain.svg", "nested.svg")}
    for number in (0, 1, 2, 3, 4, 7, 10, 12, 14):
        assert f">{number}<" in texts["chain.svg"], number
    for width in (2, 3, 4):
        layers = figures.nested_student(width)
        for row, column in zip(layers.rows, layers.columns, strict=True):
            assert f"row {row:g}, column {column:g}" in texts["nested.svg"]
