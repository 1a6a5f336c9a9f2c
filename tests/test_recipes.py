"""The papers' recipes as configurations: each run dry on stand-in data, and its values those of the paper."""

from pathlib import Path

import pytest
import torch
import yaml
from chains import arbitrary_chain
from runs import tiny
from test_tools import tool

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.config import default_config, get, load_config
from oskt_torchreid.datasets.stand_in import stand_ins
from oskt_torchreid.errors import ChainError, CheckpointError, ConfigError, GraphError
from oskt_torchreid.host import models
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.models import build_model
from oskt_torchreid.runs import run, run_dry
from oskt_torchreid.runs.oskt import refinement
from oskt_torchreid.runs.oskt.plan import check_start, make_plan

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "configs" / "paper" / "oskt"
RECIPES = sorted(PAPER.glob("*.yaml"), key=lambda path: (path.stem.split("_chain")[0], path.stem))
CHAINS = {  # chain: published parameters of its students in millions
    "res50_chain8": (0.37, 0.61),
    "res50_chain16": (1.48, 2.42),
    "res50_chain32": (5.89, 9.64),
    "vit_s_chain120": None,  # the published counts leave tokens, positions and the teacher's patch embedding out
    "vit_b_chain264": None,
}
TEACHERS = ("res50", "vit_s", "vit_b")
SINGLE, CROSS = ("market1501", "msmt17"), (("msmt17", "market1501"), ("msmt17", "cuhk03"), ("market1501", "cuhk03"))
RATIOS = (0.1, 0.3, 0.5)

_built = {}
pytestmark = pytest.mark.usefixtures("tiny_net")


def recipe(name):
    return load_config(PAPER / f"{name}.yaml")


def dry_run_of(config):
    """A dry run; the networks of one configuration serve the next of the same (one set is kept: they are large)."""
    key = str((config.model.name, config.oskt.width, config.oskt.students))
    if key not in _built:
        _built.clear()
    result = run_dry(config, _built.get(key), step=False)
    _built[key] = result.built
    return result


def test_every_scenario_has_a_recipe():
    names = [f"{net}_teacher_{data}" for net in TEACHERS for data in SINGLE]
    for chain in CHAINS:
        names += [f"{chain}_{data}" for data in SINGLE]
        names += [f"{chain}_{source}_to_{target}" for source, target in CROSS]
        names += [f"{chain}_few_shot_{ratio}" for ratio in RATIOS]
    assert sorted(names) == sorted(path.stem for path in RECIPES)


def test_the_page_lists_every_recipe():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [path.stem for path in RECIPES if f"| `{path.stem}` |" not in page] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_dry(path):
    config = load_config(path)
    result = dry_run_of(config)
    text = result.summary()
    assert f"{config.model.name} at 256x128" in text and f"trained on  {config.data.sources[0]}" in text
    names = [stage.name for stage in result.stages]
    if "teacher" in path.stem:
        assert names == ["train"] and result.built is None
        return
    assert names == (["oskt.finetune"] if config.oskt.chain else ["oskt.refine", "oskt.finetune"])
    published = CHAINS[path.stem[: path.stem.index("_", path.stem.index("chain"))]]
    _, chain, *students = [params / 1e6 for _, params, _ in result.networks]
    assert students[0] == chain < students[1]
    if published:
        assert students == pytest.approx(published, rel=0.01, abs=0.006)  # the neck is not in the published count


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_finds_what_an_earlier_one_leaves(path):
    config = load_config(path)
    assert config.data.save_dir == f"log/paper/oskt/{path.stem}"
    for key in ("oskt.chain", "oskt.teacher"):
        given = get(config, key)
        if not given:
            continue
        folder = Path(given).relative_to("log/paper/oskt").parts[0]
        earlier = recipe(folder)
        assert earlier.model.name == config.model.name
        if key == "oskt.chain":
            assert given == f"{earlier.data.save_dir}/chain.safetensors"
            assert earlier.oskt.width == config.oskt.width and earlier.oskt.students == config.oskt.students
            source = path.stem.split("_to_")[0] if "_to_" in path.stem else "msmt17"
            assert earlier.data.sources == [source.rsplit("_", 1)[-1]]
        else:
            assert given == f"{earlier.data.save_dir}/model/model.pth.tar-{earlier.train.max_epoch}"
            assert earlier.data.sources == config.data.sources


