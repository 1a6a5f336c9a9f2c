"""The configuration tree: torchreid's keys, our nodes, precedence, and errors that name the nearest key."""

import pytest

from oskt_torchreid.baselines import partitions
from oskt_torchreid.chain.clustering import CLUSTERINGS
from oskt_torchreid.chain.distance import DISTANCES
from oskt_torchreid.chain.expansion import STATISTICS
from oskt_torchreid.chain.narrowing import ATTENTIONS
from oskt_torchreid.config import default_config, digest, get, load_config, save_resolved
from oskt_torchreid.config.tree import every_key
from oskt_torchreid.datasets.checks import HOW
from oskt_torchreid.deploy.latency import AUTO, BACKENDS, DEVICES
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host.optimization import SCHEDULES
from oskt_torchreid.host.ranking import METRICS


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_are_valid_and_torchreids():
    config = load_config()
    assert config.model.name == "resnet50" and config.train.lr == 0.0003
    assert config.loss.triplet.weight_x == 0.0 and config.test.ranks == [1, 5, 10, 20]
    assert get(config, "oskt.refine.lambda") == 1.0
    assert config.is_frozen()


def test_defaults_are_fresh_copies():
    first = default_config()
    first.data.sources.append("other")
    assert default_config().data.sources == ["market1501"]


def test_precedence_is_file_then_flags_then_options_in_order(tmp_path):
    path = write(tmp_path, "train: {lr: 3e-4, max_epoch: 5}\ndata: {root: in-file}\noskt: {refine: {lambda: 0.5}}\n")
    config = load_config(
        path,
        options=["train.lr", "1e-3", "train.lr=2e-3", "oskt.students", "['width=0.5']"],
        flags={"data.root": "in-flag", "data.sources": ["a", "b"], "data.targets": None, "data.transforms": []},
    )
    assert config.train.lr == 2e-3 and config.train.max_epoch == 5
    assert config.data.root == "in-flag" and config.data.sources == ["a", "b"]
    assert config.data.targets == ["market1501"] and config.data.transforms == ["random_flip"]
    assert config.oskt.students == ["width=0.5"] and get(config, "oskt.refine.lambda") == 0.5


def test_values_take_the_type_of_the_default():
    config = load_config(options=["train.lr=1", "data.norm_mean=(0, 0, 0)", "model.neck=True", "data.root=5"])
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float)
    assert config.data.norm_mean == [0.0, 0.0, 0.0] and config.model.neck is True and config.data.root == "5"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trian.lr=1", "unknown key 'trian.lr' in the command line; did you mean 'train.lr'"),
        ("oskt.finetun.lr=1", "unknown key 'oskt.finetun.lr'.*did you mean 'oskt.finetune.lr'"),
        ("train.max_epochs=1", "unknown key 'train.max_epochs'.*did you mean 'train.max_epoch'"),
        ("refine.lambda_schedule=linear", "did you mean 'oskt.refine.lambda_schedule'"),
        ("oskt=1", "it is a group of keys: teacher, width"),
        ("train.lr=fast", "train.lr in the command line is 'fast' .str.; expected float"),
        ("train.max_epoch=1.5", "expected int"),
        ("data.norm_mean=['a']", r"data.norm_mean\[0\].*expected float"),
        ("oskt.width=1.5", "oskt.width is 1.5; allowed: 1e-06 to 1"),
        ("oskt.width=0", "oskt.width is 0.0; allowed"),
        ("train.batch_size=0", "train.batch_size is 0; allowed: 1 to inf"),
        ("loss.name=tripet", "loss.name is 'tripet'; did you mean 'triplet'.*allowed: 'softmax', 'triplet'"),
        ("oskt.refine.lr_scheduler=onecycle", "oskt.refine.lr_scheduler is 'onecycle'; did you mean 'one_cycle'"),
        ("oskt.controls=['scrach']", "oskt.controls is 'scrach'; did you mean 'scratch'"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(options=[option])


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("data.check", HOW),
        ("test.dist_metric", METRICS),
        ("train.lr_scheduler", SCHEDULES),
        ("oskt.clustering", {*CLUSTERINGS, *partitions.PARTITIONS}),
        ("oskt.attention", ATTENTIONS),
        ("oskt.statistics", STATISTICS),
        ("oskt.distance", DISTANCES),
        ("oskt.latency.backend", (AUTO, *BACKENDS)),
        ("oskt.latency.device", DEVICES),
    ],
)
def test_choices_are_those_that_the_parts_know(key, known):
    assert set(every_key()[key].allowed.choices) == set(known)


