"""The engine: torchreid's loop with whole checkpoints, frozen modules, finite losses, schedules and kept results."""

import io
import os
import re
import sys

import pytest
import torch
from torch import nn

from oskt_torchreid import registry
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import CheckpointError, ConfigError, DataError, TrainingError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host import engine as host_engine
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.data import build_datamanager, register_image_dataset
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.image_engines import SoftmaxEngine
from oskt_torchreid.host.losses import ReidLoss, loss_from_config, soft_margin_triplet_loss
from oskt_torchreid.host.optimization import build_optimizer, build_scheduler
from oskt_torchreid.host.progress import ProgressLoader
from oskt_torchreid.networks import Outputs

SETTINGS = ["data.workers=0", "data.height=32", "data.width=16", "train.batch_size=8", "use_gpu=False"]


class TinyModel(nn.Module):
    """A network with torchreid's forward protocol that trains in milliseconds."""

    def __init__(self, num_classes, loss="softmax"):
        super().__init__()
        self.loss = loss
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        if not self.training:
            return features
        logits = self.classifier(features)
        return (logits, features) if self.loss == "triplet" else logits


def configured(root, *options):
    return load_config(options=[*SETTINGS, *options], flags={"data.root": str(root)})


@pytest.fixture
def config(market_root):
    return configured(market_root)


@pytest.fixture(scope="module")
def datamanager(market_root):
    return build_datamanager(configured(market_root))


def make_engine(datamanager, config, cls=TransferEngine, model=None, **kwargs):
    torch.manual_seed(0)
    model = model or TinyModel(datamanager.num_train_pids)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config.train, len(datamanager.train_loader))
    return cls(datamanager, model, optimizer, scheduler, use_gpu=False, **kwargs)


def files_below(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names if "tfevents" not in name)


def test_a_run_prints_nothing_saves_a_whole_checkpoint_and_keeps_its_results(datamanager, config, tmp_path, capsys):
    engine = make_engine(datamanager, config)
    before = engine.model.conv.weight.clone()
    engine.run(str(tmp_path), max_epoch=2, print_freq=1)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == ""
    assert not torch.equal(before, engine.model.conv.weight)
    assert files_below(tmp_path) == ["model.pth.tar-2"]
    checkpoint = torch.load(tmp_path / "model" / "model.pth.tar-2", weights_only=True)
    assert checkpoint["epoch"] == 2 and type(checkpoint["rank1"]) is float
    assert engine.results["market1501"]["rank1"] == checkpoint["rank1"]


@pytest.mark.parametrize("schedule", ["single_step", "multi_step", "cosine", "one_cycle"])
def test_resume_continues_where_training_stopped(datamanager, market_root, tmp_path, schedule):
    config = configured(market_root, f"train.lr_scheduler={schedule}")
    first = make_engine(datamanager, config)
    first.run(str(tmp_path), max_epoch=1)
    second = make_engine(datamanager, config)
    nn.init.zeros_(second.model.conv.weight)
    assert second.resume(tmp_path / "model" / "model.pth.tar-1") == 1
    assert torch.equal(second.model.conv.weight, first.model.conv.weight)
    assert second.optimizer.state_dict()["state"].keys() == first.optimizer.state_dict()["state"].keys()
    assert second.scheduler.last_epoch == 1


def test_resume_refuses_another_models_checkpoint(datamanager, config, tmp_path):
    engine = make_engine(datamanager, config)
    engine.run(str(tmp_path), max_epoch=1)
    other = make_engine(datamanager, config, model=nn.Sequential(nn.Conv2d(3, 2, 1)))
    with pytest.raises(CheckpointError, match="does not fit Sequential .*missing: 0.weight, 0.bias.*unexpected: conv"):
        other.resume(tmp_path / "model" / "model.pth.tar-1")


def test_saving_works_without_scheduler_and_optimizer(datamanager, tmp_path):
    engine = TransferEngine(datamanager, TinyModel(datamanager.num_train_pids), use_gpu=False)
    engine.save_model(0, 0.5, str(tmp_path), is_best=True)
    assert files_below(tmp_path) == ["model-best.pth.tar", "model.pth.tar-1"]
    names = {"state_dict", "epoch", "rank1", "train_seconds", "training"}
    assert load_checkpoint(tmp_path / "model" / "model.pth.tar-1").keys() == names