# ---- values of the paper -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_both_kinds_of_networks_share(path):
    config = load_config(path)
    assert (config.data.height, config.data.width) == (256, 128)
    assert config.data.transforms == ["random_flip", "pad_crop", "random_erase"]
    assert config.sampler.train_sampler == "RandomIdentitySampler" and config.sampler.num_instances == 4
    assert {get(config, f"{stage}.batch_size") for stage in ("train", "oskt.refine", "oskt.finetune")} == {64}
    assert config.test.normalize_feature and config.loss.triplet.weight_t == config.loss.triplet.weight_x == 1
    assert not config.cuhk03.classic_split and config.loss.name == "triplet"


def test_resnet_recipe():
    config = recipe("res50_chain8_market1501")
    assert config.model.name == "oskt_resnet50" and config.train.optim == "adam"
    assert (
        config.loss.softmax.label_smooth and config.loss.triplet.margin == 0.3 and not config.loss.triplet.soft_margin
    )
    assert config.loss.center == {"weight": 0.0005, "lr": 0.5}
    assert config.data.norm_mean == default_config().data.norm_mean and config.data.interpolation == "bilinear"
    milestones = {"train": [40, 70, 130], "oskt.refine": [50, 70], "oskt.finetune": [40, 70, 90]}
    epochs = {"train": 200, "oskt.refine": 100, "oskt.finetune": 100}
    for key, steps in milestones.items():
        stage = get(config, key)
        assert (stage.lr, stage.weight_decay, stage.max_epoch) == (3.5e-4, 5e-4, epochs[key])
        assert (stage.lr_scheduler, stage.warmup_epochs, stage.warmup_factor) == ("warmup_multi_step", 10, 0.01)
        assert (stage.stepsize, stage.gamma) == (steps, 0.1)
    assert get(config, "oskt.refine.lambda") == 1 and config.oskt.refine.lambda_schedule == "constant"


def test_vit_recipe():
    config = recipe("vit_b_chain264_msmt17")
    assert config.model.name == "vit_base_patch16" and config.train.optim == "sgd" and config.sgd.momentum == 0.9
    assert not config.loss.softmax.label_smooth and config.loss.triplet.soft_margin and config.loss.center.weight == 0
    assert config.data.norm_mean == config.data.norm_std == [0.5, 0.5, 0.5] and config.data.interpolation == "bicubic"
    assert config.train.bias_lr_factor == 2 and config.train.mixed_precision
    for key in ("train", "oskt.refine", "oskt.finetune"):
        stage = get(config, key)
        assert (stage.lr, stage.weight_decay, stage.max_epoch) == (4e-4, 1e-4, 120)
        assert (stage.lr_scheduler, stage.warmup_epochs, stage.min_lr_factor) == ("warmup_cosine", 20, 0.002)
    assert config.oskt.refine.lambda_schedule == "linear" and config.oskt.refine.vector_copies
    assert config.oskt.attention == "paper"


@pytest.mark.parametrize(("name", "feature"), [("res50", "after"), ("vit_s", "before")])
def test_the_feature_at_test_is_on_the_papers_side_of_the_neck(name, feature):
    config = load_config(PAPER / f"{name}_teacher_market1501.yaml", options=["model.pretrained=False"])
    with torch.device("meta"):
        model = build_model(config, 2)
    assert model.feature == feature and model.has_neck


# ---- dry runs ------------------------------------------------------------------------------------------------------

