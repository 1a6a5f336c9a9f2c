"""What is saved can be loaded: a student's file is read back before it takes its place."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from small_networks import IMAGE, Head, Network, conv
from tensors import same_tensors
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.errors import CheckpointError

SIZE = (3, 128, 64)
SMALL = {
    "convolution": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "convolution as classifier": lambda: nn.Sequential(
        conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()
    ),
    "convolution before its activation": lambda: nn.Sequential(
        conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Hardswish(), nn.Flatten()
    ),
    "grouped": lambda: nn.Sequential(conv(3, 8), conv(8, 8, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "transposed": lambda: nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "map": lambda: nn.Sequential(conv(3, 8), conv(8, 6)),
    "linear": lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)),
    "norm": lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}
LARGE = {
    "dla34": lambda: timm.create_model("dla34", num_classes=7),
    "resnetv2_50": lambda: timm.create_model("resnetv2_50", num_classes=7),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=7),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=0),
    "dla34 without a classifier": lambda: timm.create_model("dla34", num_classes=0),
}


def returns(model, size, path):
    student = oskt.expand(oskt.WeightChain.from_teacher(model.eval(), width=0.5, input_size=size), width=0.5)
    oskt.save_student(student, path)
    loaded = oskt.load_student(path, model=model)
    images = torch.randn(2, *size)
    with torch.no_grad():
        return same_tensors(loaded, student) and torch.equal(loaded(images), student(images))


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_last_layer(name, tmp_path):
    assert returns(SMALL[name](), IMAGE, tmp_path / "student.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_networks_of_others(name, tmp_path):
    assert returns(LARGE[name](), SIZE, tmp_path / "student.pth")


def student_of(model=None):
    model = model or nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), Head(8))
    return oskt.expand(oskt.WeightChain.from_teacher(model.eval(), width=0.5, input_size=IMAGE), width=0.5)


def broken(student):
    student[2].classifier = nn.Linear(5, 2)


def with_another_layer(student):
    student[2].classifier = nn.Bilinear(4, 4, 2)


def diverged(student):
    student[0].weight.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("spoil", "message"), [(broken, "do not fit each other"), (diverged, "NaN"), (with_another_layer, "fit each other")]
)
def test_what_could_not_be_loaded_is_not_written(spoil, message, tmp_path):
    path = tmp_path / "student.pth"
    student = student_of()
    oskt.save_student(student, path)
    before = path.read_bytes()
    spoil(student)
    with pytest.raises(CheckpointError, match=f"cannot be loaded again, so nothing was written: .*{message}") as caught:
        oskt.save_student(student, path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_check_that_fails_leaves_nothing_behind(tmp_path):
    def check(path):
        assert torch.load(path)["a"] == 1
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"):
        oskt.chain.student_file.files.save_checkpoint(tmp_path / "a.pth", {"a": 1}, check)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_student_as_it_was(tmp_path):
    student = student_of(Network(lambda self, x: self.head(self.first(x)), first=conv(3, 8), head=Head(8))).train()
    student.head.eval()
    state, modes = {n: t.clone() for n, t in student.state_dict().items()}, [m.training for m in student.modules()]
    draws = torch.get_rng_state()
    oskt.save_student(student, tmp_path / "student.pth", half=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.state_dict().items())
    assert [m.training for m in student.modules()] == modes and torch.equal(torch.get_rng_state(), draws)
