"""Published weights of convolutional networks: taken in full, with an account, or not at all."""

from __future__ import annotations

import logging

import pytest
import torch
import torchvision
from tensors import same_tensors

from oskt_torchreid.errors import CheckpointError
from oskt_torchreid.host.models import build
from oskt_torchreid.models import load_weights


@pytest.fixture(scope="module")
def imagenet():
    """A state dict in torchvision's names, every norm away from its first values."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    return {name: tensor + 0.1 if tensor.is_floating_point() else tensor + 7 for name, tensor in state.items()}


def renamed(state, prefix: str, **more) -> dict[str, torch.Tensor]:
    return {**{prefix + name: tensor for name, tensor in state.items()}, **more}


def momentum_contrast(state, encoder="encoder_q", copy="encoder_k") -> dict:
    """As MoCo's program saves it: the trained encoder, its momentum copy and the queue, in a container."""
    both = {**renamed(state, f"module.{encoder}."), **renamed(state, f"module.{copy}.")}
    both = {name.replace(".fc.", ".fc.0."): tensor for name, tensor in both.items()}
    return {"epoch": 3, "state_dict": {**both, "module.queue": torch.ones(2, 3), "module.queue_ptr": torch.ones(1)}}


FILES = {
    "torchvision": lambda state: state,
    "MoCo": momentum_contrast,
    "MoCo v3": lambda state: momentum_contrast(state, "base_encoder", "momentum_encoder"),
    "container": lambda state: {"model": renamed(state, "module.")},
    "re-identification": lambda state: renamed(
        {name: tensor for name, tensor in state.items() if "fc" not in name},
        "base.",
        **{"bottleneck.weight": torch.ones(512), "classifier.weight": torch.ones(9, 512)},
    ),
}


@pytest.mark.parametrize("name", ["resnet18", "oskt_resnet18"])
@pytest.mark.parametrize("form", FILES)
def test_every_form_of_a_file_fills_the_backbone(imagenet, tmp_path, name, form, caplog):
    torch.save(FILES[form](imagenet), tmp_path / "weights.pth")
    model = build(name, 5, "triplet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "oskt_torchreid"):
        account = load_weights(model, tmp_path / "weights.pth")
    prefix = "backbone." if name.startswith("oskt_") else ""
    trunk = {prefix + key: tensor for key, tensor in imagenet.items() if not key.startswith("fc.")}
    assert set(account.taken) == trunk.keys()
    assert set(account.initialised) == before.keys() - trunk.keys()
    assert account.ignored and all("conv1" not in key or "_k." in key or "momentum" in key for key in account.ignored)
    for key, tensor in model.state_dict().items():
        assert tensor.equal(trunk.get(key, before[key])), key
    assert "120 tensors taken" in caplog.text and "ignored" in caplog.text


def test_a_checkpoint_of_the_same_network_is_taken_whole(tmp_path):
    first, second = build("oskt_resnet18", 5, "triplet"), build("oskt_resnet18", 5, "triplet")
    torch.save({"state_dict": first.state_dict(), "rank1": 0.5}, tmp_path / "model.pth.tar-3")
    account = load_weights(second, tmp_path / "model.pth.tar-3")
    assert len(account.taken) == len(first.state_dict()) and not account.ignored and not account.initialised
    assert same_tensors(first, second)


def test_a_classifier_of_other_people_is_left_out(tmp_path):
    first, second = build("resnet18", 9), build("resnet18", 5)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    account = load_weights(second, tmp_path / "weights.pth")
    assert account.ignored == account.initialised == ("classifier.bias", "classifier.weight")
    assert second.conv1.weight.equal(first.conv1.weight)


BAD = {
    "missing": (lambda state: state.pop("layer2.0.conv1.weight"), "1 missing: backbone.layer2.0.conv1.weight"),
    "unknown": (lambda state: state.update({"layer9.x": torch.ones(1)}), "1 unexpected: layer9.x"),
    "misshaped": (lambda state: state.update({"conv1.weight": torch.ones(2, 2)}), r"1 misshaped: .*\(2, 2\) instead"),
    "deeper": (
        lambda state: state.update({k.replace("layer1.1", "layer1.2"): v for k, v in list(state.items())}),
        "12 unexpected: layer1.2.conv1.weight",
    ),
    "twice": (lambda state: state.update({"backbone.conv1.weight": torch.ones(1)}), "has both 'conv1.weight' and"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_changes_nothing(imagenet, tmp_path, case):
    change, message = BAD[case]
    state = dict(imagenet)
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    model = build("oskt_resnet18", 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "weights.pth")
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_file_without_weights(tmp_path):
    torch.save({"model": 3}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(build("resnet18", 5), tmp_path / "weights.pth")
