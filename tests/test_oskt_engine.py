"""The OSKT engine on tiny data: what it trains, what it writes, how it stops."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import TinyNet
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import synthped
from oskt_torchreid.datasets.synthetic import preset
from oskt_torchreid.errors import ChainError, ConfigError, TrainingError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.graph.tracer import tracing_mode
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.data import build_datamanager
from oskt_torchreid.host.losses import ReidLoss, kd_loss
from oskt_torchreid.host.optimization import build_optimizer
from oskt_torchreid.networks import Outputs

SETTINGS = ["data.workers=0", "data.height=32", "data.width=16", "train.batch_size=8", "use_gpu=False"]
SIZE = (3, 32, 16)
NAME = "tiny_net"  # what a test says of the engine does not depend on the backbone


@pytest.fixture(scope="module")
def datamanager(market_root, tiny_net):
    return build_datamanager(load_config(options=SETTINGS, flags={"data.root": str(market_root)}))


def teacher_of(datamanager, name=NAME, loss="softmax"):
    torch.manual_seed(0)
    return models.build(name, datamanager.num_train_pids, loss)


def make_engine(datamanager, teacher=None, **options):
    """An engine at the first iteration of a run of ten epochs."""
    teacher = teacher or teacher_of(datamanager)
    options = {"width": 0.5, "use_gpu": False, **options}
    engine = oskt.OSKTEngine(datamanager, teacher, **options)
    engine.epoch, engine.batch_idx, engine.max_epoch = 0, 0, 10
    engine.set_model_mode("train")
    return engine


def changed(before, after):
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]


def test_modules_that_stay_whole(datamanager):
    engine = make_engine(datamanager, keep=["inner"])
    assert engine.chain.graph.keep == ("inner",) and len(engine.chain.rows["last.weight"]) == 12
    with pytest.raises(ConfigError, match="keep is given with a chain, which says already what stays whole"):
        make_engine(datamanager, chain=engine.chain, keep=["inner"])


def test_a_few_steps_lower_the_loss_and_move_teacher_and_chain(datamanager):
    teacher = teacher_of(datamanager, "osnet_x0_25")
    chain = WeightChain.from_teacher(teacher, 0.5, input_size=SIZE)
    rows, weights = copy.deepcopy(chain.rows), copy.deepcopy(teacher.state_dict())
    engine = make_engine(datamanager, teacher, chain=chain, lambda_shape="constant")
    batch = next(iter(engine.train_loader))
    summaries = [engine.forward_backward(batch) for _ in range(5)]
    assert summaries[0].keys() == {"loss_x", "acc", "s_loss_x", "s_acc", "refine", "lambda"}
    for term in ("loss_x", "s_loss_x", "refine"):
        assert summaries[-1][term] < summaries[0][term], term
    refined = engine.chain
    assert set(changed(rows, refined.rows)) == set(rows), "every row is trained, those of the head too"
    assert set(changed(weights, teacher.state_dict())) >= set(rows)
    assert changed(rows, chain.rows) == [], "the chain that was given stays as it is"
    assert refined.statistics, "a refined chain carries the S-student's statistics"
    engine.model.sstudent.eval()
    images = batch["img"]
    with torch.no_grad():
        expected = engine.model.sstudent(images, teacher)
        torch.testing.assert_close(expand_to_plan(refined, refined.widths)(images), expected)


def test_only_the_refining_loss_pulls_rows_together(datamanager):
    dispersions = {}
    for weight in (0.0, 1.0):
        engine = make_engine(datamanager, lambda_weight=weight, lambda_shape="constant")
        before = engine.dispersion
        batch = next(iter(engine.train_loader))
        for _ in range(4):
            engine.forward_backward(batch)
        pairs = engine.model.sstudent.row_pairs(engine.model.teacher)
        dispersions[weight] = oskt.chain.losses.row_dispersion(pairs) / before
    assert dispersions[1.0] < dispersions[0.0]
    assert dispersions[1.0] < 1


def test_all_learn_from_the_teacher_as_it_was_first(datamanager):
    """The teacher's own term is zero in the first step but for its norms, and grows as it leaves what it was."""
    teacher = teacher_of(datamanager)
    engine = make_engine(datamanager, teacher, distil_weight=0.5)
    first = copy.deepcopy(teacher)
    batch = next(iter(engine.train_loader))
    for _ in range(3):
        engine.forward_backward(batch)
    outputs = [Outputs([torch.randn(2, 5)], None) for _ in range(3)]
    with tracing_mode(first), torch.no_grad():
        expected = first(batch["img"])
    found = engine._outputs_of_first(engine._first, batch["img"])
    assert torch.equal(found.logits[0], expected) and not torch.equal(teacher.stem.weight, first.stem.weight)
    target, (of_teacher, narrow) = outputs[0], outputs[1:]
    losses = engine.model.losses_of([of_teacher, narrow], zero, None, engine._distilled, target)
    assert losses.teacher == 0.5 * kd_loss(of_teacher.logits[0], target.logits[0], 4.0)
    assert losses.sstudent == 0.5 * kd_loss(narrow.logits[0], target.logits[0], 4.0)
    losses = engine.model.losses_of([of_teacher, narrow], zero, None, engine._distilled)
    assert losses.teacher == 0
    assert losses.sstudent == 0.5 * kd_loss(narrow.logits[0], of_teacher.logits[0], 4.0)
    with pytest.raises(ConfigError, match="distil_from is 'last'; allowed: first, now"):
        make_engine(datamanager, distil_from="last")
    for options in ({"distil_temperature": 0}, {"distil_temperature": "a"}, {"level_start": 5}, {"level_start": "a"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make_engine(datamanager, **options)


def zero(output):
    return torch.zeros(())


def test_lambda_grows_over_the_run(datamanager):
    engine = make_engine(datamanager, lambda_weight=0.5, lambda_shape="linear")
    steps = len(engine.train_loader)
    seen = []
    for epoch, batch_idx in ((0, 0), (4, steps - 1), (9, steps - 1)):
        engine.epoch, engine.batch_idx = epoch, batch_idx
        seen.append(engine._lambda(engine.progress))
    assert seen[0] == 0 and seen[-1] == 0.5 and 0.2 < seen[1] < 0.3


def test_a_scheduler_that_was_built_before_moves_the_chain_too(datamanager):
    teacher = teacher_of(datamanager)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    engine = make_engine(datamanager, teacher, optimizer=optimizer, scheduler=scheduler)
    sstudents = {id(parameter) for parameter in engine.model.sstudent.parameters()}
    assert sstudents <= {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    batch = next(iter(engine.train_loader))
    before = engine.chain.rows
    engine.forward_backward(batch)
    middle = engine.chain.rows
    engine.update_lr()
    engine.forward_backward(batch)
    assert changed(before, middle) and not changed(middle, engine.chain.rows), "the rate is 0 after one epoch"


def test_one_cycle_built_before_keeps_its_momentum_settings(datamanager):
    teacher = teacher_of(datamanager)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=20)
    engine = make_engine(datamanager, teacher, optimizer=optimizer, scheduler=scheduler, schedule_per_iteration=True)
    rate = engine.get_current_lr()
    for batch in engine.train_loader:
        engine.forward_backward(batch)
    assert engine.get_current_lr() > rate


def test_a_run_writes_whole_files_and_its_evaluation_is_the_teachers(datamanager, tmp_path, capsys):
    engine = make_engine(datamanager)
    engine.run(str(tmp_path), max_epoch=2, print_freq=1)
    assert capsys.readouterr().out == ""
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in found if "tfevents" not in name] == ["model/model.pth.tar-2"]
    state = load_checkpoint(tmp_path / "model" / "model.pth.tar-2")["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"teacher", "sstudent"}
    assert engine.dispersion > 0 and set(engine.results) == {"market1501"}
    alone = oskt.host.engine.TransferEngine(datamanager, engine.model.teacher, use_gpu=False)
    assert alone.evaluate() == engine.results["market1501"]
    again = make_engine(datamanager)
    assert again.resume(tmp_path / "model" / "model.pth.tar-2") == 2
    assert not changed(engine.chain.rows, again.chain.rows)
    assert not changed(engine.chain.statistics, again.chain.statistics)


# ---- layers that are trained first -------------------------------------------------------------------------------


def states(engine):
    """Tensors of the teacher and of the chain's own: rows, vectors, statistics, by layer of the teacher."""
    sstudent = engine.model.sstudent
    parts = {
        "teacher": engine.model.teacher.state_dict(),
        "rows": engine.chain.rows,
        "statistics": {name: tensor for name, tensor in sstudent.shell.state_dict().items() if tensor.numel()},
        "vectors": {name.replace("/", "."): tensor for name, tensor in sstudent.own_vectors.state_dict().items()},
    }
    return copy.deepcopy(parts)


def moved_layers(before, after):
    return {part: {name.partition(".")[0] for name in changed(before[part], after[part])} for part in before}


@pytest.mark.parametrize("vector_copies", [False, True])
@pytest.mark.parametrize("open_layers", ["classifier", ["last_norm", "classifier"]])
def test_open_layers_of_teacher_and_chain(datamanager, tmp_path, vector_copies, open_layers):
    """Only what belongs to the open layers moves; afterwards everything does."""
    engine = make_engine(datamanager, vector_copies=vector_copies)
    before = states(engine)
    engine.run(str(tmp_path), max_epoch=1, fixbase_epoch=1, open_layers=open_layers)
    moved, opened = moved_layers(before, states(engine)), {"classifier"} | set(open_layers) & {"last_norm"}
    assert moved["teacher"] == opened
    assert moved["rows"] == {"classifier"}
    assert moved["statistics"] == opened - {"classifier"}
    assert moved["vectors"] == opened & {name.partition(".")[0] for name in before["vectors"]}
    engine.run(str(tmp_path), max_epoch=2, start_epoch=1, fixbase_epoch=1, open_layers=open_layers)
    moved = moved_layers(before, states(engine))
    assert moved["teacher"] == {name for name, _ in engine.model.teacher.named_children()}
    assert moved["rows"] == {name.partition(".")[0] for name in before["rows"]}
    assert moved["statistics"] == {"norm", "inner_norm", "last_norm"}


def test_what_was_frozen_stays_so_when_layers_open(datamanager, tmp_path):
    teacher = teacher_of(datamanager)
    teacher.stem.requires_grad_(False)
    engine = make_engine(datamanager, teacher)
    engine.freeze(teacher.norm)
    before = states(engine)["teacher"]
    engine.run(str(tmp_path), max_epoch=2, fixbase_epoch=1, open_layers=["classifier"])
    moved = {name.partition(".")[0] for name in changed(before, teacher.state_dict())}
    assert moved == {name for name, _ in teacher.named_children()} - {"stem", "norm"}


class Burst(ReidLoss):
    """Not finite from its third call on."""

    calls = 0

    def forward(self, outputs, pids):
        self.calls += 1
        loss, summary = super().forward(outputs, pids)
        return (loss * float("nan") if self.calls >= 3 else loss), summary


def test_a_loss_that_is_not_finite_stops_before_the_step(datamanager, tmp_path):
    engine = make_engine(datamanager, loss=Burst(datamanager.num_train_pids))
    batches = len(engine.train_loader)
    assert batches == 3
    with pytest.raises(TrainingError, match="loss is nan at epoch 1 of 2, iteration 3 of 3 .*refine=.*lambda="):
        engine.run(str(tmp_path), max_epoch=2)
    assert all(torch.isfinite(parameter).all() for parameter in engine.model.parameters())
    engine.chain.validate()


@pytest.mark.parametrize("name", ["osnet_x0_25", "oskt_tiny_net"])
def test_models_for_the_triplet_loss(datamanager, name):
    loss = ReidLoss(datamanager.num_train_pids, weight_t=1.0, normalize_triplet=True)
    engine = make_engine(datamanager, teacher_of(datamanager, name, "triplet"), loss=loss)
    summary = engine.forward_backward(next(iter(engine.train_loader)))
    assert {"loss_t", "s_loss_t", "loss_x", "s_loss_x"} <= summary.keys()


class TwoBranches(TinyNet):
    """A list of class scores, one per branch, as part-based models give it."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.second = nn.Linear(self.feature_dim, num_classes)

    def forward(self, images):
        if not self.training:
            return super().forward(images)
        self.training = False
        feature = super().forward(images)
        self.training = True
        return [self.classifier(feature), self.second(feature)]


def test_networks_of_several_branches(datamanager):
    engine = make_engine(datamanager, TwoBranches(datamanager.num_train_pids))
    assert engine.chain.graph.heads == {"classifier.weight", "second.weight"}
    summary = engine.forward_backward(next(iter(engine.train_loader)))
    assert summary["s_loss_x"] > 0


def test_torchreid_builds_the_engine(market_root, tmp_path):
    """On the synthetic pedestrians, through torchreid's own names."""
    settings = preset(
        "quick", height=64, width=32, train_identities=4, test_identities=8, cameras=3, images_per_camera=4
    )
    synthped.configure(settings)
    manager = torchreid.data.ImageDataManager(
        root=str(tmp_path), sources="synthped", height=32, width=16, batch_size_train=8, workers=0, use_gpu=False
    )
    assert torchreid.engine.ImageOSKTEngine is oskt.OSKTEngine
    engine = torchreid.engine.build_engine("oskt", manager, teacher_of(manager), width=0.5, use_gpu=False)
    assert isinstance(engine, torchreid.engine.ImageOSKTEngine) and isinstance(engine, torchreid.engine.Engine)
    engine.run(str(tmp_path / "log"), max_epoch=1)
    student = oskt.expand(engine.chain, 0.75)
    assert isinstance(student, nn.Module) and engine.chain.input_size == SIZE


def test_bad_arguments(datamanager):
    with pytest.raises(ConfigError, match="lambda_schedule is 'cosine'"):
        make_engine(datamanager, lambda_shape="cosine")
    chain = WeightChain.from_teacher(models.build(NAME, 31), 0.5, input_size=SIZE)
    message = r"not made of this TinyNet: teacher tensor 'classifier.weight' has shape \(6, 24\), it must be \(31, 24\)"
    with pytest.raises(ChainError, match=message):
        make_engine(datamanager, chain=chain)
    with pytest.raises(ChainError, match=r"not made of this SqueezeNet: \d+ teacher tensors are missing .* unexpected"):
        make_engine(datamanager, teacher_of(datamanager, "squeezenet1_1"), chain=chain)


def test_staged_rates_are_those_of_both_networks(datamanager):
    """What the S-student has of a new layer learns at that layer's rate, all else of it at the base's."""
    config = load_config(options=["train.staged_lr=True", "train.new_layers=['classifier']", "train.lr=0.1"])
    teacher = teacher_of(datamanager)
    optimizer = build_optimizer(teacher, config)
    engine = make_engine(datamanager, teacher, optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(engine.model.sstudent.named_parameters())
    assert {name for name, p in parameters.items() if rates[id(p)] == 0.1} == {
        name for name in parameters if "classifier" in name
    }
    assert sorted({rates[id(p)] for p in parameters.values()}) == pytest.approx([0.01, 0.1])
