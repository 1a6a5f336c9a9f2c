"""Retrieval distances of students: those of the teacher, or of the S-student, with class scores as they are."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from backbones import REST, build, calibrate, input_size, one_of_each_kind
from small_networks import Network, conv
from tensors import same_tensors
from test_identity import collapse, logits, random_labels
from torch import nn
from torch.nn import functional

import oskt_torchreid as oskt
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.network import trace
from oskt_torchreid.errors import ConfigError, GraphError
from oskt_torchreid.graph.plans import balanced
from oskt_torchreid.host import models
from oskt_torchreid.models import NeckModel

# Between the last layer and the feature is an operator that no factor passes.
NOT_FOLDABLE = {"mobilenetv2_x1_0": "relu6", "mobilenetv2_x1_4": "relu6"}
SOME = ("resnet18", "osnet_x0_25", "densenet121", "squeezenet1_0")
IMAGE = (3, 8, 8)


def collapsed(model, size):
    """A teacher with equal rows inside random clusters, and its chain."""
    graph = trace(model, size)
    labels = random_labels(graph)
    collapse(model, graph, labels)
    return model, WeightChain.from_labels(model, graph, labels)


def between(chain):
    graph = chain.graph
    return balanced(graph, {name: (width + graph.sizes[name]) // 2 for name, width in chain.widths.items()})


def distances(model, images):
    """Euclidean and cosine distances between the features of all pairs."""
    with torch.no_grad():
        features = model.eval()(images)
    return torch.stack([torch.pdist(features), torch.pdist(functional.normalize(features))])


def largest_error(model, reference, images):
    wanted = distances(reference, images)
    return float(((distances(model, images) - wanted) / wanted).abs().max())


def check_distances(model, size):
    """Both kinds against what they promise; class scores; and that doing nothing is seen."""
    teacher, chain = collapsed(model.double(), size)
    images, plan = torch.randn(4, *size, dtype=torch.float64), between(chain)
    sstudent = expand_to_plan(chain, chain.widths)
    students = {kind: expand_to_plan(chain, plan, distance=kind) for kind in ("none", "teacher", "chain")}
    assert largest_error(students["teacher"], teacher, images) < 1e-10
    assert largest_error(students["chain"], sstudent, images) < 1e-10
    assert largest_error(students["none"], teacher, images) > 1e-3
    assert largest_error(students["none"], sstudent, images) > 1e-3
    expected = logits(teacher, images)
    for student in students.values():
        assert (logits(student, images) - expected).abs().max() < 1e-10 * expected.std()
        assert student.state_dict().keys() == students["none"].state_dict().keys(), "nothing is added"


@pytest.mark.parametrize("name", SOME)
def test_distances(name):
    check_distances(build(name), input_size(name))


# These end as smaller ones do, and factors pass no further than the end.
SAME_END = ("resnext50_32x4d", "se_resnet50", "resnet50_ibn_a", "inceptionv4", "nasnsetmobile", "osnet_ain_x0_25")
# HA-CNN's students weight channels by their own buffer, see test_distances_beside_weighted_channels.
OTHERS = [name for name in one_of_each_kind() if name not in (*SOME, *NOT_FOLDABLE, *SAME_END, "hacnn")]


@REST
@pytest.mark.parametrize("name", OTHERS)
def test_distances_of_every_kind_of_backbone(name):
    check_distances(build(name), input_size(name))


@pytest.mark.slow
def test_distances_beside_weighted_channels():
    teacher, chain = collapsed(build("hacnn"), input_size("hacnn"))  # its sampling grid knows single precision alone
    images = torch.randn(4, *input_size("hacnn"))
    assert largest_error(expand_to_plan(chain, between(chain), distance="teacher"), teacher, images) < 1e-3
    assert largest_error(expand_to_plan(chain, between(chain)), teacher, images) > 1e-2


@pytest.mark.parametrize("feature", ["after", "before"])
def test_distances_of_a_neck(feature):
    """Before the neck the factors go through its statistics, which class scores do not notice."""
    model = NeckModel(build("osnet_x0_25"), 7, feature=feature, input_size=(3, 64, 32)).eval()
    nn.init.uniform_(model.neck.weight, 0.5, 1.5)
    check_distances(calibrate(model, torch.randn(8, 3, 64, 32)), (3, 64, 32))


def test_half_of_resnet50_is_off_without():
    """The number of the documentation: features of merged channels, as they are, and scaled, in single precision."""
    teacher = build("resnet50")
    graph = trace(teacher, (3, 64, 32))
    labels = WeightChain.from_teacher(teacher, 0.5, graph=graph).teacher_to_chain
    collapse(teacher, graph, labels)
    chain = WeightChain.from_labels(teacher, graph, labels)
    images = torch.randn(4, 3, 64, 32)
    assert 0.1 < largest_error(oskt.expand(chain, 0.5), teacher, images) < 0.5
    assert largest_error(oskt.expand(chain, 0.5, distance="teacher"), teacher, images) < 1e-5
    assert largest_error(oskt.expand(chain, 0.75, distance="chain"), oskt.expand(chain, 0.5), images) < 1e-5


def small(tail):
    """Four channels into a feature of four, and two classes; `tail` is between the norm and the feature."""

    def forward(self, images):
        feature = tail(self.norm(self.last(self.first(images)))).mean((2, 3))
        return self.classifier(feature) if self.training else feature

    torch.manual_seed(0)
    parts = {"first": conv(3, 4), "last": conv(4, 4), "norm": nn.BatchNorm2d(4), "classifier": nn.Linear(4, 2)}
    return Network(forward, **parts).eval()


@pytest.mark.parametrize("skip", [False, True])
def test_a_feature_that_a_layer_makes_of_the_image(skip):
    """Rows of the first layer carry factors like those of any other."""

    def forward(self, images):
        feature = self.first(images)
        if skip:
            feature = feature + self.norm(self.last(torch.relu(feature)))
        feature = feature.mean((2, 3))
        return self.classifier(feature) if self.training else feature

    torch.manual_seed(0)
    parts = {"first": nn.Conv2d(3, 8, 3), "last": conv(8, 8), "norm": nn.BatchNorm2d(8), "classifier": nn.Linear(8, 2)}
    check_distances(
        Network(forward, **(parts if skip else {name: parts[name] for name in ("first", "classifier")})), IMAGE
    )


def labelled(model, clusters):
    graph = trace(model, IMAGE, prove=False)  # some take channels apart at places that fit these widths alone
    labels = {group.name: np.arange(group.size) for group in graph.groups}
    return WeightChain.from_labels(model, graph, {**labels, "last": np.array(clusters)})


def test_the_worked_example():
    """Channels 0, 2, 3 are one cluster: the numbers of the module's text."""
    chain = labelled(small(torch.relu), [0, 1, 0, 0])
    widths = {**chain.graph.sizes, "last": 3}
    half = 0.5**0.5
    assert oskt.chain.feature_scale(chain, widths, "teacher").tolist() == pytest.approx([2**0.5, 1, 1])
    assert oskt.chain.feature_scale(chain, widths, "chain").tolist() == pytest.approx([half, 1, half])
    assert oskt.chain.feature_scale(chain, widths, "none").tolist() == [1, 1, 1]
    plain, scaled = expand_to_plan(chain, widths), expand_to_plan(chain, widths, distance="teacher")
    factors = torch.tensor([2**0.5, 1, 1])
    moved = {
        "norm.weight": plain.norm.weight * factors,
        "norm.bias": plain.norm.bias * factors,
        "classifier.weight": plain.classifier.weight / factors,
    }
    for name, tensor in scaled.state_dict().items():
        assert torch.allclose(tensor, moved.get(name, plain.state_dict()[name])), name


