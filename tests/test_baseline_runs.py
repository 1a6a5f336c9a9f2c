"""Baselines and ablations in whole runs on a tiny set, and the mistakes that are found before anything is trained."""

import pytest
import torch
from runs import tiny
from test_pipeline import _forbidden

from oskt_torchreid.baselines import BASELINES
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError, GraphError, WidthError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run


@pytest.fixture(scope="module")
def teacher(tiny_net, data_root, tmp_path_factory):
    """A trained teacher, and the rows of the run that made it."""
    folder = tmp_path_factory.mktemp("teacher")
    options = ("oskt.refine.max_epoch=0", "oskt.finetune.max_epoch=0", "oskt.recalibrate=0")
    results = run(tiny(data_root, folder, *options))
    return f"oskt.teacher={folder / 'teacher' / 'teacher.pth'}", folder, results


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", _forbidden)


@pytest.mark.slow
def test_every_baseline_in_a_run(data_root, teacher, tmp_path):
    pytest.importorskip("torch_pruning")
    names = [f"{method}:width=0.25" for method in BASELINES] + ["width=0.5", "kd++:like=tiny_net"]
    results = run(tiny(data_root, tmp_path, teacher[0], f"oskt.students={names}"))
    rows = {row.name: row for row in results.rows[1:]}
    assert list(rows) == names
    assert {row.kind for name, row in rows.items() if ":" in name} == {"control"}
    assert rows["kd++:like=tiny_net"].params == results.rows[0].params
    assert len({rows[f"{method}:width=0.25"].params for method in BASELINES}) == 1
    assert rows["slice:width=0.25"].params < rows["width=0.5"].params, "below the chain's width"
    trained = load_checkpoint(tmp_path / "students" / "kd++-width=0.25" / "student.pth")["state_dict"]
    assert not any("projection" in name for name in trained)
    assert all(0 <= row.map_before <= 1 and 0 <= row.map_after <= 1 and row.epochs == 1 for row in rows.values())
    assert read_results(tmp_path / "results.json").rows == results.rows


def test_one_baseline_and_its_second_run(data_root, teacher, tmp_path, monkeypatch):
    options = (teacher[0], "oskt.students=['kd++:width=0.25']", "oskt.controls=['first']", "oskt.refine.max_epoch=0")
    config = tiny(data_root, tmp_path, *options, "oskt.distillation.start=slice")
    results = run(config)
    assert [row.name for row in results.rows] == ["teacher", "kd++:width=0.25", "first", "first, 1 epoch"]
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", _forbidden)
    assert run(config).rows == results.rows


def test_a_run_without_refinement(teacher):
    """Its chain is the clustered one, its student that of the chain before any training."""
    _, folder, results = teacher
    chain = WeightChain.load(folder / "chain.safetensors")
    assert not chain.statistics and results.facts["refine"]["row_dispersion"] > 0
    student = load_checkpoint(folder / "students" / "width=0.5" / "student.pth")["state_dict"]
    expected = expand_to_plan(chain, chain.widths).state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("oskt.refine.sstudent_weight=0.0",),
        ("oskt.refine.lambda_schedule=constant", "oskt.statistics=initial"),
        ("oskt.clustering=random", "oskt.normalize_rows=yes", "oskt.statistics=merged"),
    ],
)
def test_ablations_in_a_run(data_root, teacher, tmp_path, options):
    results = run(tiny(data_root, tmp_path, teacher[0], *options))
    assert [row.name for row in results.rows] == ["teacher", "width=0.5"]


