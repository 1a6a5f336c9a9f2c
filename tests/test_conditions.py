"""Keys that do nothing under the values of others: said, refused on a command line, and of no weight in a rerun."""

import shutil

import pytest
from runs import tiny
from test_keys import another
from test_reruns import said, trained  # noqa: F401 - a fixture

from oskt_torchreid.chain import WeightChain
from oskt_torchreid.config import Effect, get, leaves, load_config, merged
from oskt_torchreid.config.tree import every_key
from oskt_torchreid.datasets.synthped import SynthPed
from oskt_torchreid.errors import ConfigError, WidthError
from oskt_torchreid.host.data import has_splits, register_image_dataset
from oskt_torchreid.lab.untrained import untrained_table
from oskt_torchreid.runs import run
from oskt_torchreid.runs.conditions import BY_MACHINE, idle_keys, left_out_keys
from oskt_torchreid.runs.use import check_use

VKD = ("engine=vkd", "loss.name=triplet")
CHAIN = ("engine=oskt", "oskt.chain=chain.safetensors")
KD = ("engine=oskt", "oskt.controls=['kd++']", "oskt.distillation.weight_kl=0")
UNTRAINED, UNREFINED = ("engine=oskt", "oskt.finetune.max_epoch=0"), ("engine=oskt", "oskt.refine.max_epoch=0")
COSINE = "train.lr_scheduler=warmup_cosine"
CONDITIONS = [
    # under these words the key does nothing; under those it does something
    ("data.split_id", (), ("data.sources=['cuhk03']",)),
    ("sampler.num_instances", (), ("sampler.train_sampler=RandomIdentitySampler",)),
    ("sampler.num_cams", (), ("sampler.train_sampler=RandomDomainSampler",)),
    ("sampler.num_datasets", (), ("sampler.train_sampler=RandomDatasetSampler",)),
    ("few_shot.seed", (), ("few_shot.ratio=0.5",)),
    ("validation.seed", (), ("validation.share=0.5",)),
    ("train.new_layers", (), ("train.staged_lr=True",)),
    ("train.base_lr_mult", (), ("train.staged_lr=True",)),
    ("train.open_layers", (), ("train.fixbase_epoch=1",)),
    ("train.stepsize", ("train.lr_scheduler=cosine",), ("train.lr_scheduler=multi_step",)),
    ("train.gamma", ("train.lr_scheduler=one_cycle",), ("train.lr_scheduler=warmup_multi_step",)),
    ("train.warmup_share", (), ("train.lr_scheduler=one_cycle",)),
    ("train.warmup_epochs", (), ("train.lr_scheduler=warmup_cosine",)),
    ("train.warmup_factor", (COSINE,), (COSINE, "train.warmup_epochs=2")),
    ("train.min_lr_factor", ("train.lr_scheduler=cosine",), ("train.lr_scheduler=warmup_cosine",)),
    ("oskt.refine.stepsize", ("engine=oskt",), ("engine=oskt", "oskt.refine.lr_scheduler=single_step")),
    ("oskt.finetune.lr", ("engine=oskt", "oskt.finetune.max_epoch=0"), ("engine=oskt",)),
    ("oskt.finetune.lr", ("engine=oskt", "oskt.students=[]"), ("engine=oskt", "oskt.controls=['slice']")),
    ("loss.center.lr", (), ("loss.name=triplet", "loss.center.weight=0.1")),
    ("loss.triplet.margin", (), ("loss.name=triplet",)),
    ("loss.triplet.margin", ("loss.name=triplet", "loss.triplet.soft_margin=True"), ("loss.name=triplet",)),
    ("loss.triplet.normalize", ("loss.name=triplet", "loss.triplet.weight_t=0"), ("loss.name=triplet",)),
    ("loss.softmax.label_smooth", ("loss.name=triplet",), ("loss.name=triplet", "loss.triplet.weight_x=1")),
    ("test.visrank_topk", (), ("test.visrank=True",)),
    ("test.start_eval", (), ("test.eval_freq=2",)),
    ("train.lr", CHAIN, ("engine=oskt",)),
    ("oskt.refine.lr", (*CHAIN, "oskt.teacher=teacher.pth"), ("engine=oskt",)),
    ("train.lr", ("engine=oskt", "oskt.teacher=teacher.pth"), ("engine=oskt",)),
    ("model.load_weights", ("engine=oskt", "oskt.teacher=teacher.pth"), ("engine=oskt",)),
    ("oskt.refine.lr", CHAIN, ("engine=oskt",)),
    ("oskt.width", CHAIN, ("engine=oskt",)),
    ("oskt.width", ("engine=oskt", "oskt.ladder=[0.5, 0.25]"), ("engine=oskt",)),
    ("oskt.refine.lambda_schedule", ("engine=oskt", "oskt.refine.lambda=0"), ("engine=oskt",)),
    ("oskt.recalibrate", ("engine=oskt", "oskt.students=['slice:width=0.5']"), ("engine=oskt",)),
    ("oskt.control_lr.slice", ("engine=oskt",), ("engine=oskt", "oskt.students=['slice:width=0.5']")),
    ("oskt.distillation.temperature", ("engine=oskt",), ("engine=oskt", "oskt.controls=['kd++']")),
    ("oskt.latency.batch", ("engine=oskt",), ("engine=oskt", "oskt.students=['latency=5ms']")),
    ("oskt.curves", ("engine=oskt", "oskt.finetune.max_epoch=0"), ("engine=oskt",)),
    ("vkd.teacher_stage.lr", (*VKD, "vkd.teacher=teacher.pth"), VKD),
    ("vkd.student_width", VKD, (*VKD, "vkd.student=chain.safetensors")),
    ("vkd.last_stage_weights", (*VKD, "vkd.reinit_last_stage=False"), VKD),
    ("vkd.reinit_last_stage", (*VKD, "vkd.student=osnet_x0_25"), VKD),
    ("vkd.last_stage_weights", (*VKD, "vkd.student=width=0.5"), VKD),
    ("test.normalize_feature", VKD, ()),
    ("test.normalize_feature", ("test.dist_metric=cosine",), ()),
    ("sgd.dampening", ("train.optim=sgd", "sgd.momentum=0"), ("train.optim=sgd",)),
    ("oskt.statistics", ("engine=oskt",), ("engine=oskt", "oskt.recalibrate=0")),
    ("oskt.finetune.lr", ("engine=oskt", "oskt.students=['slice:width=0.5']"), ("engine=oskt",)),
    ("oskt.refine.batch_size", ("engine=oskt", "oskt.refine.max_epoch=0"), ("engine=oskt",)),
    ("oskt.distillation.temperature", KD, KD[:-1]),
    ("oskt.distillation.start", ("engine=oskt", "oskt.controls=['norm+kd']"), KD[:-1]),
    ("oskt.distillation.weight_kl", ("engine=oskt",), ("engine=oskt", "oskt.distillation.of_chain=True")),
    ("oskt.curves", UNTRAINED, (*UNTRAINED, "oskt.controls=['slice']")),
    ("oskt.refine.half_resolution_epochs", UNREFINED, (*UNREFINED, "oskt.controls=['slice']")),
    ("vkd.temperature", (*VKD, "vkd.alpha=0"), VKD),
]  # fmt: skip


