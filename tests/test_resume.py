"""Training that is killed resumes as if nothing had happened: bit for bit, from complete files, or not at all."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, tiny, without_method
from sets import SetManager
from small_networks import TinyNet
from test_distillation import make_engine as distillation_engine
from test_interruption import check_whole, command  # noqa: F401  a fixture
from test_vkd_engine import make_engine as vkd_engine

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError, Terminated
from oskt_torchreid.files import load_checkpoint, save_checkpoint, sha256
from oskt_torchreid.host.compat import seed_everything, torchreid
from oskt_torchreid.host.data import build_datamanager, forget_patches
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.losses import ReidLoss
from oskt_torchreid.host.optimization import build_optimizer, build_scheduler
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.host.random_state import check_random_state, random_state, set_random_state
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run

CPU = torch.device("cpu")
SETTINGS = [
    "data.height=32",
    "data.width=16",
    "data.transforms=['random_flip', 'random_erase', 'random_crop']",
    "train.batch_size=8",
    "train.lr_scheduler=one_cycle",
    "train.per_iteration=True",
    "train.max_epoch=3",
    "train.lr=0.01",
    "sampler.train_sampler=RandomIdentitySampler",
    "sampler.num_instances=2",
    "use_gpu=False",
]


class Noisy(TinyNet):
    """With dropout, so that the network draws random numbers as well."""

    def forward(self, images):
        return super().forward(torch.nn.functional.dropout2d(images, 0.2, self.training))


@pytest.fixture(scope="module")
def managers(market_root, tiny_net):
    """Data managers by number of workers."""
    words = [[*SETTINGS, f"data.workers={workers}"] for workers in (0, 2)]
    configs = [load_config(options=options, flags={"data.root": str(market_root)}) for options in words]
    return configs[0], {workers: build_datamanager(c) for workers, c in zip((0, 2), configs, strict=True)}


def center_loss(manager):
    return ReidLoss(manager.num_train_pids, weight_t=1.0, center_weight=0.01)


def engine_of(kind, managers, workers=0):
    """A fresh engine as a new process would build it."""
    config, manager = managers[0], managers[1][workers]
    seed_everything(1)
    if kind == "vkd":
        return vkd_engine()
    if kind == "kd++":
        return distillation_engine(manager, "tiny_net")[0]
    model = Noisy(manager.num_train_pids, "triplet")
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config.train, len(manager.train_loader))
    options = {"loss": center_loss(manager), "use_gpu": False, "schedule_per_iteration": True}
    cls = OSKTEngine if kind in ("oskt", "nested") else TransferEngine
    if cls is OSKTEngine:
        options["chain"] = WeightChain.from_teacher(model, 0.5, input_size=(3, 32, 16), nested=kind == "nested")
    if kind == "nested":
        options |= {"distil_weight": 0.25, "levels": (0.7, 0.8), "level_start": 0.4, "vector_copies": True}
    return cls(manager, model, optimizer, scheduler, **options)


def everything(engine):
    """All tensors that training has moved."""
    tensors = dict(engine.model.state_dict())
    for number, values in engine.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": torch.as_tensor(value) for name, value in values.items()}
    for number, loss in enumerate(engine.losses()):
        tensors |= {f"loss {number}.{name}": tensor for name, tensor in loss.learned().items()}
    return copy.deepcopy(tensors)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def places_of(engine):
    """A list that grows by `(epoch, batch)` of every step."""
    places, step = [], engine.step

    def noting(*arguments):
        places.append((engine.epoch, engine.batch_idx))
        step(*arguments)

    engine.step = noting
    return places


def stop(engine, epoch, batch):
    """Sends SIGTERM in the middle of a step, as a scheduler does."""
    step = engine.step

    def stopping(*arguments):
        if (engine.epoch, engine.batch_idx) == (epoch, batch):
            signal.raise_signal(signal.SIGTERM)
        step(*arguments)

    engine.step = stopping


@pytest.mark.parametrize(
    ("kind", "workers", "epoch", "batch"),
    [
        ("reid", 0, 1, 1),
        ("reid", 2, 1, 0),
        ("oskt", 0, 0, 0),
        ("oskt", 0, 2, 1),
        ("nested", 0, 1, 1),
        ("vkd", 0, 1, 0),
        ("kd++", 0, 1, 1),
    ],
)
def test_sigterm_in_an_epoch_changes_nothing(managers, tmp_path, kind, workers, epoch, batch):
    whole = engine_of(kind, managers, workers)
    places = places_of(whole)
    whole.run(str(tmp_path / "whole"), max_epoch=3, eval_freq=2)
    first = engine_of(kind, managers, workers)
    stop(first, epoch, batch)
    with pytest.raises(Terminated, match=f"terminated at epoch {epoch + 1}, batch {batch + 1}; the state is in"):
        first.run(str(tmp_path / "run"), max_epoch=3, eval_freq=2)
    check_whole(tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    second = engine_of(kind, managers, workers)
    assert second.resume_latest(tmp_path / "run", 3) == epoch
    assert second.place_within_epoch == f" and {batch + 1} batches of the next"
    seed_everything(99)  # whatever was drawn in the meantime
    rest = places_of(second)
    second.run(str(tmp_path / "run"), max_epoch=3, eval_freq=2, start_epoch=epoch)
    assert_same(everything(second), everything(whole))
    assert second.curve == whole.curve and second.results == whole.results
    assert rest == [place for place in places if place > (epoch, batch)] != places
    assert not (tmp_path / "run" / "model" / "model.pth.tar-last").exists()


@pytest.mark.parametrize("kind", ["oskt", "vkd"])
def test_stopped_before_an_evaluation_that_was_due(managers, tmp_path, kind):
    """The evaluation is made up for; its loaders draw random numbers that the next epoch would miss."""
    whole = engine_of(kind, managers)
    whole.run(str(tmp_path / "whole"), max_epoch=3, eval_freq=1)
    first = engine_of(kind, managers)

    def interrupted(_):
        raise KeyboardInterrupt

    first.extract_features = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.run(str(tmp_path / "run"), max_epoch=3, eval_freq=1)
    second = engine_of(kind, managers)
    assert second.resume_latest(tmp_path / "run", 3) == 1
    second.run(str(tmp_path / "run"), max_epoch=3, eval_freq=1, start_epoch=1)
    assert second.curve == whole.curve and second.results == whole.results
    assert kind == "vkd" or [point["epoch"] for point in second.curve] == [1, 2, 3]
    assert_same(everything(second), everything(whole))


def test_sigterm_while_evaluating_stops_at_once(managers, tmp_path):
    engine = engine_of("reid", managers)
    extract = engine.extract_features

    def told(images):
        signal.raise_signal(signal.SIGTERM)
        return extract(images)

    engine.extract_features = told
    with pytest.raises(Terminated, match="terminated while evaluating"):
        engine.run(str(tmp_path), max_epoch=1)
    assert engine_of("reid", managers).resume_latest(tmp_path, 1) == 1


def test_sigterm_when_all_is_done_is_not_forgotten(managers, tmp_path):
    engine = engine_of("reid", managers)
    save = engine.save_model

    def told(*arguments):
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    engine.save_model = told
    with pytest.raises(Terminated, match="terminated at the end of training"):
        engine.run(str(tmp_path), max_epoch=1)
    assert engine_of("reid", managers).resume_latest(tmp_path, 1) == 1


# ---- SIGKILL ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed_run(tiny_net, data_root, tmp_path_factory):
    """`(configuration of a folder, files of the uninterrupted run, its seconds)`: a refinement and a student."""
    folder = tmp_path_factory.mktemp("killed")
    torch.manual_seed(0)
    save_checkpoint(folder / "teacher.pth", {"state_dict": TinyNet(6, "triplet").state_dict()})
    words = [
        f"oskt.teacher={folder / 'teacher.pth'}",
        "loss.name=triplet",
        "loss.center.weight=0.01",
        "sampler.train_sampler=RandomIdentitySampler",
        "data.transforms=['random_flip', 'random_erase', 'random_patch']",
        "oskt.refine.max_epoch=4",
        "oskt.refine.lr_scheduler=one_cycle",
        "oskt.refine.per_iteration=True",
        "test.eval_freq=2",
    ]

    def config_of(name):
        return tiny(data_root, folder / name, *words)

    run(config_of("warm"))  # draws the pictures
    start = time.monotonic()
    assert ended(config_of("whole")) == 0
    return config_of, files_of(folder / "whole"), time.monotonic() - start


def files_of(folder):
    """What decides whether two runs are the same: the chain's bytes, the student's weights, the numbers."""
    student = load_checkpoint(folder / "students" / "width=0.5" / "student.pth")
    row = read_results(folder / "results.json").rows[1]
    return sha256(folder / "chain.safetensors"), student["state_dict"], (row.map_before, row.map_after)


def ended(config, seconds=None, event=None):
    """Runs in a separate process, killed after so many seconds or at an event of that number; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kill_at(event)
            run(config)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill_at(event):
    """Lets this process die at a batch, a test batch, or a file that is written but not renamed yet."""
    count = itertools.count(1)

    def dying(function):
        def call(*arguments):
            if next(count) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    TransferEngine.prepare = dying(TransferEngine.prepare)
    TransferEngine.extract_features = dying(TransferEngine.extract_features)
    os.replace = dying(os.replace)


