"""The engine of networks of sets: a frozen teacher that stays as it is, the sum of the terms, and what is refused."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from sets import SIZE, SetManager, Tiny, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.vkd_engine import VKDEngine, frozen_teacher
from oskt_torchreid.vkd.views import student_views


def make_engine(manager=None, model=None, teacher="tiny", **options):
    torch.manual_seed(0)
    model = model or tiny()
    teacher = tiny() if teacher == "tiny" else teacher
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return VKDEngine(manager or SetManager(), model, optimizer, teacher=teacher, use_gpu=False, **options)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    state = model.state_dict()
    return state.keys() == before.keys() and all(torch.equal(state[name], tensor) for name, tensor in before.items())


# ---- the teacher -----------------------------------------------------------------------------------------------------


def test_the_teacher_is_bit_identical_after_training(tmp_path):
    teacher = tiny()
    teacher(SetManager().train_loader[0]["img"])  # gives it its own statistics
    teacher.eval()
    before = snapshot(teacher)
    engine = make_engine(teacher=teacher)
    student = snapshot(engine.model)
    engine.run(str(tmp_path), max_epoch=2)
    assert unchanged(teacher, before) and unchanged(engine.teacher, before)
    assert not teacher.training and all(parameter.requires_grad for parameter in teacher.backbone.parameters())
    assert not unchanged(engine.model, student)
    assert engine.teacher.training and not any(parameter.requires_grad for parameter in engine.teacher.parameters())


def test_its_norms_use_the_statistics_of_the_batch():
    teacher = tiny()
    nn.init.constant_(teacher.backbone.early[1].running_mean, 3.0)
    sets = SetManager().train_loader[0]["img"]
    frozen = frozen_teacher(teacher)
    with torch.no_grad():
        found = frozen(sets)
        training = copy.deepcopy(teacher).train()(sets)
        teacher.training = True
        running = teacher.eval()(sets)
    for own, expected in zip(found, training, strict=True):
        torch.testing.assert_close(own, expected)
    assert not torch.allclose(found[1], running, atol=0.1)
    assert all(norm.num_batches_tracked == 0 for norm in frozen.modules() if isinstance(norm, nn.BatchNorm2d))


# ---- the sum ---------------------------------------------------------------------------------------------------------


def test_one_step_is_the_papers_sum():
    engine = make_engine(alpha=0.3, beta=0.02, temperature=4.0, num_student_views=2)
    data = engine.datamanager.train_loader[0]
    student = copy.deepcopy(engine.model).train()
    engine.set_model_mode("train")
    torch.manual_seed(5)
    images, pids = engine.prepare(data)
    loss, summary = engine.compute_losses(images, pids)
    torch.manual_seed(5)
    logits, embeddings = student(student_views(data["img"], 2))
    with torch.no_grad():
        goal_logits, goal_embeddings = engine.teacher(data["img"])
    terms = {
        "loss_x": functional.cross_entropy(logits, pids),
        "loss_t": oskt.host.losses.soft_margin_triplet_loss(embeddings, pids),
        "loss_kd": oskt.host.losses.kd_loss(logits, goal_logits, 4.0),
        "loss_dp": oskt.vkd.distance_preservation_loss(embeddings, goal_embeddings),
    }
    assert summary == pytest.approx({**{name: term.item() for name, term in terms.items()}, "acc": summary["acc"]})
    expected = terms["loss_x"] + terms["loss_t"] + 0.3 * terms["loss_kd"] + 0.02 * terms["loss_dp"]
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    for own, other in zip(engine.model.parameters(), student.parameters(), strict=True):
        assert own.requires_grad == other.requires_grad
        if own.requires_grad:
            torch.testing.assert_close(own.grad, other.grad)


def test_a_student_that_is_the_teacher_and_sees_all_has_nothing_to_distil():
    teacher = tiny()
    engine = make_engine(model=copy.deepcopy(teacher), teacher=teacher, num_student_views=4)
    engine.set_model_mode("train")
    summary = engine.forward_backward(engine.datamanager.train_loader[0])
    assert summary["loss_kd"] == pytest.approx(0, abs=1e-5) and summary["loss_dp"] == pytest.approx(0, abs=1e-5)


def test_other_networks_and_other_labels(caplog):
    """Cross-distillation: the distances alone are left where the classes differ, and the log says so."""
    with caplog.at_level(logging.WARNING):
        engine = make_engine(teacher=tiny(num_classes=7, width=9))
    assert "the teacher has 7 classes, the student 4: the distillation of class scores" in caplog.text
    summary = engine.forward_backward(engine.datamanager.train_loader[0])
    assert summary.keys() == {"loss_t", "loss_x", "acc", "loss_dp"}
    assert make_engine(teacher=tiny(width=9)).same_classes


def test_without_a_teacher_it_trains_one():
    engine = make_engine(teacher=None)
    summary = engine.forward_backward(engine.datamanager.train_loader[0])
    assert summary.keys() == {"loss_t", "loss_x", "acc"}
    assert engine.loss.cross_entropy.eps == 0 and engine.loss.triplet is oskt.host.losses.soft_margin_triplet_loss


def test_mixed_precision_keeps_the_losses_in_32_bits():
    """The engine asks for it on a GPU alone; the same code runs here in torch's bfloat16 of the CPU."""
    engine, exact = make_engine(), make_engine()
    engine.mixed_precision = True
    data = engine.datamanager.train_loader[0]
    dtypes = []
    engine.teacher.register_forward_hook(lambda module, inputs, outputs: dtypes.append(outputs[0].dtype))
    for each in (engine, exact):
        torch.manual_seed(3)
        each.forward_backward(data)
    assert dtypes == [torch.bfloat16]
    assert engine.last_summary == pytest.approx(exact.last_summary, rel=0.1, abs=1e-2)
    assert engine.last_summary != exact.last_summary