SMALL = [
    "engine=oskt",
    "model.name=tiny_net",
    "model.pretrained=False",
    "loss.name=triplet",
    "loss.triplet.weight_x=1",
    "loss.center.weight=0.0005",
    "sampler.train_sampler=RandomIdentitySampler",
    "data.height=64",
    "data.width=32",
    "data.workers=0",
    "oskt.width=0.5",
    "oskt.students=['width=0.5', 'width=0.75']",
    "train.max_epoch=1",
    "oskt.refine.max_epoch=1",
    "oskt.finetune.max_epoch=1",
    "use_gpu=False",
]


def small(*options):
    return load_config(options=[*SMALL, *options])


def test_a_dry_run_makes_one_step_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_dry(small("model.pretrained=True", "oskt.teacher=weights/teacher.pth"))
    assert set(result.step) == {"loss_t", "loss_x", "loss_c", "acc"} and all(v >= 0 for v in result.step.values())
    assert [stage.name for stage in result.stages] == ["oskt.refine", "oskt.finetune"]
    assert "weights/teacher.pth (not there yet" in result.summary()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_follows_every_schedule_to_its_end():
    options = ["train.max_epoch=6", "train.lr=0.1", "train.lr_scheduler=warmup_multi_step", "train.warmup_epochs=2"]
    config = small(
        *options, "train.stepsize=[4]", "oskt.refine.lr_scheduler=one_cycle", "oskt.refine.per_iteration=True"
    )
    train, refine, _ = run_dry(config, step=False).stages
    assert train.rates == pytest.approx([0.001, 0.0505, 0.1, 0.1, 0.01, 0.01]) and train.marks == (0, 2, 4, 5)
    assert train.curve() == "0: 0.001, 2: 0.1, 4: 0.01, 5: 0.01"
    assert len(refine.rates) == 1 and refine.batch_size == 32


@pytest.mark.parametrize("names", [["viper"], ["viper", "market1501", "grid"]])
def test_sets_of_any_layout_have_a_stand_in(names, monkeypatch):
    """torchreid's own and users': another set of their kind stands in, each a different one."""
    assert list(stand_ins(["market1501", "viper", "grid"], "image").values()) == ["market1501", "msmt17", "cuhk03"]
    assert stand_ins([f"video_{number}" for number in range(6)], "video")["video_5"] == "mars", "there are five"
    assert stand_ins(["anything", "mars"], "video") == {"anything": "dukemtmcvidreid", "mars": "mars"}
    result = run_dry(small(f"data.sources={names}", "data.targets=['viper']"))
    assert result.step["loss_x"] > 0 and ("trained on", ", ".join(names)) in result.details
    assert ("data", f"not looked at: {', '.join(sorted(set(names), key=names.index))} not there below 'reid-data'") in (
        result.details
    )


def test_a_dry_run_builds_the_refinements_engine_as_the_run_does(tiny_net, data_root, tmp_path, monkeypatch):
    """The same arguments, whatever the node says: only data, networks and what they carry are others."""
    seen = []

    class Noting(OSKTEngine):
        """Keeps what it was built with."""

        def __init__(self, *parts, **options):
            seen.append(options)
            super().__init__(*parts, **options)

    monkeypatch.setattr(refinement, "OSKTEngine", Noting)
    options = (
        "sstudent_weight=0.3",
        "lambda=0.7",
        "lambda_within=0.6",
        "half_resolution_epochs=1",
        "distil_weight=0.1",
    )
    # Not the tiny network: torch 2.14 on AMD writes beyond its memory for strided 1x1 convolutions of the image then.
    further = ("train.channels_last=True", "model.name=osnet_x0_25", "oskt.width=0.5", "oskt.students=['width=0.5']")
    further += ("data.height=64", "data.width=32")
    config = tiny(data_root, tmp_path, *(f"oskt.refine.{option}" for option in options), *further)
    run_dry(config)
    run(config)
    of_dry, of_run = ({key: value for key, value in one.items() if key not in ("chain", "loss")} for one in seen)
    assert of_dry == of_run
    assert of_run["sstudent_weight"] == 0.3 and of_run["half_resolution_epochs"] == 1 and of_run["channels_last"]


