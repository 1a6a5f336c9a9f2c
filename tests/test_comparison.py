"""The comparison with baselines: what it runs, how it chooses rates, what it reports, on a tiny set."""

import dataclasses
import json
from pathlib import Path

import pytest
from runs import SMALL

from oskt_torchreid.baselines import BASELINES, Baseline
from oskt_torchreid.baselines.scratch import from_scratch
from oskt_torchreid.config import load_config, merged
from oskt_torchreid.errors import ConfigError, TrainingError
from oskt_torchreid.lab.comparison import further_jobs, jobs, run_comparison, seed_jobs, tuning_jobs
from oskt_torchreid.lab.comparison.comparison import choose_rates, run_all, try_apart
from oskt_torchreid.lab.comparison.equal import methods_at
from oskt_torchreid.lab.comparison.jobs import check_comparison
from oskt_torchreid.lab.comparison.tables import ablation_table, fleet_table, gain, map_table, mean_gain, transfer_table
from oskt_torchreid.lab.curves import convergence_plot
from oskt_torchreid.lab.measurements import Measurement, Spread
from oskt_torchreid.report import Row, write_results
from oskt_torchreid.runs.oskt.specification import StudentSpec

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "comparison"
RATES = {
    "teacher": {"teacher": 0.01},
    "refine": {"oskt": 0.002},
    "finetune": {"oskt": 0.001, "scratch": 0.01, "slice": 0.003},
    "passes": {"scratch": 0.02, "slice": 0.004},
    "transfer": {"oskt": 0.005, "scratch": 0.006, "slice": 0.007},
}
COMPARED = [
    "comparison.widths=[0.5, 0.75]",
    "comparison.methods=['scratch', 'slice']",
    "comparison.seeds=[1]",
    "comparison.data_seeds=[0]",
    "comparison.equal_passes_widths=[0.5]",
    "comparison.rates=[0.001, 0.01]",
    "comparison.further_rates=1",
    "comparison.tuning_width=0.5",
    "comparison.validation_share=0.5",
    "comparison.transfer.identities=[3]",
    "comparison.transfer.widths=[0.5]",
    "comparison.transfer.max_epoch=1",
    "comparison.ablations=['random labels: oskt.clustering=random', 'merged: oskt.statistics=merged']",
]


def configured(folder, *options):
    # Four pictures of each of 16 identities at 2 cameras: half of the identities make a gallery that is long enough.
    sizes = ["model.name=tiny_net", "synthped.num_train=16", "synthped.num_test=14", "oskt.refine.lr=0.002"]
    places = [f"data.root={folder / 'data'}", f"data.save_dir={folder / 'comparison'}"]
    return load_config(options=[*SMALL, *sizes, *COMPARED, *places, *options])


def measured(method, width, value, seed=1, scenario="finetune", before=0.1, seconds=10.0, params=1000, flops=None):
    row = Row(f"{method}:width={width}", "control", params, 1, before, None, value, None, 2, seconds, (), None, flops)
    return Measurement(scenario, method, width, 0, seed, row)


# ---- what is run ---------------------------------------------------------------------------------------------------


def test_jobs_of_a_seed(tmp_path):
    config = configured(tmp_path, "comparison.seeds=[1, 2]", "comparison.data_seeds=[0, 5]")
    first = seed_jobs(config, RATES, "finetune")
    assert [job.folder for job in first] == [f"data-{d}/seed-{s}/finetune" for d in (0, 5) for s in (1, 2)]
    run = first[3].config(config)
    assert (run.synthped.seed, run.train.seed, run.train.lr, run.oskt.refine.lr) == (5, 2, 0.01, 0.002)
    expected = ["width=0.5", "scratch:width=0.5", "slice:width=0.5", "width=0.75", "scratch:width=0.75"]
    assert run.oskt.students == [*expected, "slice:width=0.75"]
    assert (run.oskt.finetune.lr, run.oskt.control_lr.scratch, run.oskt.control_lr.slice) == (0.001, 0.01, 0.003)


