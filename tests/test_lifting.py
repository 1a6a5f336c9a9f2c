"""Lifted features: students of every width give features in the places of their teacher's, which one gallery holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import Network, conv
from test_identity import collapse, feature_of, random_labels
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18
from vits import IMAGE as VIT_IMAGE
from vits import equal_labels, tiny

import oskt_torchreid as oskt
from oskt_torchreid.baselines import make_baseline
from oskt_torchreid.chain import WeightChain
from oskt_torchreid.deploy import Lifted, gallery, lift, lifted, rank
from oskt_torchreid.deploy.gallery import origin_of
from oskt_torchreid.errors import CheckpointError, ConfigError, FeatureError
from oskt_torchreid.graph import trace_module

IMAGE = (3, 8, 8)


def constants_beside(self, images):
    """A feature of channels, twice, and of a number that no layer makes."""
    maps = self.second(self.first(images).relu()).relu()
    pooled = torch.cat([maps.mean((2, 3)), images.mean((1, 2, 3))[:, None], maps.amax((2, 3))], 1)
    return self.classifier(pooled) if self.training else pooled


def several(self, images):
    maps = self.second(self.first(images).relu()).relu()
    scores = self.classifier(maps.mean((2, 3)))
    return scores if self.training else [maps.mean((2, 3)), maps.amax((2, 3))]


def normalised(self, images):
    pooled = self.second(self.first(images).relu()).relu().mean((2, 3))
    return self.classifier(pooled) if self.training else functional.normalize(pooled)


def parts_normalised(self, images):
    maps = self.second(self.first(images).relu()).relu()
    if self.training:
        return self.classifier(maps.mean((2, 3)))
    return functional.normalize(torch.stack([maps.mean((2, 3)), maps.amax((2, 3))], 2)).flatten(1)


def small(forward, length):
    torch.manual_seed(0)
    return Network(forward, first=conv(3, 6), second=conv(6, 8), classifier=nn.Linear(length, 3)).eval()


def plain(self, images):
    pooled = self.second(self.first(images).relu()).relu().mean((2, 3))
    return self.classifier(pooled) if self.training else pooled


def chain_of(model, labels=None, size=IMAGE):
    graph = trace_module(model, size)
    return WeightChain.from_labels(model, graph, labels or random_labels(graph))


NETWORKS = {
    "plain": (lambda: small(plain, 8), IMAGE),
    "repeated, beside a constant": (lambda: small(constants_beside, 17), IMAGE),
    "vision transformer": (tiny, VIT_IMAGE),
    "class scores in evaluation": (lambda: resnet18(num_classes=7).eval(), (3, 32, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_lifted_features_are_the_teachers_where_rows_are_equal(name):
    build, size = NETWORKS[name]
    model = build()
    graph = trace_module(model, size)
    transformer = name == "vision transformer"  # its norms over channels are exact at balanced widths
    labels = equal_labels(graph, 2) if transformer else random_labels(graph)
    collapse(model, graph, labels)
    chain = WeightChain.from_labels(model, graph, labels)
    images = torch.randn(3, *size)
    twin = WeightChain.from_labels(model, graph, {group.name: np.arange(group.size) for group in graph.groups})
    expected = feature_of(lifted(oskt.expand(twin, 1.0)), images)
    if name != "class scores in evaluation":
        torch.testing.assert_close(expected, feature_of(model, images))
    between = {group: (width + graph.sizes[group]) // 2 for group, width in chain.widths.items()}
    for width in (chain.widths,) if transformer else (chain.widths, between):
        network = oskt.expand(chain, width, feature="teacher")
        own = feature_of(network.student, images)
        assert isinstance(network, Lifted) and own.shape[1] < expected.shape[1]
        torch.testing.assert_close(feature_of(network, images), expected, rtol=1e-4, atol=1e-5)


def test_a_feature_of_unit_length():
    """Merged channels count once in its length: lifted, it has the teacher's direction."""
    model = small(normalised, 8)
    graph = trace_module(model, IMAGE)
    labels = random_labels(graph)
    collapse(model, graph, labels)
    chain = WeightChain.from_labels(model, graph, labels)
    images = torch.randn(3, *IMAGE)
    found = feature_of(oskt.expand(chain, chain.widths, feature="teacher"), images)
    assert float((found.norm(dim=1) - 1).abs().min()) > 1e-2
    torch.testing.assert_close(functional.normalize(found), feature_of(model, images), rtol=1e-4, atol=1e-5)