def test_option_without_value():
    with pytest.raises(ConfigError, match="option 'train.lr' has no value"):
        load_config(options=["train.lr"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oskt: {widht: 0.5}", "unknown key 'oskt.widht' in '.*run.yaml'; did you mean 'oskt.width'"),
        ("train: 3", "train in '.*run.yaml' is 3; it is a group of keys"),
        ("- train", "holds a list; expected keys and values"),
        ("train: {lr: [", "not valid YAML"),
        ("train: {lr: 1}\nloss: {name: triplet}\ntrain: {seed: 2}", "the key 'train' occurs twice in one group; put"),
        ("train: {lr: 1, lr: 2}", "the key 'lr' occurs twice in one group"),
        ("train.lr: 0.1", r"train.lr in .* is written with a dot; a file has groups: train: \{lr: 0.1\}$"),
        ("oskt: {refine.lr: 0.1}", r"a file has groups: oskt: \{refine: \{lr: 0.1\}\}"),
        ("{[a]: 1}", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("oskt.controls=['slice','slice']", "oskt.controls names 'slice' twice, so that it would be made twice"),
        ("oskt.students=['width=0.5','width=0.5']", "oskt.students names 'width=0.5' twice"),
        ("vkd.protocols=['V2V','V2V']", "vkd.protocols names 'V2V' twice"),
    ],
)
def test_names_that_stand_twice(option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(options=[option])


def test_what_yaml_itself_puts_together(tmp_path):
    text = "train: &first {lr: 0.5, seed: 3}\noskt: {finetune: {<<: {lr: 0.25}, lr: 0.125}}"
    config = load_config(write(tmp_path, text))
    assert (config.train.lr, config.train.seed, config.oskt.finetune.lr) == (0.5, 3, 0.125)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at .*absent.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_the_resolved_copy_gives_the_same_configuration(tmp_path):
    config = load_config(options=["train.lr=0.1", "oskt.refine.lambda=0.25"])
    assert load_config(save_resolved(config, tmp_path / "log")) == config


def test_digest_follows_content_not_order():
    first, second = load_config(options=["oskt.width=0.5"]), load_config(options=["train.seed=2"])
    assert digest(first.oskt) != digest(second.oskt)
    assert digest(first.data, first.loss) == digest(second.data, second.loss)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(first.data, 1) != digest(first.data, 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.lr=nan", "train.lr in the command line is 'nan' "),
        ("train.lr=1e999", "train.lr in the command line is inf; it must be a finite number"),
        (f"test.batch_size={10**20}", "test.batch_size in the command line is a whole number beyond 2147483648"),
        (f"train.weight_decay={10**400}", "train.weight_decay in the command line is a whole number beyond"),
        (f"oskt.teacher={'x' * 300}", r"oskt.teacher in the command line is 'x+'... of 300 characters; allowed: up"),
        (f"data.root={'x/' * 600}", "data.root in the command line is .* of 1200 characters"),
        ("data.norm_std=[0,0,0]", r"data.norm_std is \[0.0, 0.0, 0.0\]; each entry must be a number from 1e-06"),
        ("data.norm_std=[1,1]", r"data.norm_std is \[1.0, 1.0\], which has 2 entries; give exactly 3"),
        ("train.stepsize=[]", r"train.stepsize is \[\], which has 0 entries; give at least 1"),
        ("test.ranks=[0]", r"test.ranks is \[0\]; each entry must be a number from 1"),
        ("train.print_freq=0", "train.print_freq is 0; allowed: 1 to"),
        ("train.seed=-1", "train.seed is -1; allowed: 0 to"),
        ("data.sources=['a','b','a']", "data.sources names 'a' twice, so that each of its people would have two"),
        ("loss.center.weight=0.1", "loss.center.weight is 0.1, and networks give features to a loss with"),
        ("model.last_stride=2", "model.last_stride is 2; allowed: 0, 1"),
    ],
)
def test_values_that_nothing_can_use(option, message):
    with pytest.raises(ConfigError, match=message):
        load_config(options=[option])


def test_values_that_do_not_go_together():
    with pytest.raises(ConfigError, match="data.height 2000 times data.width 2000 are 4000000 pixels; allowed: up to"):
        load_config(options=["data.height=2000", "data.width=2000"])
    with pytest.raises(ConfigError, match="sgd.nesterov needs sgd.momentum above 0 and sgd.dampening 0"):
        load_config(options=["train.optim=sgd", "sgd.nesterov=True", "sgd.momentum=0.0"])


@pytest.mark.parametrize("content", [b"\x00\xff\xfe", b"train:\n\tlr: 1\n", b'data: {save_dir: "a\\0b"}', b"train:\n"])
def test_files_that_hold_no_configuration(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "run.yaml")