def test_a_dry_run_refuses_what_the_run_would_refuse():
    with pytest.raises(ConfigError, match="oskt.students has 'widht=0.5'"):
        run_dry(small("oskt.students=['widht=0.5']"))
    with pytest.raises(ConfigError, match="unknown data set 'vipper'; did you mean 'viper'"):
        run_dry(small("data.sources=['vipper']"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["res50_teacher_market1501", "vit_s_chain120_msmt17_to_cuhk03"])
def test_the_command_prints_the_plan(name, capsys):
    """On small images, which take less time."""
    arguments = ["--config-file", str(PAPER / f"{name}.yaml"), "--dry-run", "data.height=64", "data.width=32"]
    assert tool("main").main(arguments) == 0
    printed = capsys.readouterr().out
    assert "learning rate at epoch" in printed and "one step on stand-in data: loss_t" in printed


# ---- chains of other data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory, tiny_net):
    """A chain of a small network that was trained on three identities."""
    path = tmp_path_factory.mktemp("chain") / "chain.safetensors"
    teacher = build_model(small(), 3)
    WeightChain.from_teacher(teacher, 0.5, input_size=(3, 64, 32)).save(path)
    return path


def test_students_of_a_given_chain_are_trained_on_other_people(chain_file, market_root, tmp_path):
    options = [f"oskt.chain={chain_file}", f"data.root={market_root}", f"data.save_dir={tmp_path}"]
    options += ["oskt.finetune.batch_size=8", "train.batch_size=8", "few_shot.ratio=0.5", "few_shot.seed=1"]
    config = small(*options, "oskt.students=['width=0.5']", "train.mixed_precision=True", "train.bias_lr_factor=2.0")
    results = run(config)
    assert [(row.name, row.kind) for row in results.rows] == [("width=0.5", "student")]
    assert results.rows[0].map_before is not None
    assert f"the chain '{chain_file}' of an earlier run" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "few_shot_list.txt").read_text().startswith("# 3 identities, 12 pictures: ratio 0.5, seed 1")
    for name in ("expanded", "student"):
        student = load_student(tmp_path / "students" / "width=0.5" / f"{name}.pth")
        assert student.classifier.out_features == 3 == student.student_record.num_classes


def test_a_teacher_run_leaves_the_file_that_chain_runs_read(market_root, tmp_path):
    options = [f"data.root={market_root}", f"data.save_dir={tmp_path}", "train.batch_size=8"]
    config = small(*options, "engine=triplet", "train.lr_scheduler=warmup_cosine", "train.warmup_epochs=1")
    run(config)
    path = tmp_path / "model" / f"model.pth.tar-{config.train.max_epoch}"
    plan = make_plan(small(f"oskt.teacher={path}"), 6)
    assert torch.equal(
        plan.teacher.state_dict()["classifier.weight"], torch.load(path)["state_dict"]["classifier.weight"]
    )


def test_mixed_precision_trains_on_losses_of_32_bits():
    class Doubled(torch.nn.Linear):
        loss = "triplet"

        def forward(self, images):
            feature = super().forward(images.flatten(1))
            assert feature.dtype == torch.bfloat16
            return feature[:, :2], feature

    engine = TransferEngine.__new__(TransferEngine)
    engine.device, engine.mixed_precision = torch.device("cpu"), True
    engine.model = Doubled(12, 4)
    logits, features = engine.outputs_of(torch.rand(3, 3, 2, 2))
    assert logits.dtype == features.dtype == torch.float32
    features.sum().backward()
    assert engine.model.weight.grad.dtype == torch.float32