def check_kills(killed_run, name, kills):
    """Kills a run so, one attempt after another, then lets it end as if nothing had been; how many died."""
    config_of, (chain, student, numbers), _ = killed_run
    config = config_of(name)
    folder = Path(config.data.save_dir)
    statuses = [ended(config, **kill) for kill in kills]
    assert ended(config) == 0
    found = files_of(folder)
    assert found[0] == chain and found[2] == numbers
    assert_same(found[1], student)
    check_whole(folder)
    return statuses.count(signal.SIGKILL)


def test_a_refinement_killed_again_and_again_ends_bit_equal(killed_run):
    """At its first batch, at others, while files are written, while it evaluates."""
    kills = [{"event": number} for number in (4, 6, 9, 7, 12, 10)]
    assert check_kills(killed_run, "often", kills) == len(kills)


@pytest.mark.slow
def test_a_refinement_killed_at_random_moments(killed_run):
    """By the clock: runs, each killed up to four times in whatever an attempt got to, until ten have died."""
    moments, most = random.Random(5), killed_run[2] / 2
    killed = 0
    for number in range(10):
        kills = [{"seconds": moments.uniform(0, most)} for _ in range(min(4, 10 - killed))]
        killed += check_kills(killed_run, f"kill-{number}", kills)
        if killed == 10:
            break
    assert killed == 10, "too many runs ended before they were killed"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_sigterm_ends_the_command_and_the_same_one_goes_on(
    tiny_net,
    data_root,
    tmp_path,
    command,  # noqa: F811
    capsys,
    monkeypatch,
):
    words = [*without_method(TINY), f"data.root={data_root}", "engine=softmax", "train.max_epoch=2"]
    assert command([*words, f"data.save_dir={tmp_path / 'whole'}"]) == 0
    stops = []
    prepare = TransferEngine.prepare

    def told(engine, data):
        if (engine.epoch, engine.batch_idx) == (1, 0) and not stops:
            stops.append(1)
            signal.raise_signal(signal.SIGTERM)
        return prepare(engine, data)

    monkeypatch.setattr(TransferEngine, "prepare", told)
    words.append(f"data.save_dir={tmp_path / 'run'}")
    assert command(words) == 143
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"terminated at epoch 2, batch 1; the state is in '{tmp_path / 'run'}'; run the same command"
    )
    check_whole(tmp_path / "run")
    assert command(["--resume", "auto", *words]) == 0
    assert "resuming after epoch 1 and 1 batches of the next" in capsys.readouterr().err
    whole, found = (
        load_checkpoint(tmp_path / name / "model" / "model.pth.tar-2")["state_dict"] for name in ("whole", "run")
    )
    assert_same(found, whole)
    assert command(words) == 0 and "done before" in capsys.readouterr().err


