"""The VKD authors' folders: their networks, made of torchvision's parts, and what is read of them, side by side."""

import json

import pytest
import torch
import torchvision
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.errors import ZooError
from oskt_torchreid.host import models
from oskt_torchreid.vkd.model import SetModel
from oskt_torchreid.zoo.vkd_format import BACKBONE_NAMES, official_name

IMAGES = torch.rand(2, 3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
CLASSES = 5


def their_parts(kind):
    """Feature layers as the authors' program puts them together from torchvision's networks."""
    network = getattr(torchvision.models, {"mobilenet": "mobilenet_v2"}.get(kind, kind))(weights=None)
    if kind == "densenet121":
        return list(network.features.children()), 1024
    if kind == "mobilenet":
        network.features[14].conv[1][0].stride = (1, 1)
        network.features[18][2] = nn.Sequential()
        return list(network.features.children()), 1280
    last = network.layer4[0]
    for layer in (last.conv1 if kind in ("resnet18", "resnet34") else last.conv2, last.downsample[0]):
        layer.stride = (1, 1)
    network.layer4[-1].relu = nn.Sequential()
    stages = [nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)]
    stages += [nn.Sequential(getattr(network, f"layer{number}")) for number in range(1, 5)]
    return stages, network.fc.in_features


class Theirs(nn.Module):
    """Their network of images: a module tree with their names."""

    def __init__(self, kind):
        super().__init__()
        layers, width = their_parts(kind)
        self.backbone = nn.Module()
        self.backbone.features_layers = nn.ModuleList(layers)
        self.classifier = nn.Module()
        self.classifier.bottleneck = nn.BatchNorm1d(width)
        self.classifier.classifier = nn.Linear(width, CLASSES, bias=False)

    def forward(self, images):
        maps = images
        for layer in self.backbone.features_layers:
            maps = layer(maps)
        features = maps.mean((2, 3))
        return self.classifier.classifier(self.classifier.bottleneck(features)), features


def with_own_values(model):
    """Statistics of the images and no norm at its first values."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        model.train()(IMAGES.flatten(0, 1))
    return model.eval()


def write(folder, state, kind, classes=CLASSES, name="chk_end"):
    for part in ("params", "chk"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "params" / "hparams.json").write_text(json.dumps({"backbone_type": kind, "num_classes": classes}))
    (folder / "params" / "params.json").write_text(json.dumps({"dataset_name": "mars"}))
    torch.save(state, folder / "chk" / name)
    return folder


@pytest.mark.parametrize(
    "kind", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow), "densenet121", "mobilenet"]
)
def test_their_networks_compute_what_they_computed(kind, tmp_path):
    theirs = with_own_values(Theirs(kind))
    ours = oskt.zoo.load_official_vkd(write(tmp_path, theirs.state_dict(), kind))
    assert isinstance(ours, SetModel) and not ours.training
    with torch.no_grad():
        for training in (False, True):  # running statistics, then those of the batch
            ours.train(training), theirs.train(training)
            ours.training = True  # class scores too
            found, expected = ours(IMAGES), theirs(IMAGES.flatten(0, 1))
            for own, other in zip(found, expected, strict=True):
                torch.testing.assert_close(own, other.unflatten(0, (2, 3)).mean(1), rtol=1e-3, atol=1e-4)
        assert (found[1] < 0).any()


@pytest.mark.parametrize("kind", BACKBONE_NAMES)
def test_every_tensor_of_every_backbone_has_a_name(kind):
    """Names of torchvision's parts, where they have the network; never one name twice."""
    model = models.skeleton(f"vkd_{BACKBONE_NAMES[kind]}", CLASSES, "triplet")
    names = {name: official_name(name, model) for name in model.state_dict()}
    if kind == "mobilenet":  # their first block does not expand
        names = {ours: theirs for ours, theirs in names.items() if ".conv2.0.conv1." not in ours}
    assert len(set(names.values())) == len(names) and all(names.values())
    if "bam" not in kind:
        with torch.device("meta"):
            assert set(names.values()) == set(Theirs(kind).state_dict())
        return
    plain = {name for name in names.values() if "bam" not in name}
    with torch.device("meta"):
        assert plain == set(Theirs(kind.removesuffix("bam")).state_dict())
    assert "backbone.features_layers.3.0.bam.spatial_att.gate_s.gate_s_conv_di_1.bias" in names.values()
    assert "backbone.features_layers.1.0.bam.channel_att.gate_c.gate_c_fc_final.weight" in names.values()


def test_gates_go_round(tmp_path):
    """Our own network under their names, and back."""
    torch.manual_seed(1)
    model = models.build("vkd_resnet50_bam", CLASSES, "triplet")
    state = {official_name(name, model): tensor for name, tensor in model.state_dict().items()}
    loaded = oskt.zoo.load_official_vkd(write(tmp_path, state, "resnet50bam"))
    own = loaded.state_dict()
    assert own.keys() - model.state_dict().keys() == {"block_without_relu"}
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def state():
    return Theirs("resnet18").state_dict()


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


def test_damaged_folders(state, tmp_path):
    first = "backbone.features_layers.1.0.0.conv1.weight"
    cases = {
        "missing": (without(state, first), "resnet18", f"chk_end' lacks '{first}' .125 tensors are there"),
        "more": ({**state, "backbone.extra": torch.zeros(1)}, "resnet18", "unexpected in a file .*: backbone.extra"),
        "shape": (without(state, first) | {first: torch.zeros(2, 2)}, "resnet18", r"has shape \(2, 2\), .* it must be"),
        "other": (state, "resnet50", r"'backbone.features_layers.1.0.0.conv1.weight' .* has shape \(64, 64, 3, 3\)"),
        "unknown": (state, "vgg16", "has the backbone_type 'vgg16'; known: resnet18, resnet34"),
    }
    for name, (content, kind, message) in cases.items():
        with pytest.raises(ZooError, match=message):
            oskt.zoo.load_official_vkd(write(tmp_path / name, content, kind))
    with pytest.raises(ZooError, match="has num_classes 'many'; it must be a number"):
        oskt.zoo.load_official_vkd(write(tmp_path / "classes", state, "resnet18", "many"))
    with pytest.raises(ZooError, match=r"chk_end' has 5 classes, '.*hparams.json' says 6; the two do not belong"):
        oskt.zoo.load_official_vkd(write(tmp_path / "six", state, "resnet18", 6))
    with pytest.raises(ZooError, match="no file at '.*hparams.json'"):
        oskt.zoo.load_official_vkd(tmp_path / "nowhere")


def test_several_checkpoints(state, tmp_path):
    write(tmp_path, state, "resnet18")
    write(tmp_path, without(state, "classifier.bottleneck.weight"), "resnet18", name="chk_di_1")
    with pytest.raises(ZooError, match="must have one state dict; it has chk_di_1, chk_end; name one with checkpoint"):
        oskt.zoo.load_official_vkd(tmp_path)
    assert oskt.zoo.load_official_vkd(tmp_path, "chk_end").classifier.out_features == CLASSES
    with pytest.raises(ZooError, match="no file at '.*chk_2'"):
        oskt.zoo.load_official_vkd(tmp_path, "chk_2")