def test_what_follows_a_chain(tmp_path):
    config = configured(tmp_path, "oskt.refine.half_resolution_epochs=1", "oskt.refine.max_epoch=3")
    rest = {job.scenario: job.config(config) for job in seed_jobs(config, RATES, "rest")}
    assert list(rest) == ["passes", "transfer-3", "ablation:random labels", "ablation:merged"]
    passes = rest["passes"]
    assert passes.oskt.students == ["scratch:width=0.5", "slice:width=0.5"]
    assert passes.oskt.finetune.max_epoch == 3 + 1 and passes.oskt.finetune.half_resolution_epochs == 1
    assert passes.oskt.control_lr.scratch == 0.02
    assert passes.oskt.chain.endswith("data-0/seed-1/finetune/chain.safetensors")
    transfer = rest["transfer-3"]
    assert transfer.synthped.seed == 100 and transfer.few_shot.ratio == 3 / 16 and transfer.oskt.finetune.lr == 0.005
    assert transfer.oskt.students == ["width=0.5", "scratch:width=0.5", "slice:width=0.5"]
    random, merged = rest["ablation:random labels"], rest["ablation:merged"]
    assert random.oskt.clustering == "random" and not random.oskt.chain and random.oskt.teacher
    assert merged.oskt.statistics == "merged" and merged.oskt.chain, "only expansion changes, so the chain stays"


TRAINED_ON = [
    "comparison.trained_on=True",
    "comparison.equal_passes_widths=[0.5, 1.0]",
    "comparison.total_methods=['scratch']",
]
COMPUTE = ["comparison.compute.widths=[0.5, 0.75]", "comparison.compute.methods=['slice']"]


def test_jobs_of_equal_training(tmp_path):
    """The teacher trained on, at its own width; and the narrowest network for all epochs."""
    methods = ["comparison.methods=['scratch','slice','norm','norm+kd','kmeans+kd']", "comparison.widths=[0.5,1.0]"]
    epochs = ["oskt.refine.max_epoch=5", "oskt.refine.half_resolution_epochs=2", "train.max_epoch=7"]
    config = configured(tmp_path, *TRAINED_ON, *methods, *epochs)
    rates = {**RATES, "trained-on": {"slice": 0.2, "norm+kd": 0.3}}
    found = {job.folder.rpartition("/")[2]: job for job in seed_jobs(config, rates, "rest")}
    alone, passes, total = (found[name].config(config) for name in ("trained-on", "passes-1", "total"))
    assert (found["trained-on"].scenario, found["passes-1"].scenario) == ("trained-on", "passes")
    at_1 = ["scratch:width=1", "slice:width=1", "norm+kd:width=1"]
    assert passes.oskt.students == at_1, "norm and kmeans+kd are no other networks here"
    assert alone.oskt.students == at_1[1:], "what begins anew is not the teacher"
    assert passes.oskt.control_lr.scratch == 0.02, "the rate of equal passes"
    assert alone.oskt.control_lr["norm+kd"] == passes.oskt.control_lr["norm+kd"] == 0.3
    shown = [(run.oskt.finetune.max_epoch, run.oskt.finetune.half_resolution_epochs) for run in (alone, passes, total)]
    assert shown == [(5, 2), (6, 2), (13, 2)]
    assert total.oskt.students == ["scratch:width=0.5"] and total.oskt.control_lr.scratch == 0.02
    (first,) = seed_jobs(config, rates, "finetune")
    assert first.config(config).oskt.students[-4:] == ["width=1", *at_1]
    tuning = {job.folder: job.config(config) for job in tuning_jobs(config, "rates", rates)}
    assert tuning["tuning/trained-on-0.01"].oskt.students == at_1[1:]
    assert tuning["tuning/trained-on-0.01"].oskt.finetune.max_epoch == 5


