"""Controls: networks of the chain's widths that inherit otherwise, or nothing."""

import numpy as np
import pytest
import torch
from backbones import build, input_size
from torch import nn

from oskt_torchreid.baselines import make_baseline
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.graph import trace


def test_slice_keeps_evenly_spaced_channels():
    """4 hidden channels at width 2 keep 0 and 2, in rows, bias and columns alike."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = trace(teacher, (3, 1, 1))
    student = make_baseline("slice", teacher, graph, {"1": 2, "3": 2})
    assert torch.equal(student[1].weight, teacher[1].weight[[0, 2]])
    assert torch.equal(student[1].bias, teacher[1].bias[[0, 2]])
    assert torch.equal(student[3].weight, teacher[3].weight[:, [0, 2]])
    assert (student[1].out_features, student[3].in_features) == (2, 2)


@pytest.mark.parametrize("name", ["osnet_x0_25", "resnext50_32x4d"])
def test_slice_of_full_width_is_the_teacher(name):
    teacher = build(name)
    graph = trace(teacher, input_size(name))
    student = make_baseline("slice", teacher, graph, graph.sizes)
    assert all(torch.equal(tensor, student.state_dict()[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("method", ["slice", "scratch"])
@pytest.mark.parametrize("name", ["osnet_x0_25", "shufflenet", "se_resnext50_32x4d"])
def test_controls_run_at_narrow_widths(name, method):
    teacher = build(name)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    graph = trace(teacher, input_size(name))
    widths = graph.ratio_plan(0.5)
    student = make_baseline(method, teacher, graph, widths).eval()
    features = student(torch.randn(2, *input_size(name)))
    assert torch.isfinite(features).all()
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


def test_scratch_is_fresh_and_follows_the_seed():
    teacher = build("osnet_x0_25")
    graph = trace(teacher, input_size("osnet_x0_25"))
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(make_baseline("scratch", teacher, graph, graph.ratio_plan(0.5)).state_dict())
    weight = next(name for name in networks[0] if name.endswith("conv.weight"))
    assert torch.equal(networks[0][weight], networks[1][weight])
    assert not torch.equal(networks[0][weight], networks[2][weight])
    assert np.isclose(float(networks[0]["conv1.bn.weight"].std()), 0)


def test_unknown_control():
    with pytest.raises(ConfigError, match="unknown control 'scrach'; did you mean 'scratch'"):
        make_baseline("scrach", nn.Linear(1, 1), None, {})