def test_resume_names_a_checkpoint(tiny_net, data_root, tmp_path):
    """As torchreid's own flag: here of a run of two epochs, of which one is left."""
    words = ["engine=softmax", "train.max_epoch=2", "test.eval_freq=1"]
    run(tiny(data_root, tmp_path / "whole", *words))
    first = tmp_path / "whole" / "model" / "model.pth.tar-1"
    run(tiny(data_root, tmp_path / "run", *words, f"model.resume={first}"))
    whole, found = (
        load_checkpoint(tmp_path / name / "model" / "model.pth.tar-2")["state_dict"] for name in ("whole", "run")
    )
    assert_same(found, whole)
    with pytest.raises(CheckpointError, match="checkpoint of another run: its settings have the digest .*this run's"):
        run(tiny(data_root, tmp_path / "other", *words, "train.lr=0.1", f"model.resume={first}"))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["engine=softmax", "model.resume=absent.pth"],
            CheckpointError,
            "model.resume is 'absent.pth', and there is no",
        ),
        (["model.resume=t.pth"], ConfigError, "engine oskt trains no single network.*stages resume by themselves"),
        (["engine=softmax", "test.evaluate=True", "model.resume=t.pth"], ConfigError, "but test.evaluate trains no"),
    ],
)
def test_resume_is_checked_first(tiny_net, data_root, tmp_path, words, error, message):
    with pytest.raises(error, match=message):
        run(tiny(data_root, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_run_with_other_settings_takes_nothing_of_the_one_before(tiny_net, data_root, tmp_path):
    words = ["engine=softmax", "train.max_epoch=2"]
    expected = run(tiny(data_root, tmp_path / "alone", *words, "train.lr=0.01")).rows[0].map_after
    folder = tmp_path / "run"
    run(tiny(data_root, folder, *words))
    (folder / "model" / "model.pth.tar-2").rename(folder / "model" / "model.pth.tar-last")
    assert run(tiny(data_root, folder, *words, "train.lr=0.01")).rows[0].map_after == expected


# ---- checkpoints of other runs, damaged ones, and worse --------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(managers, tmp_path_factory):
    """What a refinement of one epoch leaves."""
    folder = tmp_path_factory.mktemp("one")
    engine = engine_of("oskt", managers)
    engine.run_key = "a"
    engine.run(str(folder), max_epoch=1)
    return load_checkpoint(folder / "model" / "model.pth.tar-1")


def other_clusters(content):
    labels = content["training"]["method"]["teacher_to_chain"]
    name = max(labels, key=lambda group: len(labels[group].unique()))
    labels[name] = labels[name].flip(0)


def other_loss(content):
    content["training"]["losses"][1] = {"centers": torch.zeros(3, 24)}


def other_engine(content):
    content["training"]["losses"].pop()


def other_groups(content):
    content["optimizer"]["param_groups"][0]["params"].pop()


def other_shapes(content):
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["training"].update(run="b"), "of another run: its settings have the digest b, .*a.*"),
        (other_clusters, "of another run: its chain has other clusters"),
        (other_loss, "of another run: what its loss has learnt does not fit"),
        (other_engine, "of another run: of another engine"),
        (other_groups, r"of another run: its optimiser has groups of \[\d+\] parameters, this one's of"),
        (other_shapes, r"of another run: its optimiser keeps \(7,\) for parameter 0 of shape \(16, 3, 1, 1\)"),
        (lambda content: content.update(optimizer=[1]), "is damaged: it holds no optimiser state"),
        (lambda content: content.update(training=3), "is damaged: it does not say where its run resumes"),
        (lambda content: content["training"].update(batches=-1), "is damaged: it does not say where its run resumes"),
        (lambda content: content["training"].update(random=[{}]), "is damaged: the states of its random number gen"),
        (
            lambda content: content["training"]["random"][0].update(torch=torch.zeros(3)),
            "is damaged: the states of its",
        ),
        (lambda content: content["training"]["random"][0]["numpy"].pop(), "is damaged: the states of its random"),
    ],
)
def test_checkpoints_that_cannot_be_gone_on_from(managers, checkpoint, tmp_path, change, message):
    content = copy.deepcopy(checkpoint)
    change(content)
    save_checkpoint(tmp_path / "changed.pth", content)
    engine = engine_of("oskt", managers)
    engine.run_key = "a"
    before, state = everything(engine), random_state(CPU)
    with pytest.raises(CheckpointError, match=message):
        engine.resume(tmp_path / "changed.pth")
    assert_same(everything(engine), before)
    assert torch.equal(random_state(CPU)["torch"], state["torch"])