def finetuned_results(folder, facts, **sizes):
    rows = [Row(name, "student", 1, flops) for name, flops in sizes.items()]
    folder = folder / "comparison" / "data-0" / "seed-1" / "finetune"
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", rows, facts)


def test_equal_compute_by_hand(tmp_path):
    """10 images an epoch, 2 epochs of students; a teacher of 8, students of 2 and 3.

    The chain: 1700 and 10 x 2 x 3 x 5 = 300. Slices: 10 x 3 x 5 = 150 an epoch, so 13 for 2000. Distilled: besides
    10 x 2 x 8 = 160 an epoch, and 160 once for class means, so (2000 - 160) / 310, 6.
    """
    methods = ["comparison.methods=['slice','norm+kd']", "comparison.compute.methods=['slice','norm+kd']"]
    config = configured(tmp_path, *COMPUTE, *methods, "oskt.finetune.max_epoch=2", "oskt.distillation.weight_nd=1.0")
    sizes = {f"{method}width={w}": flops for method in ("", "slice:", "norm+kd:") for w, flops in ((0.5, 2), (0.75, 3))}
    finetuned_results(tmp_path, {"refine": {"training_flops": 1700.0}, "epoch_images": 10}, teacher=8, **sizes)
    rates = {**RATES, "passes": {"slice": 0.004, "norm+kd": 0.005}}
    found = {
        job.folder.rpartition("/")[2]: job for job in seed_jobs(config, rates, "rest") if job.scenario == "compute"
    }
    runs = {name: job.config(config) for name, job in found.items()}
    assert runs["compute-slice"].oskt.students == ["slice:width=0.5", "slice:width=0.75"]
    assert {name: run.oskt.finetune.max_epoch for name, run in runs.items()} == {
        "compute-slice": 13,
        "compute-norm+kd": 6,
    }
    assert runs["compute-norm+kd"].oskt.control_lr["norm+kd"] == 0.005
    finetuned_results(tmp_path, {"refine": {}}, teacher=8, **sizes)
    with pytest.raises(ConfigError, match="of a version that did not count what training costs"):
        seed_jobs(config, rates, "rest")


def test_a_method_that_is_not_said_to_inherit_stays_itself(monkeypatch):
    monkeypatch.setitem(BASELINES, "mine", Baseline(from_scratch, "fresh, of a user"))
    assert methods_at(["mine", "slice", "norm", "norm+kd"], 1.0) == ["mine", "slice", "norm+kd"]
    assert methods_at(["mine", "norm"], 0.5) == ["mine", "norm"]


def test_rates_are_tuned_on_held_out_identities(tmp_path):
    grids = ["comparison.teacher_rates=[0.01, 0.02, 0.1]", "comparison.refine_rates=[0.001, 0.002]"]
    config = configured(tmp_path, *grids)
    steps = [tuning_jobs(config, step, RATES) for step in ("teacher", "refine", "rates")]
    assert [len(step) for step in steps] == [3, 2, 2 * 3]
    assert [job.config(config).train.lr for job in steps[0]] == [0.01, 0.02, 0.1]
    assert {job.config(config).oskt.teacher.partition("tuning/")[2] for job in (*steps[1], *steps[2])} == {
        "teacher-0.01/teacher/teacher.pth"
    }
    for job in (job for step in steps for job in step):
        assert job.config(config).validation.share == 0.5
    rates = {job.folder: job.config(config) for job in steps[2]}
    few = rates["tuning/transfer-0.01"]
    assert few.few_shot.ratio == 3 / 8 and few.synthped.seed == 100, "three of the eight that are not held out"
    assert few.oskt.finetune.lr == few.oskt.control_lr.slice == 0.01
    assert few.oskt.chain.endswith("tuning/refine-0.002/chain.safetensors")


