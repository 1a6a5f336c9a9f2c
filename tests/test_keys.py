"""Every key of the configuration: what it shapes, who uses it, and that nothing is accepted and passed over."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from runs import TINY
from test_sets_run import SMALL as SMALL_SETS
from test_tools import tool
from yacs.config import CfgNode

from oskt_torchreid.config import Effect, default_config, get, leaves, load_config
from oskt_torchreid.config import loading as loading_module
from oskt_torchreid.config.nodes.oskt import STOCK_BASELINES
from oskt_torchreid.config.tree import every_key
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.runs import run
from oskt_torchreid.runs.stages import Stage
from oskt_torchreid.runs.use import check_use, refused_keys, unused_nodes

ROOT = Path(__file__).resolve().parents[1]
KEYS = leaves(default_config())
OWN_NODES = {"softmax": (), "triplet": (), "oskt": ("oskt",), "vkd": ("vkd",)}
METHOD_NODES = ("oskt", "vkd", "comparison")

SCHEDULES = "lr_scheduler=warmup_multi_step", "lr_scheduler=single_step", "lr_scheduler=warmup_cosine"
IDENTITIES = "sampler.train_sampler=RandomIdentitySampler", "loss.center.weight=0.1"
FROZEN = "train.fixbase_epoch=1", "loss.triplet.weight_x=1.0"
SCENARIOS = {
    "softmax": [
        ["engine=softmax", "train.fixbase_epoch=1", "model.last_stride=0", "test.eval_freq=1", "few_shot.ratio=0.9"],
        ["engine=softmax", "train.optim=sgd", "train.staged_lr=True", "train.lr_scheduler=warmup_cosine"],
        ["engine=softmax", "train.optim=rmsprop", "train.lr_scheduler=warmup_multi_step", "train.warmup_epochs=1"],
        ["engine=softmax", "sampler.train_sampler=RandomDomainSampler", "sampler.num_cams=2"],
        ["engine=softmax", "train.lr_scheduler=one_cycle", "test.visrank=True"],
    ],
    "triplet": [
        ["engine=triplet", "loss.name=triplet", "train.lr_scheduler=one_cycle", *FROZEN],
        ["engine=triplet", "loss.name=triplet", "train.optim=sgd", "train.lr_scheduler=warmup_cosine"],
        ["engine=triplet", "loss.name=triplet", "train.optim=rmsprop", "train.lr_scheduler=warmup_multi_step"],
        ["engine=triplet", "loss.name=triplet", "train.staged_lr=True", "test.visrank=True", *IDENTITIES],
    ],
    "oskt": [
        [f"{stage}.{SCHEDULES[0]}" for stage in ("train", "oskt.refine", "oskt.finetune")]
        + [
            f"oskt.controls={list(STOCK_BASELINES)}",
            "oskt.students=['width=0.5','latency=1s']",
            "train.fixbase_epoch=1",
        ],
        [f"{stage}.{SCHEDULES[2]}" for stage in ("train", "oskt.refine", "oskt.finetune")]
        + [f"{stage}.warmup_epochs=1" for stage in ("train", "oskt.refine", "oskt.finetune")]
        + ["train.optim=sgd", "train.staged_lr=True", "oskt.ladder=[0.75,0.5]"],
        [f"{stage}.lr_scheduler=one_cycle" for stage in ("train", "oskt.refine", "oskt.finetune")]
        + ["train.optim=rmsprop", "loss.name=triplet", "loss.triplet.weight_x=1.0"],
    ],
    "vkd": [
        [f"vkd.{stage}.lr_scheduler=warmup_multi_step" for stage in ("teacher_stage", "student_stage")],
        [f"vkd.{stage}.lr_scheduler=warmup_cosine" for stage in ("teacher_stage", "student_stage")]
        + [f"vkd.{stage}.warmup_epochs=1" for stage in ("teacher_stage", "student_stage")]
        + ["train.optim=sgd", "train.staged_lr=True"],
        [f"vkd.{stage}.lr_scheduler=one_cycle" for stage in ("teacher_stage", "student_stage")]
        + ["train.optim=rmsprop"],
    ],
}
NOT_READ = {
    # what another sampler or data set reads, which these runs do not have
    "softmax": {"sampler.num_datasets"},
    "triplet": set(),
    "oskt": set(),
    # distances are cosine ones, which lengths do not change; and widths of students of a chain's file
    "vkd": {"test.normalize_feature", "vkd.student_width"},
}


class Watch:
    """Which keys of a configuration are read, and what every stage of a run is made from.

    Reading all of a tree at once (digests, files, checks of ranges) is no use of a key.
    """

    def __init__(self, monkeypatch):
        self.read: set[str] = set()
        self.recipes = []
        self.checking = False
        get_item, check, begin = CfgNode.__getitem__, loading_module.check_config, Stage.__init__
        watch = self

        def item(node, name):
            value = get_item(node, name)
            prefix = node.__dict__.get("prefix")
            if prefix is not None and not watch.checking and not isinstance(value, CfgNode):
                watch.read.add(prefix + name)
            return value

        def checked(config):
            watch.checking = True
            try:
                check(config)
            finally:
                watch.checking = False

        def begun(stage, folder, recipe, *rest):
            watch.recipes.append(recipe)
            begin(stage, folder, recipe, *rest)

        monkeypatch.setattr(CfgNode, "__getitem__", item)
        monkeypatch.setattr(CfgNode, "get", lambda node, name, other=None: item(node, name) if name in node else other)
        monkeypatch.setattr(loading_module, "check_config", checked)
        monkeypatch.setattr(Stage, "__init__", begun)

    def load(self, options):
        config = load_config(options=options)
        self.mark(config, "")
        return config

    def mark(self, node, prefix):
        node.__dict__["prefix"] = prefix
        for name, value in node.items():
            if isinstance(value, CfgNode):
                self.mark(value, f"{prefix}{name}.")


def words(engine, data_root, folder):
    own = [word for word in TINY if engine == "oskt" or "oskt" not in word]
    tiny = [*SMALL_SETS, "model.name=tiny_net"] if engine == "vkd" else own
    return [*tiny, f"data.root={data_root}", f"data.save_dir={folder}"]


@pytest.fixture(scope="module", params=list(SCENARIOS))
def watched(request, tiny_net, tmp_path_factory):
    """An engine, the keys that its runs read, and their stages' recipes."""
    engine, folder = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        for number, options in enumerate(SCENARIOS[engine]):
            run(watch.load([*words(engine, folder / "data", folder / str(number)), *options]))
    return engine, watch


