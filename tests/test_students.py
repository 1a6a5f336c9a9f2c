"""Students for users: by width, by example, as files, and inside torchreid's stock models."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from backbones import build
from chains import arbitrary_chain
from small_networks import of_everything
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.errors import CheckpointError, ConfigError, WidthError
from oskt_torchreid.files import load_checkpoint, weights
from oskt_torchreid.graph.plans import ratio_plan
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import torchreid

SIZE = (3, 64, 32)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def feature(model, size=SIZE):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.randn(2, *size))


def make_chain_of(model, width, size):
    return WeightChain.from_teacher(model, width, input_size=size)


def make_chain(name, width):
    return WeightChain.from_teacher(build(name), width, input_size=SIZE)


@functools.cache
def quick_chain(name, width):
    """One whose clusters do not matter."""
    return arbitrary_chain(build(name), width, SIZE)


@pytest.fixture(scope="module")
def chain():
    """osnet_x1_0 with a chain at a quarter, the narrowest stock member of its family."""
    return make_chain("osnet_x1_0", 0.25)


@pytest.fixture(scope="module")
def small():
    return make_chain("osnet_x0_25", 0.5)


# ---- by width ----------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_plan_it_stands_for(small):
    plan = oskt.chain.width_plan(small, 0.75)
    assert plan == ratio_plan(small.graph, 0.75)
    student = oskt.expand(small, 0.75)
    assert same(student.state_dict(), oskt.expand(small, plan).state_dict())
    assert oskt.trace(student, SIZE).sizes == plan
    assert (student.conv1.conv.out_channels, student.conv1.bn.num_features) == (12, 12)
    assert not student.training and all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.0])
def test_no_two_tensors_of_a_student_share_memory(small, ratio):
    """Vectors of one norm are averaged together and are separate afterwards, also those of a single channel."""
    chain = make_chain_of(of_everything(), 0.3, (3, 8, 8))
    for student in (oskt.expand(small, ratio), oskt.expand(chain, ratio)):
        tensors = [tensor for tensor in student.state_dict().values() if tensor.numel()]
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


def test_a_partial_plan_leaves_other_groups_whole(small):
    plan = oskt.chain.width_plan(small, {"conv1.conv": 9})
    assert plan == {**small.graph.sizes, "conv1.conv": 9}
    assert oskt.trace(oskt.expand(small, plan), SIZE).sizes == plan


def test_full_width_of_a_chain_has_the_teachers_shapes(small):
    student = oskt.expand(small, 1.0)
    assert type(student) is type(models.build("osnet_x0_25", 7))
    shapes = {name: tensor.shape for name, tensor in models.build("osnet_x0_25", 7).state_dict().items()}
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == shapes


def test_students_share_no_memory(small):
    one, other = oskt.expand(small, 0.5), oskt.expand(small, 0.5)
    before = copy.deepcopy(other.state_dict())
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.zero_()
    assert same(other.state_dict(), before)


def test_students_follow_torchreids_protocol_and_train(small):
    student = oskt.expand(small, 0.5).train()
    logits = student(torch.randn(4, *SIZE))
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert feature(student).shape == (2, student.feature_dim)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"width": 0.4}, r"width 6 of group 'conv1.conv' is outside of \[8, 16\].*at least 0.5, or refine a narrower"),
        ({"width": 1.01}, r"width ratio 1.01 is outside of \(0, 1\]"),
        ({"width": {"conv1.conv": 17}}, r"width 17 of group 'conv1.conv' is outside of \[1, 16\]"),
        ({"width": {"conv1.conv": 7}}, r"width 7 of group 'conv1.conv' is outside of \[8, 16\]"),
        ({"width": {"stem": 8}}, r"unknown: \['stem'\]"),
        ({}, r"in exactly one way, not 0 \(none\): width=0.5, params='1M'"),
        ({"width": 0.5, "like": "osnet_x0_25"}, "in exactly one way"),
        ({"like": "osnet_x1_0"}, "outside of"),
    ],
)
def test_widths_that_a_chain_cannot_give(small, request_, message):
    with pytest.raises(WidthError, match=message):
        oskt.expand(small, **request_)


# ---- by example --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["osnet_x0_25", "osnet_x0_5", "osnet_x0_75"])
def test_students_like_stock_networks_load_strictly_into_them(chain, name):
    student = oskt.expand(chain, like=name)
    stock = models.build(name, 7)
    stock.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(feature(stock), feature(student))
    assert student.feature_dim == stock.feature_dim == 512


def test_a_name_a_network_and_a_state_dict_ask_for_the_same(chain):
    stock = models.build("osnet_x0_5", 7)
    plans = [oskt.chain.width_plan(chain, like=like) for like in ("osnet_x0_5", stock, stock.state_dict())]
    assert plans[0] == plans[1] == plans[2]


def test_the_example_may_have_other_classes(chain):
    student = oskt.expand(chain, like=models.build("osnet_x0_5", 31))
    assert student.classifier.out_features == 7


def test_osnet_ain():
    student = oskt.expand(quick_chain("osnet_ain_x1_0", 0.5), like="osnet_ain_x0_5")
    stock = models.build("osnet_ain_x0_5", 7)
    stock.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(feature(stock), feature(student))


class HalfResNet(torchreid.models.resnet.ResNet):
    """torchreid's own ResNet class at half the width everywhere."""

    def __init__(self, num_classes, **options):
        super().__init__(num_classes, **options)
        self.feature_dim //= 2
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def _make_layer(self, block, planes, *args, **options):
        if planes == 64:
            self.inplanes //= 2
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, planes // 2, *args, **options)


