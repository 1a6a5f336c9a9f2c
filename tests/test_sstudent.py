"""The S-student: its outputs, its gradients, its own statistics and head; the refining loss and its weight."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from backbones import build
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import IMAGE, Head, conv, of_everything
from torch import nn
from torch.nn import functional

from oskt_torchreid import graph
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.losses import lambda_schedule, refining_loss, row_dispersion, row_distance
from oskt_torchreid.chain.sstudent import Refinement, SStudent
from oskt_torchreid.errors import ConfigError

SIZE = (3, 64, 32)
LABELS = {"0": np.array([0, 1, 0, 0]), "3": np.array([0, 1, 1]), "4.classifier": np.arange(2)}


def tiny():
    """A network in double precision in which nothing is at a neutral value, and a chain of it."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 4, bias=True), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), Head(3)).double()
    for tensor in (*model.parameters(), model[1].running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    chain = WeightChain.from_labels(model, graph.trace_module(model, (3, 8, 8)), LABELS)
    return model, chain


def membership(labels):
    """The 0/1 matrix `[clusters, channels]`."""
    return functional.one_hot(torch.from_numpy(labels)).T.double()


# ---- outputs and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["osnet_x0_25", "shufflenet", "oskt_tiny_net", "of everything"])
def test_its_output_is_that_of_the_student_of_the_chains_width(name, tiny_net):
    size = IMAGE if name == "of everything" else SIZE
    teacher = of_everything().eval() if name == "of everything" else build(name)
    chain = WeightChain.from_teacher(teacher, 0.5, input_size=size)
    sstudent = SStudent(chain).eval()
    images = torch.randn(2, *size)
    with torch.no_grad():
        torch.testing.assert_close(sstudent(images, teacher), expand_to_plan(chain, chain.widths)(images))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_an_explicit_dense_construction(training):
    model, chain = tiny()
    sstudent = SStudent(chain).train(training)
    images, probe = torch.randn(5, 3, 8, 8).double(), torch.randn(5, 2).double()
    (sstudent(images, model) * probe).sum().backward()

    first, second = membership(LABELS["0"]), membership(LABELS["3"])
    average = first / first.sum(1, keepdim=True)
    rows = {name: chain.rows[name].clone().requires_grad_() for name in chain.rows}
    vectors = {name: chain.vectors[name].clone().requires_grad_() for name in ("0.bias", "1.weight", "1.bias")}
    head_bias = chain.vectors["4.classifier.bias"].clone().requires_grad_()
    x = functional.conv2d(images, rows["0.weight"], average @ vectors["0.bias"])
    mean, var = (average @ chain.vectors[f"1.running_{name}"] for name in ("mean", "var"))
    x = functional.batch_norm(x, mean, var, average @ vectors["1.weight"], average @ vectors["1.bias"], training).relu()
    x = functional.conv2d(x, torch.einsum("rc...,kc->rk...", rows["3.weight"], first)).mean((2, 3))
    logits = functional.linear(x, rows["4.classifier.weight"] @ second.T, head_bias)
    (logits * probe).sum().backward()

    for name in rows:
        torch.testing.assert_close(sstudent.rows[name.replace(".", "/")].grad, rows[name].grad)
    teachers = dict(model.named_parameters())
    for name, vector in vectors.items():
        torch.testing.assert_close(teachers[name].grad, vector.grad)
    torch.testing.assert_close(teachers["4.classifier.bias"].grad, head_bias.grad)
    assert all(teachers[name].grad is None for name in rows), "rows of the teacher meet the loss of refining alone"


def test_a_step_on_the_chain_changes_the_output_at_once():
    model, chain = tiny()
    sstudent = SStudent(chain).eval()
    images = torch.randn(2, 3, 8, 8).double()
    before = sstudent(images, model)
    with torch.no_grad():
        sstudent.rows["4/classifier/weight"].mul_(2)
        model[4].classifier.bias.zero_()
    expected = 2 * (before - chain.vectors["4.classifier.bias"])
    torch.testing.assert_close(sstudent(images, model), expected)


# ---- what it owns ------------------------------------------------------------------------------------------------


def test_its_batch_statistics_are_its_own():
    model, chain = tiny()
    alone = copy.deepcopy(model).train()
    refinement = Refinement(model, chain).train()
    images = torch.randn(5, 3, 8, 8).double()
    alone(images)
    refinement(images)
    own, shell = model[1], refinement.sstudent.shell[1]
    assert torch.equal(own.running_mean, alone[1].running_mean)
    assert own.num_batches_tracked == shell.num_batches_tracked == 1
    assert shell.running_mean.shape == (2,)
    merged = membership(LABELS["0"]) / torch.tensor([[3.0], [1.0]])
    rows = functional.conv2d(images, chain.rows["0.weight"], merged @ chain.vectors["0.bias"])
    before = merged @ chain.vectors["1.running_mean"]
    torch.testing.assert_close(shell.running_mean, 0.9 * before + 0.1 * rows.mean((0, 2, 3)))


def test_students_of_a_refined_chain_have_the_sstudents_statistics():
    model, chain = tiny()
    refinement = Refinement(model, chain).train()
    images = torch.randn(5, 3, 8, 8).double()
    refinement(images)
    refined = refinement.to_chain()
    shell = refinement.sstudent.shell[1]
    assert refined.statistics.keys() == {"1.running_mean", "1.running_var"}
    narrow = expand_to_plan(refined, refined.widths)
    refinement.eval()
    torch.testing.assert_close(narrow(images), refinement.sstudent(images, model))
    wide = expand_to_plan(refined, {**refined.widths, "0": 4})
    assert torch.equal(wide[1].running_mean, shell.running_mean[[0, 1, 0, 0]]), "slots take their cluster's statistic"
    assert not torch.equal(expand_to_plan(chain, chain.widths)[1].running_mean, shell.running_mean)


def test_the_refined_chain_is_a_copy_of_rows_and_the_teachers_current_vectors():
    model, chain = tiny()
    refinement = Refinement(model, chain)
    with torch.no_grad():
        for parameter in refinement.parameters():
            parameter.add_(1)
    refined = refinement.to_chain()
    assert all(torch.equal(refined.rows[name], chain.rows[name] + 1) for name in chain.rows)
    assert torch.equal(refined.vectors["1.weight"], model[1].weight)
    with torch.no_grad():
        for parameter in refinement.parameters():
            parameter.zero_()
    assert all(torch.equal(refined.rows[name], chain.rows[name] + 1) for name in chain.rows)
    assert refined.vectors["1.weight"].abs().min() > 0


def test_every_weight_begins_where_a_gpu_can_read_it_from():
    """16 bytes at a time, half-precision numbers too; odd widths would let vectors begin anywhere."""
    teacher = build("osnet_x0_25")
    sstudent = SStudent(WeightChain.from_teacher(teacher, 0.3, input_size=SIZE))
    weights = sstudent.weights(teacher)
    assert any(len(weight) % 2 for weight in weights.values() if weight.dim() == 1)
    assert not [name for name, weight in weights.items() if weight.storage_offset() * 2 % 16]


def test_parameters_are_the_chains_rows_and_nothing_of_the_shell():
    model, chain = tiny()
    refinement = Refinement(model, chain)
    names = {name for name, _ in refinement.named_parameters() if name.startswith("sstudent.")}
    assert names == {f"sstudent.rows.{name.replace('.', '/')}" for name in chain.rows}
    state = refinement.sstudent.state_dict()
    assert not any("teacher_to_chain" in name for name in state)
    other = Refinement(*tiny())
    other.load_state_dict(refinement.state_dict())


def test_the_head_is_its_own_and_is_not_refined(tiny_net):
    teacher = build("oskt_tiny_net")
    chain = WeightChain.from_teacher(teacher, 0.5, input_size=SIZE)
    refinement = Refinement(teacher, chain).train()
    sstudent = refinement.sstudent
    assert set(sstudent.own_vectors) == {"neck/weight", "neck/bias"}
    assert sstudent.own_vectors["neck/weight"].requires_grad
    assert not sstudent.own_vectors["neck/bias"].requires_grad
    refined = [tuple(weight.shape) for weight, _, _ in sstudent.row_pairs(teacher)]
    assert len(refined) == len(chain.rows) - 1 and (7, 24) not in refined
    _, logits = refinement(torch.randn(4, *SIZE))
    logits.square().sum().backward()
    assert teacher.neck.weight.grad is None and sstudent.own_vectors["neck/weight"].grad.abs().max() > 0
    assert teacher.backbone.norm.weight.grad.abs().max() > 0


def test_in_evaluation_it_is_the_teacher():
    model, chain = tiny()
    refinement = Refinement(model, chain).eval()
    images = torch.randn(2, 3, 8, 8).double()
    assert torch.equal(refinement(images), model(images))
    assert len(refinement.train()(images)) == 2


# ---- losses ------------------------------------------------------------------------------------------------------


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def test_row_distance_by_hand():
    weight, chain_rows = column(1, 2, 3, 4).requires_grad_(), column(2, 2).requires_grad_()
    distance = row_distance(weight, chain_rows, torch.tensor([0, 1, 0, 1]))
    assert distance == 6
    distance.backward()
    assert weight.grad.flatten().tolist() == [-2, 0, 2, 4]
    assert chain_rows.grad.flatten().tolist() == [0, -4]


def test_row_distance_in_two_parts_by_hand():
    for within, value, gradient in ((0.0, 2, [0, 2, 0, 2]), (0.5, 4, [-1, 1, 1, 3])):
        weight, chain_rows = column(1, 2, 3, 4).requires_grad_(), column(2, 2).requires_grad_()
        distance = row_distance(weight, chain_rows, torch.tensor([0, 1, 0, 1]), within)
        distance.backward()
        assert distance == value and weight.grad.flatten().tolist() == gradient
        assert chain_rows.grad.flatten().tolist() == [0, -4], "the chain's rows follow the means alone"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0, 2))