def test_fewer_batches_than_were_done(managers, checkpoint, tmp_path):
    content = copy.deepcopy(checkpoint)
    content["training"]["batches"] = 1000
    save_checkpoint(tmp_path / "changed.pth", content)
    engine = engine_of("oskt", managers)
    start = engine.resume(tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match="written after 1000 batches of an epoch, and the data give"):
        engine.run(str(tmp_path / "run"), max_epoch=2, start_epoch=start)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["rank1", "epoch", "optimizer", "scheduler", "training", "state_dict"])
def test_no_place_of_a_checkpoint_runs_code(managers, checkpoint, tmp_path, place):
    torch.save({**checkpoint, place: Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    engine = engine_of("oskt", managers)
    before = everything(engine)
    with pytest.raises(CheckpointError, match="bomb.pth"):
        engine.resume(tmp_path / "bomb.pth")
    assert_same(everything(engine), before)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "bomb.pth", weights_only=True)


def test_torchreids_own_checkpoint(managers, tmp_path):
    """Its rank-1 is a NumPy scalar, which torch refuses by default; it says nothing of random numbers."""
    engine = engine_of("reid", managers)
    torchreid.engine.Engine.save_model(engine, 4, np.float64(0.5), str(tmp_path))
    again = engine_of("reid", managers)
    torch.nn.init.zeros_(again.model.stem.weight)
    assert again.resume(tmp_path / "model" / "model.pth.tar-5") == 5
    assert torch.equal(again.model.stem.weight, engine.model.stem.weight) and again.place_within_epoch == ""


def test_generators_go_on_where_they_were(tmp_path):
    random.gauss(0, 1), np.random.randn(3)  # both keep half of a pair
    save_checkpoint(tmp_path / "state.pth", random_state(CPU))

    def drawn():
        return [random.gauss(0, 1), random.random(), *np.random.randn(3), *torch.rand(3).tolist()]

    expected = drawn()
    state = load_checkpoint(tmp_path / "state.pth")
    seed_everything(3)
    check_random_state(state, "the file")
    set_random_state(state, CPU)
    assert drawn() == expected


def test_centers_that_are_not_made_yet():
    loss = ReidLoss(3, weight_t=1.0, center_weight=0.1)
    assert loss.learned() == {}
    loss.check_learned({}, "the file")
    loss.load_learned({"centers": torch.ones(3, 5)}, CPU)
    assert torch.equal(loss.learned()["centers"], torch.ones(3, 5))
    with pytest.raises(CheckpointError, match="what its loss has learnt does not fit this loss"):
        ReidLoss(3).check_learned({"centers": torch.ones(3, 5)}, "the file")


def test_patch_pools_begin_every_epoch_empty(market_root):
    options = [*SETTINGS, "data.workers=0", "data.transforms=['random_patch']"]
    manager = build_datamanager(load_config(options=options, flags={"data.root": str(market_root)}))
    (step,) = [step for step in manager.transform_tr.transforms if hasattr(step, "patchpool")]
    next(iter(manager.train_loader))
    assert step.patchpool
    forget_patches(manager.train_loader)
    assert not step.patchpool
    forget_patches(SetManager().train_loader)  # of a data set without transforms