@pytest.mark.parametrize("how", [{"width": 0.5}, {"like": "stock"}])
def test_half_a_resnet50_is_a_half_width_resnet50(how):
    block = torchreid.models.resnet.Bottleneck
    stock = HalfResNet(7, loss="softmax", block=block, layers=[3, 4, 6, 3]).eval()
    how = {"like": stock} if "like" in how else how
    student = oskt.expand(quick_chain("resnet50", 0.125), **how)
    stock.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(feature(stock), feature(student))
    assert student.feature_dim == stock.feature_dim == 1024


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            "resnet34",
            r"'resnet34' is of another depth or family than the teacher: 0 tensors are missing in it \[\], 96",
        ),
        ("osnet_x0_5", "'osnet_x0_5' is of another depth or family than the teacher"),
        ({}, "the given state dict is of another depth or family"),
    ],
)
def test_networks_of_another_depth_or_family(like, message):
    with pytest.raises(WidthError, match=message):
        oskt.expand(quick_chain("resnet18", 0.5), like=like)


def test_shapes_that_no_widths_give(chain):
    shapes = models.build("osnet_x0_5", 7).state_dict()
    shapes["conv1.bn.running_mean"] = torch.zeros(33)
    with pytest.raises(
        WidthError, match="no widths make a student like the given state dict: .*'conv1.bn.running_mean'"
    ):
        oskt.expand(chain, like=shapes)


def test_an_unknown_name(chain):
    with pytest.raises(ConfigError, match="unknown model 'osnet_x0_4'.*did you mean .*osnet_x0_5"):
        oskt.expand(chain, like="osnet_x0_4")


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["osnet_x0_25", "shufflenet", "resnet50_ibn_a", "oskt_squeezenet1_1"])
def test_a_loaded_student_is_the_saved_one(tmp_path, name):
    """shufflenet's student reorders channels in its own way; resnet50_ibn_a's has other split points."""
    saved = oskt.expand(arbitrary_chain(build(name), 0.25, SIZE), 0.5)
    path = tmp_path / "student.pth"
    oskt.save_student(saved, path)
    loaded = oskt.load_student(path)
    assert type(loaded) is type(saved) and not loaded.training
    assert same(loaded.state_dict(), saved.state_dict())
    assert torch.equal(feature(loaded), feature(saved))
    assert getattr(loaded, "feature_dim", None) == getattr(saved, "feature_dim", None)
    oskt.save_student(loaded, tmp_path / "again.pth")
    assert same(oskt.load_student(tmp_path / "again.pth").state_dict(), saved.state_dict())


