"""Networks of sets: what they average, the last ReLU of several backbones, and checkpoints with a head."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.errors import CheckpointError, ConfigError, DataError
from oskt_torchreid.files import load_checkpoint, weights
from oskt_torchreid.host import models
from oskt_torchreid.models.last_relu import LastRelu, find_last_relu, remove_last_relu
from oskt_torchreid.networks import parse_outputs
from oskt_torchreid.vkd.model import SetModel, load_set_model, set_model_table

WIDTHS = {"resnet18": 512, "mobilenetv2_x1_0": 1280, "osnet_x0_25": 512, "vit_small_patch16": 768}
SETS = torch.rand(3, 4, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def assert_close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resnet():
    return calibrated(models.build("vkd_resnet18", 5, "triplet"))


def calibrated(model):
    """Statistics of the images, so that activations have both signs; evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(SETS)
    return model.eval()


# ---- averaging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_outputs_are_means_over_frames(name, width):
    model = models.build(f"vkd_{name}", 5, "triplet").eval()
    with torch.no_grad():
        embeddings = model(SETS)
        assert embeddings.shape == (3, width)
        assert_close(embeddings, torch.stack([model(SETS[:, view]) for view in range(4)]).mean(0))
        model.training = True  # the root alone: the classifier runs, statistics stay
        logits, features = model(SETS)
        assert logits.shape == (3, 5)
        assert_close(features, embeddings)
        assert_close(logits, torch.stack([model(SETS[:, view])[0] for view in range(4)]).mean(0))
        assert model.per_frame(SETS)[0].shape == (3, 4, 5)


def test_class_scores_are_those_of_each_frame_behind_the_neck(resnet):
    resnet.training = True
    with torch.no_grad():
        logits, _ = resnet(SETS)
        frames = resnet.backbone(SETS.flatten(0, 1))
        assert_close(logits, resnet.classifier(resnet.neck(frames)).unflatten(0, (3, 4)).mean(1))
    resnet.eval()


@pytest.mark.parametrize("shape", [(3, 64, 32), (2, 0, 3, 64, 32), (1, 2, 2, 3, 64, 32)])
def test_other_batches_are_refused(resnet, shape):
    with pytest.raises(DataError, match=r"got a batch of shape \(.*give \[sets, frames, 3, height, width\]"):
        resnet(torch.zeros(shape))


def test_statistics_of_training_are_over_all_frames(resnet):
    model = copy.deepcopy(resnet).train()
    model(SETS)
    norm = model.backbone.bn1
    expected = model.backbone.conv1(SETS.flatten(0, 1)).mean((0, 2, 3))
    assert_close(norm.running_mean, expected)  # momentum 1


# ---- the last ReLU ---------------------------------------------------------------------------------------------------


def test_residual_networks_lose_the_last_relu_and_keep_the_others(resnet):
    images, backbone = SETS[:, 0], resnet.backbone
    with torch.no_grad():
        maps = nn.Sequential(backbone.conv1, backbone.bn1, nn.ReLU(), backbone.maxpool)(images)
        maps = nn.Sequential(backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4[0])(maps)
        block = backbone.layer4[1]
        inner = block.bn1(block.conv1(maps)).relu()
        expected = (maps + block.bn2(block.conv2(inner))).mean((2, 3))
        assert_close(resnet(images), expected)
    assert (expected < 0).any() and (maps >= 0).all()
    assert type(block).__name__ == "BasicBlock" and isinstance(block.relu, nn.ReLU)


def test_the_whole_block_without_relu_is_another_network(resnet):
    backbone = models.build("resnet18", 5, "triplet")
    whole = SetModel(backbone, 5, input_size=(3, 64, 32), whole_block=True).eval()
    whole.backbone.load_state_dict(resnet.backbone.state_dict())
    for stride in ("layer4.0.conv1", "layer4.0.downsample.0"):
        whole.backbone.get_submodule(stride).stride = (1, 1)
    images = SETS[:, 0]
    with torch.no_grad():
        maps = nn.Sequential(resnet.backbone.conv1, resnet.backbone.bn1, nn.ReLU(), resnet.backbone.maxpool)(images)
        maps = nn.Sequential(*list(resnet.backbone.children())[4:7], resnet.backbone.layer4[0])(maps)
        block = resnet.backbone.layer4[1]
        expected = (maps + block.bn2(block.conv2(block.bn1(block.conv1(maps))))).mean((2, 3))
        assert_close(whole(images), expected)
    with pytest.raises(CheckpointError, match="does not fit SetModel .* 1 unexpected: block_without_relu"):
        weights.check_state_dict(whole.state_dict(), resnet.state_dict(), "'whole.pth'", type(resnet).__name__)


@pytest.mark.parametrize("name", ["densenet121", "mobilenetv2_x1_0", "osnet_x0_25"])
def test_rectifications_in_a_networks_own_code(name):
    model = calibrated(models.build(f"vkd_{name}", 5, "triplet"))
    images = SETS[:, 0]
    with torch.no_grad():
        backbone = model.backbone
        if name == "densenet121":
            expected = backbone.features(images).mean((2, 3))
        elif name == "osnet_x0_25":
            pooled = backbone.global_avgpool(backbone.featuremaps(images)).flatten(1)
            expected = backbone.fc[1](backbone.fc[0](pooled))
        else:
            maps = images
            for stage in list(backbone.children())[:8]:
                maps = stage(maps)
            expected = backbone.conv9.bn(backbone.conv9.conv(maps)).mean((2, 3))
        assert_close(model(images), expected)
    assert 0.05 < (expected < 0).float().mean() < 0.95


