"""Grad-CAM: maps by hand, the layer that is looked at, in whatever backbone, and what cannot be drawn."""

import sys

import numpy as np
import pytest
import torch
from sets import SIZE, tiny
from torch import nn
from torch.nn import functional

from oskt_torchreid.errors import ConfigError, GraphError
from oskt_torchreid.host import models
from oskt_torchreid.vkd.gradcam import ClassScore, MapLayer, Similarity, find_map_layer, heat_maps

needs_grad_cam = pytest.mark.usefixtures("grad_cam")


@pytest.fixture
def grad_cam():
    return pytest.importorskip("pytorch_grad_cam")


class Mean(nn.Module):
    """Its map is the image itself, twice as large; its feature the spatial mean."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(3, 3, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.map.weight.copy_(2 * torch.eye(3)[:, :, None, None])

    def forward(self, images):
        return self.pool(self.map(images)).flatten(1)


@needs_grad_cam
def test_a_map_by_hand():
    """d cos(f, g) / d A[c] at every place: (g[c] / |g| - cos * f[c] / |f|) / |f| / places."""
    images, goal = torch.rand(2, 3, 4, 2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 1.0]])
    found = heat_maps(Mean(), images, goals=goal)
    features, maps = 2 * images.mean((2, 3)), 2 * images
    unit, cosine = functional.normalize(features), functional.cosine_similarity(features, goal)[:, None]
    weights = (functional.normalize(goal) - cosine * unit) / features.norm(dim=1, keepdim=True) / 8
    expected = (weights[:, :, None, None] * maps).sum(1).relu()
    expected = expected - expected.amin((1, 2), keepdim=True)
    expected = expected / expected.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    assert found.shape == (2, 4, 2) and found.max() == pytest.approx(1, abs=1e-3)


@needs_grad_cam
def test_a_map_shows_where_the_goal_is():
    """A red spot and a green one: what is like red has its map on the first, what is like green on the second."""
    images = torch.zeros(1, 3, 8, 4)
    images[0, 0, 1, 1], images[0, 1, 6, 2] = 1, 1
    for channel, place in ((0, (1, 1)), (1, (6, 2))):
        heat = heat_maps(Mean(), images, goals=torch.eye(3)[[channel]])[0]
        assert np.unravel_index(heat.argmax(), heat.shape) == place and np.count_nonzero(heat > 0.01) == 1


@needs_grad_cam
def test_parts_make_no_difference_and_nothing_changes(monkeypatch):
    model = tiny().train()
    model.backbone.early.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.randn(5, *SIZE), [0, 1, 2, 3, 0]
    at_once = heat_maps(model, images, labels=labels)
    monkeypatch.setattr("oskt_torchreid.vkd.gradcam.FRAMES_AT_ONCE", 2)
    np.testing.assert_allclose(heat_maps(model, images, labels=labels), at_once, atol=1e-5)
    assert not np.allclose(heat_maps(model, images, labels=[1, 2, 3, 0, 1]), at_once, atol=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.backbone.early.training and model.backbone.late.training
    assert all(p.grad is None for p in model.parameters()) and not model.backbone.late._forward_hooks


def test_scores_are_the_networks_own():
    model, images = tiny().eval(), torch.randn(3, *SIZE)
    embeddings = model(images)
    torch.testing.assert_close(
        Similarity(model, embeddings.flip(0))(images), functional.cosine_similarity(embeddings, embeddings.flip(0))
    )
    logits = model.classifier(model.neck(embeddings))
    torch.testing.assert_close(ClassScore(model, [2, 0, 1])(images), logits[[0, 1, 2], [2, 0, 1]])
    assert not model.training


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vkd_resnet18", MapLayer("backbone.layer4")),
        ("vkd_osnet_x0_25", MapLayer("backbone.conv5")),
        pytest.param("vkd_mobilenetv2_x1_0", MapLayer("backbone.conv9"), marks=pytest.mark.slow),
        pytest.param("vkd_densenet121", MapLayer("backbone.features"), marks=pytest.mark.slow),
        ("vkd_vit_small_patch16", MapLayer("blocks.11.norm1", (4, 2))),
    ],
)
def test_the_layer_is_the_last_map(name, layer):
    model = models.build(name, 2, "triplet").eval().requires_grad_(False)
    images = torch.randn(2, 3, 64, 32)
    assert find_map_layer(model, Similarity(model, model(images).flip(0)), images) == layer


@needs_grad_cam
def test_tokens_are_a_map(grad_cam):
    model = models.build("vkd_vit_small_patch16", 2, "triplet").eval()
    images = torch.randn(2, 3, 64, 32)
    found = heat_maps(model, images, goals=model(images).detach().flip(0))
    assert found.shape == (2, 64, 32) and found.max() > 0.9 and found.min() == 0
    tokens = torch.arange(3 + 8.0)[None, :, None].expand(1, 11, 5)
    assert MapLayer("", (4, 2)).as_map(tokens)[0, 0].tolist() == [[3, 4], [5, 6], [7, 8], [9, 10]]


class Rows(nn.Module):
    """Embeds every row of pixels as a token, without any map."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * SIZE[2], 4)

    def forward(self, images):
        return self.embed(images.permute(0, 2, 1, 3).flatten(2)).mean(1)


class Reused(nn.Module):
    """A ReLU that is called twice, the second time in the memory of the last convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, images):
        return self.relu(self.last(self.relu(self.first(images)))).mean((2, 3))


def test_layers_whose_output_is_overwritten_or_that_are_called_twice_are_passed_by():
    model, images = nn.Sequential(Reused()).requires_grad_(False), torch.randn(2, 3, 4, 2)
    with pytest.raises(GraphError, match="none of 5 module calls gives a map of several places that the score depends"):
        find_map_layer(model, Similarity(model, torch.ones(2, 4)), images)
    model[0].relu.inplace = False
    assert find_map_layer(model, Similarity(model, torch.ones(2, 4)), images) == MapLayer("0.last")


def test_what_cannot_be_drawn_is_said(monkeypatch):
    images = torch.randn(2, *SIZE)
    model = Rows().eval()
    with pytest.raises(
        GraphError, match=r"'embed' gives tokens \(2, 16, 4\), but no module .* rows and columns are not"
    ):
        find_map_layer(model, Similarity(model, torch.ones(2, 4)), images)
    with pytest.raises(ConfigError, match="the network has 4 classes and has no class 4; allowed: 0 to 3"):
        heat_maps(tiny(), images, labels=[0, 4])
    with pytest.raises(ConfigError, match=r"give goals \(similarity\) or labels \(class\), and not both"):
        heat_maps(tiny(), images)
    with pytest.raises(ConfigError, match="1 goals or labels were given for 2 frames"):
        heat_maps(tiny(), images, labels=[0])
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ConfigError, match=r"need the package grad-cam; install it: pip install '.*\[analysis\]'"):
        heat_maps(tiny(), images, labels=[0, 1])
