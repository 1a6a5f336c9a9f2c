"""Runs of VKD on tiny tracklets: teacher, students, generations, other backbones, students of a chain."""

import json
import logging
import signal

import pytest
import torch
from sets import Tiny
from test_interruption import check_whole
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand
from oskt_torchreid.chain.network import trace
from oskt_torchreid.chain.student_file import save_student
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError, DataError, WidthError, ZooError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.graph.plans import full_plan
from oskt_torchreid.host import models
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.models.vit import VitBuilder
from oskt_torchreid.runs import run
from oskt_torchreid.runs.oskt.plan import stand_in_chain
from oskt_torchreid.runs.vkd.plan import SetPlan, _of_sets, start_student
from oskt_torchreid.vkd.model import SetModel, register_set_model

SMALL = [
    "engine=vkd",
    "loss.name=triplet",
    "loss.triplet.weight_x=1.0",
    "loss.triplet.soft_margin=True",
    "loss.softmax.label_smooth=False",
    "model.pretrained=False",
    "data.type=video",
    "data.sources=['synthped_video']",
    "data.targets=['synthped_video']",
    "data.height=32",
    "data.width=16",
    "data.workers=0",
    "sampler.num_instances=2",
    "synthped_video.num_train=6",
    "synthped_video.num_test=18",
    "synthped_video.cameras=3",
    "synthped_video.frames=2",
    "vkd.num_views=3",
    "vkd.num_student_views=2",
    "vkd.test_frames=3",
    "vkd.protocols=['V2V', 'I2V', 'V2I', 'I2I']",
    "vkd.teacher_stage.max_epoch=1",
    "vkd.teacher_stage.batch_size=4",
    "vkd.student_stage.max_epoch=1",
    "vkd.student_stage.batch_size=4",
    "use_gpu=False",
]


def configured(root, folder, *options, net="tiny_net"):
    return load_config(options=[*SMALL, f"model.name={net}", f"data.root={root}", f"data.save_dir={folder}", *options])


@pytest.fixture(scope="module")
def finished(data_root, tiny_net, tmp_path_factory):
    """A run of two generations."""
    folder = tmp_path_factory.mktemp("sets")
    config = configured(data_root, folder, "vkd.generations=2")
    return folder, config, run(config)


def test_rows_and_files(finished):
    folder, _, results = finished
    assert [(row.name, row.kind, row.epochs) for row in results.rows] == [
        ("teacher", "teacher", 1),
        ("student", "student", 1),
        ("student-2", "student", 1),
    ]
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    protocols = content["rows"][1]["protocols"]
    assert list(protocols) == ["V2V", "I2V", "V2I", "I2I"]
    assert set(protocols["I2V"]) >= {"mAP_interpolated", "mAP_trapezoid", "rank1"}
    assert [row["views"] for row in content["rows"]] == [3, 2, 2]
    report = (folder / "results.md").read_text(encoding="utf-8")
    assert "| teacher" in report and "I2I mAP" in report
    assert "Students saw 2 of the 3 views of a set that their teacher did (multiview)" in report
    assert (folder / "config.yaml").is_file() and list(folder.glob("student-2/events*"))


def test_the_second_time_nothing_is_trained(finished, monkeypatch):
    _, config, results = finished
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    assert run(config).rows == results.rows


def test_a_student_of_another_architecture_under_a_given_teacher(finished, data_root, tmp_path, tiny_net):
    folder, _, results = finished
    oskt.register_backbone("two_convolutions", lambda num_classes: Tiny(num_classes, width=40), (3, 32, 16))
    options = (f"vkd.teacher={folder / 'teacher' / 'network.pth'}", "vkd.student=two_convolutions", "vkd.alpha=0.0")
    rows = run(configured(data_root, tmp_path, *options)).rows
    assert rows[0].map_after == results.rows[0].map_after and rows[0].epochs == 0
    assert rows[1].params > rows[0].params and rows[1].name == "student (two_convolutions)"


@pytest.mark.parametrize("given", [False, True], ids=["chain of the run's teacher", "chain file"])
def test_a_student_expanded_from_a_chain(finished, data_root, tmp_path, tiny_net, given):
    """Compressed and distilled in one run: the student has the widths of an expanded one, the head of a set model."""
    folder, _, results = finished
    teacher = folder / "teacher" / "network.pth"
    options = [f"vkd.teacher={teacher}", "vkd.student=width=0.5"]
    if given:
        network = models.build("oskt_tiny_net", 6)
        chain = WeightChain.from_teacher(network, 0.5, input_size=(3, 32, 16))
        chain.save(tmp_path / "chain.safetensors")
        options[1] = f"vkd.student={tmp_path / 'chain.safetensors'}"
        expected = expand(chain, 0.5).state_dict()
    rows = run(configured(data_root, tmp_path / "run", *options)).rows
    assert rows[1].params < rows[0].params == results.rows[0].params
    assert [row.name for row in rows] == ["teacher", "student (width=0.5)"]
    student = load_student(tmp_path / "run" / "student" / "network.pth")
    assert isinstance(student, SetModel) and student.last_relu.removable == "yes" and student.feature == "before"
    assert student.student_record.name == "vkd_tiny_net" and student.loss == "triplet"
    if given:
        state = load_checkpoint(tmp_path / "run" / "student" / "network.pth")["state_dict"]
        assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in expected.items()}


