"""One refinement step against the authors' program: same weights, same images, same maps, loss and gradients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

import oskt_torchreid as oskt
from oskt_torchreid.chain.losses import refining_loss

REFERENCE = Path(os.environ.get("OSKT_REFERENCE") or Path(__file__).parents[2] / "shared" / "fixtures")
RESNET, VIT = REFERENCE / "official_resnet50_w8_chain2", REFERENCE / "official_vit_d48_chain24"
pytestmark = pytest.mark.skipif(not RESNET.is_dir(), reason="the authors' files are not there (OSKT_REFERENCE)")


def relative_error(own: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, in units of their largest value."""
    return float((own.detach() - theirs).abs().max() / theirs.abs().max())


def resnet_step(dtype: torch.dtype) -> dict:
    """What the authors' file says of one step, computed here."""
    reference = torch.load(RESNET / "refine_step.pth", weights_only=True)
    both = oskt.zoo.load_official_refinement(RESNET).to(dtype).train()
    teacher, maps = both.teacher, []
    for network in (teacher, both.sstudent.shell):
        network.backbone.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    both(reference["input"].to(dtype))
    refining = refining_loss(both.sstudent.row_pairs(teacher))
    loss = maps[0].pow(2).mean() + maps[1].pow(2).mean() + 0.01 * refining
    loss.backward()
    rows, parameters = both.sstudent.rows, dict(teacher.named_parameters())
    gradients = {}
    for name in reference["grads"]:
        inner = name.removeprefix("GeneChain.")
        owner = parameters[f"backbone.{name}"] if inner == name else rows[f"backbone.{inner}".replace(".", "/")]
        gradients[name] = owner.grad
    return {
        "teacher_featuremap": maps[0],
        "s_student_featuremap": maps[1],
        "refining_loss": refining,
        "loss": loss,
        "grads": gradients,
    }


@pytest.fixture(scope="module")
def reference():
    return torch.load(RESNET / "refine_step.pth", weights_only=True)


@pytest.fixture(scope="module")
def step():
    return resnet_step(torch.float32)


@pytest.mark.parametrize("name", ["teacher_featuremap", "s_student_featuremap", "refining_loss", "loss"])
def test_maps_and_losses_of_a_resnet_step(step, reference, name):
    assert step[name].shape == reference[name].shape
    assert relative_error(step[name], reference[name]) < 1e-4


def test_gradients_of_a_resnet_step(step, reference):
    """To 1e-4, or where single precision (here, and in the authors' file) is worse than that, to what it allows."""
    exact = resnet_step(torch.float64)
    assert len(step["grads"]) == 8
    for name, theirs in reference["grads"].items():
        rounding = relative_error(step["grads"][name], exact["grads"][name])
        assert rounding < 5e-4, "single precision should not be as bad as that"
        assert relative_error(step["grads"][name], theirs) < max(1e-4, rounding), name


class Tokens(torch.nn.Module):
    """The outputs of a vision transformer's tokens, as a separate network."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.model.tokens(images)


def test_tokens_and_refining_loss_of_a_vit_step():
    reference = torch.load(VIT / "refine_step.pth", weights_only=True)
    both = oskt.zoo.load_official_refinement(VIT).eval()  # so that no branch is left out
    attention = both.teacher.blocks[0].attn
    sizes = (len(attention.proj.weight), attention.num_heads, len(both.teacher.blocks))
    assert sizes == (reference["embed_dim"], reference["num_heads"], reference["depth"])
    weights = {f"model.{name}": tensor for name, tensor in both.sstudent.weights(both.teacher).items()}
    narrow = functional_call(Tokens(both.sstudent.shell), weights, (reference["input"],))
    assert narrow[0].shape[1] == reference["chain_dim"]
    for own, theirs in zip(both.teacher.tokens(reference["input"]), reference["teacher_tokens"], strict=True):
        torch.testing.assert_close(own.detach(), theirs, rtol=0, atol=1e-5)
    for own, theirs in zip(narrow, reference["s_student_tokens"], strict=True):
        torch.testing.assert_close(own.detach(), theirs, rtol=0, atol=1e-5)
    refining = refining_loss(both.sstudent.row_pairs(both.teacher))
    assert relative_error(refining, reference["refining_loss"]) < 1e-4
