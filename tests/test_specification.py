"""Students in a configuration: ways of asking, presets for the chain, latency budgets that keep their widths."""

from __future__ import annotations

import pytest
from runs import SMALL

from oskt_torchreid.config import load_config
from oskt_torchreid.deploy import Latency
from oskt_torchreid.errors import ConfigError, WidthError
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run
from oskt_torchreid.runs.oskt import specification
from oskt_torchreid.runs.oskt.plan import make_plan
from oskt_torchreid.runs.oskt.specification import StudentSpec, read_widths


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("width=0.25", {"width": 0.25}),
        ("width=1", {"width": 1.0}),
        ("width=res50-s3", {"width": "res50-s3"}),
        ("like=osnet_x0_5", {"like": "osnet_x0_5"}),
        ("params=1M", {"params": "1M"}),
        ("flops=2e8", {"flops": "2e8"}),
        ("size=4MB fp16", {"size": "4MB fp16"}),
        ("latency=5ms", {"latency": "5ms"}),
    ],
)
def test_ways_of_asking(text, wish):
    assert StudentSpec.parse(text).arguments() == wish


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parms=1M", r"oskt.students has 'parms=1M'; did you mean 'params'\?; write width=0.5, params=1M, flops=200M"),
        ("0.5", "oskt.students has '0.5'; write width=0.5"),
        ("params=", "oskt.students has 'params='"),
        ("params=1MB", "oskt.students has 'params=1MB': params='1MB' is no budget"),
        ("width=res50-s9", r"has 'width=res50-s9'; did you mean 'res50-s\d'.*a preset such as width=res50-s1"),
        ("width=none.yaml", "no file of widths at 'none.yaml'"),
        ("like=osnet_x0_4", "unknown model 'osnet_x0_4'"),
    ],
)
def test_students_that_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=message):
        StudentSpec.parse(text).arguments()


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n", "holds no mapping; write a line 'group: width'"), ("", "holds no mapping"), ("a: [", "not valid YAML")],
)
def test_files_of_widths_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_widths(path)


def configured(tmp_path, *options):
    return load_config(options=[*SMALL, f"data.root={tmp_path}/data", f"data.save_dir={tmp_path}/run", *options])


def test_the_chain_may_be_a_preset(tmp_path):
    config = configured(tmp_path, "model.name=resnet50", "oskt.width=res50-s1", "oskt.students=['width=res50-s2']")
    plan = make_plan(config, 6)
    assert plan.chain_widths["conv1"] == 8 and plan.students[0].widths["layer4.0.conv3"] == 256
    with pytest.raises(WidthError, match="unknown width 'res50-s7'"):
        make_plan(configured(tmp_path, "oskt.width=res50-s7"), 6)
    with pytest.raises(ConfigError, match="oskt.width is 1.5"):
        configured(tmp_path, "oskt.width=1.5")
    with pytest.raises(ConfigError, match=r"train.lr in .* is 'res50-s1' \(str\)"):
        configured(tmp_path, "train.lr=res50-s1")


def test_latency_settings_reach_the_measurement(tmp_path):
    options = ("oskt.latency.batch=4", "oskt.latency.threads=2", "oskt.latency.backend=onnxruntime")
    measure = specification.latency_measure(configured(tmp_path, *options))
    assert measure.keywords == {"batch": 4, "threads": 2, "device": "cpu", "backend": "onnxruntime"}
    with pytest.raises(ConfigError, match="oskt.latency.backend is 'tensorrt'"):
        configured(tmp_path, "oskt.latency.backend=tensorrt")


@pytest.mark.slow
def test_a_run_with_budgets_keeps_what_it_measured(tmp_path, monkeypatch):
    calls = []

    def pretended(student, size, **settings):
        calls.append(sum(p.numel() for p in student.parameters()))
        return Latency(calls[-1] / 1e4 + len(calls) / 10, 0.0, 0.0, 1, 1, "cpu", "pytorch", 1)

    monkeypatch.setattr(specification, "measure_latency", pretended)
    names = ["params=150k", "size=600kB fp16", "latency=14ms"]
    config = configured(tmp_path, f"oskt.students={names}")
    run(config)
    rows = {row.name: row for row in read_results(tmp_path / "run" / "results.json").rows}
    assert set(names) < set(rows) and 0.9 * 150_000 < rows["params=150k"].params <= 150_000
    assert (tmp_path / "run" / "students" / "size=600kB fp16" / "student.pth").stat().st_size <= 600_000
    measured = len(calls)
    assert measured > 2
    again = run(config)
    assert len(calls) == measured, "nothing is measured again"
    assert {row.name: row.params for row in again.rows} == {name: row.params for name, row in rows.items()}
    make_plan(configured(tmp_path, f"oskt.students={names}", "oskt.latency.batch=2"), 6)
    assert len(calls) > measured, "other settings are measured again"
