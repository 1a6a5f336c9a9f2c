"""DepGraph pruning: importances by hand, what torch_pruning itself would cut, networks that it misunderstands."""

import sys

import numpy as np
import pytest
import torch
from backbones import build, input_size
from torch import nn

from oskt_torchreid.baselines import depgraph, make_baseline
from oskt_torchreid.chain.network import trace
from oskt_torchreid.errors import ConfigError, GraphError
from oskt_torchreid.graph import trace_module
from oskt_torchreid.graph.plans import ratio_plan

SUPPORTED = ["resnet18", "osnet_x0_25", "densenet121", "resnext50_32x4d", "vit_small_patch16_plain"]

needs_torch_pruning = pytest.mark.usefixtures("torch_pruning")


@pytest.fixture
def torch_pruning():
    return pytest.importorskip("torch_pruning")


def of_four():
    """Rows of squared norms 9, 1, 25, 4 and columns of 1, 36, 0, 64: group norms 5, 18.5, 12.5, 34."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[3.0, 0, 0], [0, 1, 0], [0, 3, 4], [2, 0, 0]]))
        network[3].weight.copy_(torch.tensor([[1.0, 6, 0, 8]]))
    return network


@needs_torch_pruning
def test_importance_is_the_mean_over_coupled_layers():
    teacher = of_four()
    graph = trace_module(teacher, (3, 1, 1))
    group = next(group for group in graph.groups if group.name == "1")
    np.testing.assert_allclose(depgraph.group_norms(teacher, graph)[group.channels], [5, 18.5, 12.5, 34])
    student = make_baseline("depgraph", teacher, graph, {"1": 2, "3": 1})
    assert torch.equal(student[1].weight, teacher[1].weight[[1, 3]])
    assert torch.equal(student[3].weight, teacher[3].weight[:, [1, 3]])


@needs_torch_pruning
@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_backbones(name):
    teacher = build(name)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    graph = trace(teacher, input_size(name))
    widths = ratio_plan(graph, 0.5)
    student = make_baseline("depgraph", teacher, graph, widths).eval()
    expected = make_baseline("first", teacher, graph, widths).state_dict()
    assert {key: tensor.shape for key, tensor in student.state_dict().items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    assert torch.isfinite(student(torch.randn(2, *input_size(name)))).all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_it_cuts_as_torch_pruning_itself_does(torch_pruning):
    """The same channels cut by torch_pruning's own pruner leave the same network."""
    teacher = build("resnet18")
    graph = trace(teacher, input_size("resnet18"))
    image = torch.randn(1, *input_size("resnet18"))
    student = make_baseline("depgraph", teacher, graph, ratio_plan(graph, 0.5)).eval()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
    pruned = build("resnet18")
    dependencies = torch_pruning.DependencyGraph().build_dependency(
        pruned, image, forward_fn=depgraph._training_outputs, verbose=False
    )
    scores = [(group, importance(group)) for group in dependencies.get_all_groups([pruned.classifier])]
    for group, score in scores:
        group.prune(score.argsort(stable=True)[: len(score) // 2].tolist())
    with torch.no_grad():
        torch.testing.assert_close(student(image), pruned.eval()(image))


@needs_torch_pruning
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet50_ibn_a", r"misunderstands ResNet at '.*BN.*': torch_pruning couples other channels"),
        ("vit_small_patch16", r"misunderstands VisionTransformer at 'classifier.weight': torch_pruning leaves some"),
        ("shufflenet", r"misunderstands ShuffleNet at .* use another baseline"),
        ("shufflenet_v2_x0_5", r"cannot follow ShuffleNetV2 \(ZeroDivisionError: .*\); use another baseline"),
    ],
)
def test_networks_that_torch_pruning_misunderstands(name, match):
    teacher = build(name)
    with pytest.raises(GraphError, match=match):
        depgraph.check_depgraph(teacher, trace(teacher, input_size(name)))


@needs_torch_pruning
def test_a_walk_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(depgraph, "TIME_LIMIT", 0.0)
    teacher = of_four()
    with pytest.raises(GraphError, match=r"cannot follow Sequential \(TimeoutError: no end after 0 s\)"):
        depgraph.check_depgraph(teacher, trace_module(teacher, (3, 1, 1)))
    assert sys.getprofile() is None


def test_without_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    teacher = of_four()
    with pytest.raises(ConfigError, match=r"'depgraph' needs the package torch_pruning; .*oskt_torchreid.baselines"):
        make_baseline("depgraph", teacher, trace_module(teacher, (3, 1, 1)), {"1": 2, "3": 1})
