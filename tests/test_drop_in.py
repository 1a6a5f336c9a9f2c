"""Students that take the place of stock models: state dicts that load strictly, files that torchreid takes in full."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from backbones import NUM_CLASSES, build
from chains import arbitrary_chain

import oskt_torchreid as oskt
from oskt_torchreid.errors import CheckpointError
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import torchreid

stock_resnets = torchreid.models.resnet
SIZE = (3, 64, 32)
FAMILIES = {
    "osnet_x1_0": ("osnet_x0_75", "osnet_x0_5", "osnet_x0_25"),
    "osnet_ain_x1_0": ("osnet_ain_x0_75", "osnet_ain_x0_5", "osnet_ain_x0_25"),
    "osnet_ibn_x1_0": ("osnet_ibn_x1_0",),
}
PAIRS = [(teacher, name) for teacher, names in FAMILIES.items() for name in names]


@functools.lru_cache(maxsize=1)
def chain_of(teacher):
    return arbitrary_chain(build(teacher), 0.25, SIZE)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_takes_its_place(student, stock, tmp_path, capsys):
    """Strict loading, torchreid's own loader, ours, and equal outputs."""
    other = copy.deepcopy(stock)
    stock.load_state_dict(student.state_dict(), strict=True)
    images = torch.randn(2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(images), student(images), rtol=1e-5, atol=1e-6)
    oskt.save_student(student, tmp_path / "student.pth")
    torchreid.utils.load_pretrained_weights(other, str(tmp_path / "student.pth"))
    said = capsys.readouterr().out
    assert "Successfully loaded" in said and "discarded" not in said
    assert same(other.state_dict(), student.state_dict())
    assert same(oskt.load_student(tmp_path / "student.pth").state_dict(), student.state_dict())


@pytest.mark.parametrize(("teacher", "name"), PAIRS)
def test_students_like_stock_models(teacher, name, tmp_path, capsys):
    student = oskt.expand(chain_of(teacher), like=name)
    check_takes_its_place(student, models.build(name, NUM_CLASSES), tmp_path, capsys)


def halved(block, layers):
    """torchreid's ResNet class built at half its width: what a user of it would write."""

    class Halved(stock_resnets.ResNet):
        def _make_layer(self, block, planes, blocks, **options):
            return super()._make_layer(block, planes // 2, blocks, **options)

    network = Halved(NUM_CLASSES, "softmax", block, layers, last_stride=2)
    width = 256 * block.expansion
    network.conv1 = torch.nn.Conv2d(3, 32, 7, 2, 3, bias=False)
    network.bn1 = torch.nn.BatchNorm2d(32)
    network.classifier = torch.nn.Linear(width, NUM_CLASSES)
    network.inplanes = 32
    for number, (planes, count) in enumerate(zip((64, 128, 256, 512), layers, strict=True), 1):
        setattr(network, f"layer{number}", network._make_layer(block, planes, count, stride=1 if number == 1 else 2))
    return network


@pytest.mark.parametrize(
    ("teacher", "block", "layers"),
    [
        ("resnet18", stock_resnets.BasicBlock, [2, 2, 2, 2]),
        ("resnet50", stock_resnets.Bottleneck, [3, 4, 6, 3]),
    ],
)
def test_students_like_a_halved_resnet(teacher, block, layers, tmp_path, capsys):
    stock = halved(block, layers)
    student = oskt.expand(chain_of(teacher), like=stock)
    check_takes_its_place(student, stock, tmp_path, capsys)
    assert same(oskt.expand(chain_of(teacher), like=stock.state_dict()).state_dict(), student.state_dict())
    assert same(oskt.expand(chain_of(teacher), 0.5).state_dict(), student.state_dict())


def test_a_student_with_a_neck_takes_its_place_without(tmp_path, capsys):
    """The demonstration's teacher has a neck: its students do, and give it up for the stock model's form."""
    chain = arbitrary_chain(models.build("oskt_osnet_x0_5", NUM_CLASSES), 0.5, SIZE)
    student = oskt.expand(chain, like="osnet_x0_25")
    assert all(name.startswith(("backbone.", "neck.", "classifier.")) for name in student.state_dict())
    oskt.chain.save_plain(oskt.models.without_neck(student), tmp_path / "osnet_x0_25.pth")
    stock = models.build("osnet_x0_25", NUM_CLASSES)
    torchreid.utils.load_pretrained_weights(stock, str(tmp_path / "osnet_x0_25.pth"))
    said = capsys.readouterr().out
    assert "Successfully loaded" in said and "discarded" not in said
    student.feature = "before"
    images = torch.randn(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(stock.eval()(images), student(images))


def test_a_file_in_half_precision_is_taken_in_full(tmp_path, capsys):
    student = oskt.expand(chain_of("osnet_x1_0"), like="osnet_x0_25")
    oskt.save_student(student, tmp_path / "student.pth", half=True)
    stock = models.build("osnet_x0_25", NUM_CLASSES)
    torchreid.utils.load_pretrained_weights(stock, str(tmp_path / "student.pth"))
    assert "discarded" not in capsys.readouterr().out
    taken = stock.state_dict()
    for name, tensor in student.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(taken[name], expected)


# ---- files whose tensors do not fit each other ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("conv2.0.conv1.conv.weight", lambda t: t[:-1], r"'conv2.0.conv1.bn.weight' \(16,\), .* Nothing was loaded"),
        ("conv1.bn.running_mean", lambda t: t[:-1], r"'conv1.bn.weight' \(16,\), .*'conv1.bn.running_mean' \(15,\)"),
        ("fc.0.weight", lambda t: t[:, 1:], r"'fc.0.weight' \(512, 127\)"),
        ("classifier.weight", lambda t: t[:, 1:], r"'classifier.weight' \(7, 511\)"),
    ],
)
def test_tensors_that_do_not_fit_each_other(tmp_path, name, change, message):
    student = oskt.expand(chain_of("osnet_x1_0"), like="osnet_x0_25")
    path = tmp_path / "student.pth"
    oskt.save_student(student, path)
    content = torch.load(path, weights_only=True)
    content["state_dict"][name] = change(content["state_dict"][name]).clone()
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"tensors of '.*student.pth' do not fit each other: {message}"):
        oskt.load_student(path)