class StumblingEngine(TransferEngine):
    """Fails in the first batch of the second epoch."""

    error = None

    def compute_losses(self, images, pids):
        loss, summary = super().compute_losses(images, pids)
        if self.epoch == 0:
            return loss, summary
        if self.error is not None:
            raise self.error
        return loss * float("nan"), summary | {"loss_t": float("nan")}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(datamanager, config, tmp_path):
    engine = make_engine(datamanager, config, StumblingEngine)
    message = (
        r"loss is nan at epoch 2 of 3, iteration 1 of 3 \(.*loss_t=nan\); the state after epoch 1 is in "
        r"'.*model.pth.tar-last'; lower the learning rate \(now 0.0003\)"
    )
    with pytest.raises(TrainingError, match=message):
        engine.run(str(tmp_path), max_epoch=3)
    assert files_below(tmp_path) == ["model.pth.tar-last"]
    kept = load_checkpoint(tmp_path / "model" / "model.pth.tar-last")
    assert kept["epoch"] == 1
    assert all(torch.equal(tensor, kept["state_dict"][name]) for name, tensor in engine.model.named_parameters())
    assert make_engine(datamanager, config).resume(tmp_path / "model" / "model.pth.tar-last") == 1


def test_an_interrupted_run_leaves_whole_files(datamanager, config, tmp_path):
    engine = make_engine(datamanager, config, StumblingEngine)
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.run(str(tmp_path), max_epoch=3)
    assert files_below(tmp_path) == ["model.pth.tar-last"]
    assert load_checkpoint(tmp_path / "model" / "model.pth.tar-last")["epoch"] == 1


def test_not_finite_before_the_first_epoch_ends(datamanager, config, tmp_path):
    engine = make_engine(datamanager, config)
    nn.init.constant_(engine.model.classifier.weight, float("inf"))
    with pytest.raises(TrainingError, match="at epoch 1 of 1, iteration 1 of 3 .*no epoch was completed yet"):
        engine.run(str(tmp_path), max_epoch=1)
    assert files_below(tmp_path) == []


