"""The one map from a chain and its teacher to narrower networks: S-student and students alike."""

import numpy as np
import pytest
import torch
from backbones import build
from torch import nn

from oskt_torchreid.chain import WeightChain, expand
from oskt_torchreid.chain.layout import Layout
from oskt_torchreid.chain.narrowing import Narrowing
from oskt_torchreid.chain.sstudent import SStudent

SIZE = (3, 64, 32)


def four_channels():
    """The worked example of the module: four hidden channels, of which 0 and 1, and 2 and 3, are one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 3, 5, 7]))
        model[4].weight.copy_(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    graph = WeightChain.from_teacher(model, 1.0, input_size=(3, 4, 4)).graph
    hidden, output = graph.groups[0].name, graph.groups[1].name
    labels = {hidden: np.array([0, 0, 1, 1]), output: np.array([0, 1])}
    return WeightChain.from_labels(model, graph, labels)


def test_the_worked_example():
    chain = four_channels()
    narrowing = Narrowing(chain.graph, chain.layout, chain.layout, chain.attention)
    tensors = narrowing(chain.rows, chain.vectors)
    assert tensors["4.weight"].tolist() == [[3, 7], [11, 15]] and tensors["0.bias"].tolist() == [2, 6]


@pytest.mark.parametrize("name", ["osnet_x0_25", "resnet50", "shufflenet_v2_x0_5"])
def test_the_s_student_is_the_student_of_the_chains_width(name):
    teacher = build(name)
    chain = WeightChain.from_teacher(teacher, 0.5, input_size=SIZE)
    student = dict(expand(chain, width=0.5).named_parameters())
    weights = SStudent(chain).weights(teacher)
    assert weights.keys() == student.keys()
    assert all(torch.equal(weights[key], student[key]) for key in weights)


def test_students_share_no_memory_with_the_chain():
    chain = WeightChain.from_teacher(build("osnet_x0_25"), 0.5, input_size=SIZE)
    for width in (0.5, 1.0):
        student = expand(chain, width=width)
        own = {tensor.untyped_storage().data_ptr() for tensor in student.state_dict().values()}
        parts = (chain.rows, chain.vectors, chain.fixed)
        assert not own & {tensor.untyped_storage().data_ptr() for part in parts for tensor in part.values()}
        assert len(own) == len(student.state_dict()), "each tensor has its own memory"


def test_gradient_flows_through_at_any_width():
    chain = four_channels()
    layout = Layout(chain.graph, chain.teacher_to_chain, dict(chain.graph.sizes))
    narrowing = Narrowing(chain.graph, chain.layout, layout, chain.attention)
    rows = {name: tensor.double().requires_grad_() for name, tensor in chain.rows.items()}
    vectors = {name: tensor.double().requires_grad_() for name, tensor in chain.vectors.items()}
    made = narrowing(rows, vectors)
    found = made["0.weight"].flatten(1)
    assert [int((found == row).all(1).sum()) for row in rows["0.weight"].flatten(1)] == [2, 2]
    sum(tensor.sum() for tensor in made.values()).backward()
    assert rows["0.weight"].grad.flatten().tolist() == [2] * 6, "every chain row occurs twice"
    assert vectors["0.bias"].grad.tolist() == [1] * 4