def test_a_grid_goes_on_where_its_end_is_best(tmp_path):
    """Above 0.009 for what likes it best, below 0.001, and not at all where the best lies between or was alone."""
    config = configured(tmp_path)
    tried = {
        "finetune": {
            "oskt": {"0.001": 0.6, "0.003": 0.5, "0.009": 0.4},
            "scratch": {"0.001": 0.1, "0.003": 0.3, "0.009": 0.2},
            "slice": {"0.001": 0.1, "0.003": 0.3, "0.009": 0.4},
        },
        "passes": {"scratch": {"0.001": 0.1, "0.003": 0.2, "0.009": 0.3}, "slice": {"0.003": 0.3}},
    }
    further = further_jobs(config, RATES, tried)
    tried |= {"teacher": {"teacher": {"0.01": 0.5, "0.02": 0.6}}, "refine": {"oskt": {"0.002": 0.5}}}
    (teacher,) = (job for job in further_jobs(config, RATES, tried) if job.labels["scenario"] == "teacher")
    assert teacher.folder == "tuning/teacher-0.04" and teacher.config(config).train.lr == 0.04
    rates = ["tuning/finetune-0.000333333", "tuning/finetune-0.027", "tuning/passes-0.027"]
    assert [job.folder for job in further] == rates
    runs = [job.config(config) for job in further]
    assert [run.oskt.students for run in runs] == [["width=0.5"], ["slice:width=0.5"], ["scratch:width=0.5"]]
    assert runs[0].oskt.finetune.lr == pytest.approx(0.001 / 3, rel=1e-5)
    assert runs[1].oskt.control_lr.slice == 0.027 and runs[1].oskt.finetune.max_epoch == 1
    assert runs[2].oskt.control_lr.scratch == 0.027 and runs[2].oskt.finetune.max_epoch == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_comparisons_that_come_with_the_package(path, tmp_path):
    """What needs no training of them: their keys, and every run's configuration."""
    config = load_config(str(path), options=[f"data.save_dir={tmp_path}"])
    check_comparison(config)
    steps = [tuning_jobs(config, step, RATES) for step in ("teacher", "refine", "rates")]
    rates = {name: dict.fromkeys(["oskt", *config.comparison.methods], 0.001) for name in RATES}
    rates |= {"teacher": {"teacher": 0.01}, "trained-on": rates["passes"]}
    steps.append(seed_jobs(config, rates, "finetune"))
    for job in steps[3]:  # what the others read
        rows = [Row(name, "student", 1, 1) for name in ("teacher", *job.config(config).oskt.students)]
        (tmp_path / job.folder).mkdir(parents=True)
        facts = {"refine": {"training_flops": 1.0}, "epoch_images": 1}
        write_results(tmp_path / job.folder / "results.json", rows, facts)
    steps.append(seed_jobs(config, rates, "rest"))
    assert len(steps[3]) == len(config.comparison.seeds) * len(config.comparison.data_seeds) >= 3
    for run in (job.config(config) for step in steps for job in step):
        assert [StudentSpec.parse(entry.rpartition(":")[2]).arguments() for entry in run.oskt.students]


def test_the_rate_of_the_highest_map_is_chosen(tmp_path):
    candidates = [
        jobs.Job("tuning", f"tuning/finetune-{rate:g}", {}, {"scenario": "finetune", "rate": rate})
        for rate in (0.001, 0.01)
    ]
    for job, (ours, slices) in zip(candidates, [(0.6, 0.2), (0.5, 0.4)], strict=True):
        rows = [
            Row("teacher", "teacher", 9, 9, None, None, 0.9),
            Row("width=0.5", "student", 1, 1, 0.1, 0.1, ours),
            Row("slice:width=0.5", "control", 1, 1, 0.1, 0.1, slices),
        ]
        write_results(tmp_path / job.folder / "results.json", rows)
    failed = jobs.Job("tuning", "tuning/finetune-0.1", {}, {"scenario": "finetune", "rate": 0.1})
    teacher = jobs.Job("tuning", "tuning/finetune-0.01", {}, {"scenario": "teacher", "rate": 0.01})
    chosen, tried = choose_rates(tmp_path, [*candidates, failed, teacher])
    assert chosen == {"finetune": {"oskt": 0.001, "slice": 0.01}, "teacher": {"teacher": 0.01}}
    assert tried["finetune"]["slice"] == {"0.001": 0.2, "0.01": 0.4}