@pytest.mark.parametrize(("key", "without", "use"), CONDITIONS)
def test_what_a_key_depends_on(key, without, use):
    idle, used = (load_config(options=words) for words in (without, use))
    reason = idle_keys(idle)[key]
    assert key not in idle_keys(used)
    named = [word.split("=")[0] for word in (*without, *use)]
    assert any(name in reason for name in named) or "several splits" in reason, reason
    if key in left_out_keys(idle):  # of a stage that is left out
        check_use(idle, [key])
    else:
        with pytest.raises(ConfigError, match=f"{key} is given, and nothing uses it: "):
            check_use(idle, [key])
    check_use(used, [key])


def test_what_a_file_takes_the_place_of_is_said(caplog):
    caplog.set_level("INFO")
    check_use(load_config(options=["train.lr=0.5", *CHAIN]), ["train.lr"])
    assert "not used in this run: train.lr, for oskt.chain is given, so that no teacher is trained" in caplog.text


def test_what_the_machine_decides_is_said_and_not_refused(caplog):
    caplog.set_level("INFO")
    config = load_config(options=["train.mixed_precision=True", "train.sync_batch_norm=True", "use_gpu=False"])
    assert set(BY_MACHINE) <= set(idle_keys(config))
    check_use(config, BY_MACHINE)
    assert "not used in this run: train.mixed_precision, for nothing runs on a GPU" in caplog.text
    assert "not used in this run: train.sync_batch_norm, for there is one process" in caplog.text


