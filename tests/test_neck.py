"""The batch norm neck and the last stride, on several backbones."""

import copy

import pytest
import torch
from torch import nn

from oskt_torchreid import models
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host import models as host_models
from oskt_torchreid.models import NeckModel, find_classifier, set_last_stride, without_neck
from oskt_torchreid.networks import parse_outputs

BACKBONES = {"osnet_x0_25": 512, "resnet18": 512, "densenet121": 1024, "mobilenetv2_x1_0": 1280}
SEVERAL_CLASSIFIERS = ("pcb_p4", "hacnn")
IMAGES = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def blank(name, loss="softmax"):
    """A backbone without memory, to be changed freely."""
    return copy.deepcopy(host_models.skeleton(name, 7, loss))


@pytest.fixture(scope="module", autouse=True)
def registered():
    models.register_all()


@pytest.mark.parametrize(("name", "width"), BACKBONES.items())
@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_forward_protocol(name, width, loss):
    model = NeckModel(host_models.build(name, 3, loss), num_classes=5, loss=loss).eval()
    feature = model(IMAGES)
    assert feature.shape == (2, width)
    model.training = True  # the root alone, as a tracer runs it: statistics stay, the classifier runs
    logits, before = parse_outputs(model(IMAGES), training=True, loss=loss)
    assert logits[0].shape == (2, 5)
    assert torch.allclose(logits[0], feature @ model.classifier.weight.t(), atol=1e-6)
    assert len(before) == (loss == "triplet")
    if before:
        assert torch.allclose(model.neck(before[0]), feature, atol=1e-6)


def test_feature_before_the_neck_is_the_backbones():
    backbone = host_models.build("resnet18", 3).eval()
    with torch.no_grad():
        expected = backbone(IMAGES)
        model = NeckModel(backbone, 5, feature="before").eval()
        assert torch.equal(model(IMAGES), expected)


