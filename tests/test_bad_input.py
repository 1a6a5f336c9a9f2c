"""Mistakes as a user meets them at `oskt run`: one line that says what is wrong, and nothing half written."""

import io
import re
from pathlib import Path

import pytest
import torch
from runs import TINY, configured
from safetensors.torch import save_file
from test_tools import tool

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.errors import ConfigError, DataError, OsktError, TrainingError, WidthError, ZooError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import models
from oskt_torchreid.runs.oskt.plan import make_plan


@pytest.fixture(scope="module")
def good(tiny_net, tmp_path_factory) -> dict[str, bytes]:
    """Content of the files of a teacher and its chain."""
    folder = tmp_path_factory.mktemp("good")
    teacher = models.build(tiny_net, 6)
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    WeightChain.from_teacher(teacher, 0.5).save(folder / "chain.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def untrained(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", forbidden)


@pytest.fixture
def command():
    """`oskt run` as a function of its words."""
    return tool("main").main


def left_in(folder: Path) -> list[str]:
    """Files of a run's folder that are more than its log."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["oskt.widht=0.5"], "ConfigError: unknown key 'oskt.widht' in the command line; did you mean 'oskt.width'"),
        (["oskt.width=0"], "ConfigError: oskt.width is 0.0; allowed: 1e-06 to 1"),
        (["train.max_epoch"], "ConfigError: option 'train.max_epoch' has no value; write 'train.max_epoch VALUE'"),
        (["model.name=osnet_x0_26"], "ConfigError: unknown model 'osnet_x0_26'; did you mean 'osnet_x0_25'"),
        (
            ["oskt.students=['width=0.3']"],
            r"WidthError: oskt.students has 'width=0.3': width 4 of group 'stem' is outside of \[8, 16\], from the "
            r"chain's to the teacher's \(3 groups are too narrow\); ask for a ratio of at least 0.5, or refine a",
        ),
        (
            ["oskt.students=['width=1.5']"],
            r"WidthError: oskt.students has 'width=1.5': width ratio 1.5 is outside of \(0, 1\]; give the share",
        ),
        (
            ["oskt.students=['like=resnet18']"],
            r"WidthError: oskt.students has 'like=resnet18': 'resnet18' is of another depth or family than the "
            r"teacher: \d+ tensors are missing in it .*'stem.weight'.*; a student has all of the teacher's",
        ),
        (
            ["model.name=osnet_x0_25", "oskt.students=['like=osnet_x1_0']"],
            r"WidthError: oskt.students has 'like=osnet_x1_0': width 64 of group 'conv1.conv' is outside of \[1, 16\]; "
            "a student has at most the teacher's channels",
        ),
        (["oskt.students=['wdith=0.5']"], "ConfigError: oskt.students has 'wdith=0.5'; did you mean 'width'"),
        (["oskt.students=['width=half']"], "ConfigError: oskt.students has 'width=half'; the width is a ratio"),
        (["oskt.controls=['slize']"], "ConfigError: oskt.controls is 'slize'; did you mean 'slice'"),
        (["engine=triplet"], "ConfigError: engine is 'triplet', but loss.name is 'softmax'"),
        (["engine=okst"], r"ConfigError: unknown engine 'okst'; did you mean 'oskt'\?; known engines: .*softmax"),
        (["data.sources=['nowhere']"], "ConfigError: unknown data set 'nowhere'.*; known: .*market1501"),
        (
            ["data.sources=['market1501']", "data.targets=['market1501']"],
            r"DataError: data set 'market1501' is not at '.*market1501'; download it, unpack it there, or give the "
            r"folder that contains it with --root \(data.root\)",
        ),
        (
            ["data.sources=['market1501']", "data.targets=['market1501']", "data.root=/nowhere/at-all"],
            "DataError: no data root at '/nowhere/at-all', where data set 'market1501' should be; make the folder",
        ),
        (["oskt.teacher=/nowhere/teacher.pth"], "CheckpointError: oskt.teacher .*: no file at '/nowhere/teacher.pth'"),
        (["data.save_dir=/proc/nowhere"], r"ConfigError: data.save_dir '/proc/nowhere' cannot be written \(.*\); give"),
    ],
)
def test_mistakes_are_found_before_training(
    tiny_net, data_root, tmp_path, untrained, command, capsys, options, message
):
    places = [f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}"]
    assert command([*TINY, *places, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert re.match(message, last), last
    assert "Traceback" not in printed.err
    assert left_in(tmp_path) == []


def damaged(content):
    """A state dict with a tensor less, one more, and one of another shape."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    del state["stem.weight"]
    return {**state, "extra.weight": torch.zeros(3), "classifier.weight": torch.zeros(9, 24)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path, _: torch.save(models.build("squeezenet1_1", 6).state_dict(), path),
            r"does not fit TinyNet \(\d+ tensors\): \d+ missing: stem.weight, .*; \d+ unexpected: features.0.",
        ),
        (
            lambda path, good: torch.save(damaged(good["teacher.pth"]), path),
            r"1 missing: stem.weight; 1 unexpected: extra.weight; 1 misshaped: classifier.weight \(9, 24\) instead of "
            r"\(6, 24\). Nothing was loaded; give a checkpoint of the same backbone",
        ),
        (
            lambda path, good: path.write_bytes(good["teacher.pth"][:9000]),
            "cannot read '.*teacher.pth': damaged, or it holds more than tensors",
        ),
    ],
    ids=["another backbone", "other tensors", "truncated"],
)
def test_checkpoints_that_do_not_fit(good, data_root, tmp_path, untrained, command, capsys, make, message):
    path = tmp_path / "teacher.pth"
    make(path, good)
    places = [f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}", f"oskt.teacher={path}"]
    assert command([*TINY, *places]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"CheckpointError: oskt.teacher cannot be the teacher 'tiny_net': .*{message}", last), last
    assert left_in(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path, good: path.write_bytes(good["chain.safetensors"][:-50]),
            "cannot read '.*chain.safetensors': not a whole safetensors file .* truncated .* write or copy it again",
        ),
        (
            lambda path, _: save_file({"x": torch.zeros(2)}, path),
            "'.*chain.safetensors' is a safetensors file of another program: .* give a file that this package saved",
        ),
    ],
    ids=["truncated", "foreign"],
)
def test_chains_that_cannot_be_read(good, data_root, tmp_path, untrained, command, capsys, make, message):
    path = tmp_path / "chain.safetensors"
    make(path, good)
    places = [f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}", f"oskt.chain={path}"]
    assert command([*TINY, *places]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"ChainError: {message}", last), last
    assert left_in(tmp_path / "run") == []


