"""Recalibration: statistics become the plain average over batches, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import build
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.errors import DataError
from oskt_torchreid.models import NeckModel

SIZE = (3, 64, 32)


def batches(count=3, size=4, shape=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator) * (1 + index) + index for index in range(count)]


class TwoNorms(nn.Module):
    """A batch norm and an instance norm with statistics on the image itself, and a norm that is never reached."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
        self.spare = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.second(images).mean((2, 3)) + self.first(images).mean((2, 3))


def test_statistics_are_the_average_over_batches():
    model, images = TwoNorms().eval(), batches()
    result = oskt.recalibrate(model, images)
    assert result is model
    means = torch.stack([batch.mean((0, 2, 3)) for batch in images]).mean(0)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in images]).mean(0)
    assert torch.allclose(model.first.running_mean, means, atol=1e-5)
    assert torch.allclose(model.first.running_var, variances, atol=1e-4)
    assert torch.allclose(model.second.running_mean, means, atol=1e-5)
    within = torch.stack([batch.flatten(2).var(2).mean(0) for batch in images]).mean(0)
    assert torch.allclose(model.second.running_var, within, atol=1e-4)


def test_nothing_else_changes():
    model = TwoNorms().train()
    model.first.eval()
    model.spare.running_mean.fill_(7)
    model.first.num_batches_tracked.fill_(9)
    model.first.momentum, model.second.momentum = 0.3, None
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    oskt.recalibrate(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert (model.first.momentum, model.second.momentum, model.spare.momentum) == (0.3, None, 0.1)
    assert not any(module._forward_pre_hooks for module in model.modules())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {f"{norm}.{name}" for norm in ("first", "second") for name in ("running_mean", "running_var")}
    assert moved == {*statistics, "first.num_batches_tracked"}, "torch's instance norm does not count its batches"
    assert int(model.first.num_batches_tracked) == 3, "as many as the average is made of"


def test_every_form_of_batch_gives_the_same():
    images = batches()
    forms = [images, [{"img": batch, "pid": None} for batch in images], [(batch, 1) for batch in images]]
    states = [oskt.recalibrate(TwoNorms(), form).state_dict() for form in forms]
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


def test_only_so_many_batches_are_used():
    images = batches(4)
    some, first = oskt.recalibrate(TwoNorms(), iter(images), batches=2), oskt.recalibrate(TwoNorms(), images[:2])
    assert torch.equal(some.first.running_var, first.first.running_var)
    assert not torch.equal(some.first.running_var, oskt.recalibrate(TwoNorms(), images).first.running_var)


def test_single_images_are_left_out():
    images = batches()
    alone = oskt.recalibrate(TwoNorms(), [images[0], images[1][:1], images[2]])
    assert torch.equal(
        alone.first.running_mean, oskt.recalibrate(TwoNorms(), [images[0], images[2]]).first.running_mean
    )


def test_a_neck_that_evaluation_does_not_run_is_reached():
    model = NeckModel(build("osnet_x0_25"), 7, feature="before", input_size=SIZE).eval()
    before = model.neck.running_mean.clone()
    oskt.recalibrate(model, batches())
    assert not torch.equal(model.neck.running_mean, before)
    assert not model.training


def test_a_student_whose_statistics_are_gone_recovers():
    """Statistics of `build` are near those of its images; without them the features are others."""
    teacher, images = build("osnet_x0_25"), batches(2, 16)
    chain = oskt.WeightChain.from_teacher(teacher, 1.0, input_size=SIZE)
    student, expected = oskt.expand(chain, 1.0), oskt.recalibrate(copy.deepcopy(teacher), images)
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    with torch.no_grad():
        lost = student(images[0])
        found = oskt.recalibrate(student, images)(images[0])
        target = expected(images[0])
    assert torch.allclose(found, target, atol=1e-4)
    assert (lost - target).abs().max() > 0.1 * target.std()


def test_networks_without_statistics_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2))
    assert oskt.recalibrate(model, []) is model


@pytest.mark.parametrize(
    ("loader", "count", "message"),
    [
        ([], None, "gave no batch of two or more images"),
        ([torch.zeros(1, 3, 8, 8)], None, "gave no batch of two or more images"),
        ([torch.zeros(4, 3, 8, 8)], 0, "batches is 0; statistics are estimated from at least 1 batch"),
        ([torch.zeros(3, 8, 8)], None, r"batch 1 holds torch.float32 of shape \(3, 8, 8\); give floating point images"),
        ([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], None, "batch 1 holds torch.uint8"),
        ([{"image": 1}], None, "batch 1 holds NoneType; .* under 'img'"),
        ([["name.jpg"]], None, "batch 1 holds str"),
        ([torch.ones(4, 3, 8, 8), torch.zeros(4, 5, 8, 8)], None, r"TwoNorms cannot take batch 2 of shape \(4, 5, 8"),
    ],
)
def test_mistakes_leave_the_network_as_it_was(loader, count, message):
    model = TwoNorms()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=message):
        oskt.recalibrate(model, loader, batches=count)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(norm.momentum == 0.1 for norm in (model.first, model.second))