def blurred(x):
    return functional.conv2d(x, torch.ones(x.shape[1], 1, 3, 3).to(x), padding=1, groups=x.shape[1])


@pytest.mark.parametrize(
    "tail", [torch.relu, lambda x: x, lambda x: x * 2, lambda x: torch.cat([x, x], 1)[:, 2:6], blurred]
)
def test_what_passes_factors_on(tail):
    assert labelled(small(tail), [0, 1, 0, 1]).features.obstacle == ""


@pytest.mark.parametrize(
    ("tail", "operator"),
    [
        (functional.relu6, "relu6"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x + 1, "add"),
        (lambda x: x.clamp(-1, 1), "clamp"),
        (functional.gelu, "gelu"),
        (lambda x: x * x, "both sides of a product"),
        (lambda x: functional.pad(x, (1, 1), value=2.0), "pad"),
    ],
)
def test_what_does_not(tail, operator):
    chain = labelled(small(tail), [0, 1, 0, 0])
    with pytest.raises(GraphError, match=rf"features of Network cannot be scaled .*{operator}.*chain.feature_scale"):
        oskt.expand(chain, {"last": 3}, distance="teacher")
    assert len(oskt.chain.feature_scale(chain, {**chain.graph.sizes, "last": 3}, "teacher")) == 3
    assert oskt.expand(chain, {"last": 4}, distance="teacher"), "nothing is merged, so nothing is scaled"


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_over_positions(bias):
    """It sums each channel over positions, which factors pass, but not where it adds a number to all channels."""

    def forward(self, images):
        feature = self.mix(self.norm(self.first(images)).flatten(2)).mean(2)
        return self.classifier(feature) if self.training else feature

    torch.manual_seed(0)
    parts = {"first": conv(3, 6), "norm": nn.BatchNorm2d(6), "mix": nn.Linear(64, 9, bias)}
    model = Network(forward, **parts, classifier=nn.Linear(6, 2))
    path = WeightChain.from_teacher(model, 0.5, input_size=IMAGE).features
    if bias:
        assert "'linear' in module 'mix'" in path.obstacle
    else:
        assert (path.rows, path.columns) == (("norm.bias", "norm.weight"), ("classifier.weight",))
        check_distances(model, IMAGE)