def test_row_distance_in_two_parts_has_the_gradients_of_its_definition(seed, scale, within):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, 2, dtype=torch.float64, generator=generator)
    chain_rows = torch.randn(3, 3, 2, dtype=torch.float64, generator=generator)
    index = torch.cat([torch.arange(3), torch.randint(0, 3, (3,), generator=generator)])
    found, expected = ([tensor.clone().requires_grad_() for tensor in (weight, chain_rows)] for _ in range(2))
    (scale * row_distance(*found, index, within)).backward()
    share = torch.nn.functional.one_hot(index).double()
    means = torch.einsum("ia,ijk->ajk", share / share.sum(0), expected[0])
    parts = (
        (expected[0] - means[index]).square().sum(),
        (share.sum(0)[:, None, None] * (means - expected[1]) ** 2).sum(),
    )
    (scale * (within * parts[0] + parts[1])).backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_row_distance_has_the_gradients_of_its_definition(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=generator)
    chain_rows = torch.randn(3, 3, 2, 2, dtype=torch.float64, generator=generator)
    index = torch.randint(0, 3, (5,), generator=generator)
    found, expected = ([tensor.clone().requires_grad_() for tensor in (weight, chain_rows)] for _ in range(2))
    (scale * row_distance(*found, index)).backward()
    (scale * (expected[0] - expected[1][index]).square().sum()).backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_row_distance_against_finite_differences():
    weight, chain_rows = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    index = torch.tensor([0, 1, 1, 0])
    inputs = [weight.requires_grad_(), chain_rows.requires_grad_()]
    row_distance(*inputs, index).backward()
    step = 1e-6
    for tensor in inputs:
        for place in range(tensor.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    moved = [t.clone() for t in inputs]
                    moved[[t is tensor for t in inputs].index(True)].view(-1)[place] += sign * step
                    values.append(row_distance(*moved, index))
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(tensor.grad.view(-1)[place]), abs=1e-6)


