"""What a student starts from: the last stage found in any module tree, restarted or kept, and a fresh head."""

import pytest
import torch
from sets import SetManager, tiny
from tensors import same_tensors
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.host import models
from oskt_torchreid.host.vkd_engine import VKDEngine
from oskt_torchreid.vkd.students import last_stage_of

LAST_STAGES = {
    "resnet18": ("backbone.layer4",),
    "resnet50_bam": ("backbone.layer4",),
    "densenet121": ("backbone.features.denseblock4", "backbone.features.norm5"),
    "mobilenetv2_x1_0": ("backbone.conv8", "backbone.conv9"),
    "osnet_x0_25": ("backbone.conv4", "backbone.conv5", "backbone.fc"),
    "se_resnet50": ("backbone.layer4",),
    "shufflenet": ("backbone.stage4",),
    "squeezenet1_0": ("backbone.features.10", "backbone.features.12"),
    "vit_small_patch16": ("blocks.9", "blocks.10", "blocks.11", "norm"),
}


@pytest.mark.parametrize(("name", "expected"), LAST_STAGES.items())
def test_last_stage_of_known_networks(name, expected):
    assert last_stage_of(models.skeleton(f"vkd_{name}", 3, "triplet")) == expected


def test_last_stage_of_a_plain_row_of_blocks():
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(8)]
    assert last_stage_of(nn.Sequential(nn.Sequential(*blocks))) == ("0.6", "0.7")


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = models.build("vkd_resnet18", 5, "triplet")
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand(tensor.shape))
    return model.requires_grad_(False).eval()


def changed_parts(student, teacher):
    own, other = student.state_dict(), teacher.state_dict()
    changed = [name for name in own if own[name].shape != other[name].shape or not torch.equal(own[name], other[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("backbone") else 1]) for name in changed}


def test_scratch_restarts_the_last_stage_and_the_head(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = oskt.vkd.student_from(teacher)
    assert changed_parts(student, teacher) == {"backbone.layer4", "neck", "classifier"}
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert student.training and not teacher.training
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["neck.bias"] and not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(student.neck.bias, torch.zeros(512)) and 0.0008 < student.classifier.weight.std() < 0.0012
    assert 0.9 < student.backbone.layer4[1].conv1.weight.std() * (9 * 512 / 2) ** 0.5 < 1.1, "torchreid's own values"


def test_keep_and_other_classes(teacher):
    assert changed_parts(oskt.vkd.student_from(teacher, last_stage="keep"), teacher) == {"neck", "classifier"}
    assert not changed_parts(oskt.vkd.student_from(teacher, last_stage="keep", keep_head=True), teacher)
    student = oskt.vkd.student_from(teacher, num_classes=3)
    assert student.classifier.out_features == 3
    with pytest.raises(ConfigError, match="head has 5 classes and cannot be kept for 3"):
        oskt.vkd.student_from(teacher, num_classes=3, keep_head=True)
    with pytest.raises(ConfigError, match="a student starts from a network of sets, got a Linear"):
        oskt.vkd.student_from(nn.Linear(2, 2))


def test_published_weights_of_the_last_stage(teacher, tmp_path):
    published = models.build("resnet18", 1000)
    torch.save(published.state_dict(), tmp_path / "imagenet.pth")
    student = oskt.vkd.student_from(teacher, last_stage=tmp_path / "imagenet.pth")
    assert changed_parts(student, teacher) == {"backbone.layer4", "neck", "classifier"}
    stage = published.layer4.state_dict()
    assert all(torch.equal(stage[name], tensor) for name, tensor in student.backbone.layer4.state_dict().items())
    again = oskt.vkd.student_from(teacher, last_stage=student)
    assert same_tensors(again.backbone.layer4, student.backbone.layer4)
    torch.save({f"layer4.{name}": tensor for name, tensor in stage.items()}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part.pth' does not fit SetModel .* missing: backbone.conv1.weight"):
        oskt.vkd.student_from(teacher, last_stage=tmp_path / "part.pth")


def test_generations_train_on(tmp_path):
    """The student becomes the next teacher, as often as one likes."""
    teacher, manager = tiny(), SetManager()
    for generation in range(2):
        student = oskt.vkd.student_from(teacher)
        assert torch.equal(student.backbone.early[0].weight, teacher.backbone.early[0].weight)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        engine = VKDEngine(manager, student, optimizer, teacher=teacher, use_gpu=False)
        engine.run(str(tmp_path / str(generation)), max_epoch=1)
        assert not torch.equal(student.backbone.early[0].weight, teacher.backbone.early[0].weight)
        teacher = student