def test_frozen_modules_and_parameters_stay_frozen(datamanager, config, tmp_path):
    model = TinyModel(datamanager.num_train_pids)
    model.norm.bias.requires_grad_(False)
    engine = make_engine(datamanager, config, model=model)
    engine.freeze(model.norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine.run(str(tmp_path), max_epoch=1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"conv.weight", "conv.bias", "classifier.weight", "classifier.bias"}
    engine.set_model_mode("train")
    assert model.training and not model.norm.training and not model.norm.bias.requires_grad


class ShapeEngine(TransferEngine):
    """Notes the size of every batch and the learning rate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sizes, self.rates = [], []

    def compute_losses(self, images, pids):
        self.sizes.append(tuple(images.shape[2:]))
        self.rates.append(self.get_current_lr())
        return super().compute_losses(images, pids)


def test_first_epochs_at_half_resolution(datamanager, config, tmp_path):
    engine = make_engine(datamanager, config, ShapeEngine, half_resolution_epochs=1)
    engine.run(str(tmp_path), max_epoch=2)
    assert engine.sizes == [(16, 8)] * 3 + [(32, 16)] * 3


def test_one_cycle_per_iteration(datamanager, market_root, tmp_path):
    config = configured(
        market_root, "train.lr_scheduler=one_cycle", "train.per_iteration=True", "train.max_epoch=2", "train.lr=0.01"
    )
    engine = make_engine(datamanager, config, ShapeEngine, schedule_per_iteration=True)
    engine.run(str(tmp_path), max_epoch=2)
    assert engine.rates[0] == pytest.approx(0.01 / 25) and max(engine.rates) > 0.0095
    assert engine.rates[-1] < engine.rates[0]
    assert engine.scheduler.last_epoch == 6


def test_schedules_per_epoch(datamanager, market_root, tmp_path):
    config = configured(market_root, "train.lr_scheduler=multi_step", "train.stepsize=[1]", "train.lr=0.01")
    engine = make_engine(datamanager, config, ShapeEngine)
    engine.run(str(tmp_path), max_epoch=2)
    assert engine.rates == pytest.approx([0.01] * 3 + [0.001] * 3)


@pytest.mark.parametrize("name", ["single_step", "multi_step", "cosine", "one_cycle"])
@pytest.mark.parametrize("per_iteration", [False, True])
def test_every_schedule_ends_in_time(config, name, per_iteration):
    options = [f"train.lr_scheduler={name}", f"train.per_iteration={per_iteration}", "train.max_epoch=4"]
    stage = load_config(options=[*options, "train.stepsize=[2]"]).train
    optimizer = build_optimizer([nn.Linear(2, 2)], config)
    scheduler = build_scheduler(optimizer, stage, iterations_per_epoch=5)
    rates = []
    for _ in range(20 if per_iteration else 4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[-1] < max(rates)
    if name.endswith("step"):
        half = len(rates) // 2
        assert rates[half - 1] == pytest.approx(3e-4) and rates[half] == pytest.approx(3e-5)


def test_unknown_schedule(config):
    stage = load_config().train.clone()
    stage.defrost()
    stage.lr_scheduler = "cosin"
    with pytest.raises(ConfigError, match="unknown lr_scheduler 'cosin'; did you mean 'cosine'"):
        build_scheduler(build_optimizer(nn.Linear(2, 2), config), stage, 5)


def test_optimizer_takes_modules_parameters_and_groups(config):
    body, head, free = nn.Linear(2, 3), nn.Linear(3, 1), nn.Parameter(torch.zeros(2))
    body.bias.requires_grad_(False)
    state = torch.get_rng_state()
    optimizer = build_optimizer([body, free, {"params": head.parameters(), "lr": 1.0}], config, config.oskt.refine)
    assert torch.equal(torch.get_rng_state(), state)
    shared, own = optimizer.param_groups
    assert [tuple(p.shape) for p in shared["params"]] == [(3, 2), (2,)] and shared["lr"] == config.oskt.refine.lr
    assert len(own["params"]) == 2 and own["lr"] == 1.0 and own["weight_decay"] == config.oskt.refine.weight_decay
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer([], config)


def test_staged_learning_rate_is_torchreids(datamanager, market_root):
    config = configured(market_root, "train.staged_lr=True", "train.lr=0.1")
    rates = [group["lr"] for group in build_optimizer(TinyModel(3), config).param_groups]
    assert rates == pytest.approx([0.01, 0.1])


def test_evaluation_agrees_with_torchreid(datamanager, config, capsys):
    engine = make_engine(datamanager, config)
    found = engine.evaluate(normalize_feature=True)
    theirs = torchreid.engine.ImageSoftmaxEngine(datamanager, engine.model, engine.optimizer, use_gpu=False)
    theirs.train_loader = engine.train_loader
    assert theirs.test(normalize_feature=True) == pytest.approx(found["rank1"])
    assert f"mAP: {found['mAP']:.1%}" in capsys.readouterr().out
    assert list(found) == ["mAP", "mINP", "rank1", "rank5", "rank10", "rank20"]
    assert 0 < found["rank1"] <= found["rank5"] <= found["rank20"] <= 1


def test_small_galleries_are_evaluated(datamanager, config, monkeypatch):
    """torchreid's evaluation fails where queries have different numbers of gallery entries left."""
    engine = make_engine(datamanager, config)
    gallery = datamanager.test_loader["market1501"]["gallery"].dataset
    monkeypatch.setattr(gallery, "data", gallery.data[:15])
    found = engine.evaluate()
    assert 0 < found["rank1"] <= found["rank10"] <= found["rank20"] == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_reranking_agrees_with_torchreid(datamanager, config, metric):
    engine = make_engine(datamanager, config)
    theirs = torchreid.engine.ImageSoftmaxEngine(datamanager, engine.model, engine.optimizer, use_gpu=False)
    theirs.train_loader = engine.train_loader
    options = {"normalize_feature": True, "rerank": True, "dist_metric": metric}
    found, plain = engine.evaluate(**options), engine.evaluate(normalize_feature=True, dist_metric=metric)
    assert theirs.test(**options) == pytest.approx(found["reranked_rank1"])
    assert found["reranked_mAP"] != pytest.approx(plain["mAP"], abs=1e-6)
    assert {name: value for name, value in found.items() if "reranked" not in name} == plain


def test_registered_engines_take_torchreids_arguments(datamanager, config, tmp_path):
    num_classes = datamanager.num_train_pids
    softmax = registry.build_engine("softmax", datamanager, TinyModel(num_classes), use_gpu=False, label_smooth=False)
    assert softmax.loss.cross_entropy.eps == 0
    model = TinyModel(num_classes, "triplet")
    optimizer = build_optimizer(model, config)
    triplet = registry.build_engine(
        "triplet", datamanager, model, optimizer=optimizer, margin=0.2, weight_t=0.5, use_gpu=False
    )
    triplet.run(str(tmp_path), max_epoch=1)
    assert triplet.last_summary.keys() == {"loss_t", "loss_x", "acc"}
    assert triplet.loss.weight_t == 0.5 and triplet.loss.triplet.margin == 0.2


def test_engine_table():
    with pytest.raises(ConfigError, match="unknown engine 'softmx'; did you mean 'softmax'"):
        registry.build_engine("softmx", None, None)
    registry.register_engine("softmax", SoftmaxEngine)
    with pytest.raises(ConfigError, match="engine name 'softmax' belongs to .*SoftmaxEngine, got .*TransferEngine"):
        registry.register_engine("softmax", TransferEngine)


def test_publishing(monkeypatch):
    monkeypatch.setattr(torchreid.engine, "test_publishing", None, raising=False)
    host_engine.publish("test_publishing", TransferEngine)
    host_engine.publish("test_publishing", TransferEngine)
    assert torchreid.engine.test_publishing is TransferEngine


def test_losses_are_torchreids_and_average_over_branches():
    torch.manual_seed(0)
    pids = torch.tensor([0, 0, 1, 1])
    logits, features = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    total, summary = ReidLoss(3, weight_x=0.5, weight_t=2.0)(Outputs(tuple(logits), tuple(features)), pids)
    cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    expected_x = (cross_entropy(logits[0], pids) + cross_entropy(logits[1], pids)) / 2
    assert summary["loss_x"] == pytest.approx(expected_x.item(), abs=1e-6)
    assert total.item() == pytest.approx(0.5 * summary["loss_x"] + 2 * summary["loss_t"], abs=1e-5)
    assert all(type(value) is float for value in summary.values())


def test_soft_margin_triplet_by_hand():
    features = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
    pids = torch.tensor([0, 0, 1, 1])
    # Hardest positives 1, 1, 2, 2; hardest negatives 4, 3, 3, 5.
    differences = torch.tensor([1.0 - 4, 1 - 3, 2 - 3, 2 - 5])
    expected = torch.log1p(differences.exp()).mean().item()
    assert soft_margin_triplet_loss(features, pids).item() == pytest.approx(expected, abs=1e-5)
    soft = ReidLoss(2, weight_x=0, weight_t=1, soft_margin=True)
    assert soft(Outputs((), (features,)), pids)[0].item() == pytest.approx(expected, abs=1e-5)
    without_margin = ReidLoss(2, weight_x=0, weight_t=1, margin=None)
    assert without_margin(Outputs((), (features,)), pids)[0].item() == pytest.approx(expected, abs=1e-5)


def test_normalized_triplet_ignores_the_scale():
    features, pids = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    loss = ReidLoss(2, weight_x=0, weight_t=1, normalize_triplet=True)
    first, second = (loss(Outputs((), (features * scale,)), pids)[0].item() for scale in (1, 10))
    assert first == pytest.approx(second, abs=1e-5)


def test_loss_errors():
    with pytest.raises(ConfigError, match="weight_x=0, weight_t=0, center_weight=0.0; allowed: none below 0"):
        ReidLoss(3, weight_x=0, weight_t=0)
    logits, features, pids = torch.randn(4, 3), torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ConfigError, match="triplet loss .weight_t. needs features"):
        ReidLoss(3, weight_t=1)(Outputs((logits,), ()), pids)
    with pytest.raises(TrainingError, match="batch of 4 images shows one identity only.*RandomIdentitySampler"):
        ReidLoss(3, weight_t=1)(Outputs((logits,), (features,)), pids)


