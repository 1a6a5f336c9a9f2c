"""torch's wrappers (compile, DataParallel, DistributedDataParallel) are taken off wherever a network is given."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import IMAGE, Head, Network, TinyNet, conv
from tensors import same_tensors
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain import counting, measure_contributions, save_plain
from oskt_torchreid.errors import GraphError
from oskt_torchreid.networks import unwrapped

SIZE = (3, 32, 16)


def compiled(model):
    return torch.compile(model, backend="eager")


def twice(model):
    return nn.DataParallel(compiled(model))


WRAPPERS = [compiled, nn.DataParallel, nn.parallel.DistributedDataParallel, twice]


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A group of one process, without which torch makes no distributed wrapper."""
    folder = tmp_path_factory.mktemp("group")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return TinyNet(num_classes=4).eval()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_is_the_network(teacher, wrap, tmp_path):
    wrapped, images = wrap(teacher), torch.randn(2, *SIZE)
    assert unwrapped(wrapped) is teacher and unwrapped(teacher) is teacher
    assert oskt.trace(wrapped, SIZE).sizes == oskt.trace(teacher, SIZE).sizes
    chain = oskt.WeightChain.from_teacher(wrapped, width=0.25, input_size=SIZE)
    expected = oskt.WeightChain.from_teacher(teacher, width=0.25, input_size=SIZE)
    assert all(torch.equal(rows, expected.rows[name]) for name, rows in chain.rows.items())
    student = oskt.expand(chain, width=0.5)
    assert type(student) is TinyNet
    chain.check_teacher(wrapped)
    again = oskt.WeightChain.from_labels(wrapped, chain.graph, chain.teacher_to_chain)
    assert all(torch.equal(rows, expected.rows[name]) for name, rows in again.rows.items())
    assert same_tensors(oskt.expand(chain, like=wrap(oskt.expand(chain, width=0.5))), student)
    assert oskt.WeightChain.from_student(wrap(student), chain, 0.75).graph.sizes == oskt.trace(student, SIZE).sizes
    chain.save(tmp_path / "chain.safetensors")
    assert oskt.WeightChain.load(tmp_path / "chain.safetensors", model=wrapped).widths == chain.widths
    oskt.save_student(wrap(student), tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=wrapped)
    assert torch.equal(loaded(images), student(images))
    save_plain(wrap(student), tmp_path / "plain.pth")
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)["state_dict"]
    assert plain.keys() == teacher.state_dict().keys()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_runs_a_wrapped_network(teacher, wrap):
    batches = [torch.randn(4, *SIZE)]
    wrapped, other = wrap(copy.deepcopy(teacher)), copy.deepcopy(teacher)
    assert oskt.recalibrate(wrapped, batches) is wrapped
    assert same_tensors(unwrapped(wrapped), oskt.recalibrate(other, batches))
    graph = oskt.trace(teacher, SIZE)
    measured, expected = (measure_contributions(model, graph, batches) for model in (wrap(teacher), teacher))
    assert all(torch.equal(measured[name].mass, expected[name].mass) for name in expected)
    assert counting.multiply_adds(wrap(teacher), SIZE) == counting.multiply_adds(teacher, SIZE)
    refinement = oskt.Refinement(wrapped, oskt.WeightChain.from_teacher(wrapped, 0.5, SIZE))
    assert refinement.teacher is unwrapped(wrapped)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_is_exported(teacher, wrap, tmp_path):
    exported = oskt.export(wrap(teacher), tmp_path / "a.torchscript", input_size=SIZE)
    assert exported.feature_dim == 24


def test_a_student_of_a_compiled_teacher_has_memory_of_its_own(teacher):
    student = oskt.expand(oskt.WeightChain.from_teacher(compiled(teacher), width=0.25, input_size=SIZE), width=0.25)
    before = student(torch.ones(1, *SIZE)).clone()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert before.abs().max() > 0 and torch.equal(student(torch.ones(1, *SIZE)), before)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters()) / 4


def test_a_network_that_was_compiled_in_place(teacher):
    expected = oskt.WeightChain.from_teacher(copy.deepcopy(teacher), width=0.5, input_size=SIZE)
    teacher.compile(backend="eager")
    teacher.last.compile(backend="eager")
    chain = oskt.WeightChain.from_teacher(teacher, width=0.5, input_size=SIZE)
    student = oskt.expand(chain, width=0.5)
    assert same_tensors(student, oskt.expand(expected, width=0.5))
    with torch.no_grad():
        teacher.last.weight.zero_()
    assert student(torch.ones(1, *SIZE)).abs().max() > 0


def test_a_compiled_part_is_refused_by_name(teacher):
    teacher.last = compiled(teacher.last)
    with pytest.raises(GraphError, match=r"module 'last' is wrapped in OptimizedModule, .* its \._orig_mod, in"):
        oskt.trace(teacher, SIZE)


class Inner(nn.Module):
    """Class scores in training, a feature in evaluation."""

    def __init__(self):
        super().__init__()
        self.layer, self.classifier = conv(3, 8), nn.Linear(8, 5)

    def forward(self, images):
        feature = self.layer(images).relu().mean((2, 3))
        return self.classifier(feature) if self.training else feature


@pytest.mark.parametrize(
    "wrap",
    [
        nn.Sequential,
        lambda inner: nn.Sequential(nn.DataParallel(inner)),
        lambda inner: Network(lambda self, images: self.net(images), net=inner),
    ],
)
def test_a_classifier_inside_of_another_module_is_seen(wrap):
    model = wrap(Inner()).eval()
    chain = oskt.WeightChain.from_teacher(model, width=0.5, input_size=IMAGE)
    assert [name.rpartition("classifier")[1:] for name in chain.graph.heads] == [("classifier", ".weight")]
    student = oskt.expand(chain, width=0.5)
    assert student(torch.randn(2, *IMAGE)).shape == (2, 4)
    assert student.train()(torch.randn(2, *IMAGE)).shape == (2, 5)


def modes_of(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize(
    "call",
    [
        lambda model: oskt.trace(model, IMAGE),
        lambda model: counting.multiply_adds(model, IMAGE),
        lambda model: oskt.recalibrate(model, [torch.randn(4, *IMAGE)]),
    ],
    ids=["trace", "multiply-adds", "recalibrate"],
)
def test_every_module_has_its_own_mode_again(call):
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Sequential(conv(8, 8), nn.BatchNorm2d(8)), Head(8))
    model.train()
    model[1].eval()
    model[2][0].eval()
    modes = modes_of(model)
    assert set(modes.values()) == {True, False}
    call(model)
    assert modes_of(model) == modes


def test_multiply_adds_are_counted_in_evaluation_of_every_module():
    model = nn.Sequential(Inner()).train()
    assert counting.multiply_adds(model, IMAGE) == 3 * 8 * 64, "the classifier is not run"
