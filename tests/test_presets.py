"""Published students: widths by name, with the published numbers of parameters and FLOPs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import NUM_CLASSES
from chains import arbitrary_chain
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain.counting import Costs
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.errors import WidthError
from oskt_torchreid.graph.plans import preset_plan, ratio_plan
from oskt_torchreid.host import models
from oskt_torchreid.models.presets import PRESETS, TEACHER_PLANES, ResNetPreset

TRACED, IMAGE = (3, 64, 32), (3, 256, 128)
RESNETS = {  # parameters in M, FLOPs in G
    "res50-s1": (0.37, 0.05),
    "res50-s2": (0.61, 0.14),
    "res50-s3": (1.48, 0.19),
    "res50-s4": (2.42, 0.51),
    "res50-s5": (5.89, 0.70),
    "res50-s6": (9.64, 1.92),
    "teacher": (23.5, 2.70),
}
VITS = {
    "vit-s-120": (2.20, 0.29),
    "vit-s-168": (4.42, 0.56),
    "vit-s-teacher": (21.74, 2.87),
    "vit-b-264": (10.35, 1.36),
    "vit-b-336": (16.68, 2.20),
    "vit-b-teacher": (86.24, 11.37),
}
TRANSPOSED = "vit-s-168"  # by the count that fits all others it has 4.25 M parameters, not 4.42 M


def close(value, published):
    """Within 1 %, or the same when printed with two digits behind the point."""
    return value == pytest.approx(published, rel=0.01) or round(value, 2) == published


@pytest.fixture(scope="module")
def resnet():
    return arbitrary_chain(models.build("resnet50", NUM_CLASSES), "res50-s1", TRACED)


@pytest.fixture(scope="module")
def vits():
    return {
        letter: arbitrary_chain(models.build(f"vit_{size}_patch16", NUM_CLASSES), preset, TRACED)
        for letter, size, preset in (("s", "small", "vit-s-120"), ("b", "base", "vit-b-264"))
    }


# ---- ResNet-50 ---------------------------------------------------------------------------------------------------


def plan_of(chain, name):
    return dict(chain.graph.sizes) if name.endswith("teacher") else preset_plan(name, chain.graph)


def normalised_values(student):
    """How many values the batch norms of a network see for one image."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
        for module in student.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        student(torch.zeros(1, *IMAGE))
    for hook in hooks:
        hook.remove()
    return sum(seen)


@pytest.mark.parametrize("name", RESNETS)
def test_published_numbers_of_resnets(resnet, name):
    """Parameters: all but the classifier. FLOPs: last stride 2, multiply-adds, and four per normalised value."""
    plan = plan_of(resnet, name)
    counts = Costs(resnet, IMAGE).count([plan])
    params, flops = RESNETS[name]
    assert close(counts.params[0] / 1e6, params)
    published = counts.flops[0] + 4 * normalised_values(expand_to_plan(resnet, plan))
    assert close(published / 1e9, flops)
    assert counts.flops[0] / 1e9 == pytest.approx(flops, rel=0.06), "the convolutions alone are nearly all of it"


def test_presets_are_reached_from_their_chains(resnet):
    for preset in PRESETS.values():
        if isinstance(preset, ResNetPreset):
            narrowest = ratio_plan(resnet.graph, preset.chain_planes / TEACHER_PLANES)
            assert all(preset.plan(resnet.graph)[group] >= width for group, width in narrowest.items())


def test_a_preset_is_a_width(resnet):
    assert resnet.widths == preset_plan("res50-s1", resnet.graph) == ratio_plan(resnet.graph, 0.125)
    student = oskt.expand(resnet, "res50-s2")
    assert [student.conv1.out_channels, student.layer4[0].conv3.out_channels] == [16, 4 * 16 * 4]
    chain = oskt.WeightChain.from_labels(models.build("resnet50", NUM_CLASSES), resnet.graph, resnet.teacher_to_chain)
    assert oskt.chain.width_plan(chain, "res50-s6") == preset_plan("res50-s6", resnet.graph)
    with pytest.raises(WidthError, match="width 8 of group 'conv1' is outside of"):
        oskt.expand(arbitrary_chain(models.build("resnet50", NUM_CLASSES), "res50-s3", TRACED), "res50-s1")


def test_a_preset_fits_a_network_with_a_neck():
    chain = arbitrary_chain(models.build("oskt_resnet50", NUM_CLASSES), "res50-s1", TRACED)
    student = oskt.expand(chain, "res50-s1")
    assert student.backbone.conv1.out_channels == 8


# ---- vision transformers -----------------------------------------------------------------------------------------


def published_counts(chain, plan):
    """Blocks, a patch embedding of the student's own width with its bias, and `dw`; no products of attention."""
    costs = Costs(chain, IMAGE)
    names = costs.shapes.names
    numbers = costs.shapes.of([plan])[0].prod(1)
    width, patches = plan["dw"], IMAGE[1] * IMAGE[2] // 16**2
    blocks = [name.startswith("blocks") for name in names]
    pixels = 3 * 16**2
    params = numbers[blocks].sum() + width * (pixels + 1) + width**2
    linear = (numbers * np.array(costs._positions))[blocks].sum()
    return params, linear + patches * pixels * width + (patches + 4) * width**2


@pytest.mark.parametrize("name", VITS)
def test_published_numbers_of_vits(vits, name):
    chain = vits[name[4]]
    params, flops = published_counts(chain, plan_of(chain, name))
    if name == TRANSPOSED:
        assert params / 1e6 == pytest.approx(4.25, abs=0.005)
    else:
        assert close(params / 1e6, VITS[name][0])
    assert close(flops / 1e9, VITS[name][1])


@pytest.mark.parametrize("name", [name for name in VITS if "teacher" not in name])
def test_vit_presets_expand(vits, name):
    chain, preset = vits[name[4]], PRESETS[name]
    student = oskt.expand(chain, name)
    assert student.dw.weight.shape == (preset.width, preset.teacher_width)
    assert student.blocks[0].attn.qkv.weight.shape == (3 * preset.width, preset.width)
    assert student.blocks[0].mlp.fc1.weight.shape == (4 * preset.width, preset.width)
    with torch.no_grad():
        assert student(torch.zeros(1, *TRACED)).shape == (1, 2 * preset.width)


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("res50-s7", r"unknown width 'res50-s7'; did you mean 'res50-s\d'.*or a preset: res50-s1, .*vit-b-336"),
        ("vit-s-120", "preset 'vit-s-120' belongs to a vision transformer of 384 channels and 6 heads, whose"),
    ],
)
def test_presets_that_do_not_fit(resnet, name, message):
    with pytest.raises(WidthError, match=message):
        oskt.chain.width_plan(resnet, name)


def test_presets_of_another_network(vits):
    with pytest.raises(WidthError, match="preset 'res50-s1' belongs to a ResNet-50"):
        oskt.chain.width_plan(vits["s"], "res50-s1")
    with pytest.raises(WidthError, match="preset 'vit-b-264' belongs to a vision transformer of 768 channels and 12"):
        oskt.chain.width_plan(vits["s"], "vit-b-264")
    other = arbitrary_chain(models.build("resnet34", NUM_CLASSES), 0.5, TRACED)
    with pytest.raises(WidthError, match="preset 'res50-s1' belongs to a ResNet-50"):
        oskt.chain.width_plan(other, "res50-s1")
