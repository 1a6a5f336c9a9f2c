"""A comparison made in parts: other seeds on another day, with the rates of the first."""

import dataclasses
import json

import pytest
from test_comparison import RATES, configured, measured

from oskt_torchreid.errors import ConfigError
from oskt_torchreid.files import write_json
from oskt_torchreid.lab.comparison import run_comparison
from oskt_torchreid.lab.comparison.comparison import choose_rates
from oskt_torchreid.lab.comparison.earlier import read_earlier
from oskt_torchreid.lab.comparison.parts import Job
from oskt_torchreid.report import Row, write_results

SHORT = ["comparison.transfer.identities=[]", "comparison.ablations=[]", "comparison.methods=['slice']"]


def part(path, *measurements, rates=RATES):
    rows = [dataclasses.asdict(measurement) for measurement in measurements]
    write_json(path, {"format_version": 1, "rates": rates, "refinements": [], "measurements": rows})
    return f"comparison.continues={path}"


def test_another_seed_joins_the_first(tiny_net, tmp_path):
    short = [*SHORT, "comparison.equal_passes_widths=[]", "comparison.widths=[0.5]", "comparison.further_rates=0"]
    first = run_comparison(configured(tmp_path / "a", *short))
    more = [f"comparison.continues={first / 'comparison.json'}", "comparison.seeds=[2]"]
    second = run_comparison(configured(tmp_path / "b", *short, *more))
    assert not (second / "tuning").exists() and not (second / "data-0" / "seed-1").exists()
    one, both = (json.loads((folder / "comparison.json").read_text(encoding="utf-8")) for folder in (first, second))
    assert both["rates"] == one["rates"] and both["refinements"][:1] == one["refinements"]
    assert both["measurements"][: len(one["measurements"])] == one["measurements"]
    assert {(m["method"], m["seed"]) for m in both["measurements"]} == {
        (method, seed) for method in ("teacher", "oskt", "slice") for seed in (1, 2)
    }
    assert "over 2 runs (1 data sets x 2 training seeds)" in (second / "comparison.md").read_text(encoding="utf-8")


def test_rates_alone_are_taken_too(tmp_path):
    write_json(tmp_path / "rates.json", {"chosen": RATES, "mAP": {}})
    earlier = read_earlier(configured(tmp_path, f"comparison.continues={tmp_path / 'rates.json'}"))
    assert earlier.rates == RATES and not earlier.measurements


def test_what_cannot_be_continued(tmp_path):
    with pytest.raises(ConfigError, match=r"data and training seeds \[\(0, 1\)\] already; name others"):
        run_comparison(configured(tmp_path, part(tmp_path / "one.json", measured("oskt", 0.5, 0.5))))
    few = {**RATES, "passes": {"scratch": 0.02}}
    with pytest.raises(ConfigError, match=r"no learning rate of \['slice'\] for 'passes'; leave these methods out"):
        run_comparison(configured(tmp_path, part(tmp_path / "few.json", rates=few)))
    write_json(tmp_path / "other.json", {"format_version": 1, "rows": []})
    with pytest.raises(ConfigError, match="does not hold the rows of a comparison"):
        run_comparison(configured(tmp_path, f"comparison.continues={tmp_path / 'other.json'}"))
    with pytest.raises(ConfigError, match="missing.json"):
        run_comparison(configured(tmp_path, f"comparison.continues={tmp_path / 'missing.json'}"))
    assert not (tmp_path / "comparison").exists()


def test_a_refinement_is_chosen_by_the_mean_of_widths(tmp_path):
    """0.1 is best at the narrow end (0.5 against 0.4), and 0.01 on average (0.65 against 0.55)."""
    candidates = []
    for rate, found in ((0.01, (0.4, 0.9)), (0.1, (0.5, 0.6))):
        job = Job("tuning", f"tuning/refine-{rate:g}", {}, {"scenario": "refine", "rate": rate})
        pairs = zip((0.5, 1.0), found, strict=True)
        rows = [Row(f"width={width}", "student", 1, 1, None, None, value) for width, value in pairs]
        write_results(tmp_path / job.folder / "results.json", rows)
        candidates.append(job)
    chosen, tried = choose_rates(tmp_path, candidates)
    assert chosen == {"refine": {"oskt": 0.01}}
    assert tried["refine"]["oskt"] == {"0.01": pytest.approx(0.65), "0.1": pytest.approx(0.55)}