def test_a_data_set_of_ones_own_may_have_splits():
    class Own(SynthPed):
        def __init__(self, root="", **kwargs):
            super().__init__(root, **kwargs)

    class Named(SynthPed):
        def __init__(self, root="", split_id=0):
            super().__init__(root)

    class Without(SynthPed):
        def __init__(self, root=""):
            super().__init__(root)

    splits = {Own: True, Named: True, Without: False}
    for kind, expected in splits.items():
        Own.__module__ = Named.__module__ = Without.__module__ = "own"
        name = f"conditions_{kind.__name__.lower()}"
        register_image_dataset(name, kind)
        assert has_splits(name, "image") is expected
    assert has_splits("cuhk03", "image") and not has_splits("market1501", "image") and not has_splits("no", "image")
    assert has_splits("prid2011", "video") and not has_splits("mars", "video")


def changed(config):
    """The configuration with another value of every key that does nothing and would shape something else."""
    values = {
        "oskt.distillation.start": "slice",
        "oskt.statistics": "merged",
        "model.load_weights": "",
        "oskt.latency.backend": "onnxruntime",
        "oskt.refine.distil_from": "now",
    }
    ranges = {"loss.center.lr": 0.25, "oskt.refine.level_start": 0.5, "train.base_lr_mult": 0.5, "data.split_id": 1}
    rows = every_key()
    idle = [key for key in idle_keys(config) if rows[key].effect is not Effect.NEITHER]
    other = {key: {**values, **ranges}.get(key, another(get(config, key))) for key in idle}
    other |= {key: 0.5 for key in idle if "warmup" in key or key.endswith(("min_lr_factor", "gamma"))}
    other |= {key: 3 for key in idle if key.endswith("warmup_epochs")}
    return merged(config, other)


@pytest.mark.parametrize("words", [(), ("engine=softmax",), ("oskt.controls=['slice']", "loss.name=triplet")])
def test_what_does_nothing_makes_nothing_anew(tiny_net, data_root, tmp_path, trained, caplog, words):  # noqa: F811
    caplog.set_level("INFO")
    config = tiny(data_root, tmp_path, *words)
    rows = run(config).rows
    before, other = len(trained), changed(config)
    differ = [key for key, value in leaves(config).items() if leaves(other)[key] != value]
    assert len(differ) > 15 and before
    caplog.clear()
    assert run(other).rows == rows and len(trained) == before
    assert all(line.endswith("done before, with the same configuration") for line in said(caplog))


def test_a_condition_that_comes_true_is_seen(tiny_net, data_root, tmp_path, trained, caplog):  # noqa: F811
    """A step size that did nothing under a cosine is compared as soon as the schedule reads it."""
    caplog.set_level("INFO")
    run(tiny(data_root, tmp_path, "engine=softmax", "train.lr_scheduler=cosine"))
    run(tiny(data_root, tmp_path, "engine=softmax", "train.lr_scheduler=single_step", "train.stepsize=[5]"))
    assert len(trained) == 2 and "train.lr_scheduler was 'cosine', is 'single_step'" in caplog.text
    run(tiny(data_root, tmp_path, "engine=softmax", "train.lr_scheduler=single_step", "train.stepsize=[6]"))
    assert len(trained) == 3 and "train.stepsize was [5], is [6]" in caplog.text


# ---- files that a run is given -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_net, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(data_root, folder))
    return folder