def test_a_given_chain_is_checked_first(chain_file):
    for options, error, message in [
        (["oskt.teacher=teacher.pth"], CheckpointError, "no file at 'teacher.pth'"),
        (["oskt.controls=['scratch']"], ConfigError, r"oskt.chain is given.* but oskt.controls is \['scratch'\]"),
        (["oskt.ladder=[0.5, 0.25]"], ConfigError, r"nothing is refined, but oskt.ladder is \[0.5, 0.25\]; empty one"),
        (["model.name=osnet_x0_5"], ConfigError, "is a chain of 'tiny_net', but model.name is 'osnet_x0_5'"),
        (["oskt.chain=absent.safetensors"], ChainError, "no file at 'absent.safetensors'"),
    ]:
        config = small(f"oskt.chain={chain_file}", *options)
        with pytest.raises(error, match=message):
            check_start(config)
            make_plan(config, 3)


def test_a_run_that_would_train_nothing_is_refused(chain_file):
    """With a trained teacher, a chain, or nothing but evaluation to do, no epoch is needed."""
    message = "train.max_epoch is 0 and train.start_epoch 0, so that nothing would be trained; .* as oskt.teacher"
    for options in ((), ("engine=triplet",)):
        with pytest.raises(ConfigError, match=message):
            run(small("train.max_epoch=0", *options))
        with pytest.raises(ConfigError, match=message):
            run_dry(small("train.max_epoch=0", *options))
    with pytest.raises(ConfigError, match="train.max_epoch is 3 and train.start_epoch 3"):
        run(small("train.max_epoch=3", "train.start_epoch=3"))
    for options in ((f"oskt.chain={chain_file}",), ("oskt.teacher=t.pth",), ("engine=triplet", "test.evaluate=True")):
        check_start(small("train.max_epoch=0", *options))


def test_a_given_chain_whose_features_cannot_be_scaled(tmp_path):
    size = (3, 64, 32)
    chain = arbitrary_chain(models.build("mobilenetv2_x1_0", 3), 0.5, size)
    chain.save(tmp_path / "chain.safetensors")
    config = small(f"oskt.chain={tmp_path}/chain.safetensors", "model.name=mobilenetv2_x1_0", "oskt.distance=teacher")
    with pytest.raises(GraphError, match="cannot be scaled for distance='teacher': .*relu6"):
        make_plan(config, 3)


# ---- files on files ------------------------------------------------------------------------------------------------


def write(path, **content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_bases_come_first_in_their_order(tmp_path):
    write(tmp_path / "base" / "a.yaml", train={"lr": 0.1, "max_epoch": 7}, data={"height": 8})
    write(tmp_path / "base" / "b.yaml", base="a.yaml", train={"lr": 0.2})
    write(tmp_path / "base" / "c.yaml", data={"width": 9})
    config = load_config(write(tmp_path / "run.yaml", base=["base/b.yaml", "base/c.yaml"], data={"height": 10}))
    assert (config.train.lr, config.train.max_epoch, config.data.height, config.data.width) == (0.2, 7, 10, 9)


def test_bases_that_cannot_be_used(tmp_path):
    write(tmp_path / "a.yaml", base="b.yaml")
    write(tmp_path / "b.yaml", base="./a.yaml")
    with pytest.raises(ConfigError, match="base goes round in a circle: '.*a.yaml' -> '.*b.yaml' -> '.*a.yaml'"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="no file at '.*absent.yaml', which is a base of '.*c.yaml'"):
        load_config(write(tmp_path / "c.yaml", base="absent.yaml"))
    with pytest.raises(ConfigError, match="base in '.*d.yaml' is 3; expected the path"):
        load_config(write(tmp_path / "d.yaml", base=3))
    write(tmp_path / "e.yaml", train={"lrr": 1})
    with pytest.raises(ConfigError, match="unknown key 'train.lrr' in '.*e.yaml'.*train.lr"):
        load_config(write(tmp_path / "f.yaml", base="e.yaml"))


def test_a_diamond_of_bases_is_no_circle(tmp_path):
    write(tmp_path / "root.yaml", train={"lr": 0.5})
    for name in ("left", "right"):
        write(tmp_path / f"{name}.yaml", base="root.yaml")
    assert load_config(write(tmp_path / "run.yaml", base=["left.yaml", "right.yaml"])).train.lr == 0.5
