"""A run that is started again does what changed, no less and no more, and says so; nothing is overwritten."""

import json
import shutil

import pytest
import torch
from runs import tiny
from test_sets_run import configured as configured_sets

from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run
from oskt_torchreid.runs.recipes import Recipe, changes_of
from oskt_torchreid.runs.stages import Stage

CONTROLS = "oskt.controls=['slice']"
STAGES = ("teacher", "refine", "students/width=0.5", "controls/slice", "controls/slice-equal-passes")


@pytest.fixture(scope="module")
def done(tiny_net, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, run(tiny(data_root, folder, CONTROLS)).rows


@pytest.fixture
def folder(done, tmp_path):
    """A finished run of one's own."""
    shutil.copytree(done[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trained(monkeypatch):
    """Names of the stages that are trained."""
    from oskt_torchreid.runs.trainer import Trainer

    names, train = [], Trainer.train

    def noted(self, model, stage, folder, *args, **kwargs):
        names.append(folder.name)
        return train(self, model, stage, folder, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", noted)
    return names


def said(caplog):
    return [record.message for record in caplog.records if record.name == "oskt_torchreid.runs.stages"]


def digests(folder):
    return {name: json.loads((folder / name / "stage.json").read_text())["digest"] for name in STAGES}


NEITHER = [
    "train.print_freq=5",
    "test.batch_size=7",
    "test.eval_freq=1",
    "test.start_eval=1",
    "data.workers=1",
    "data.check=all",
    "oskt.latency.batch=2",
    "comparison.seeds=[4]",
]


@pytest.mark.parametrize("option", NEITHER)
def test_what_shapes_nothing_changes_nothing(done, folder, data_root, trained, caplog, option):
    caplog.set_level("INFO")
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")}
    assert run(tiny(data_root, folder, CONTROLS, option)).rows == done[1]
    assert trained == [] and len(stamps) == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")} == stamps
    assert [line.partition(": ")[2] for line in said(caplog)] == ["done before, with the same configuration"] * 5


NUMBERS = {
    "test.dist_metric=cosine": "test.dist_metric was 'euclidean', is 'cosine'",
    "test.normalize_feature=True": "test.normalize_feature was False, is True",
    "test.ranks=[1, 3]": "test.ranks was [1, 5, 10, 20], is [1, 3]",
    "test.rerank=True": "test.rerank was False, is True",
    "cuhk03.use_metric_cuhk03=True": "cuhk03.use_metric_cuhk03 was False, is True",
    "synthped.num_test=15": "synthped.num_test was 14, is 15; the test pictures changed",
    "data.targets=['synthped','synthped_medium']": "data.targets was ['synthped'], is ['synthped', 'synthped_medium']",
}


@pytest.mark.parametrize(("option", "reason"), NUMBERS.items())
def test_what_shapes_numbers_is_evaluated_again(done, folder, data_root, trained, caplog, option, reason):
    caplog.set_level("INFO")
    weights = {path: path.read_bytes() for path in folder.rglob("*.pth")}
    rows = run(tiny(data_root, folder, CONTROLS, option)).rows
    assert trained == [] and {path: path.read_bytes() for path in folder.rglob("*.pth")} == weights
    assert len(said(caplog)) == 5
    assert all(reason in line and "evaluated again, nothing is" in line for line in said(caplog))
    assert [(row.name, row.epochs, row.seconds) for row in rows] == [(r.name, r.epochs, r.seconds) for r in done[1]]
    changed = any(row.targets != before.targets for row, before in zip(rows, done[1], strict=True))
    assert changed, "other numbers, or more of them"
    caplog.clear()
    assert run(tiny(data_root, folder, CONTROLS, option)).rows == rows
    assert all("done before" in line for line in said(caplog)), "and not a third time"


def test_the_numbers_are_those_of_a_run_of_their_own(done, folder, data_root, tmp_path):
    """Evaluated again, a finished run has what a fresh one with these settings has."""
    options = (CONTROLS, "test.dist_metric=cosine", "test.rerank=True")
    again = run(tiny(data_root, folder, *options))
    fresh = run(tiny(data_root, tmp_path / "fresh", *options))
    for row, other in zip(again.rows, fresh.rows, strict=True):
        assert row.targets == other.targets, row.name
        assert (row.map_before, row.map_after) == (other.map_before, other.map_after)
    assert again.facts["refine"]["refined_teacher"] == fresh.facts["refine"]["refined_teacher"]
    table = (folder / "results.md").read_text()
    assert "mAP re-ranked" in table and "rank-1 re-ranked" in table
    assert read_results(folder / "results.json").rows[0].reranked["mAP"] == again.rows[0].reranked["mAP"]


WEIGHTS = {
    "train.lr=0.001": (STAGES, "train.lr was 0.0003, is 0.001"),
    "oskt.refine.lr=0.001": (STAGES[1:3], "oskt.refine.lr was 0.00035, is 0.001"),
    "oskt.finetune.lr=0.001": (("students/width=0.5",), "oskt.finetune.lr was 0.00035, is 0.001"),
    "oskt.control_lr.slice=0.001": (STAGES[3:], "oskt.control_lr.slice was 0.003, is 0.001"),
    "oskt.recalibrate=1": (("students/width=0.5",), "oskt.recalibrate was 24, is 1"),
    "loss.softmax.label_smooth=False": (STAGES, "loss.softmax.label_smooth was True, is False"),
}


@pytest.mark.parametrize(("option", "expected"), WEIGHTS.items())
def test_what_shapes_weights_is_made_anew_and_kept_aside(folder, data_root, trained, caplog, option, expected):
    caplog.set_level("INFO")
    stages, reason = expected
    before = digests(folder)
    kept = {name: load_checkpoint(folder / name / "model" / "model.pth.tar-1") for name in STAGES[:4]}
    chain = (folder / "chain.safetensors").read_bytes()
    run(tiny(data_root, folder, CONTROLS, option))
    assert sorted(trained) == sorted(name.rpartition("/")[2] for name in stages)
    after = digests(folder)
    assert {name for name in STAGES if after[name] != before[name]} == set(stages)
    assert any(reason in line and "made again, the earlier files are kept in" in line for line in said(caplog))
    for name in set(stages) & kept.keys():
        old = load_checkpoint(folder / name / "kept-1" / "model" / "model.pth.tar-1")["state_dict"]
        assert all(torch.equal(tensor, old[key]) for key, tensor in kept[name]["state_dict"].items())
    if "refine" in stages:
        assert (folder / "refine" / "kept-1" / "chain.safetensors").read_bytes() == chain
        assert (folder / "chain.safetensors").read_bytes() != chain


def test_what_is_kept_is_numbered(folder, data_root):
    for lr in (0.001, 0.002):
        run(tiny(data_root, folder, f"oskt.finetune.lr={lr}"))
    student = folder / "students" / "width=0.5"
    rates = [
        json.loads((place / "stage.json").read_text())["settings"]["weights"]["oskt.finetune.lr"]
        for place in (student / "kept-1", student / "kept-2", student)
    ]
    assert rates == [0.00035, 0.001, 0.002]


def test_another_picture_in_the_data_is_noticed(tiny_net, market_root, tmp_path, trained, caplog):
    """The folder of the data is no setting, what is in it is."""
    caplog.set_level("INFO")
    root, elsewhere = tmp_path / "data", tmp_path / "moved"
    shutil.copytree(market_root, root)
    words = ("engine=softmax", "data.sources=['market1501']", "data.targets=['market1501']", "train.batch_size=8")
    run(tiny(root, tmp_path / "run", *words))
    root.rename(elsewhere)
    run(tiny(elsewhere, tmp_path / "run", *words))
    assert trained == ["run"], "the same pictures at another place"
    folder = elsewhere / "market1501" / "Market-1501-v15.09.15"
    gallery = next((folder / "bounding_box_test").iterdir())
    shutil.copy(gallery, gallery.with_name(gallery.name.replace("00.jpg", "77.jpg")))
    run(tiny(elsewhere, tmp_path / "run", *words))
    assert trained == ["run"] and "the test pictures changed; evaluated again" in said(caplog)[-1]
    picture = next((folder / "bounding_box_train").iterdir())
    shutil.copy(picture, picture.with_name(picture.name.replace("00.jpg", "77.jpg")))
    run(tiny(elsewhere, tmp_path / "run", *words))
    assert trained == ["run", "run"] and "the training pictures changed; made again" in caplog.text
    assert (tmp_path / "run" / "kept-1" / "model" / "model.pth.tar-1").is_file()


def test_a_checkpoint_of_another_program_is_not_overwritten(tiny_net, data_root, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pth.tar-1").write_bytes(b"weeks of work")
    run(tiny(data_root, tmp_path, "engine=softmax"))
    assert (tmp_path / "kept-1" / "model" / "model.pth.tar-1").read_bytes() == b"weeks of work"
    assert "it is not known how that was made; made again, the earlier files are kept in" in caplog.text


def test_evaluations_on_the_way_leave_the_weights_as_they_are(tiny_net, data_root, tmp_path):
    states = []
    for name, option in (("never", "test.eval_freq=-1"), ("always", "test.eval_freq=1")):
        run(tiny(data_root, tmp_path / name, "engine=softmax", "train.max_epoch=3", option))
        states.append(load_checkpoint(tmp_path / name / "model" / "model.pth.tar-3")["state_dict"])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


# ---- evaluation alone --------------------------------------------------------------------------------------------


def test_evaluate_evaluates_what_is_there_and_trains_nothing(done, folder, data_root, trained):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".pth", ".safetensors")}
    stages = {path: path.read_bytes() for path in folder.rglob("stage.json")}
    rows = run(tiny(data_root, folder, CONTROLS, "test.evaluate=True", "test.rerank=True", "test.visrank=True")).rows
    assert trained == []
    assert [(row.name, row.map_before, row.map_after) for row in rows] == [
        (row.name, row.map_before, row.map_after) for row in done[1]
    ]
    assert all(0 <= row.reranked["mAP"] <= 1 for row in rows)
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in stages} == stages
    for name in ("teacher", "students/width=0.5", "controls/slice"):
        pictures = list((folder / name / "visrank_synthped").glob("*.jpg"))
        assert len(pictures) == 14 * 4, "one of every query"


def test_evaluate_takes_a_teacher_and_a_chain_from_elsewhere(done, data_root, tmp_path, trained):
    files = (f"oskt.teacher={done[0] / 'teacher/teacher.pth'}", f"oskt.chain={done[0] / 'chain.safetensors'}")
    students = "oskt.students=['width=0.5','width=0.75']"
    rows = run(tiny(data_root, tmp_path, *files, students, "test.evaluate=True")).rows
    assert trained == [] and [row.name for row in rows] == ["teacher", "width=0.5", "width=0.75"]
    assert rows[0].map_after == done[1][0].map_after
    assert rows[1].map_before is not None and rows[1].map_after is None and rows[1].epochs == 0
    assert not list(tmp_path.rglob("*.pth")) and (tmp_path / "results.md").is_file()


def test_evaluate_of_a_part_says_what_is_missing(folder, data_root, trained, caplog):
    caplog.set_level("INFO")
    shutil.rmtree(folder / "students")
    shutil.rmtree(folder / "controls")
    rows = run(tiny(data_root, folder, CONTROLS, "test.evaluate=True")).rows
    assert [(row.name, row.map_after is None) for row in rows] == [("teacher", False), ("width=0.5", True)]
    assert "slice: it is not there, so it is not evaluated" in caplog.text and trained == []


def test_evaluate_says_that_a_network_was_made_otherwise(done, folder, data_root, trained, caplog):
    rows = run(tiny(data_root, folder, "test.evaluate=True", "train.lr=0.5")).rows
    assert rows[0].map_after == done[1][0].map_after and trained == []
    assert "teacher: evaluated as it is, though made with other settings: train.lr was 0.0003, is 0.5" in caplog.text


@pytest.mark.parametrize("engine", ["oskt", "vkd"])
def test_evaluate_without_anything_to_evaluate(tiny_net, data_root, tmp_path, engine):
    config = (tiny if engine == "oskt" else configured_sets)(data_root, tmp_path, "test.evaluate=True")
    with pytest.raises(CheckpointError, match="test.evaluate trains nothing, and there is nothing to evaluate in"):
        run(config)


def test_evaluate_of_a_single_network(tiny_net, data_root, tmp_path, trained, caplog):
    first = run(tiny(data_root, tmp_path, "engine=softmax"))
    again = run(tiny(data_root, tmp_path, "engine=softmax", "test.evaluate=True", "test.rerank=True"))
    assert trained == [tmp_path.name] and again.rows[0].map_after == first.rows[0].map_after
    assert "mAP" in again.rows[0].reranked
    run(tiny(data_root, tmp_path / "other", "engine=softmax", "test.evaluate=True"))
    assert "is evaluated with its initial weights: model.load_weights is empty" in caplog.text


def test_runs_of_sets(tiny_net, data_root, tmp_path, trained, caplog):
    """The same of VKD: another protocol is evaluated, evaluation trains nothing, re-ranked numbers are added."""
    caplog.set_level("INFO")
    first = run(configured_sets(data_root, tmp_path)).rows
    assert trained == ["teacher", "student"]
    more = ("vkd.protocols=['I2V']", "test.rerank=True")
    again = run(configured_sets(data_root, tmp_path, *more)).rows
    assert len(trained) == 2 and all("vkd.protocols was" in line for line in said(caplog)[-2:])
    assert [row.name for row in again] == [row.name for row in first] and "mAP" in again[1].reranked
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["rows"][0]["targets"]["synthped_video"]) == {"I2V"}
    assert "I2V mAP re-ranked" in (tmp_path / "results.md").read_text()
    assert run(configured_sets(data_root, tmp_path, *more, "test.evaluate=True")).rows == again
    run(configured_sets(data_root, tmp_path, *more, "vkd.generations=2"))
    assert trained == ["teacher", "student", "student-2"], "a further generation, and nothing else"
    run(configured_sets(data_root, tmp_path, *more, "vkd.alpha=2.0"))
    assert trained[3:] == ["student"] and (tmp_path / "student" / "kept-1" / "network.pth").is_file()


# ---- recipes -----------------------------------------------------------------------------------------------------


def test_changes_in_words():
    assert changes_of({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == ""
    assert changes_of({"a": 1}, {"a": 2, "the file x": "f"}) == "a was 1, is 2; the file x is given now"
    assert changes_of({"the file x": "f"}, {"the file x": "g"}) == "the file x changed"
    assert changes_of({"the file x": "f"}, {}) == "the file x is not given any more"
    many = changes_of({}, dict.fromkeys("abcde", 0))
    assert many == "a was not given, is 0; b was not given, is 0; c was not given, is 0, and 2 more"


def test_a_note_of_an_earlier_version_is_kept_aside(tmp_path):
    (tmp_path / "stage.json").write_text('{"digest": "x", "facts": {}}')
    stage = Stage(tmp_path, Recipe({"a": 1}, {}))
    assert stage.complete(lambda continued: {"value": continued})["value"] is False
    assert (tmp_path / "kept-1" / "stage.json").is_file()


def test_another_first_chain_of_a_ladder_is_another_chain(tiny_net, data_root, tmp_path, trained, caplog):
    caplog.set_level("INFO")
    words = ("oskt.students=['width=0.75']",)
    run(tiny(data_root, tmp_path, *words, "oskt.ladder=[0.75,0.5]"))
    assert trained == ["teacher", "refine", "refine-2", "width=0.75"]
    run(tiny(data_root, tmp_path, *words, "oskt.ladder=[0.75,0.25]"))
    assert trained[4:] == ["refine-2"], "the first chain is the same"
    run(tiny(data_root, tmp_path, *words, "oskt.ladder=[0.5,0.25]"))
    assert trained[5:] == ["refine", "refine-2", "width=0.75"]
    assert "refine: the chain's widths (oskt.width, oskt.ladder) changed" in caplog.text
    run(tiny(data_root, tmp_path, *words))
    assert len(trained) == 8, "oskt.width=0.5 is the ladder's first"


@pytest.mark.parametrize("change", [{}, {"mAP": 0.5}, {"targets": {}, "mAP": 1.0}])
def test_facts_that_no_stage_wrote_are_not_used(tiny_net, data_root, tmp_path, trained, change):
    first = run(tiny(data_root, tmp_path, "engine=softmax")).rows
    path = tmp_path / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "facts": change}))
    again = run(tiny(data_root, tmp_path, "engine=softmax")).rows
    assert len(trained) == 2 and again[0].map_after == first[0].map_after