def test_a_gate_keeps_its_place():
    """Of a product one side is scaled: not the sigmoid's."""

    def forward(self, images):
        stream = self.norm(self.first(images))
        gate = self.gate(stream.mean((2, 3), keepdim=True))
        feature = (torch.sigmoid(gate) * stream).mean((2, 3))
        return self.classifier(feature) if self.training else feature

    torch.manual_seed(0)
    parts = {"first": conv(3, 6), "norm": nn.BatchNorm2d(6), "gate": conv(6, 6), "classifier": nn.Linear(6, 2)}
    model = Network(forward, **parts)
    path = WeightChain.from_teacher(model, 0.5, input_size=IMAGE).features
    assert path.rows == ("norm.bias", "norm.weight")
    assert path.columns == ("classifier.weight", "gate.weight")
    check_distances(model, IMAGE)


@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_backbones_whose_features_cannot_be_scaled(name):
    teacher, chain = collapsed(build(name).double(), input_size(name))
    images, plan = torch.randn(4, *input_size(name), dtype=torch.float64), between(chain)
    with pytest.raises(GraphError, match=f"'{NOT_FOLDABLE[name]}' in module 'conv9' does not commute"):
        expand_to_plan(chain, plan, distance="teacher")
    student, scale = expand_to_plan(chain, plan), oskt.chain.feature_scale(chain, plan, "teacher")
    with torch.no_grad():
        found = torch.pdist(student(images) * scale)
    assert torch.allclose(found, distances(teacher, images)[0], rtol=1e-6)


def test_a_neck_takes_the_factors_of_a_backbone_that_cannot():
    model = NeckModel(build("mobilenetv2_x1_0"), 7, input_size=(3, 64, 32)).eval()
    nn.init.uniform_(model.neck.weight, 0.5, 1.5)
    check_distances(calibrate(model, torch.randn(8, 3, 64, 32)), (3, 64, 32))


def test_a_students_file_needs_nothing_new(tmp_path):
    chain = WeightChain.from_teacher(build("osnet_x1_0"), 0.5, input_size=(3, 64, 32))
    student = oskt.expand(chain, like="osnet_x0_5", distance="teacher")
    models.build("osnet_x0_5", 7).load_state_dict(student.state_dict(), strict=True)
    oskt.save_student(student, tmp_path / "student.pth")
    again = oskt.load_student(tmp_path / "student.pth")
    assert same_tensors(again, student)


def test_the_chain_is_left_as_it_was():
    chain = WeightChain.from_teacher(build("osnet_x0_25"), 0.5, input_size=(3, 64, 32))
    kept = {kind: copy.deepcopy(getattr(chain, kind)) for kind in ("rows", "vectors", "fixed")}
    for kind in ("teacher", "chain"):
        oskt.expand(chain, 0.75, distance=kind)
    for kind, tensors in kept.items():
        assert all(torch.equal(tensor, getattr(chain, kind)[name]) for name, tensor in tensors.items())
    assert all(tensor.is_meta for tensor in chain.model.state_dict().values())


def test_an_unknown_distance():
    chain = labelled(small(torch.relu), [0, 1, 0, 1])
    with pytest.raises(
        ConfigError, match="distance is 'techer'; did you mean 'teacher'.*allowed: none, chain, teacher"
    ):
        oskt.expand(chain, 1.0, distance="techer")