def test_a_worked_example():
    """Slots (0, 2), (1) and (3) of 4 channels: `a b c` becomes `a b a c`."""
    torch.manual_seed(0)
    model = Network(plain, first=conv(3, 2), second=conv(2, 4), classifier=nn.Linear(4, 2)).eval()
    graph = trace_module(model, IMAGE)
    name = next(group.name for group in graph.groups if group.size == 4)
    labels = {group.name: np.arange(group.size) for group in graph.groups} | {name: np.array([0, 1, 0, 0])}
    chain = WeightChain.from_labels(model, graph, labels)
    student = oskt.expand(chain, {**chain.widths, name: 3})
    assert student.student_record.lifting == (0, 1, 0, 2)
    assert lift(np.array([[5, 7, 9]]), student).tolist() == [[5, 7, 5, 9]]
    images = torch.randn(2, *IMAGE)
    assert torch.equal(lifted(student)(images), student(images)[:, [0, 1, 0, 2]])


def test_training_goes_through_and_the_student_is_shared():
    student = oskt.expand(chain_of(small(plain, 8)), 0.75)
    network = lifted(student).train()
    assert network(torch.randn(2, *IMAGE)).shape == (2, 3), "class scores"
    assert lifted(network).student is network.student is student
    assert list(network.state_dict()) == [f"student.{name}" for name in student.state_dict()]


def test_a_lifted_student_in_a_file(tmp_path):
    model = small(plain, 8)
    network = oskt.expand(chain_of(model), 0.75, feature="teacher")
    oskt.save_student(network, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=model)
    images = torch.randn(2, *IMAGE)
    assert isinstance(loaded, Lifted) and torch.equal(loaded(images), network(images))
    assert origin_of(tmp_path / "student.pth") == origin_of(network) == origin_of(loaded)
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    for damaged in ([0, 2], [-1, 0], ["x"]):
        torch.save({**content, "oskt": {**content["oskt"], "lifting": damaged}}, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match="no student of this package"):
            oskt.load_student(tmp_path / "damaged.pth", model=model)
        with pytest.raises(FeatureError, match="'.*damaged.pth' (is damaged|does not say)"):
            lift(torch.zeros(1, 2), tmp_path / "damaged.pth")


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".torchscript"])
def test_exports_say_how_features_are_lifted(suffix, tmp_path):
    student = oskt.expand(chain_of(small(plain, 8)), 0.75)
    own = oskt.export(student, tmp_path / f"own{suffix}")
    whole = oskt.export(student, tmp_path / f"lifted{suffix}", feature="teacher", normalize=True)
    again = oskt.export(lifted(student), tmp_path / f"again{suffix}")
    assert (own.feature_dim, whole.feature_dim, again.feature_dim) == (6, 8, 8)
    images = np.random.default_rng(0).standard_normal((2, *IMAGE), np.float32)
    run = {file: oskt.deploy.open_exported(file.path, file.format) for file in (own, whole, again)}
    features = lift(run[own](images), own.path)
    np.testing.assert_allclose(run[again](images), features, rtol=1e-4, atol=1e-5)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(run[whole](images), features / lengths, rtol=1e-4, atol=1e-5)
    assert lift(run[whole](images), whole.path).shape == (2, 8), "lifted already"
    metadata = oskt.deploy.read_metadata(own.path, own.format)
    assert origin_of(metadata) == origin_of(student) and metadata["chain"] == student.student_record.chain


