"""The VKD paper's recipes as configurations: each run dry on stand-in data, and its values those of the paper."""

import re
from pathlib import Path

import pytest
from test_sets_run import SMALL
from test_tools import tool

from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.runs import run_dry

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs" / "paper" / "vkd"
RECIPES = sorted(PAPER.glob("*.yaml"))  # by backbone, then by data
SIZES = {"mars": (256, 128), "dukemtmcvidreid": (256, 128), "veri776": (224, 224), "atrw": (224, 224)}
MILLIONS = {  # parameters of backbone and neck
    "resnet18": 11.2,
    "resnet34": 21.3,
    "resnet50": 23.5,
    "resnet101": 42.5,
    "resnet50_bam": 23.9,
    "resnet101_bam": 42.9,
    "densenet121": 6.96,
    "mobilenetv2_x1_0": 2.23,
}
PUBLISHED = {  # on MARS, teacher and student: mAP/rank-1 of V2V and of I2V
    "resnet34": ("78.03/86.67, 70.74/80.81", "79.50/87.83, 73.68/82.17"),
    "resnet50": ("81.13/87.88, 73.38/82.22", "82.22/88.74, 77.27/83.89"),
    "resnet101": ("81.66/88.59, 74.94/82.78", "82.65/89.60, 77.64/85.91"),
    "resnet50_bam": ("81.19/88.54, 74.11/82.58", "83.07/89.39, 78.13/84.34"),
    "densenet121": ("81.93/89.75, 74.34/82.68", "82.84/89.80, 77.09/84.04"),
    "mobilenetv2_x1_0": ("77.10/85.96, 67.94/78.64", "79.62/88.13, 73.95/83.33"),
}


def parts_of(path):
    """Backbone and data set of a recipe: `resnet50_bam`, `mars`."""
    return path.stem.rsplit("_", 1)


_built = {}


def dry_run_of(config):
    """A dry run; the networks of one configuration serve the next ones of the same backbone and size."""
    key = (config.model.name, config.data.height)
    if _built and next(iter(_built))[0] != key[0]:
        _built.clear()
    result = run_dry(config, _built.get(key), step=False)
    _built[key] = result.built
    return result


def test_every_data_set_has_every_backbone():
    assert sorted(path.stem for path in RECIPES) == sorted(f"{net}_{data}" for net in MILLIONS for data in SIZES)


def test_the_page_has_every_recipe_and_the_published_numbers():
    lines = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {row[0].strip("`"): row[1:] for row in rows}
    for path in RECIPES:
        net, data = parts_of(path)
        published = PUBLISHED.get(net, ("", "")) if data == "mars" else ("", "")
        assert rows[path.stem] == [*published, ""], path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_dry(path):
    net, data = parts_of(path)
    height, width = SIZES[data]
    result = dry_run_of(load_config(path))
    text = result.summary()
    assert f"vkd_{net} at {height}x{width}" in text and f"trained on          {data}" in text
    assert "8 views (multiview) for the teacher, 2 of them for the student; 12 identities x 4 in a batch" in text
    own = "1 views (temporal); 18 identities x 4" if data == "veri776" else "8 views (temporal); 8 identities x 4"
    assert own in text and "but for the last stage (imagenet) and the head (fresh)" in text
    assert [stage.name for stage in result.stages] == ["vkd.teacher_stage", "vkd.student_stage"]
    taught, distilled = result.stages
    assert taught.curve() == (
        "0: 0.0001, 200: 1e-05, 250: 1e-06, 299: 1e-06"
        if data == "veri776"
        else "0: 0.0001, 100: 1e-05, 200: 1e-06, 299: 1e-06"
    )
    assert distilled.curve() == "0: 0.0001, 300: 1e-05, 450: 1e-06, 499: 1e-06"
    teacher, student = result.networks
    assert teacher[1:] == student[1:] and teacher[1] / 1e6 == pytest.approx(MILLIONS[net], rel=0.01)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_values_of_the_paper(path):
    config = load_config(path)
    net, data = parts_of(path)
    assert (config.engine, config.model.name, config.model.pretrained) == ("vkd", net, True)
    assert config.data.sources == config.data.targets == [data] and config.data.type == "video"
    assert (config.data.height, config.data.width) == SIZES[data]
    assert config.data.save_dir == f"log/paper/vkd/{path.stem}"
    assert config.data.transforms == ["random_flip", "pad_crop", "random_erase"]
    assert config.train.optim == "adam" and not config.loss.softmax.label_smooth
    triplet = config.loss.triplet
    assert (config.loss.name, triplet.weight_t, triplet.weight_x, triplet.soft_margin) == ("triplet", 1, 1, True)
    node = config.vkd
    assert (node.num_views, node.num_student_views, node.test_frames, node.strategy) == (8, 2, 8, "multiview")
    assert (node.temperature, node.alpha, node.beta, node.generations) == (10, 0.1, 1e-4, 1)
    assert node.reinit_last_stage and node.last_stage_weights == "imagenet"
    for stage in (node.teacher_stage, node.student_stage):
        assert (stage.lr, stage.weight_decay, stage.gamma, stage.lr_scheduler) == (1e-4, 1e-5, 0.1, "multi_step")
    assert node.query_in_gallery == (data == "mars") and node.no_camera == (data == "atrw")
    both = ["V2V", "I2V"]
    assert node.protocols == (both if data in ("mars", "dukemtmcvidreid") else [*both, "V2I", "I2I"])


