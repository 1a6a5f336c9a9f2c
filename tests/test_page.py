"""The page of a run: what it says is what the folder holds, and a browser shows it without a fault."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import tiny
from test_tools import command

from oskt_torchreid.config import load_resolved
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host.ranked_lists import ranked_lists
from oskt_torchreid.host.ranking import distance_matrix
from oskt_torchreid.report import read_results
from oskt_torchreid.report.page import thumbnail
from oskt_torchreid.runs import run
from oskt_torchreid.runs.page import write_comparison_page, write_run_page
from oskt_torchreid.runs.page.sections import home_section
from oskt_torchreid.runs.page.writing import names_apart

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tiny_net, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "first"
    students = "oskt.students=['width=0.5','width=0.75']"
    run(tiny(data_root, folder, "page=True", students, "oskt.controls=['slice']", "test.normalize_feature=True"))
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


# ---- ranked lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_first_places_of_some_queries(metric):
    """Compared with the definition, a query at a time."""
    random = np.random.default_rng(0)
    queries, gallery = torch.randn(30, 5), torch.randn(80, 5)
    labels = tuple(random.integers(0, most, count) for most, count in ((12, 30), (10, 80), (2, 30), (2, 80)))
    found = ranked_lists(queries, gallery, labels, metric, count=4, most=6)
    distances = distance_matrix(queries, gallery, metric)
    q_pids, g_pids, q_camids, g_camids = labels
    assert len(found.queries) == 4 and len(set(found.queries)) == 4
    for query, places in zip(found.queries, found.places, strict=True):
        assert ((g_pids == q_pids[query]) & (g_camids != q_camids[query])).any(), "it has a match"
        allowed = [n for n in range(80) if (g_pids[n], g_camids[n]) != (q_pids[query], q_camids[query])]
        assert places == sorted(allowed, key=lambda n: distances[query, n])[:6]


def test_no_query_has_a_match():
    same = torch.ones(3, 2)
    found = ranked_lists(same, same, (np.arange(3), np.arange(3), np.zeros(3, int), np.zeros(3, int)))
    assert found == ([], [])


def test_a_run_keeps_paths_of_what_its_networks_found(folder):
    content = json.loads((folder / "ranked.json").read_text())
    rows = read_results(folder / "results.json").rows
    assert list(content["networks"]) == [row.name for row in rows]
    assert len(content["queries"]) == 10
    assert all(len(found) == 10 and len(found[0]) == 8 for found in content["networks"].values())
    assert thumbnail(content["queries"][0]["path"]).startswith("data:image/jpeg;base64,")
    assert thumbnail(folder / "none.jpg") == "" == thumbnail(folder / "results.json")


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_has_everything_inside(page):
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page), "nothing is fetched"
    assert "<script" not in page and "http://" not in re.sub(r"data:[^\"]*", "", page)


def test_the_page_says_what_the_run_made(folder, page):
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for row in read_results(folder / "results.json").rows:
        assert row.name in text
    for said in (
        "From a teacher that this run trained and a weight chain of width 0.5",
        "1 epoch of refinement: ",
        ": identity ",
        "channels in 4 groups",
        f"oskt export {folder}/students/width=0.75/student.pth -o width-0.75.onnx",
        f"oskt expand {folder}/chain.safetensors --width 0.5 -o width-0.5.pth",
        f"oskt bench latency {folder}",
        f"torch {torch.__version__.partition('+')[0]}",
        "no GPU" if not torch.cuda.is_available() else "threads",
    ):
        assert said in " ".join(text.split()), said
    right, wrong = page.count('class="right" title'), page.count(': wrong"')
    assert right + wrong == 10 * 8 * len(json.loads((folder / "ranked.json").read_text())["networks"])


def test_commands_of_the_page_can_be_parsed(page):
    lines = html.unescape("\n".join(re.findall(r"<pre><code>(.*?)</code>", page, re.DOTALL))).splitlines()
    assert len(lines) >= 8
    for line in lines:
        name, *words = shlex.split(line, comments=True)[1:]
        command(name).parse_arguments(words)


def test_latency_that_was_measured_is_shown(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    seen = [{"backend": "onnxruntime", "median_ms": 1.5}]
    rows = [{"name": row.name, "seen": seen} for row in read_results(copy / "results.json").rows]
    (copy / "latency.json").write_text(json.dumps({"rows": rows}))
    text = write_run_page(copy).read_text()
    assert "latency, onnxruntime (ms) against mAP" in text and "oskt bench latency" not in text


def test_the_page_again_and_elsewhere(folder, tmp_path, capsys, page):
    assert command("report").main([str(folder), "-o", str(tmp_path / "again.html")]) == 0
    assert f"wrote {tmp_path / 'again.html'}" in capsys.readouterr().out
    assert (tmp_path / "again.html").read_text() == page


def test_runs_side_by_side(folder, tmp_path, capsys):
    other = tmp_path / "second"
    shutil.copytree(folder, other)
    path = tmp_path / "both.html"
    assert command("report").main([str(folder), str(other), "-o", str(path)]) == 0
    text = path.read_text()
    assert "first and second" in text and text.count("<td>width=0.75</td>") == 2
    with pytest.raises(ConfigError, match="give two or more, each once"):
        write_comparison_page([folder, folder], path)
    assert command("report").main([str(tmp_path)]) == 2
    assert "is no folder of a finished run: it has no config.yaml and no results.json" in capsys.readouterr().err
    assert command("report").main([str(folder), str(tmp_path)]) == 2
    assert "is no folder of a finished run" in capsys.readouterr().err


def test_a_run_without_a_page(folder, data_root, tmp_path, tiny_net):
    assert load_resolved(folder).page is True
    run(tiny(data_root, tmp_path / "run", "engine=softmax", "oskt.students=[]"))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_folder_whose_pictures_and_chain_are_gone(folder, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "chain.safetensors").unlink()
    content = json.loads((copy / "ranked.json").read_text())
    for entry in content["queries"]:
        entry["path"] = "/nowhere.jpg"
    (copy / "ranked.json").write_text(json.dumps(content))
    text = write_run_page(copy).read_text()
    assert "the page has no widths: no file at" in caplog.text and "Ranked lists" in text


# ---- in a browser --------------------------------------------------------------------------------------------------

MEASURED = """<script>onload = () => {
  const inside = document.querySelector("iframe").contentDocument, pictures = [...inside.images];
  const letters = [...inside.querySelectorAll("p, td, pre")].map(each => parseFloat(getComputedStyle(each).fontSize));
  const drawn = pictures.filter(each => each.complete && each.naturalWidth > 0).length;
  document.querySelector("output").textContent =
    [inside.documentElement.scrollWidth, pictures.length, drawn, Math.min(...letters)].join(" ");
}</script>"""


def shown(path, *options):
    """What a browser prints, and what it complains about."""
    words = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        *options,
        f"file://{path}",
    ]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(folder, tmp_path, width):
    """No complaint; nothing is wider than the window, and every picture is drawn."""
    frame = tmp_path / "frame.html"
    inner = html.escape((folder / "report.html").read_text(), quote=True)
    style = f"width:{width}px;height:900px"
    frame.write_text(f'<!DOCTYPE html><iframe style="{style}" srcdoc="{inner}"></iframe><output></output>{MEASURED}')
    printed, complaints = shown(frame, "--dump-dom", "--virtual-time-budget=5000")
    across, pictures, drawn, letters = map(float, re.search(r"<output>(.*?)</output>", printed)[1].split())
    assert complaints == [] and across <= width and pictures == drawn > 200 and letters >= 13


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    assert names_apart([tmp_path / "a" / "mine", tmp_path / "b" / "mine"]) == ["a/mine", "b/mine"]
    assert names_apart([tmp_path / "one", tmp_path / "two"]) == ["one", "two"]
    with pytest.raises(ConfigError, match="give two or more, each once"):
        names_apart([tmp_path, f"{tmp_path}/."])


def test_commands_of_a_page_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = home_section(
        Path("my run"), {"students": {"size=600kB fp16": {"file": "students/size=600kB fp16/s.pth"}}}
    )
    (_, lines) = section.commands[0]
    words = [shlex.split(line, comments=True) for line in lines.splitlines()]
    assert words[0] == [
        *("oskt", "expand", str(tmp_path / "my run" / "chain.safetensors"), "--size", "600kB fp16"),
        *("-o", "size-600kB-fp16.pth"),
    ]
    assert words[1][2] == str(tmp_path / "my run" / "students" / "size=600kB fp16" / "s.pth")
    assert words[2][-1] == str(tmp_path / "my run" / "config.yaml")