def test_an_empty_checkpoint_is_none(tiny_net, data_root, tmp_path, trained):
    run(tiny(data_root, tmp_path, "engine=softmax"))
    path = tmp_path / "model" / "model.pth.tar-1"
    path.write_bytes(b"")
    run(tiny(data_root, tmp_path, "engine=softmax"))
    assert len(trained) == 2 and load_checkpoint(path)


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_a_folder_where_a_file_belongs(tiny_net, data_root, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name}' is a folder, and a file is to be written there; move it away"):
        run(tiny(data_root, tmp_path, "engine=softmax"))


def test_views_of_the_teachers_own_stage(tiny_net, data_root, tmp_path, trained):
    """If the teacher's stage has its own number of views, that of the students does not shape it."""
    own = ("vkd.teacher_stage.num_views=2", "vkd.teacher_stage.strategy=random")
    run(configured_sets(data_root, tmp_path, *own))
    run(configured_sets(data_root, tmp_path, *own, "vkd.strategy=temporal"))
    assert trained == ["teacher", "student", "student"]


def test_a_given_teachers_stage_needs_no_batch(tiny_net, data_root, tmp_path, trained):
    run(configured_sets(data_root, tmp_path / "first"))
    given = (f"vkd.teacher={tmp_path / 'first' / 'teacher' / 'network.pth'}", "vkd.teacher_stage.batch_size=500")
    rows = run(configured_sets(data_root, tmp_path / "second", *given)).rows
    assert len(rows) == 2 and trained == ["teacher", "student", "student"]