class OneFeature(nn.Module):
    """A feature of one number, and one class."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, images):
        feature = images.flatten(1)
        return self.fc(feature) if self.training else feature


def test_the_documented_example_of_a_folded_neck():
    model = NeckModel(OneFeature(), 1, input_size=(1, 1, 1)).eval()
    neck = model.neck
    for tensor, value in (
        (neck.weight, 2.0),
        (neck.bias, 3.0),
        (neck.running_mean, 1.0),
        (model.classifier.weight, 5.0),
    ):
        tensor.data.fill_(value)
    neck.running_var.fill_(4 - neck.eps)
    stock = without_neck(model)
    assert (stock.fc.weight.item(), stock.fc.bias.item()) == (pytest.approx(5), pytest.approx(10))
    assert (model(torch.full((1, 1, 1, 1), 4.0)) @ model.classifier.weight).item() == pytest.approx(30)


def test_the_stock_form_of_a_backbone_with_a_neck():
    model = NeckModel(host_models.build("osnet_x0_25", 3), 5).eval()
    for tensor in (*model.neck.parameters(), model.neck.running_mean, model.neck.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    before = copy.deepcopy(model.state_dict())
    stock = without_neck(model)
    twin = host_models.build("osnet_x0_25", 5)
    twin.load_state_dict(stock.state_dict(), strict=True)
    with torch.no_grad():
        model.feature = "before"
        assert torch.equal(twin.eval()(IMAGES), model(IMAGES))
        for network in (model, twin):
            network.training = True
        torch.testing.assert_close(twin(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError, match="OSNet is no network with a neck"):
        without_neck(twin)


def test_head_is_bias_free_and_small():
    model = NeckModel(host_models.build("osnet_x0_25", 3), 5)
    assert model.classifier.bias is None and not model.neck.bias.requires_grad
    assert torch.equal(model.neck.bias, torch.zeros(512))
    assert 0.0008 < model.classifier.weight.std() < 0.0012
    assert NeckModel.head_modules == ("neck", "classifier")
    assert isinstance(model.backbone.classifier, nn.Identity)


def test_all_parameters_train_but_the_necks_bias():
    model = NeckModel(host_models.build("osnet_x0_25", 3, "triplet"), 5, "triplet").train()
    logits, features = model(IMAGES)
    (logits.square().sum() + features.square().sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["neck.bias"]


@pytest.mark.filterwarnings("ignore::UserWarning:torchreid.*")
@pytest.mark.parametrize("name", SEVERAL_CLASSIFIERS)
def test_several_classifiers_are_refused(name):
    with pytest.raises(ConfigError, match="before one linear classifier; .* gives [24] logits from [24] .classifier"):
        host_models.build(f"oskt_{name}", 7)


@pytest.mark.parametrize(("kind", "value"), [("loss", "center"), ("feature", "middle")])
def test_unknown_choices(kind, value):
    with pytest.raises(ConfigError, match=f"{kind} of the neck model is '{value}'; allowed"):
        NeckModel(blank("resnet18"), 5, **{kind: value})


def test_classifier_is_found_by_what_it_gives():
    assert find_classifier(blank("resnet50mid")) == "classifier"
    headless = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match="Sequential gives 1 logits from none"):
        find_classifier(headless)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("resnet18", ("layer4.0.conv1", "layer4.0.downsample.0")),
        ("resnet50", ("layer4.0.conv2", "layer4.0.downsample.0")),
        ("mobilenetv2_x1_0", ("conv7.0.dwconv2.conv",)),
        ("osnet_x0_25", ()),  # its last map is 1/16 already
        ("resnet50_fc512", ()),
    ],
)
def test_last_stride(name, changed):
    model = blank(name)
    assert set_last_stride(model) == changed
    assert all(model.get_submodule(module).stride == (1, 1) for module in changed)
    assert set_last_stride(model) == ()  # nothing is left to remove


def test_last_stride_enlarges_the_last_map():
    model = host_models.build("resnet18", 3).eval()
    set_last_stride(model)
    assert model.featuremaps(IMAGES).shape[2:] == (4, 2)


def test_last_stride_of_a_pool_is_refused():
    model = blank("densenet121")
    with pytest.raises(ConfigError, match=r"transition3.pool \(AvgPool2d\) downsamples last"):
        set_last_stride(model)


def test_searching_changes_neither_the_network_nor_random_numbers():
    model = host_models.build("resnet18", 3)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    find_classifier(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_every_backbone_has_a_neck_name():
    models.register_all()
    names = [name for name in host_models.model_names() if name.startswith("oskt_")]
    backbones = [name for name in models.backbone_names() if not name.startswith("vit_")]  # those have their own
    assert {f"oskt_{name}" for name in backbones} == set(names)


@pytest.mark.parametrize("name", BACKBONES)
def test_registered_neck_models_are_identified(name):
    model = host_models.skeleton(f"oskt_{name}", 9, "triplet")
    assert host_models.identify(model) == host_models.ModelSpec(f"oskt_{name}", 9, "triplet")


def test_configured_model():
    options = ["model.pretrained=False", "use_gpu=False", "data.height=64", "data.width=32"]
    plain = models.build_model(load_config(options=[*options, "model.name=resnet18"]), 3)
    assert plain.layer4[0].conv1.stride == (2, 2)
    options += ["model.last_stride=1", "model.neck=True", "loss.name=triplet"]
    model = models.build_model(load_config(options=[*options, "model.name=resnet18"]), 3)
    assert isinstance(model, NeckModel) and model.loss == "triplet"
    assert model.backbone.layer4[0].conv1.stride == (1, 1)
    assert host_models.identify(model) == host_models.ModelSpec("oskt_resnet18", 3, "triplet")
    named = models.build_model(load_config(options=[*options[:-3], "model.neck=True", "model.name=oskt_resnet18"]), 3)
    assert isinstance(named.backbone, type(plain))


def test_a_neck_alone_has_a_name_by_which_chains_are_loaded(tmp_path):
    """A configured neck without last stride 1 is a registered network: its chain needs no network to be loaded."""
    config = load_config(options=["model.name=resnet18", "model.neck=True", "model.pretrained=False"])
    model = models.build_model(config, 7)
    assert host_models.identify(model) == host_models.ModelSpec("neck_resnet18", 7, "softmax")
    assert models.bare_name("neck_resnet18") == models.bare_name("oskt_resnet18") == models.bare_name("resnet18")
    WeightChain.from_teacher(model, 0.125, input_size=(3, 64, 32)).save(tmp_path / "chain.safetensors")
    assert WeightChain.load(tmp_path / "chain.safetensors").spec.name == "neck_resnet18"
    same = host_models.identify(host_models.build("neck_osnet_x0_25", 7, "triplet"))
    assert same.name == "oskt_osnet_x0_25"  # its last downsampling is a pool of the backbone's own