class Joined(nn.Module):
    """Two branches that are rectified and joined."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return torch.cat([self.left(images).relu(), functional.relu(self.right(images))], 1).mean((2, 3))


class Twice(nn.Module):
    """One module makes the last rectification and an earlier one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.step = nn.Sequential(nn.Identity(), nn.ReLU6())

    def forward(self, images):
        return self.step(self.second(self.step(self.first(images)))).mean((2, 3))


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *HEAD), LastRelu("yes", "", 0, (0,))),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6()), *HEAD),
         LastRelu("yes", "2", 0, (0,))),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *HEAD, nn.Linear(4, 2)), LastRelu("none")),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), *HEAD), LastRelu("none")),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(), *HEAD), LastRelu("none")),
        (Joined(), LastRelu("no")),
        (Twice(), LastRelu("no")),
    ],
)  # fmt: skip
def test_finding_it(network, expected):
    found = find_last_relu(network, (3, 16, 8))
    assert found == expected
    images = torch.randn(2, 3, 16, 8)
    before = network(images).clone()
    remove_last_relu(network, found)
    assert torch.equal(network(images), before) == (expected.removable != "yes")


def test_table_says_what_each_backbone_allows():
    rows = set_model_table(["resnet18", "osnet_x0_25", "squeezenet1_0", "pcb_p4", "vit_small_patch16"]).splitlines()[2:]
    cells = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    assert cells == [
        ("resnet18", "yes", "yes, of 2 layers"),
        ("osnet_x0_25", "yes", "as it was"),
        ("squeezenet1_0", "no", "as it was"),
        ("pcb_p4", "-", "no: several classifiers"),
        ("vit_small_patch16", "none", "none"),
    ]


# ---- names, chains, checkpoints --------------------------------------------------------------------------------------


def test_every_backbone_has_a_name_over_sets():
    names = {name for name in models.model_names() if name.startswith("vkd_")}
    assert names == {f"vkd_{name}" for name in oskt.models.backbone_names()}
    papers = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet50_bam", "resnet101_bam", "densenet121")
    others = ("mobilenetv2_x1_0", "osnet_x1_0", "vit_base_patch16")
    assert {f"vkd_{name}" for name in (*papers, *others)} <= names


@pytest.mark.parametrize("name", ["vkd_resnet18", "vkd_osnet_x0_25", "vkd_vit_small_patch16_plain"])
def test_they_are_identified(name):
    assert models.identify(models.skeleton(name, 9, "triplet")) == models.ModelSpec(name, 9, "triplet")


class Small(nn.Module):
    """A user's network in torchreid's protocol."""

    def __init__(self, num_classes):
        super().__init__()
        self.loss = "softmax"
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu().mean((2, 3))
        return self.classifier(features) if self.training else features


def test_a_users_network_over_sets():
    oskt.register_backbone("small_for_sets", Small, (3, 16, 8))
    model = models.build("vkd_small_for_sets", 4, "triplet").eval()
    assert model.last_relu == LastRelu("yes", "", 0, (0,))
    assert (model(torch.randn(2, 3, 3, 16, 8)) < 0).any()
    with pytest.raises(ConfigError, match="'vkd_<name>' is a network around"):
        oskt.register_backbone("vkd_small", Small)


def test_a_chain_of_a_network_of_sets_gives_students_of_sets(resnet):
    graph = oskt.trace(resnet, (3, 64, 32))
    whole = oskt.expand(oskt.WeightChain.from_teacher(resnet, 1.0, graph=graph), 1.0).eval()
    with torch.no_grad():
        assert_close(whole(SETS), resnet(SETS))
    narrow = oskt.expand(oskt.WeightChain.from_teacher(resnet, 0.25, graph=graph), 0.25).train()
    logits, embeddings = parse_outputs(narrow(SETS), training=True, loss="triplet")
    assert isinstance(narrow, SetModel) and embeddings[0].shape == (3, 128) and logits[0].shape == (3, 5)


def test_checkpoints_have_a_head(resnet, tmp_path):
    torch.save({"state_dict": resnet.state_dict()}, tmp_path / "teacher.pth")
    loaded = load_set_model("resnet18", tmp_path / "teacher.pth").eval()
    with torch.no_grad():
        assert torch.equal(loaded(SETS), resnet(SETS)) and loaded.classifier.out_features == 5
    state = load_checkpoint(tmp_path / "teacher.pth")["state_dict"]
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    torch.save(headless, tmp_path / "headless.pth")
    with pytest.raises(
        CheckpointError, match=r"headless.pth' has no head: none of its \d+ tensors is a 'classifier.we"
    ):
        load_set_model("vkd_resnet18", tmp_path / "headless.pth")
    with pytest.raises(CheckpointError, match="does not fit SetModel .*Nothing was loaded"):
        load_set_model("osnet_x0_25", tmp_path / "teacher.pth")