def test_the_chain_of_a_runs_teacher_has_a_row_for_every_channel_of_the_student(tiny_net):
    teacher = models.build("vkd_tiny_net", 6, "triplet").eval()
    sets = torch.rand(2, 3, 3, 32, 16)

    def student(choice):
        config = configured(".", ".", f"vkd.student={choice}")
        return start_student(config, SetPlan(teacher, "chain"), teacher, 6).eval()

    half, whole = student("width=0.5"), student("width=1.0")
    assert half.backbone.stem.weight.flatten(1).unique(dim=0).shape == (8, 3)
    with torch.no_grad():
        torch.testing.assert_close(whole(sets), teacher(sets))


def test_a_teacher_of_other_identities(finished, data_root, tmp_path, tiny_net, caplog):
    """Distilled on other data: class scores are left out, and the student has its own classifier."""
    folder, _, _ = finished
    options = [f"vkd.teacher={folder / 'teacher' / 'network.pth'}", "few_shot.ratio=0.5", "vkd.strategy=temporal"]
    with caplog.at_level(logging.WARNING):
        rows = run(configured(data_root, tmp_path, *options)).rows
    assert "the teacher has 6 classes, the student 3: the distillation of class scores (L_KD) is left out" in (
        caplog.text
    )
    state = load_checkpoint(tmp_path / "student" / "network.pth")["state_dict"]
    assert len(rows) == 2 and state["classifier.weight"].shape[0] == 3


def test_a_chain_of_other_identities(finished, data_root, tmp_path, tiny_net):
    """Its student gets a head for those of the run, and the file says so."""
    folder, _, _ = finished
    chain = WeightChain.from_teacher(models.build("oskt_tiny_net", 9), 0.5, input_size=(3, 32, 16))
    chain.save(tmp_path / "chain.safetensors")
    teacher = f"vkd.teacher={folder / 'teacher' / 'network.pth'}"
    run(configured(data_root, tmp_path / "run", teacher, f"vkd.student={tmp_path / 'chain.safetensors'}"))
    student = load_student(tmp_path / "run" / "student" / "network.pth")
    assert student.classifier.out_features == 6 == student.student_record.num_classes


@pytest.mark.parametrize("name", ["tiny_net", "shufflenet_v2_x0_5", "tiny_vit", "vkd_tiny_net"])
def test_students_of_any_chain_become_networks_of_sets(tiny_net, tmp_path, name):
    """Of bare backbones, with routed channels, and of networks with their own necks: saved, and the same again."""
    size = (3, 64, 32)
    models.register_model("tiny_vit", VitBuilder("tiny_vit", 24, 3, 0), defined_in=VitBuilder.__module__)
    register_set_model("tiny_vit")
    chain = stand_in_chain(*traced(models.build(name, 4, "triplet"), size))
    student = _of_sets(expand(chain, 0.5), 5, size).eval()
    save_student(student, tmp_path / "student.pth")
    again = load_student(tmp_path / "student.pth")
    sets = torch.rand(2, 3, *size)
    with torch.no_grad():
        embeddings = again(sets)
        torch.testing.assert_close(embeddings, student(sets))
        torch.testing.assert_close(embeddings, torch.stack([again(sets[:, view]) for view in range(3)]).mean(0))
    assert (
        type(again) is type(models.build(f"vkd_{name.removeprefix('vkd_')}", 2)) and again.classifier.out_features == 5
    )


def traced(model, size):
    graph = trace(model, size)
    return model, graph, full_plan(graph, 0.5)