def test_loss_from_configuration():
    softmax = loss_from_config(load_config(), 5, use_gpu=False)
    assert (softmax.weight_x, softmax.weight_t) == (1.0, 0.0)
    options = ["loss.name=triplet", "loss.triplet.weight_x=0.5", "loss.triplet.normalize=True"]
    triplet = loss_from_config(load_config(options=options), 5, use_gpu=False)
    assert (triplet.weight_x, triplet.weight_t, triplet.normalize_triplet) == (0.5, 1.0, True)


def test_missing_data_is_found_before_anything_is_read(market_root, tmp_path):
    with pytest.raises(DataError, match="no data root at '.*absent', where data set 'market1501' should be"):
        build_datamanager(configured(tmp_path / "absent"))
    with pytest.raises(DataError, match="data set 'dukemtmcreid' is not at '.*dukemtmc-reid'; download it"):
        build_datamanager(configured(market_root, "data.targets=['dukemtmcreid']"))
    assert not (market_root / "dukemtmc-reid").exists()
    with pytest.raises(ConfigError, match="unknown data set 'market1502'; did you mean 'market1501'"):
        build_datamanager(configured(market_root, "data.sources=['market1502']"))
    with pytest.raises(ConfigError, match=r"data.sources is \[\], which has 0 entries; give at least 1"):
        build_datamanager(configured(market_root, "data.sources=[]", "data.targets=[]"))
    with pytest.raises(ConfigError, match="data.type is 'video'"):
        build_datamanager(configured(market_root, "data.type=video"))


