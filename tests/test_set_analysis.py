"""Commands that look into a run of VKD, on a tiny run; and students with single terms left out."""

import json
import shutil

import cv2
import pytest
from test_sets_run import configured
from test_tools import tool

from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.files import sha256
from oskt_torchreid.lab.ablation import ablate, terms_of
from oskt_torchreid.report.protocols import read_set_rows
from oskt_torchreid.runs import compare_gallery_sizes, draw_heat_maps, run
from oskt_torchreid.runs.vkd.analysis import open_run


@pytest.fixture(scope="module")
def finished(data_root, tiny_net, tmp_path_factory):
    """A run, as its folder."""
    folder = tmp_path_factory.mktemp("analysed")
    run(configured(data_root, folder))
    return folder


def cells(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_run_is_opened_as_it_was(finished, tiny_net):
    opened = open_run(finished)
    rows = read_set_rows(finished / "results.json")
    assert list(opened.networks) == [row.name for row in rows] == ["teacher", "student"]
    for row in rows:
        assert opened.trainer.protocols(opened.networks[row.name])["synthped_video"] == row.protocols


@pytest.mark.parametrize("score", ["similarity", "class"])
def test_heat_maps(finished, tiny_net, tmp_path, capsys, score):
    pytest.importorskip("pytorch_grad_cam")
    out = tmp_path / "maps.png"
    arguments = ["--identities", "3", "--frames", "2", "--score", score]
    assert tool("visualize").main(["gradcam", str(finished), "-o", str(out), *arguments]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    height, width, _ = cv2.imread(str(out)).shape
    assert height > 300 and width > 300


def test_cameras(finished, tiny_net, tmp_path, capsys):
    out = tmp_path / "camera.png"
    assert tool("visualize").main(["camera", str(finished), "-o", str(out), "--folds", "3"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[1:] == ["from tracklets", "from images"]
    assert [row[0] for row in rows] == ["teacher", "student", "chance: majority", "chance: uniform"]
    assert rows[3][1:] == ["33.3", "33.3"] and out.is_file()


def test_curves(finished, tiny_net, tmp_path, capsys):
    out = tmp_path / "views.png"
    command = tool("visualize").main
    assert command(["views", str(finished), "-o", str(out), "--counts", "1", "3", "--draws", "1"]) == 0
    head, _, *rows = cells(capsys.readouterr().out)
    assert head == ["mAP in %", "1 frame", "3 frames"] and out.is_file()
    assert [row[0] for row in rows] == ["teacher, views", "teacher, time", "student, views", "student, time"]
    assert command(["gallery", str(finished), "--counts", "1", "3", "--protocol", "I2V"]) == 0
    _, _, *rows = cells(capsys.readouterr().out)
    # As many frames as the run's own evaluation took of each tracklet, and its numbers.
    protocols = [row.protocols for row in read_set_rows(finished / "results.json")]
    assert [row[2] for row in rows] == [f"{100 * numbers['I2V']['mAP_interpolated']:.1f}" for numbers in protocols]
    assert [row[1] for row in rows] == [f"{100 * numbers['I2I']['mAP_interpolated']:.1f}" for numbers in protocols]


@pytest.mark.parametrize("options", [["vkd.student=tiny_net"], ["vkd.student=width=0.5"], ["vkd.generations=2"]])
def test_students_of_other_kinds_are_opened(finished, data_root, tiny_net, tmp_path, options):
    epochs = ["vkd.student_stage.max_epoch=1", f"vkd.teacher={finished / 'teacher' / 'network.pth'}"]
    run(configured(data_root, tmp_path, *options, *epochs))
    opened = open_run(tmp_path)
    rows = read_set_rows(tmp_path / "results.json")
    assert list(opened.networks) == [row.name.partition(" (")[0] for row in rows]
    assert len(rows) == (3 if "gen" in options[0] else 2)
    measured = opened.trainer.protocols([*opened.networks.values()][-1])
    assert measured == {"synthped_video": rows[-1].protocols}


def test_mistakes_are_said(finished, tiny_net, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("oskt_torchreid.runs.vkd.analysis.extract_frames", None)
    command = tool("visualize").main
    assert command(["camera", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no configuration file at '{tmp_path / 'config.yaml'}'")
    with pytest.raises(ConfigError, match=r"the picture 'x\.jpg' ends in '\.jpg'; give a path that ends in \.png"):
        compare_gallery_sizes(finished, "x.jpg")
    with pytest.raises(ConfigError, match=r"numbers of frames are \[0\]"):
        compare_gallery_sizes(finished, counts=[0])
    with pytest.raises(ConfigError, match="the score of a heat map is 'norm'; allowed: similarity, class"):
        draw_heat_maps(finished, "x.png", score="norm")
    with pytest.raises(ConfigError, match="0 identities with 2 frames each leave nothing to draw"):
        draw_heat_maps(finished, "x.png", identities=0)
    with pytest.raises(DataError, match="19 identities were requested, and 18 of 'synthped_video' have a query and"):
        draw_heat_maps(finished, "x.png", identities=19)
    with pytest.raises(DataError, match="7 identities were requested, and there are 6 to train on"):
        draw_heat_maps(finished, "x.png", identities=7, score="class")
    assert command(["camera", str(finished), "--options", "vkd.no_camera=True"]) == 2
    assert "error: vkd.no_camera says that cameras are unknown" in capsys.readouterr().err
    assert command(["gallery", str(finished), "--options", "engine=oskt"]) == 2
    assert f"error: '{finished}' is a run of engine 'oskt'; this looks into" in capsys.readouterr().err
    shutil.copy(finished / "config.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"is not finished: there is no 'teacher/network.pth'; run oskt run"):
        open_run(tmp_path)


# ---- terms of the loss ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terms_are_left_out(finished, data_root, tiny_net, tmp_path, monkeypatch):
    """The run itself is one of the students with all terms; the second time nothing is trained."""
    shutil.copytree(finished, tmp_path / "run")
    config = configured(data_root, tmp_path / "run")
    folder = ablate(config, ["restart"], [1, 2])
    content = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    found = [(each["term"], each["seed"]) for each in content["measurements"]]
    assert found == [(term, seed) for term in ("all terms", "restart") for seed in (1, 2)]
    jobs = ["all-seed-2", "restart-seed-1", "restart-seed-2"]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == jobs
    rows = read_set_rows(tmp_path / "run" / "results.json")
    assert content["measurements"][0]["row"]["protocols"] == rows[1].protocols
    others = [read_set_rows(folder / job / "results.json") for job in jobs]
    assert all(each[0].protocols == rows[0].protocols for each in others), "one teacher"
    files = [tmp_path / "run", *(folder / job for job in jobs)]
    assert len({sha256(path / "student" / "network.pth") for path in files}) == 4
    values = [each["row"]["protocols"]["V2V"]["mAP_interpolated"] for each in content["measurements"]]
    assert content["mAP"]["restart"]["V2V"]["mean"] == pytest.approx(sum(values[2:]) / 2)
    table = cells((folder / "ablation.md").read_text(encoding="utf-8"))
    assert [row[0] for row in table[2:]] == ["teacher", "all terms", "without restart"]
    differences = [100 * (values[2] - values[0]), 100 * (values[3] - values[1])]
    error = abs(differences[0] - differences[1]) / 2
    assert table[4][2] == f"{sum(differences) / 2:+.1f} ± {error:.1f}"
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    before = (folder / "ablation.json").read_text(encoding="utf-8")
    assert ablate(config, ["restart"], [1, 2]) == folder
    assert (folder / "ablation.json").read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_students_of_other_numbers_of_views(finished, data_root, tiny_net, tmp_path):
    """Teachers of 1 and 3 views, students of 1 and 2, each pair that is possible, and without distillation."""
    config = configured(data_root, tmp_path / "run", f"vkd.teacher={finished / 'teacher' / 'network.pth'}")
    shutil.copytree(finished / "teacher", tmp_path / "run" / "teacher")
    folder = ablate(config, ["distillation"], [1], teacher_views=[1, 3], student_views=[1, 2])
    content = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    found = {(each["teacher_views"], each["student_views"]): each["row"] for each in content["views"]}
    assert list(found) == [(1, 1), (3, 1), (3, 2), (0, 1), (0, 2)]
    whole, undistilled = (each["row"]["protocols"] for each in content["measurements"])
    assert found[3, 2]["protocols"] == whole, "the run's own numbers of views"
    assert found[0, 2]["protocols"] == undistilled != whole
    made = {path.name for path in folder.iterdir() if path.is_dir()}
    assert made == {"distillation-seed-1", *(f"views-{pair}-seed-1" for pair in ("1-1", "3-1", "none-1"))}
    assert [found[pair]["views"] for pair in found] == [1, 1, 2, 1, 2]
    table = cells((folder / "ablation.md").read_text(encoding="utf-8"))
    assert [row[0] for row in table if row[0] == "without distillation"] == ["without distillation"] * 5
    grid = table[5:9]
    assert grid[0] == ["teacher's views", "student's: 1", "student's: 2"]
    value = found[3, 2]["protocols"]["V2V"]["mAP_interpolated"]
    assert [row[0] for row in table[7:10]] == ["without distillation", "1", "3"]
    assert table[8][2] == "-" and table[9][2] == f"{100 * value:.1f}"


def test_views_that_cannot_be_seen(finished, data_root, tiny_net, tmp_path, monkeypatch):
    monkeypatch.setattr("oskt_torchreid.lab.ablation.run", None)
    for wide, few in (([2], []), ([2], [3]), ([0], [1])):
        with pytest.raises(ConfigError, match=r"the teacher's views are \[.\], the student's"):
            ablate(configured(data_root, tmp_path), ["dp"], [1], teacher_views=wide, student_views=few)


def test_the_runs_own_student_is_that_of_a_job(finished, data_root, tiny_net, tmp_path):
    """A job is given the teacher's file where the run has trained it: the student is the same to the bit."""
    run(configured(data_root, tmp_path, f"vkd.teacher={finished / 'teacher' / 'network.pth'}"))
    assert sha256(tmp_path / "student" / "network.pth") == sha256(finished / "student" / "network.pth")


@pytest.mark.parametrize(
    ("options", "terms", "message"),
    [
        ([], ["kdd"], "unknown term 'kdd'; did you mean 'kd'"),
        (["vkd.alpha=0.0"], ["kd"], "vkd.alpha is 0.0 already, so 'kd' cannot be left out"),
        (
            ["vkd.alpha=0.0", "vkd.beta=0.0"],
            ["distillation"],
            "vkd.alpha is 0.0 and vkd.beta is 0.0 already, so 'distillation' cannot be left out",
        ),
        (["vkd.student=osnet_x0_25"], ["restart"], "does not start from its teacher, so there is no restart to leave"),
        (["loss.triplet.weight_x=0.0"], ["triplet"], "without 'triplet' both loss.triplet.weight_t and .* are 0"),
        (["engine=triplet"], ["kd"], "engine is 'triplet'; terms of the loss are left out of runs of engine 'vkd'"),
    ],
)
def test_terms_that_cannot_be_left_out(data_root, tiny_net, tmp_path, monkeypatch, options, terms, message):
    monkeypatch.setattr("oskt_torchreid.lab.ablation.run", None)
    with pytest.raises(ConfigError, match=message):
        ablate(configured(data_root, tmp_path, *options), terms)


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ([], ["distillation", "kd", "dp", "triplet", "ce", "restart"]),
        (["vkd.beta=0.0"], ["distillation", "triplet", "ce", "restart"]),
        (["vkd.alpha=0.0", "vkd.beta=0.0", "vkd.student=osnet_x0_25"], ["triplet", "ce"]),
        (["loss.triplet.weight_x=0.0"], ["distillation", "kd", "dp", "restart"]),
        (["engine=triplet"], []),
    ],
)
def test_terms_that_a_configuration_has(data_root, tiny_net, tmp_path, options, terms):
    assert terms_of(configured(data_root, tmp_path, *options)) == terms


def test_the_command_prints_the_table(finished, data_root, tiny_net, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    options = ["--seeds", "1", "--terms", "dp", "--options", f"data.save_dir={tmp_path / 'run'}"]
    file = str(finished / "config.yaml")
    assert tool("benchmark").main(["vkd-ablation", "--config-file", file, *options]) == 0
    printed = capsys.readouterr().out
    assert [row[0] for row in cells(printed)[2:]] == ["teacher", "all terms", "without L_DP"]
    assert printed.splitlines()[-1] == f"written to {tmp_path / 'run' / 'ablation'}"