def test_a_file_does_not_keep_the_order_in_memory(small, tmp_path):
    """With channels last, as students can be trained, exporters of others write positions instead of a flattening."""
    student = oskt.expand(small, 0.75).to(memory_format=torch.channels_last)
    oskt.save_student(student, tmp_path / "student.pth")
    oskt.chain.save_plain(student, tmp_path / "plain.pth")
    loaded = [
        *oskt.load_student(tmp_path / "student.pth").parameters(),
        *load_checkpoint(tmp_path / "plain.pth")["state_dict"].values(),
    ]
    assert all(tensor.is_contiguous() for tensor in loaded)
    assert not all(tensor.is_contiguous() for tensor in student.parameters()), "which stays as it was"


def test_torchreids_own_loader_takes_the_whole_file(chain, tmp_path, capsys):
    student = oskt.expand(chain, like="osnet_x0_5")
    oskt.save_student(student, tmp_path / "student.pth")
    stock = models.build("osnet_x0_5", 7)
    torchreid.utils.load_pretrained_weights(stock, str(tmp_path / "student.pth"))
    assert "discarded" not in capsys.readouterr().out
    assert same(stock.state_dict(), student.state_dict())
    weights.load_weights(models.build("osnet_x0_5", 7), tmp_path / "student.pth")


def test_a_network_that_is_not_registered_must_be_given(tmp_path):
    model = of_everything().eval()
    student = oskt.expand(WeightChain.from_teacher(model, 0.5, input_size=(3, 8, 8)), 0.5)
    oskt.save_student(student, tmp_path / "student.pth")
    with pytest.raises(CheckpointError, match="is not a registered model; pass its network: model="):
        oskt.load_student(tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=model)
    torch.testing.assert_close(feature(loaded, (3, 8, 8)), feature(student, (3, 8, 8)), rtol=0, atol=0)
    with pytest.raises(
        CheckpointError, match="does not make a student of OSNet: the description of the student's code"
    ):
        oskt.load_student(tmp_path / "student.pth", model=models.build("osnet_x0_25", 7))


def test_only_students_are_saved(tmp_path):
    with pytest.raises(CheckpointError, match="this Linear was not made by expand"):
        oskt.save_student(nn.Linear(2, 2), tmp_path / "student.pth")
    assert list(tmp_path.iterdir()) == []


def change_state(content, change):
    change(content["state_dict"])
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {"state_dict": content["state_dict"]}, "is no student of this package"),
        (lambda content: {**content, "oskt": {**content["oskt"], "code": 3}}, "is no student of this package"),
        (lambda content: {**content, "oskt": {**content["oskt"], "name": "x"}}, "cannot be loaded: unknown model 'x'"),
        (lambda content: {"oskt": content["oskt"]}, "no state dict"),
        (lambda content: [1], "is no student of this package"),
        (lambda content: change_state(content, lambda state: state.popitem()), "1 tensors are missing"),
        (lambda content: change_state(content, lambda state: state.update(x=torch.zeros(1))), r"1 unexpected \['x'\]"),
    ],
)
def test_damaged_and_foreign_student_files(small, tmp_path, change, message):
    path = tmp_path / "student.pth"
    oskt.save_student(oskt.expand(small, 0.5), path)
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(CheckpointError, match=message):
        oskt.load_student(path)


def test_a_truncated_student_file(small, tmp_path):
    path = tmp_path / "student.pth"
    oskt.save_student(oskt.expand(small, 0.5), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot read '.*student.pth'"):
        oskt.load_student(path)
    with pytest.raises(CheckpointError, match="no file at"):
        oskt.load_student(tmp_path / "missing.pth")
