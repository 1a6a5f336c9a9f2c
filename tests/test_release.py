"""What is published: a wheel that holds the configurations and the command, and works away from the clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import oskt_torchreid

ROOT = Path(__file__).resolve().parents[1]


def quietly(*words, folder, **changes):
    """A command's output; the environment is this one with changes."""
    environment = {**os.environ, **changes}
    words = [str(word) for word in words]
    result = subprocess.run(
        words, capture_output=True, text=True, cwd=folder, env=environment, timeout=600, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution, built of a copy, so that nothing is written into the clone."""
    pytest.importorskip("build")
    pytest.importorskip("wheel")
    folder = tmp_path_factory.mktemp("release")
    ignored = {".git", "site", "build", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    copy = folder / "copy"
    copy.mkdir()
    for place in ROOT.iterdir():
        if not (place.name in ignored or place.name.endswith(".egg-info")):
            (copy / place.name).symlink_to(place)
    # Links to folders are read, and setuptools writes beside them only.
    words = ("-m", "build", "--no-isolation", "--skip-dependency-check", "-o", folder / "dist", copy)
    quietly(sys.executable, *words, folder=folder)
    return folder / "dist"


@pytest.mark.slow
def test_both_are_in_order(built):
    pytest.importorskip("twine")
    printed = quietly(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()), folder=built)
    assert printed.count("PASSED") == 2 and f"-{oskt_torchreid.__version__}" in printed.replace("\n", "")


@pytest.mark.slow
def test_the_wheel_has_all_that_the_command_needs(built, tmp_path):
    """Installed by itself into an empty folder, in front of everything else: a pip user's view."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {f"oskt_torchreid/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert shipped <= set(names) and not [name for name in names if name.startswith(("tests/", "tools/", "docs/"))]
    assert {"oskt_command/__init__.py", "oskt_torchreid/report/page.html", "oskt_torchreid/py.typed"} <= set(names)
    place = tmp_path / "installed"
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", place, wheel)
    quietly(sys.executable, *install, folder=tmp_path)
    door = "import sys, oskt_command; sys.exit(oskt_command.main())"
    alone = {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    said = quietly(sys.executable, "-c", door, "config", "--files", folder=tmp_path, **alone)
    assert str(place) in said and "paper/oskt/res50_chain8_market1501" in said
    printed = quietly(sys.executable, "-c", door, "demo", "--fast", folder=tmp_path, **alone)
    assert re.search(r"^width=0\.75 +student ", printed, re.MULTILINE)
    assert (tmp_path / "log" / "oskt_demo_fast" / "report.html").is_file()


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == oskt_torchreid.__version__