def test_rates_are_set_by_name_on_the_command_line():
    config = load_config(options=["oskt.control_lr.kd++=0.01", "oskt.control_lr.norm", "0.02"])
    assert (config.oskt.control_lr["kd++"], config.oskt.control_lr.norm) == (0.01, 0.02)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (["oskt.students=['slize:width=0.5']"], ConfigError, r"unknown baseline 'slize'; did you mean 'slice'"),
        (
            ["oskt.students=['slice:wdith=0.5']"],
            ConfigError,
            r"oskt.students has 'slice:wdith=0.5'; did you mean 'width'",
        ),
        (["oskt.students=['slice:width=1.5']"], WidthError, r"width ratio 1.5 is outside of \(0, 1\]"),
        (["oskt.students=['norm:like=resnet18']"], WidthError, r"'resnet18' is of another depth or family"),
        (["oskt.controls=['kd+']"], ConfigError, r"oskt.controls is 'kd\+'; did you mean 'kd\+\+'"),
        (["oskt.distillation.start=kd++"], ConfigError, r"oskt.distillation.start is 'kd\+\+'.*allowed: 'scratch'"),
        (["oskt.distillation.temperature=0.0"], ConfigError, r"oskt.distillation.temperature is 0.0; allowed"),
        (["oskt.statistics=none"], ConfigError, r"oskt.statistics is 'none'.*allowed: 'own', 'merged', 'initial'"),
    ],
)
def test_mistakes_are_found_before_training(tiny_net, data_root, tmp_path, untrained, options, error, match):
    with pytest.raises(error, match=match):
        run(tiny(data_root, tmp_path, *options))


def test_a_backbone_that_depgraph_misunderstands(data_root, tmp_path, untrained):
    pytest.importorskip("torch_pruning")
    options = ("model.name=shufflenet", "oskt.students=['depgraph:width=0.5']", "data.height=64", "data.width=32")
    with pytest.raises(GraphError, match="torch_pruning misunderstands ShuffleNet at"):
        run(tiny(data_root, tmp_path, *options))


def test_students_and_baselines_of_a_given_chain_on_other_people(tiny_net, data_root, teacher, tmp_path, untrained):
    """A chain, its teacher and a student of an earlier run, on data of another number of identities."""
    option, folder, _ = teacher
    saved = folder / "students" / "width=0.5" / "student.pth"
    names = ["width=0.5", "slice:width=0.25", f"file={saved}"]
    options = (option, f"oskt.chain={folder / 'chain.safetensors'}", f"oskt.students={names}", "synthped.num_train=5")
    options += ("oskt.finetune.max_epoch=0", "synthped.seed=3", "oskt.recalibrate=0")
    results = run(tiny(data_root, tmp_path, *options))
    assert [row.name for row in results.rows] == names
    assert [row.kind for row in results.rows] == ["student", "control", "control"]
    assert results.rows[0].map_before == results.rows[2].map_before, "the very same network"
    sliced = load_student(tmp_path / "students" / "slice-width=0.25" / "student.pth")
    assert sliced(torch.zeros(1, 3, 32, 16)).shape == (1, 6)
    assert load_student(next(tmp_path.glob("students/file=*/student.pth"))).student_record.num_classes == 5


def test_a_teacher_of_other_identities_cannot_be_distilled(tiny_net, data_root, teacher, tmp_path, untrained):
    options = (teacher[0], f"oskt.chain={teacher[1] / 'chain.safetensors'}", "oskt.students=['kd++:width=0.5']")
    with pytest.raises(ConfigError, match="its teacher, which has 6 identities, but the data have 5; drop it"):
        run(tiny(data_root, tmp_path, *options, "synthped.num_train=5"))


def test_a_file_that_is_not_there(tiny_net, data_root, tmp_path, untrained):
    with pytest.raises(ConfigError, match="oskt.students has 'file=nowhere.pth', and there is no such file"):
        run(tiny(data_root, tmp_path, "oskt.students=['file=nowhere.pth']"))


def test_a_given_chain_has_no_teacher_for_baselines(data_root, teacher, tmp_path, untrained):
    options = (f"oskt.chain={teacher[1] / 'chain.safetensors'}", "oskt.students=['width=0.5', 'slice:width=0.5']")
    with pytest.raises(ConfigError, match="no teacher that 'slice:width=0.5' could be made of"):
        run(tiny(data_root, tmp_path, *options))