def _set(name, change):
    return lambda content: content["state_dict"].update({name: change(content["state_dict"][name])})


def _say(**facts):
    return lambda content: content["oskt"].update(facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("fc.0.weight", lambda t: t.long()), r"'fc.0.weight' .* is torch.int64 .* instead of torch.float32"),
        (_set("fc.0.weight", lambda t: t > 0), "'fc.0.weight' .* is torch.bool .* instead of torch.float32"),
        (_set("fc.0.weight", lambda t: t[0, 0]), "'fc.0.weight' .* has 0 dimensions, it must have 2"),
        (_set("fc.0.weight", lambda t: t.to_sparse()), r"torch.sparse_coo, torch.float32\), not a plain tensor"),
        (
            _set("fc.0.weight", lambda t: t * torch.nan),
            "'fc.0.weight' .* NaN or infinite: .*diverged.*Nothing was load",
        ),
        (_set("fc.1.num_batches_tracked", lambda t: t.repeat(3)), "'fc.1.num_batches_tracked' .* has 1 dimensions"),
        (_say(feature_dim=3), "features are 3 long, which no layer of it takes"),
        (_say(feature_dim=-1), "is no student of this package"),
        (_say(num_classes=-1), "is no student of this package"),
        (_say(distance="tacher"), "is no student of this package"),
        (_say(input_size=(3, 64)), "is no student of this package"),
    ],
)
def test_files_that_say_what_no_student_is(tmp_path, change, message):
    path = tmp_path / "student.pth"
    oskt.save_student(oskt.expand(chain_of("osnet_x1_0"), like="osnet_x0_25"), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        oskt.load_student(path)


def test_a_missing_order_of_channels_is_seen(tmp_path):
    """An index buffer that is not there would mean: channels as they come."""
    path = tmp_path / "student.pth"
    oskt.save_student(oskt.expand(chain_of("shufflenet_v2_x0_5"), 0.6), path)
    content = torch.load(path, weights_only=True)
    name = next(name for name in content["state_dict"] if ".route_" in name)
    del content["state_dict"][name]
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=f"description of the student's code is not one of this network: '{name}'"
    ):
        oskt.load_student(path)


def test_a_classifier_of_another_data_set_fits(tmp_path):
    student = oskt.expand(chain_of("osnet_x1_0"), like="osnet_x0_25")
    student.classifier = torch.nn.Linear(512, 3)
    oskt.save_student(student, tmp_path / "student.pth")
    assert oskt.load_student(tmp_path / "student.pth").classifier.out_features == 3
