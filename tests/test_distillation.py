"""KD++: its losses against numbers worked out by hand, and what its engine trains."""

import copy
import math

import pytest
import torch
from torch import nn

from oskt_torchreid.baselines import DistillationEngine, make_baseline
from oskt_torchreid.baselines.distillation import compatible_loss, norm_direction_loss, read_classifiers
from oskt_torchreid.chain.network import trace
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.graph.plans import ratio_plan
from oskt_torchreid.host import models
from oskt_torchreid.host.data import build_datamanager, unaugmented_loader
from oskt_torchreid.host.losses import kd_loss

SIZE = (3, 32, 16)
SETTINGS = [
    "data.workers=0",
    "data.height=32",
    "data.width=16",
    "data.transforms=['random_flip', 'random_erase']",
    "train.batch_size=8",
    "use_gpu=False",
]


@pytest.fixture(scope="module")
def datamanager(market_root):
    return build_datamanager(load_config(options=SETTINGS, flags={"data.root": str(market_root)}))


def make_engine(datamanager, name="osnet_x0_25", loss="softmax", **options):
    """An engine at the first iteration of a run of 12 epochs, its student and its teacher."""
    torch.manual_seed(0)
    teacher = models.build(name, datamanager.num_train_pids, loss)
    graph = trace(teacher, SIZE)
    student = make_baseline("slice", teacher, graph, ratio_plan(graph, 0.5))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    options = {"teacher": teacher, "heads": graph.heads, "use_gpu": False, **options}
    engine = DistillationEngine(datamanager, student, optimizer, **options)
    engine.epoch, engine.batch_idx, engine.max_epoch = 0, 0, 12
    engine.set_model_mode("train")
    return engine, student, teacher


def test_divergence_by_hand():
    """p = (1/4, 3/4) against q = (1/2, 1/2) at temperature 2."""
    student = torch.zeros(2, 2)
    teacher = torch.tensor([[0.0, 2 * math.log(3)], [0.0, 0.0]])
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2  # the second image agrees
    assert float(kd_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("length", "expected"), [(10.0, 1 - 3 / 10), (2.0, 1 - 3 / 5)])
def test_norm_and_direction_by_hand(length, expected):
    """A student of length 5 with 3 along the class mean, and a longer and a shorter teacher's feature."""
    student = torch.tensor([[3.0, 4, 0, 0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0, 0, length]])
    loss = norm_direction_loss(student, teacher, torch.tensor([[1.0, 0, 0, 0]]))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    along, across = (-1 / 10, 0) if length > 5 else (-(1 / 5 - 9 / 125), 12 / 125)
    torch.testing.assert_close(student.grad, torch.tensor([[along, across, 0, 0]]))


def test_compatible_features_by_hand():
    """`(3, 4)` lifted by `0 1 0 1` against `(3, 4, 0, 0)`, and one that agrees but for its length."""
    lifted = torch.tensor([[3.0, 4, 3, 4], [2, 0, 2, 0]])
    teacher = torch.tensor([[3.0, 4, 0, 0], [1, 0, 1, 0]])
    assert float(compatible_loss(lifted, teacher)) == pytest.approx((1 - 25 / (50**0.5 * 5)) / 2)


@pytest.mark.parametrize(("name", "lifting"), [("osnet_x0_25", []), ("pcb_p4", [0] * 512)])
def test_features_that_cannot_be_held_to_a_teachers(datamanager, name, lifting):
    with pytest.raises(ConfigError, match="cannot be held to a teacher's by a lifting of"):
        make_engine(datamanager, name, weight_compatible=1.0, lifting=lifting)


def test_norm_and_direction_is_a_mean_over_images():
    student = torch.tensor([[2.0, 0], [0, 1]])
    directions = torch.tensor([[1.0, 0], [1, 0]])
    assert float(norm_direction_loss(student, student, directions)) == pytest.approx((0 + 1) / 2)


def test_class_means_are_means_of_what_the_classifier_reads(datamanager):
    engine, _, teacher = make_engine(datamanager)
    (means,) = engine.class_means()
    images, pids = zip(*[(batch["img"], batch["pid"]) for batch in unaugmented_loader(datamanager)], strict=True)
    with torch.no_grad():
        features = copy.deepcopy(teacher).eval()(torch.cat(images))  # in evaluation it returns that very feature
    pids = torch.cat(pids)
    assert means.shape == (datamanager.num_train_pids, teacher.feature_dim)
    torch.testing.assert_close(means[3], features[pids == 3].mean(0))
    engine.class_means()
    assert torch.equal(engine.class_means()[0], means), "no augmentation"