@pytest.fixture
def own(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_runs_own_chain_and_teacher_are_what_they_are(own, data_root, trained, caplog):  # noqa: F811
    """Named by hand, they are the same files: nothing is made again, and nothing is moved."""
    caplog.set_level("INFO")
    teacher, chain = own / "teacher" / "teacher.pth", own / "chain.safetensors"
    for words in (
        [f"oskt.teacher={teacher}"],
        [f"oskt.chain={chain}"],
        [f"oskt.teacher={teacher}", f"oskt.chain={chain}"],
    ):
        for _ in range(2):
            run(tiny(data_root, own, *words))
            assert teacher.is_file() and chain.is_file()
    run(tiny(data_root, own))
    assert trained == [] and not list(own.rglob("kept-*"))
    run(tiny(data_root, own, f"oskt.teacher={teacher}", "oskt.width=0.25", "oskt.students=['width=0.25']"))
    assert trained == ["refine", "width=0.25"] and teacher.is_file()


@pytest.mark.parametrize("key", ["model.resume", "model.load_weights"])
def test_a_given_checkpoint_stays_where_it_is(tiny_net, data_root, tmp_path, trained, caplog, key):  # noqa: F811
    caplog.set_level("INFO")
    run(tiny(data_root, tmp_path, "engine=softmax"))
    path = tmp_path / "model" / "model.pth.tar-1"
    content = path.read_bytes()
    words = ("engine=softmax", "train.max_epoch=2", f"{key}={path}")
    if key == "model.resume":  # which resumes with the same settings only, and says so before anything is moved
        for _ in range(2):
            with pytest.raises(Exception, match="is a checkpoint of another run"):
                run(tiny(data_root, tmp_path, *words))
        assert len(trained) == 1 and (tmp_path / "stage.json").is_file()
    else:
        run(tiny(data_root, tmp_path, *words))
        run(tiny(data_root, tmp_path, *words))
        assert len(trained) == 2 and "done before" in said(caplog)[-1]
        with pytest.raises(ConfigError, match="is given to this run, which would write its own result there"):
            run(tiny(data_root, tmp_path, "engine=softmax", f"{key}={path}"))
    assert path.read_bytes() == content


# ---- errors that come before anything is moved -------------------------------------------------------------------

ALL_LAYERS = "train.new_layers=['stem','norm','inner','inner_norm','outer','last','last_norm','classifier']"
BEFORE = [
    (["train.staged_lr=True", ALL_LAYERS], "which leaves no other layer"),
    (["train.staged_lr=True", "train.bias_lr_factor=2"], "both divide the parameters into groups"),
    (["loss.name=triplet", "engine=triplet", "loss.triplet.weight_t=0"], "weight_x or weight_t above 0"),
    (["loss.name=triplet", "engine=triplet", "train.batch_size=4", "sampler.train_sampler=RandomIdentitySampler"],
     "the triplet loss compares identities, and a batch of 'train' holds only one"),
    (["train.fixbase_epoch=1", "train.open_layers=['no']"], "is no layer"),
    (["model.resume=missing.pth"], "there is no such file"),
    (["validation.share=0.9"], "validation.share 0.9 of 6 training identities leaves none to train on"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BEFORE)
def test_what_is_wrong_is_said_before_anything_is_moved(tiny_net, data_root, tmp_path, words, message):
    run(tiny(data_root, tmp_path, "engine=softmax"))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(Exception, match=message) as caught:
        run(tiny(data_root, tmp_path, *(["engine=softmax"] if "loss.name" not in words[0] else []), *words))
    assert type(caught.value).__module__ == "oskt_torchreid.errors"
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_student_that_is_none_is_said_before_the_teacher(own, data_root, tmp_path, trained):  # noqa: F811
    path = tmp_path / "torn.pth"
    path.write_bytes((own / "students" / "width=0.5" / "student.pth").read_bytes()[:500])
    with pytest.raises(Exception, match=f"oskt.students has 'file={path}': "):
        run(tiny(data_root, tmp_path / "fresh", f"oskt.students=['file={path}']"))
    assert trained == []


def test_the_table_of_untrained_students_is_repeatable(finished, data_root, tmp_path):
    """Also what is recalibrated on augmented images, whatever was drawn before."""
    chain = WeightChain.load(finished / "chain.safetensors")
    tables = [untrained_table(tiny(data_root, tmp_path), chain, ["width=0.5"], batches=2) for _ in range(2)]
    assert tables[0] == tables[1] and "width=0.5" in tables[0]


def test_an_unknown_width_is_known_before_anything_is_drawn(tmp_path):
    with pytest.raises(WidthError, match="unknown width 'abc'; give a ratio such as 0.5"):
        run(tiny(tmp_path / "data", tmp_path / "run", "oskt.width=abc"))
    assert not (tmp_path / "data").exists() and not (tmp_path / "run").exists()