def test_every_key_has_a_row_and_the_table_no_others():
    assert list(every_key()) == list(KEYS)


def test_rows_say_what_a_key_means_and_have_defaults_that_are_allowed():
    for name, key in every_key().items():
        assert key.meaning and not key.meaning.endswith("."), name
        if key.allowed:
            key.allowed.check(name, key.default)


def never_used(engine):
    """Nodes and keys that do nothing in any of an engine's scenarios."""
    configs = [load_config(options=[*words(engine, "data", "log"), *options]) for options in SCENARIOS[engine]]
    return set.intersection(*(set(unused_nodes(config)) for config in configs))


@pytest.mark.slow
def test_every_key_is_used_or_refused(watched):
    """A key that an engine neither reads nor refuses is in no node that it uses."""
    engine, watch = watched
    foreign = [node for node in never_used(engine) if node in METHOD_NODES or "." in node]
    own = {key for key in KEYS if not any(key == node or key.startswith(f"{node}.") for node in foreign)}
    assert sum("." in node for node in foreign) < 30, "scenarios that leave little to look at"
    data = {
        key for key in own if key.partition(".")[0] in ("market1501", "cuhk03", "crops", "synthped", "synthped_video")
    }
    first = {"imports"}  # which is followed before the tree is there, see test_user_code
    passed_over = own - first - data - watch.read - refused_keys(engine).keys() - NOT_READ[engine]
    assert passed_over == set()


def test_keys_of_the_comparison_are_read_by_it():
    text = "".join(path.read_text() for path in (ROOT / "oskt_torchreid/lab/comparison").glob("*.py"))
    for key in KEYS:
        if key.startswith("comparison."):
            assert re.search(rf"\b{key.rpartition('.')[2]}\b", text), key