# ---- dry runs ------------------------------------------------------------------------------------------------------


ON_MARS = [*SMALL, "model.name=tiny_net", "data.sources=['mars']", "data.targets=['mars']"]  # nothing is drawn


def test_the_command_makes_one_step_and_leaves_nothing(tmp_path, monkeypatch, tiny_net, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["model.pretrained=True", "vkd.teacher=weights/teacher.pth", "vkd.generations=3"]
    options += ["vkd.student=chains/chain.safetensors", "vkd.student_width=0.5"]
    assert tool("main").main([*ON_MARS, *options, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"one step on stand-in data: loss_t [\d.]+, loss_x [\d.]+, acc \S+, loss_dp \S+, loss_kd", printed)
    assert "vkd.teacher_stage" not in printed and "3 students, one after another" in printed
    for name, path in (("teacher ", "weights/teacher.pth"), ("student's chain", "chains/chain.safetensors")):
        assert re.search(rf"^{name} +{path} \(not there yet", printed, re.MULTILINE)
    assert re.search(r"^student +width 0.5 of the chain 'chain.safetensors'", printed, re.MULTILINE)
    assert tool("main").main([*ON_MARS, "vkd.last_stage_weights=weights/imagenet.pth", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^last stage +weights/imagenet.pth \(not there yet", printed, re.MULTILINE)
    assert "its teacher's weights, but for the last stage (weights/imagenet.pth) and the head (fresh)" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vkd_synthped", "vkd_oskt_synthped"])
def test_the_embedded_configurations_run_dry(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml", options=["data.height=32", "data.width=16"])
    result = run_dry(config, step=False)
    assert [stage.epochs for stage in result.stages] == [
        config.vkd.teacher_stage.max_epoch,
        config.vkd.student_stage.max_epoch,
    ]
    teacher, student = (params for _, params, _ in result.networks)
    assert student == teacher if name == "vkd_synthped" else student < teacher / 2


def test_a_dry_run_refuses_what_the_run_would_refuse(tiny_net):
    for options, error, message in [
        (["vkd.student=wdith=0.5"], ConfigError, "vkd.student has 'wdith=0.5'; did you mean 'width'"),
        (["vkd.student_stage.max_epoch=0"], ConfigError, "vkd.student_stage.max_epoch is 0, so that no student"),
        (["vkd.teacher_stage.max_epoch=0"], ConfigError, "vkd.teacher_stage.max_epoch is 0, .* give a trained"),
        (["loss.name=softmax"], ConfigError, "engine vkd needs embeddings in training, but loss.name is 'softmax'"),
        (
            ["vkd.student=width=0.5", "vkd.generations=2", "vkd.last_stage_weights=imagenet"],
            ConfigError,
            "vkd.last_stage_weights is 'imagenet', but from the second generation on students have the widths of",
        ),
        (["data.sources=['viper']"], ConfigError, "'viper' is a data set of type image, but data.type is 'video'"),
    ]:
        with pytest.raises(error, match=message):
            run_dry(load_config(options=[*ON_MARS, *options]), step=False)