def test_what_cannot_be_lifted_says_why():
    chain = chain_of(model := small(several, 8))
    with pytest.raises(FeatureError, match="returns several features, .*join them, .* in a module around the teacher"):
        oskt.expand(chain, 0.75, feature="teacher")
    with pytest.raises(FeatureError, match="whose parts are divided by their lengths one by one"):
        oskt.expand(chain_of(small(parts_normalised, 8)), 0.75, feature="teacher")
    with pytest.raises(FeatureError, match="this Network was not expanded from a chain"):
        lifted(model)
    graph = trace_module(plain_model := small(plain, 8), IMAGE)
    with pytest.raises(FeatureError, match="was not expanded from a chain"):
        lifted(make_baseline("norm", plain_model, graph, graph.sizes))
    scaled = oskt.expand(chain_of(plain_model), 0.75, distance="teacher")
    with pytest.raises(FeatureError, match="scaled to the distances of the teacher, .*distance='none'"):
        lifted(scaled)
    with pytest.raises(ConfigError, match="feature is 'all'; allowed: own, teacher"):
        oskt.expand(chain, 0.75, feature="all")
    with pytest.raises(ConfigError, match="feature of an export is 'all'; allowed: own, teacher"):
        oskt.export(plain_model, "never.onnx", feature="all")
    with pytest.raises(ConfigError, match="class scores are not lifted"):
        oskt.export(oskt.expand(chain_of(plain_model), 0.75), "never.onnx", feature="teacher", output="scores")
    with pytest.raises(FeatureError, match="features have the shape .2, 5., those of this Network are .count, 8."):
        lift(torch.zeros(2, 5), oskt.expand(chain_of(plain_model), 1.0))
    with pytest.raises(FeatureError, match="this metadata does not say how its features are lifted"):
        lift(torch.zeros(2, 5), {"mean": [0.5]})


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_ranking_a_worked_example():
    ranked = rank([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert ranked.places.tolist() == [[1, 0]]
    torch.testing.assert_close(ranked.similarities, torch.tensor([[0.8, 0.6]]))


def test_ranking_in_parts_is_that_of_everything(monkeypatch):
    monkeypatch.setattr(gallery, "GALLERY_AT_ONCE", 7)
    monkeypatch.setattr(gallery, "QUERIES_AT_ONCE", 3)
    queries, entries = torch.randn(8, 5), torch.randn(40, 5).double().numpy()
    ranked = rank(queries, entries, most=9)
    alike = nn.functional.cosine_similarity(queries[:, None], torch.from_numpy(entries).float()[None], dim=2)
    torch.testing.assert_close(ranked.similarities, alike.sort(1, descending=True)[0][:, :9])
    torch.testing.assert_close(alike.gather(1, ranked.places), ranked.similarities)
    assert rank(queries, entries[:4]).places.shape == (8, 4), "as many as there are"


def test_one_gallery_for_two_widths_and_none_for_two_chains():
    chain = chain_of(model := small(plain, 8))
    narrow, wide = oskt.expand(chain, chain.widths), oskt.expand(chain, 1.0)
    images = torch.randn(6, *IMAGE)
    ranked = rank(narrow(images), wide(images), narrow, wide, most=1)
    assert torch.equal(ranked.places, rank(lifted(narrow)(images), lifted(wide)(images), most=1).places)
    other = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, input_size=IMAGE), 1.0)
    with pytest.raises(FeatureError, match="queries are of the chain '[0-9a-f]{16}', the gallery is of '.*enrol"):
        rank(narrow(images), other(images), narrow, other)
    with pytest.raises(FeatureError, match="queries are of the chain '[0-9a-f]{16}', the gallery is of no chain"):
        rank(narrow(images), model(images), narrow, model)
    with pytest.raises(FeatureError, match="give features .count, length. of one length"):
        rank(narrow(images), wide(images))
    with pytest.raises(FeatureError, match="the gallery has .0, 5."):
        rank(torch.zeros(1, 5), torch.zeros(0, 5))


def test_fingerprints_tell_chains_apart(tmp_path):
    chain = chain_of(model := small(plain, 8))
    chain.save(tmp_path / "chain.safetensors")
    loaded = oskt.WeightChain.load(tmp_path / "chain.safetensors", model=model)
    assert loaded.fingerprint == chain.fingerprint and np.array_equal(loaded.graph.feature, chain.graph.feature)
    name = next(iter(chain.rows))
    chain_of_other = oskt.WeightChain.load(tmp_path / "chain.safetensors", model=model)
    chain_of_other.rows[name].view(-1)[0] += 1e-3
    assert chain_of_other.fingerprint != chain.fingerprint