def test_views_of_the_teachers_own_training(data_root, tmp_path, tiny_net, monkeypatch):
    """A teacher of single pictures, as on VeRi-776; the student's stage has the sets of the run."""
    shapes = []
    prepare = TransferEngine.prepare

    def recording(engine, data):
        shapes.append(tuple(data["img"].shape[:1]))
        return prepare(engine, data)

    monkeypatch.setattr(TransferEngine, "prepare", recording)
    options = ["vkd.teacher_stage.num_views=1", "vkd.teacher_stage.strategy=temporal"]
    run(configured(data_root, tmp_path, *options, "vkd.protocols=['V2V']"))
    # Frames in a batch: four sets of one, then four sets of three.
    assert shapes == [(4,)] * 3 + [(12,)] * 3
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["views"] for row in rows] == [1, 2]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_an_interrupted_run_goes_on(data_root, tmp_path, tiny_net, monkeypatch, stage, capsys):
    words = [*SMALL, "model.name=tiny_net", f"data.root={data_root}", f"data.save_dir={tmp_path}"]
    words += ["vkd.teacher_stage.max_epoch=2", "vkd.student_stage.max_epoch=2", "vkd.protocols=['V2V']"]
    prepare, stops = TransferEngine.prepare, []

    def interrupting(engine, data):
        if engine._run_folder == tmp_path / stage and engine.epoch == 1 and not stops:
            stops.append(stage)
            signal.raise_signal(signal.SIGINT)
        return prepare(engine, data)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(TransferEngine, "prepare", interrupting)
            assert tool("main").main(words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    check_whole(tmp_path)
    capsys.readouterr()
    assert tool("main").main(words) == 0
    said = capsys.readouterr().err
    assert f"{stage}: resuming after epoch 1" in said
    assert ("teacher: done before, with the same configuration" in said) == (stage == "student")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (["loss.name=softmax"], ConfigError, "engine vkd needs embeddings in training, but loss.name is 'softmax'"),
        (["vkd.student=resnet1"], ConfigError, "unknown model 'vkd_resnet1'; did you mean"),
        (["vkd.student=wdith=0.5"], ConfigError, "vkd.student has 'wdith=0.5'; did you mean 'width'"),
        (["vkd.protocols=['V2W']"], ConfigError, "vkd.protocols is 'V2W'; did you mean 'V2V'"),
        (["vkd.teacher=nowhere.pth"], CheckpointError, "nowhere.pth"),
        (["vkd.num_student_views=4"], ConfigError, "vkd.num_student_views is 4; allowed: 1 to vkd.num_views=3"),
        (["vkd.strategy=multi"], ConfigError, "vkd.strategy is 'multi'; did you mean 'multiview'"),
        (
            ["vkd.teacher_stage.strategy=chunks"],
            ConfigError,
            "vkd.teacher_stage.strategy is 'chunks'; did you mean 'ch",
        ),
        (
            ["vkd.student_stage.batch_size=16"],
            DataError,
            "a batch of 16 sets, 2 of each identity, needs 8 training ide",
        ),
        (["vkd.student_stage.batch_size=5"], ConfigError, "a batch of 5 sets cannot hold 2 of each identity"),
        (["vkd.student_stage.max_epoch=0"], ConfigError, "vkd.student_stage.max_epoch is 0, so that no student would"),
        (["vkd.teacher_stage.max_epoch=0"], ConfigError, "vkd.teacher_stage.max_epoch is 0, .*give a trained one as v"),
        (["vkd.last_stage_weights=absent.pth"], CheckpointError, "no file at 'absent.pth'"),
        (["model.load_weights=absent.pth"], CheckpointError, "no file at 'absent.pth'"),
        (
            ["vkd.student=width=0.5", "vkd.generations=2", "vkd.last_stage_weights=a.pth"],
            ConfigError,
            "vkd.last_stage_weights is 'a.pth', but from the second generation on students have the widths of",
        ),
        (["vkd.student=like=resnet18"], WidthError, "vkd.student cannot be made: .*resnet18"),
    ],
)
def test_mistakes_are_found_before_training(data_root, tmp_path, tiny_net, monkeypatch, options, error, match):
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    with pytest.raises(error, match=match):
        run(configured(data_root, tmp_path, *options))


def test_a_teachers_checkpoint_without_head(finished, data_root, tmp_path, tiny_net, monkeypatch):
    folder, _, _ = finished
    state = load_checkpoint(folder / "teacher" / "network.pth")["state_dict"]
    torch.save({name: tensor for name, tensor in state.items() if "classifier" not in name}, tmp_path / "headless.pth")
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    with pytest.raises(CheckpointError, match="headless.pth' has no head: none of its .* is a 'classifier.weight'"):
        run(configured(data_root, tmp_path, f"vkd.teacher={tmp_path / 'headless.pth'}"))


def test_published_weights_that_cannot_be_fetched(finished, data_root, tmp_path, tiny_net, monkeypatch):
    """ImageNet weights, for a teacher or for a last stage, are fetched before anything is trained."""

    def unreachable(num_classes, loss="softmax", pretrained=True, use_gpu=True):
        if pretrained:
            raise OSError("no route to host")
        return models.build("tiny_net", num_classes, loss)

    folder, _, _ = finished
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    factory = models._FACTORY
    monkeypatch.setitem(factory, "vkd_tiny_net", unreachable)
    with pytest.raises(ZooError, match="cannot fetch the ImageNet weights of 'vkd_tiny_net' .*model.pretrained=False"):
        run(configured(data_root, tmp_path, "model.pretrained=True"))
    monkeypatch.setattr("oskt_torchreid.runs.vkd.plan.load_set_model", lambda *_: None)
    options = [f"vkd.teacher={folder / 'teacher' / 'network.pth'}", "vkd.last_stage_weights=imagenet"]
    with pytest.raises(
        ZooError, match="no route to host.; empty vkd.last_stage_weights to restart the last stage with"
    ):
        run(configured(data_root, tmp_path, *options))