def test_options_may_follow_the_names_of_a_list(command, capsys):
    parse = tool("main").parse_arguments
    parsed = parse(["-t", "a", "b", "oskt.width=0.5", "train.lr", "0.1", "--root", "r", "model.name=x", "-s", "c"])
    assert (parsed.sources, parsed.targets, parsed.root) == (["c"], ["a", "b"], "r")
    assert parsed.options == ["oskt.width=0.5", "train.lr", "0.1", "model.name=x"]
    with pytest.raises(SystemExit):
        parse(["-s", "oskt.width=0.5"])
    assert "--sources is followed by 'oskt.width=0.5', which is an option; give a name first" in capsys.readouterr().err


def test_weights_that_cannot_be_fetched(data_root, tmp_path, monkeypatch):
    """Without a network; a run that has its teacher's weights fetches nothing."""

    def fetch(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("gdown.download", fetch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    pretrained = ("model.name=osnet_x0_25", "model.pretrained=True")
    config = configured(data_root, tmp_path / "run", *pretrained)
    with pytest.raises(ZooError, match=r"ImageNet weights of 'osnet_x0_25' \(OSError: Netw.*pretrained=False to"):
        make_plan(config, 6)
    torch.save(models.build("osnet_x0_25", 6).state_dict(), tmp_path / "teacher.pth")
    given = configured(data_root, tmp_path / "run", *pretrained, f"oskt.teacher={tmp_path / 'teacher.pth'}")
    assert make_plan(given, 6).chain_widths["conv1.conv"] == 8


def test_exploding_training_stops_and_says_where(tiny_net, data_root, tmp_path, command, capsys):
    """The state before the explosion is kept, and the same command with another rate starts again."""
    words = [*TINY, f"data.root={data_root}", f"data.save_dir={tmp_path}", "train.max_epoch=9"]
    words += ["train.lr_scheduler=warmup_multi_step", "train.warmup_epochs=1", "train.warmup_factor=0.0"]
    assert command([*words, "train.lr=1e30"]) == 2
    message = (
        r"TrainingError: stage 'teacher': loss is (nan|inf) at epoch 2 of 9, iteration [23] of 3 \(loss_x=.*\); the "
        r"state after epoch 1 is in '.*model.pth.tar-last'; lower the learning rate \(now 1e\+30\) or check the images"
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(message, last), last
    assert last in (tmp_path / "log.txt").read_text(), "the log says so as well"
    kept = load_checkpoint(tmp_path / "teacher" / "model" / "model.pth.tar-last")
    assert kept["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept["state_dict"].values())
    assert not (tmp_path / "teacher" / "stage.json").exists()


def test_every_error_of_the_package_is_one_family():
    assert all(issubclass(kind, OsktError) for kind in (ConfigError, DataError, WidthError, TrainingError))