@pytest.mark.slow
def test_stages_are_made_from_what_the_table_says(watched):
    """Every key that shapes weights is in the recipe of a stage; one that shapes numbers among those of numbers."""
    engine, watch = watched
    weights = {name for recipe in watch.recipes for name in recipe.weights}
    numbers = {name for recipe in watch.recipes for name in recipe.numbers}
    unused = never_used(engine)
    by_content = (
        "engine",
        "model.load_weights",
        "oskt.teacher",
        "oskt.chain",
        "vkd.teacher",
        "oskt.ladder",
        "oskt.width",
    )
    by_content += ("oskt.control_lr.*",)  # which are rates of fine-tuning
    if engine in ("softmax", "triplet", "vkd"):
        by_content += ("data.load_train_targets",)
    for key in watch.read:
        effect = every_key()[key].effect
        if any(fnmatch(key, pattern) for pattern in by_content):
            continue
        node = key.partition(".")[0]
        used = node not in METHOD_NODES or node in OWN_NODES[engine]
        if key in refused_keys(engine) or key in unused or not used:
            continue
        if key.startswith(("market1501", "cuhk03.l", "cuhk03.c")):  # of data that these runs do not have
            continue
        if effect is Effect.WEIGHTS:
            assert key in weights, key
        elif effect is Effect.NUMBERS:
            assert key in numbers, key
        else:
            assert key not in weights | numbers, key


REFUSED = [(engine, key) for engine in SCENARIOS for key in refused_keys(engine)]


def another(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, value[0]] if isinstance(value, list) and value else "other"


@pytest.mark.parametrize(("engine", "key"), REFUSED)
def test_what_no_engine_uses_is_refused(engine, key):
    config = default_config()
    config.engine, config.loss.name = engine, "softmax" if engine in ("softmax", "oskt") else "triplet"
    node, _, name = key.rpartition(".")
    get(config, node)[name] = another(get(config, key))
    with pytest.raises(ConfigError, match=rf"^{key} is .*, which engine {engine} does not use: .*; leave it at"):
        check_use(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["engine=vkd", "loss.name=triplet", "sampler.train_sampler=SequentialSampler"], "works as with 'RandomIdent"),
        (["oskt.width=0.5", "engine=softmax"], "oskt.width is given, and nothing uses it: engine is 'softmax'; take"),
        (["vkd.alpha=3", "engine=oskt"], "vkd.alpha is given, and nothing uses it: engine is 'oskt'"),
        (["train.optim=sgd", "adam.beta1=0.8"], "adam.beta1 is given, and nothing uses it: train.optim is 'sgd'"),
        (["engine=vkd", "loss.name=triplet", "train.lr=0.1"], "train.lr is given, and nothing uses it: vkd.teacher_"),
        (["comparison.seeds=[1]", "engine=oskt"], "comparison.seeds is given, .* belongs to oskt bench"),
    ],
)
def test_what_a_command_line_gives_must_be_of_use(options, message):
    with pytest.raises(ConfigError, match=message):
        check_use(load_config(options=options), [word.partition("=")[0] for word in options])


def test_nodes_that_stand_in_a_file_are_named_in_the_log(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "run.yaml"
    path.write_text("engine: softmax\noskt: {width: 0.5}\nsynthped: {seed: 3}\n")
    check_use(load_config(path))
    said = [record.message for record in caplog.records]
    assert "not used in this run: oskt.*, for engine is 'softmax'" in said
    assert "not used in this run: synthped.*, for the data are market1501" in said
    assert not any("vkd" in line or "cuhk03" in line for line in said)
    path.write_text("engine: vkd\nloss: {name: triplet}\ntrain: {max_epoch: 3}\n")
    check_use(load_config(path))
    assert "not used in this run: train.max_epoch, for vkd.teacher_stage and vkd.student_stage have" in caplog.text


def test_the_command_refuses_before_anything_is_read(tmp_path, capsys):
    command = tool("main").main
    places = [f"data.root={tmp_path}", f"data.save_dir={tmp_path / 'run'}"]
    assert command(["engine=softmax", "video.pooling_method=max", *places]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ConfigError: video.pooling_method is 'max', which engine softmax does not use: no engine")
