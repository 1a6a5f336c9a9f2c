"""Runs of VKD on tiny tracklets: teacher, students, generations, other backbones, students of a chain."""

import json

import pytest

from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import models
from oskt_torchreid.oskt.chain import WeightChain
from oskt_torchreid.oskt.students import expand
from oskt_torchreid.pipeline import run

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
    "synthped_video.num_test=26",
    "synthped_video.cameras=3",
    "synthped_video.frames=3",
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
        ("student-1", "student", 1),
        ("student-2", "student", 1),
    ]
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    protocols = content["rows"][1]["protocols"]
    assert list(protocols) == ["V2V", "I2V", "V2I", "I2I"]
    assert set(protocols["I2V"]) >= {"mAP_interpolated", "mAP_trapezoid", "rank1"}
    assert [row["views"] for row in content["rows"]] == [3, 2, 2]
    report = (folder / "results.md").read_text(encoding="utf-8")
    assert "| teacher" in report and "I2I mAP" in report and "students 2 of the same" in report
    assert (folder / "config.yaml").is_file() and list(folder.glob("student-2/events*"))


def test_the_second_time_nothing_is_trained(finished, monkeypatch):
    _, config, results = finished
    monkeypatch.setattr("oskt_torchreid.pipeline.training.Trainer.train", None)
    assert run(config).rows == results.rows


def test_a_student_of_another_architecture_under_a_given_teacher(finished, data_root, tmp_path, tiny_net):
    folder, _, results = finished
    options = (f"vkd.teacher={folder / 'teacher' / 'network.pth'}", "vkd.student=osnet_x0_25", "vkd.alpha=0.0")
    rows = run(configured(data_root, tmp_path, *options)).rows
    assert rows[0].map_after == results.rows[0].map_after and rows[0].epochs == 0
    assert rows[1].params > rows[0].params


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
    if given:
        state = load_checkpoint(tmp_path / "run" / "student" / "network.pth")["state_dict"]
        assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in expected.items()}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (["loss.name=softmax"], ConfigError, "engine vkd needs embeddings in training, but loss.name is 'softmax'"),
        (["vkd.student=resnet1"], ConfigError, "unknown model 'vkd_resnet1'; did you mean"),
        (["vkd.student=wdith=0.5"], ConfigError, "vkd.student has 'wdith=0.5'; did you mean 'width'"),
        (["vkd.protocols=['V2W']"], ConfigError, "vkd.protocols is 'V2W'; did you mean 'V2V'"),
        (["vkd.teacher=nowhere.pth"], CheckpointError, "nowhere.pth"),
        (["vkd.num_student_views=4"], ConfigError, "vkd.num_student_views is 4; allowed: 1 to vkd.num_views=3"),
    ],
)
def test_mistakes_are_found_before_training(data_root, tmp_path, tiny_net, monkeypatch, options, error, match):
    monkeypatch.setattr("oskt_torchreid.pipeline.training.Trainer.train", None)
    with pytest.raises(error, match=match):
        run(configured(data_root, tmp_path, *options))