@pytest.mark.parametrize("step", ["teacher", "refine"])
def test_no_rate_at_which_anything_can_be_trained(tmp_path, monkeypatch, step):
    monkeypatch.setattr("oskt_torchreid.lab.comparison.comparison.run_all", lambda *_: None)
    monkeypatch.setattr(
        "oskt_torchreid.lab.comparison.comparison.choose_rates",
        lambda _, candidates: ({}, {}) if candidates[0].labels["scenario"] == step else (RATES, {}),
    )
    with pytest.raises(TrainingError, match=rf"at none of the rates of comparison.{step}_rates .*lower"):
        run_comparison(configured(tmp_path))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["comparison.widths=[0.3]"], r"comparison has width 0.3, and the chain oskt.width=0.5"),
        (["comparison.seeds=[]"], r"comparison.seeds is empty"),
        (["comparison.methods=['slize']"], r"comparison.methods is 'slize'; did you mean 'slice'"),
        (["comparison.ablations=['x: oskt.clustring=random']"], r"unknown key 'oskt.clustring'.*clustering"),
        (["comparison.ablations=[': oskt.clustering=random']"], r"an entry without a name"),
        (
            ["comparison.compute.methods=['norm']", "comparison.compute.widths=[0.5]"],
            r"compute.methods has norm, whose",
        ),
        ([*COMPUTE, "comparison.compute.widths=[0.6]"], r"compute.widths has 0.6, and comparison.widths has not"),
        ([*COMPUTE, "comparison.compute.widths=[]"], r"compute needs both, widths and methods"),
        (
            [*COMPUTE, "comparison.widths=[0.5,1.0]", "comparison.compute.widths=[1.0]"],
            r"has 1, the teacher's own width",
        ),
        ([*COMPUTE, "comparison.equal_passes_widths=[]"], r"compute.methods takes the rates of equal passes"),
        ([*COMPUTE, "oskt.refine.max_epoch=0"], r"oskt.refine.max_epoch is 0; set it to 1 or more"),
        (
            ["comparison.total_methods=['slice']"],
            r"total_methods has slice, whose networks begin as the trained teacher",
        ),
        (["comparison.trained_on=True", "comparison.methods=['scratch']"], r"trained_on needs a method .* add slice"),
        (["comparison.equal_passes_widths=[1.0]"], r"the teacher's own width, whose rate .*trained_on chooses"),
        (["data.sources=['market1501']"], r"need data that are drawn by a seed, and data.sources is \['market1501'\]"),
    ],
)
def test_mistakes_are_found_first(tmp_path, options, match):
    with pytest.raises(ConfigError, match=match):
        run_comparison(configured(tmp_path, *options))
    assert not (tmp_path / "comparison").exists()


# ---- what is reported ----------------------------------------------------------------------------------------------


def test_spread_by_hand():
    assert Spread.of([0.5, None, 0.7]) == Spread(pytest.approx(0.6), pytest.approx(0.02**0.5), 2)
    assert Spread.of([0.5]).percent() == "50.0" and Spread.of([0.5, 0.7]).percent() == "60.0 ± 14.1"
    assert Spread.of([None]).count == 0 and Spread.of([None]).percent() == "-"