def test_half_resolution_and_single_images():
    engine = make_engine(half_resolution_epochs=1)
    images, _ = engine.prepare(engine.datamanager.train_loader[0])
    assert images.shape == (8, 4, 3, 8, 4)
    images, _ = make_engine().prepare({"img": torch.zeros(5, *SIZE), "pid": torch.zeros(5, dtype=torch.long)})
    assert images.shape == (5, 1, *SIZE)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_logs_every_term_and_saves_the_student_alone(tmp_path, capsys):
    engine = make_engine(protocols=("V2V", "I2V", "V2I", "I2I"))
    engine.run(str(tmp_path), max_epoch=2, print_freq=1)
    assert capsys.readouterr().out == ""
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in found if "tfevents" not in name] == ["model/model.pth.tar-2"]
    assert (
        load_checkpoint(tmp_path / "model" / "model.pth.tar-2")["state_dict"].keys() == engine.model.state_dict().keys()
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"Train/{term}" for term in ("loss_x", "loss_t", "loss_kd", "loss_dp", "acc", "lr")} <= tags
    assert {"Test/toy/I2V/mAP_trapezoid", "Test/toy/V2V/rank1"} <= tags
    assert list(engine.protocols["toy"]) == ["V2V", "I2V", "V2I", "I2I"]
    assert engine.results["toy"]["mAP"] == engine.protocols["toy"]["V2V"]["mAP_interpolated"]
    assert engine.evaluate() == engine.results["toy"]
    assert engine.results["toy"]["mAP"] > 0.5, "pictures of equal identities are alike"


def test_resume_goes_on_where_training_stopped(tmp_path):
    whole = make_engine()
    whole.run(str(tmp_path / "whole"), max_epoch=1)
    whole.run(str(tmp_path / "whole"), max_epoch=2, start_epoch=1)
    first = make_engine()
    first.run(str(tmp_path / "first"), max_epoch=1)
    second = make_engine()
    start = second.resume(tmp_path / "first" / "model" / "model.pth.tar-1")
    torch.manual_seed(7)  # the random state is restored as well, whatever was drawn in between
    second.run(str(tmp_path / "second"), max_epoch=2, start_epoch=start)
    assert start == 1 and unchanged(second.model, whole.model.state_dict())


def test_torchreids_names(tmp_path):
    assert torchreid.engine.VideoVKDEngine is oskt.VKDEngine is VKDEngine
    engine = torchreid.engine.build_engine("vkd", SetManager(), tiny(), teacher=tiny(), use_gpu=False)
    assert isinstance(engine, torchreid.engine.Engine) and engine.num_student_views == 2
    assert (engine.temperature, engine.alpha, engine.beta) == (10, 0.1, 1e-4)


# ---- what is refused -------------------------------------------------------------------------------------------------


class Batches(list):
    """Batches of a data set that says how many views its sets have."""

    dataset = SimpleNamespace(num_views=4)


class Views(SetManager):
    """A manager of such batches."""

    def __init__(self):
        super().__init__()
        self.train_loader = Batches(self.train_loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": nn.Conv2d(3, 2, 1)}, "the teacher of engine 'vkd' is a Conv2d, a network of single images"),
        ({"model": Tiny(4)}, "the student of engine 'vkd' is a Tiny, a network of single images; .*vkd_<backbone>"),
        (
            {"model": tiny(loss="softmax")},
            "student of engine 'vkd' was built with loss 'softmax' and gives no embeddings",
        ),
        (
            {"manager": Views(), "num_student_views": 5},
            "vkd.num_student_views is 5; allowed: 1 to vkd.num_views=4",
        ),
        ({"num_student_views": 0}, "vkd.num_student_views is 0; allowed: 1 to"),
        ({"temperature": 0}, "temperature is 0; allowed: numbers above 0"),
        ({"protocols": None}, "protocols are None; give a list of"),
        ({"frames_at_once": "8"}, "frames_at_once is '8'; allowed: numbers of at least 1"),
        ({"alpha": "much"}, "alpha is 'much'; allowed: numbers of at least 0"),
        ({"beta": -1}, "beta is -1; allowed: numbers of at least 0"),
        ({"loss": "triplet"}, "loss of an engine is 'triplet'; expected oskt_torchreid.host.losses.ReidLoss"),
        ({"protocols": ("V2W",)}, r"protocols are \['V2W'\]; allowed: one or more of V2V, I2V, V2I, I2I"),
    ],
)
def test_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        make_engine(**options)


def test_a_teacher_without_a_head():
    teacher = tiny()
    teacher.classifier = nn.Identity()
    with pytest.raises(
        ConfigError, match="the teacher is a SetModel without a classifier, so it gives no class scores"
    ):
        make_engine(teacher=teacher)


def test_sets_that_are_too_small():
    engine = make_engine(manager=SetManager(views=1))
    with pytest.raises(ConfigError, match="vkd.num_student_views is 2; allowed: 1 to vkd.num_views=1"):
        engine.forward_backward(engine.datamanager.train_loader[0])


def test_evaluation_that_is_not_there():
    engine = make_engine()
    with pytest.raises(ConfigError, match="draws no ranked lists; set visrank to False"):
        engine.evaluate(visrank=True)
    found = engine.evaluate(rerank=True, ranks=[3])
    assert {"mAP", "rank1", "rank3", "reranked_mAP", "reranked_rank3"} <= found.keys()
    engine.test_loader["toy"]["gallery"] = []
    with pytest.raises(DataError, match="the gallery of 'toy' has no tracklets"):
        engine.evaluate()