def test_terms_of_a_step(datamanager):
    engine, student, teacher = make_engine(datamanager, weight_kl=2.0, weight_nd=3.0)
    weights, frozen = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    batch = next(iter(engine.train_loader))
    images, pids = engine.prepare(batch)
    for epoch, ramp in ((0, 0.0), (6, 1.0)):
        engine.epoch = epoch
        loss, terms = engine.compute_losses(images, pids)
        expected = terms["loss_x"] + 2 * ramp * terms["loss_kl"] + 3 * terms["loss_nd"]
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    engine.forward_backward(batch)
    (projection,) = engine.model.projections
    assert projection.weight.shape == (teacher.feature_dim, student.classifier.in_features)
    assert projection.weight.grad.abs().sum() > 0, "trained along"
    assert any(parameter is projection.weight for parameter in engine.optimizer.param_groups[0]["params"])
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in teacher.state_dict().items()), "frozen"
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in student.state_dict().items())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


TERMS = [("loss_kl", "weight_kl"), ("loss_nd", "weight_nd"), ("loss_c", "weight_compatible")]


@pytest.mark.parametrize(("term", "weight"), TERMS)
def test_a_term_is_lowered_by_its_weight(datamanager, term, weight):
    batch, last = None, {}
    for value in (1e-9, 10.0):
        weights = {"weight_kl": 0.0, "weight_nd": 0.0, weight: value}
        engine, student, _ = make_engine(datamanager, **weights, lifting=[entry // 2 for entry in range(512)])
        engine.epoch = 6
        batch = batch or next(iter(engine.train_loader))
        for _ in range(8):
            last[value] = engine.forward_backward(batch)[term]
    assert last[10.0] < last[1e-9]


@pytest.mark.parametrize(("name", "loss"), [("pcb_p4", "softmax"), ("oskt_resnet18", "triplet")])
def test_several_classifiers_and_the_triplet_loss(datamanager, name, loss):
    engine, student, _ = make_engine(datamanager, name, loss)
    summary = engine.forward_backward(next(iter(engine.train_loader)))
    assert math.isfinite(summary["loss_kl"]) and summary["loss_nd"] > 0
    assert len(engine.model.projections) == (4 if name == "pcb_p4" else 1)


def test_a_run_keeps_the_student_and_evaluates_it(datamanager, tmp_path):
    engine, student, _ = make_engine(datamanager)
    engine.run(str(tmp_path), max_epoch=1)
    state = load_checkpoint(tmp_path / "model" / "model.pth.tar-1")["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"student", "projections"}
    assert torch.equal(state["student.classifier.weight"], student.classifier.weight)
    again, _, _ = make_engine(datamanager)
    assert again.resume(tmp_path / "model" / "model.pth.tar-1") == 1
    assert again.evaluate() == engine.results["market1501"]


def test_reading_leaves_nothing_behind():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with read_classifiers(network, frozenset({"2.weight"})) as readings:
        logits = network(torch.randn(5, 3))
    assert torch.equal(readings["2.weight"].logits, logits) and readings["2.weight"].features.shape == (5, 4)
    assert not network[2]._forward_hooks


@pytest.mark.parametrize("options", [{"weight_kl": -1.0}, {"weight_nd": -1.0}, {"temperature": 0.0}])
def test_bad_weights(datamanager, options):
    with pytest.raises(ConfigError, match="allowed: weights of at least 0, a temperature above 0"):
        make_engine(datamanager, **options)


def test_a_teacher_of_other_identities(datamanager):
    stranger = models.build("osnet_x0_25", 3)
    with pytest.raises(ConfigError, match="'classifier.weight' of the student has 6 classes, its teacher's 3"):
        make_engine(datamanager, teacher=stranger)


def test_a_teacher_of_other_identities_gives_features(datamanager):
    """Without terms of class scores or class means, who the teacher knew does not matter."""
    weights = {"weight_kl": 0.0, "weight_nd": 0.0, "weight_compatible": 1.0, "lifting": [0] * 512}
    engine, _, _ = make_engine(datamanager, teacher=models.build("osnet_x0_25", 3), **weights)
    assert engine.forward_backward(next(iter(engine.train_loader)))["loss_c"] > 0