def test_tables_by_hand():
    rows = [measured("slice", 0.5, 0.5), measured("oskt", 0.5, 0.8), measured("oskt", 0.5, 0.6, seed=2)]
    lines = map_table([*rows, measured("slice", 0.75, 0.7)]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["oskt", "70.0 ± 14.1", "-"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["slice", "50.0", "70.0"]
    few = transfer_table([measured("oskt", 0.5, 0.5, scenario="transfer-16")], ["transfer-16"]).splitlines()
    assert [cell.strip() for cell in few[2].split("|")[1:-1]] == ["oskt", "0.5", "10.0", "50.0"]


def test_curves_are_those_of_runs_that_were_evaluated_most_often(tmp_path):
    def trained(seed, *curve):
        one = measured("slice", 0.5, curve[-1][1], seed, "passes")
        return dataclasses.replace(one, row=dataclasses.replace(one.row, curve=curve))

    whole = [trained(1, (1, 0.2), (2, 0.4)), trained(2, (1, 0.3), (2, 0.5))]
    for name, rows in (("whole", whole), ("mixed", [trained(3, (2, 0.9)), *whole]), ("one", whole[:1])):
        convergence_plot(rows, tmp_path / name)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn["mixed"] == drawn["whole"] != drawn["one"]


def test_gain_is_taken_pair_by_pair_over_the_best():
    rows = [
        *(measured("oskt", 0.5, value, seed) for seed, value in ((1, 0.80), (2, 0.70))),
        *(measured("slice", 0.5, value, seed) for seed, value in ((1, 0.70), (2, 0.64))),
        *(measured("scratch", 0.5, 0.1, seed) for seed in (1, 2)),
    ]
    assert gain(rows, 0.5) == "+8.0 ± 2.0 over slice (mean of 2 pairs of runs, standard error)"


def test_ablations_are_compared_pair_by_pair():
    def student(value, seed, scenario="finetune"):
        return measured("oskt", 0.5, value, seed, scenario)

    rows = [
        student(0.60, 1),
        student(0.50, 2),
        student(0.50, 1, "ablation:random"),
        student(0.46, 2, "ablation:random"),
    ]
    table = ablation_table([*rows, student(0.55, 3, "ablation:alone")]).split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[0] == ["refinement", "width 0.5", "difference"]
    assert cells[2:] == [
        ["as compared above", "10.0 ± 0.0 → 55.0 ± 7.1", ""],
        ["random", "10.0 ± 0.0 → 48.0 ± 2.8", "-7.0 ± 3.0"],
        ["alone", "10.0 → 55.0", "-"],
    ]


def test_a_fleet_pays_for_refinement_once():
    """Two widths by the chain: 100 s and then 2 x 10 s; by slices 35 s and 60 s."""
    of_chain = [measured("oskt", width, 0.5, flops=2e9) for width in (0.5, 0.75)]
    slices = [
        measured("slice", w, 0.5, scenario="passes", seconds=s, flops=s * 1e9) for w, s in ((0.5, 35), (0.75, 60))
    ]
    whole = [measured("slice", 1.0, 0.5, scenario="passes", seconds=99, flops=99e9)]
    table = fleet_table([*of_chain, *slices, *whole], Spread(100, 0, 1), Spread(1e11, 0, 1)).split("\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[0] == ["method", "0.5", "and 0.75"]
    assert cells[2:] == [["oskt", "110 s, 102 G", "120 s, 104 G"], ["slice", "35 s, 35.0 G", "95 s, 95.0 G"]]
    unknown = fleet_table(
        [measured("oskt", 0.5, 0.5), measured("slice", 0.5, 0.5, scenario="passes")], Spread(1, 0, 1), Spread.of([None])
    )
    assert "11 s, -" in unknown and "10 s, -" in unknown


def test_the_mean_of_widths_is_over_the_best_of_each_and_of_seeds_that_all_have():
    rows = [
        *(measured("oskt", 0.5, value, seed) for seed, value in ((1, 0.80), (2, 0.70), (3, 0.1))),
        *(measured("oskt", 0.75, value, seed) for seed, value in ((1, 0.90), (2, 0.80))),
        *(measured("slice", 0.5, value, seed, "passes") for seed, value in ((1, 0.70), (2, 0.70), (3, 0.9))),
        *(measured("norm", 0.5, 0.1, seed, "passes") for seed in (1, 2, 3)),
        *(measured("slice", 0.75, 0.1, seed, "passes") for seed in (1, 2)),
        *(measured("norm", 0.75, 0.7, seed, "passes") for seed in (1, 2)),
    ]
    others = [m for m in rows if m.scenario == "passes"]
    assert mean_gain(rows[:5], [0.5, 0.75], others) == "+10.0 ± 5.0", "(10 + 20) / 2 and (0 + 10) / 2"
    assert mean_gain(rows[:5], [0.9], others) == "-"


def test_a_rate_that_diverges_is_no_candidate(tmp_path, monkeypatch, caplog):
    def diverge(config):
        raise TrainingError("the loss is nan")

    monkeypatch.setattr("oskt_torchreid.lab.comparison.comparison.run", diverge)
    config = configured(tmp_path)
    candidates = tuning_jobs(config, "rates", RATES)[:1]
    run_all(config, candidates, 1, "tuning", try_apart)
    assert "finetune-0.001 is no candidate: the loss is nan" in caplog.text
    with pytest.raises(TrainingError, match="the loss is nan"):
        run_all(config, candidates, 1, "measuring")


def test_a_whole_comparison(tiny_net, tmp_path, monkeypatch):
    config = configured(tmp_path, "comparison.widths=[0.5]", *TRAINED_ON, *COMPUTE, "comparison.compute.widths=[0.5]")
    folder = run_comparison(config)
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    found = {(m["scenario"], m["method"], m["width"]) for m in content["measurements"]}
    assert {("finetune", method, 0.5) for method in ("oskt", "scratch", "slice")} <= found
    assert ("passes", "slice", 0.5) in found and ("finetune", "teacher", 1.0) in found
    assert {("trained-on", "oskt", 1.0), ("trained-on", "slice", 1.0), ("passes", "slice", 1.0)} <= found
    assert {("compute", "slice", 0.5), ("total", "scratch", 0.5)} <= found
    assert {("transfer-3", "source-trained", 0.5), ("transfer-3", "oskt", 0.5)} <= found
    assert {("ablation:random labels", "oskt", 0.5), ("ablation:merged", "oskt", 0.5)} <= found
    passes = next(m["row"] for m in content["measurements"] if m["scenario"] == "passes")
    assert [epoch for epoch, _ in passes["curve"]] == [1, 2]
    refined = next(m["row"] for m in content["measurements"] if (m["scenario"], m["method"]) == ("trained-on", "oskt"))
    facts = content["refinements"][0]
    assert refined["map_after"] == facts["refined_teacher"]["mAP"] and refined["seconds"] == facts["seconds"]
    report = (folder / "comparison.md").read_text(encoding="utf-8")
    titles = ("## The teacher after 1 more epochs", "## Equal compute", "## 3 epochs from the first weights on")
    assert all(title in report for title in titles), report
    assert "## Equal passes: 2 epochs" in report and "## Cost" in report and "source-trained" in report
    tried = json.loads((folder / "rates.json").read_text(encoding="utf-8"))["mAP"]
    ends = {"0.001", "0.01", "0.0001", "0.1"}  # of two rates the best is always at an end
    assert all(len(curve) == 3 and ends >= curve.keys() for s in ("finetune", "passes") for curve in tried[s].values())
    assert all((folder / name).stat().st_size > 10_000 for name in ("map_against_size.png", "convergence.png"))
    assert not list(folder.rglob("model.pth.tar-*")), "checkpoints of training add up"
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    assert run_comparison(config) == folder, "nothing is trained again"
    monkeypatch.undo()  # other rates may be best for other distances
    again = run_comparison(merged(config, {"test.dist_metric": "cosine"}))
    content = json.loads((again / "comparison.json").read_text(encoding="utf-8"))
    found = {(m["scenario"], m["method"]) for m in content["measurements"]}
    assert ("trained-on", "oskt") not in found, "its weights are not kept, so that it cannot be evaluated again"
    assert ("trained-on", "slice") in found