def test_batch_size_of_a_stage(market_root):
    assert build_datamanager(configured(market_root), batch_size=4).train_loader.batch_size == 4


def test_data_set_names_are_registered_once(market_root):
    known = type(build_datamanager(configured(market_root)).train_loader.dataset)
    register_image_dataset("market1501", known)
    with pytest.raises(ConfigError, match="data set name 'market1501' belongs to .*Market1501"):
        register_image_dataset("market1501", torchreid.data.ImageDataset)


def test_progress_loader_is_the_loader(datamanager, config):
    engine = make_engine(datamanager, config)
    assert isinstance(engine.train_loader, ProgressLoader)
    assert len(engine.train_loader) == 3 and engine.train_loader.batch_size == 8
    assert len(list(engine.train_loader)) == 3


def test_bars_with_eta_on_a_terminal(datamanager, config, tmp_path, monkeypatch):
    """One for training, with losses and rate, one for every evaluation."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    make_engine(datamanager, config).run(str(tmp_path), max_epoch=2)
    shown = sys.stderr.getvalue()
    assert re.search(r"epoch 2/2: 100%.* 6/6 \[\d\d:\d\d<00:00.*batch/s, .*loss_x=.*, lr=0.0003\]", shown)
    assert re.search(r"evaluation: +\d+%.*<", shown)


def test_a_run_that_only_has_its_last_test_left(datamanager, config, tmp_path):
    """Interrupted after the last epoch: the checkpoint has its number, and the time that training took."""
    first = make_engine(datamanager, config)
    first.run(str(tmp_path / "first"), max_epoch=2)
    again = make_engine(datamanager, config)
    assert again.resume(tmp_path / "first" / "model" / "model.pth.tar-2") == 2
    again.run(str(tmp_path / "again"), max_epoch=2, start_epoch=2)
    assert files_below(tmp_path / "again") == ["model.pth.tar-2"]
    assert again.train_seconds == first.train_seconds > 0
    assert again.results == first.results


def test_center_loss_moves_centers_by_their_own_sgd():
    """Two identities, one feature each: the gradient of the mean squared distance, at the centers' own rate."""
    loss = ReidLoss(2, center_weight=5e-4, center_lr=0.5)
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    pids = torch.tensor([0, 1])
    total, summary = loss(Outputs((torch.zeros(2, 2, requires_grad=True),), (features,)), pids)
    before = loss.center.centers.detach().clone()
    total.backward()
    loss.step()
    expected = before - 0.5 * (before - features.detach())  # 2 (c - f) / batch of 2
    assert torch.allclose(loss.center.centers, expected, atol=1e-6)
    assert summary["loss_c"] == pytest.approx(float((features - before).pow(2).sum(1).mean()))
    assert loss.center.centers.grad is None


def test_center_loss_needs_features_of_one_branch():
    pids = torch.tensor([0, 1])
    logits = torch.zeros(2, 2)
    with pytest.raises(ConfigError, match=r"center loss \(loss.center.weight\) needs features"):
        ReidLoss(2, center_weight=1.0)(Outputs((logits,), ()), pids)
    with pytest.raises(ConfigError, match="one branch, got 2"):
        ReidLoss(2, center_weight=1.0)(Outputs((logits,), (logits, logits)), pids)