def test_refining_loss_is_the_sum_over_layers():
    pairs = [
        (column(1, 2, 3, 4), column(2, 2), torch.tensor([0, 1, 0, 1])),
        (column(1, 1), column(0), torch.tensor([0, 0])),
    ]
    assert refining_loss(pairs) == 6 + 2 and refining_loss(pairs, within=0) == 2 + 2
    assert row_dispersion(pairs) == pytest.approx(8 / 32)
    assert row_dispersion([(column(5, 5), column(5), torch.tensor([0, 0]))]) == 0
    assert row_dispersion([(column(0, 0), column(0), torch.tensor([0, 0]))]) == 0


def test_refining_loss_of_a_fresh_chain_is_the_scatter_inside_its_clusters():
    model, chain = tiny()
    expected = 0.0
    for name, labels in (("0.weight", LABELS["0"]), ("3.weight", LABELS["3"])):
        rows = model.state_dict()[name].flatten(1)
        for cluster in range(labels.max() + 1):
            own = rows[torch.from_numpy(labels == cluster)]
            expected += float((own - own.mean(0)).square().sum())
    pairs = list(SStudent(chain).row_pairs(model))
    assert refining_loss(pairs).item() == pytest.approx(expected)
    assert len(pairs) == 2, "the classifier is not refined"


def test_lambda_schedules():
    constant, linear = lambda_schedule("constant", 0.5), lambda_schedule("linear", 0.5)
    assert [constant(progress) for progress in (0, 0.5, 1)] == [0.5, 0.5, 0.5]
    assert [linear(progress) for progress in (0, 0.5, 1)] == [0, 0.25, 0.5]
    with pytest.raises(ConfigError, match="lambda_schedule is 'linaer'.*constant, linear"):
        lambda_schedule("linaer", 1.0)
    with pytest.raises(ConfigError, match="lambda is -1.0; the weight of the refining loss is at least 0"):
        lambda_schedule("linear", -1.0)
