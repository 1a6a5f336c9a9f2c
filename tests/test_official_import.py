"""Chains in the authors' format: read, written, and refused; against the authors' own files where they are at hand."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchreid
from torch import nn

import oskt_torchreid as oskt
from oskt_torchreid.chain import Refinement, WeightChain
from oskt_torchreid.errors import CheckpointError, ZooError
from oskt_torchreid.graph import rebuild
from oskt_torchreid.models import VisionTransformer
from oskt_torchreid.zoo.content import spread_columns
from oskt_torchreid.zoo.vit_format import _parts

REFERENCE = Path(os.environ.get("OSKT_REFERENCE") or Path(__file__).parents[2] / "shared" / "fixtures")
RESNET, VIT = REFERENCE / "official_resnet50_w8_chain2", REFERENCE / "official_vit_d48_chain24"
needs_reference = pytest.mark.skipif(not RESNET.is_dir(), reason="the authors' files are not there (OSKT_REFERENCE)")
KINDS = ("rows", "vectors", "fixed", "statistics")


def small_resnet() -> nn.Module:
    """16 base planes and (1, 2, 1, 1) blocks, with a neck, last stride 1 and no tensor at its first value."""
    kind = torchreid.models.resnet
    stock = kind.ResNet(5, "triplet", kind.Bottleneck, [1, 2, 1, 1], last_stride=1)
    model = oskt.models.NeckModel(stock, 5, "triplet")
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        narrow = [length // 4 if length >= 64 else length for length in tensor.shape]
        if tensor.is_floating_point():
            values = torch.rand(narrow, generator=random) + 0.5
            tensors[name] = values if len(narrow) == 1 else values - 1
    return rebuild(model, tensors)


def small_vit() -> nn.Module:
    """3 blocks of 3 heads, 24 wide, on images of 64 x 32."""
    torch.manual_seed(4)
    model = VisionTransformer(5, "triplet", embed_dim=24, depth=3, num_heads=3, image_size=(64, 32))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand(tensor.shape) + ("running_var" in name))
    return model


def refined_chain(teacher: nn.Module, width: float, **options) -> WeightChain:
    """A chain with its own rows and statistics, as if it had been refined."""
    chain = WeightChain.from_teacher(teacher, width, input_size=(3, 64, 32), **options)
    both = Refinement(teacher, chain).train()
    with torch.no_grad():
        both(torch.rand(3, 3, 64, 32))
        for rows in both.sstudent.rows.values():
            rows.add_(0.01 * torch.rand(rows.shape))
    return both.to_chain()


@pytest.fixture(scope="module", params=["resnet", "vit"])
def written(request, tmp_path_factory):
    """(chain, teacher, folder that both were written to)."""
    teacher = small_resnet() if request.param == "resnet" else small_vit()
    options = {} if request.param == "resnet" else {"attention": "paper"}
    chain = refined_chain(teacher, 0.25 if request.param == "resnet" else 0.5, **options)
    folder = tmp_path_factory.mktemp("official") / request.param
    oskt.zoo.save_official(chain, folder, teacher)
    return chain, teacher, folder


@pytest.fixture(scope="module")
def loaded(written):
    return oskt.zoo.load_official_oskt(written[2])


def weights_in(folder: Path) -> Path:
    return next(path for path in folder.glob("*_1?0.pth") if not path.name.startswith("student"))


def assert_equal_students(own: WeightChain, other: WeightChain, width: float) -> None:
    first, second = (oskt.expand(chain, width).state_dict() for chain in (own, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


# ---- round trip ------------------------------------------------------------------------------------------------------


def test_a_chain_written_and_read_is_the_same(written, loaded):
    chain, teacher, _ = written
    assert loaded.widths == chain.widths
    assert all(np.array_equal(labels, chain.teacher_to_chain[name]) for name, labels in loaded.teacher_to_chain.items())
    heads = tuple(f"{name}." for name in chain.model.head_modules)
    compared = 0
    for kind in KINDS:
        own, other = getattr(chain, kind), getattr(loaded, kind)
        assert own.keys() == other.keys()
        for name in (name for name in own if not name.startswith(heads)):
            torch.testing.assert_close(own[name], other[name], rtol=1e-6, atol=1e-7)
            compared += 1
    assert compared > 45
    assert_equal_students(chain, loaded, 0.25 if len(chain.graph.attentions) == 0 else 0.5)


def test_reading_writing_and_reading_again_changes_nothing(written, loaded, tmp_path):
    oskt.zoo.save_official(loaded, tmp_path, written[1])
    again = oskt.zoo.load_official_oskt(tmp_path)
    for kind in KINDS:
        for name, tensor in getattr(loaded, kind).items():
            torch.testing.assert_close(tensor, getattr(again, kind)[name], rtol=1e-6, atol=1e-7)
    first, second = (torch.load(weights_in(folder), weights_only=True) for folder in (written[2], tmp_path))
    assert first.keys() == second.keys()


def test_the_teacher_beside_the_chain(written):
    chain, teacher, folder = written
    other = oskt.zoo.load_official_teacher(folder)
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(images), teacher.eval()(images))
    both = oskt.zoo.load_official_refinement(folder).train()
    assert [len(outputs) for outputs in both(images)] == [2, 2]


def test_without_a_teacher_students_are_the_same(written, loaded, tmp_path):
    chain, _, _ = written
    oskt.zoo.save_official(chain, tmp_path)
    assert_equal_students(loaded, oskt.zoo.load_official_oskt(tmp_path), 0.75)
    rows = oskt.zoo.load_official_teacher(tmp_path).state_dict()
    name = next(name for name in chain.rows if name not in chain.graph.heads and "patch" not in name)
    axis = chain.layout.axis(chain.graph.row_ties[name])
    assert rows[name].equal(chain.rows[name][axis.teacher_to_student])


def test_a_chain_of_other_shapes_is_loaded_again_beside_its_teacher(written, loaded, tmp_path):
    loaded.save(tmp_path / "chain.safetensors")
    assert loaded.spec is None
    teacher = oskt.zoo.load_official_teacher(written[2])
    assert_equal_students(loaded, WeightChain.load(tmp_path / "chain.safetensors", model=teacher), 0.5)


def test_chains_of_other_networks_are_not_written(tmp_path):
    chain = WeightChain.from_teacher(oskt.models.NeckModel(torchreid.models.resnet18(5, pretrained=False), 5), 0.25)
    with pytest.raises(ZooError, match=r"NeckModel cannot be written in the authors' format.*'backbone\.layer1"):
        oskt.zoo.save_official(chain, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_nested_chains_are_not_written(tmp_path):
    chain = WeightChain.from_teacher(torchreid.models.resnet18(5, pretrained=False), 0.5, nested=True)
    with pytest.raises(ZooError, match="a nested chain cannot be written"):
        oskt.zoo.save_official(chain, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- bad input -------------------------------------------------------------------------------------------------------


def copied(folder: Path, target: Path, change=None) -> Path:
    """A copy of an official folder in which `change(labels, state)` has done something."""
    labels = json.loads((folder / "gene_matcher.json").read_text())
    state = torch.load(weights_in(folder), weights_only=True)
    if change:
        change(labels.get("o2g", labels), state)
    (target / "gene_matcher.json").write_text(json.dumps(labels))
    torch.save(state, target / weights_in(folder).name)
    return target


def put(place, key, value):
    place[key] = value


BAD_RESNETS = {
    "gap": (lambda labels, _: put(labels["base.conv1"], 0, 9), r"'base\.conv1' in '.*gene_matcher\.json' has labels"),
    "negative": (lambda labels, _: put(labels["base.conv1"], 0, -1), r"'base\.conv1'.*labels from -1"),
    "words": (lambda labels, _: put(labels["base.conv1"], 0, "a"), r"'base\.conv1'.*list of integers"),
    "short": (lambda labels, _: labels["base.conv1"].pop(), r"'base\.conv1'.*labels 15 channels, the weights have 16"),
    "no labels": (lambda labels, _: labels.pop("base.layer2.1.conv2"), r"has no labels 'base\.layer2\.1\.conv2'"),
    "too many labels": (lambda labels, _: put(labels, "base.layer2.2.conv1", [0]), r"labels base\.layer2\.2\.conv1,"),
    "disagreement": (
        lambda labels, _: labels["base.layer1.0.downsample"].reverse(),
        r"'base\.layer1\.0\.downsample' and 'base\.layer1\.0\.conv3' label the same channels",
    ),
    "deeper teacher": (
        lambda _, state: state.update({k.replace("layer4.0", "layer4.1"): v for k, v in state.items()}),
        r"has no labels 'base\.layer4\.1\.conv1'|'base\.layer4\.1\.conv1\.weight'",
    ),
    "shallower teacher": (
        lambda _, state: [state.pop(key) for key in list(state) if "layer2.1" in key],
        r"labels base\.layer2\.1\.conv1",
    ),
    "no stage": (
        lambda _, state: [state.pop(key) for key in list(state) if "layer4" in key],
        r"no tensor 'base\.layer4\.0",
    ),
    "missing": (
        lambda _, state: state.pop("base.GeneChain.layer1.0.conv2.weight"),
        r"lacks 'base\.GeneChain\.layer1\.0",
    ),
    "unexpected": (lambda _, state: put(state, "base.more", torch.ones(1)), r"unexpected .*: base\.more;"),
    "misshaped": (
        lambda _, state: put(state, "base.layer1.0.bn2.bias", torch.ones(3)),
        r"'base\.layer1\.0\.bn2\.bias' in '.*pth' has shape \(3,\), .* it must be \(16,\)",
    ),
    "chain of another width": (
        lambda _, state: put(state, "base.GeneChain.conv1.weight", torch.ones(5, 3, 7, 7)),
        r"'base\.GeneChain\.conv1\.weight'.*\(5, 3, 7, 7\).*must be \(4, 3, 7, 7\)",
    ),
    "not a number": (
        lambda _, state: state["base.GeneChain.layer1.0.downsample.0.weight"].fill_(float("nan")),
        r"files in '.*' do not make a chain: chain row 'backbone\.layer1\.0\.downsample\.0\.weight' has values",
    ),
    "unequal copy": (
        lambda _, state: put(
            state, "base.layer1.0.Gene_Bottleneck.conv1.weight", state["base.GeneChain.layer1.0.conv1.weight"] + 1
        ),
        r"'base\.layer1\.0\.Gene_Bottleneck\.conv1\.weight'.*repeats 'base\.GeneChain",
    ),
}
BAD_VITS = {
    "keys apart": (lambda labels, _: labels["blocks.1.attn.k"].reverse(), r"'blocks\.1\.attn\.k' and .*differ"),
    "qkv apart": (lambda labels, _: labels["blocks.1.attn.qkv"].reverse(), r"'blocks\.1\.attn\.qkv'.*not follow"),
    "stream apart": (
        lambda labels, _: labels["blocks.1.mlp.fc2"].reverse(),
        r"'blocks\.1\.mlp\.fc2' and '.*' label the same channels",
    ),
    "deeper labels": (
        lambda labels, _: put(labels, "blocks.3.mlp.fc2", labels["dw_proj_fc2"]),
        r"labels blocks\.3\.mlp\.fc2,",
    ),
    "deeper teacher": (
        lambda _, state: state.update({k.replace("blocks.2", "blocks.3"): v for k, v in state.items()}),
        r"has no labels 'blocks\.3\.attn\.qkv'",
    ),
    "positions": (
        lambda _, state: put(state, "base.pos_embed", torch.ones(1, 7, 24)),
        r"'base\.pos_embed'.*positions of 7 patches",
    ),
    "narrow": (
        lambda _, state: put(state, "base.blocks.0.attn.proj_weight_gene", torch.ones(12, 20)),
        r"'base\.blocks\.0\.attn\.proj_weight_gene'.*must be \(12, 24\)",
    ),
}


def cross_heads(labels, _state) -> None:
    """Exchanges the clusters of a channel of the first head and one of the second, consistently."""
    queries = labels["blocks.1.attn.q"]
    queries[0], queries[8] = queries[8], queries[0]
    count = max(queries) + 1
    labels["blocks.1.attn.k"] = labels["blocks.1.attn.v"] = queries
    labels["blocks.1.attn.qkv"] = [label + part * count for part in range(3) for label in queries]


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    teacher = small_resnet()
    oskt.zoo.save_official(WeightChain.from_teacher(teacher, 0.25, input_size=(3, 64, 32)), folder, teacher)
    return folder


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    teacher = small_vit()
    oskt.zoo.save_official(WeightChain.from_teacher(teacher, 0.5, input_size=(3, 64, 32)), folder, teacher)
    return folder


@pytest.mark.parametrize("case", BAD_RESNETS)
def test_bad_resnets(resnet_folder, tmp_path, case):
    change, message = BAD_RESNETS[case]
    with pytest.raises(ZooError, match=message):
        oskt.zoo.load_official_oskt(copied(resnet_folder, tmp_path, change))


@pytest.mark.parametrize("case", BAD_VITS)
def test_bad_vits(vit_folder, tmp_path, case):
    change, message = BAD_VITS[case]
    with pytest.raises(ZooError, match=message):
        oskt.zoo.load_official_oskt(copied(vit_folder, tmp_path, change))


def test_heads(vit_folder, tmp_path):
    """They are read off the labels; what does not divide the width, or crosses clusters, is refused."""
    assert oskt.zoo.load_official_teacher(vit_folder).blocks[0].attn.num_heads == 3
    with pytest.raises(
        ZooError, match=r"embed dim 24 of the chain in '.*gene_matcher\.json' is not divisible by 5 heads"
    ):
        oskt.zoo.load_official_oskt(vit_folder, num_heads=5)
    with pytest.raises(ZooError, match=r"'blocks\.0\.attn\.qkv' in .* cross heads: 6 heads of embed dim 24"):
        oskt.zoo.load_official_oskt(vit_folder, num_heads=6)
    with pytest.raises(ZooError, match=r"'blocks\.1\.attn\.qkv' in .* cross heads: 3 heads of embed dim 24"):
        oskt.zoo.load_official_oskt(copied(vit_folder, tmp_path, cross_heads))


def test_files_that_are_missing_or_damaged(resnet_folder, tmp_path):
    folder = copied(resnet_folder, tmp_path)
    weights, labels = weights_in(folder), folder / "gene_matcher.json"
    with pytest.raises(ZooError, match=r"no folder at .*none"):
        oskt.zoo.load_official_oskt(tmp_path / "none")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ZooError, match=r"cannot read '.*resnet50_100\.pth'"):
        oskt.zoo.load_official_oskt(folder)
    weights.write_bytes(pickle.dumps(os.system))
    with pytest.raises(ZooError, match=r"cannot read '.*resnet50_100\.pth': damaged, or it holds more than tensors"):
        oskt.zoo.load_official_oskt(folder)
    torch.save([1, 2], weights)
    with pytest.raises(CheckpointError, match=r"resnet50_100\.pth' holds no state dict"):
        oskt.zoo.load_official_oskt(folder)
    weights.unlink()
    with pytest.raises(ZooError, match="must have one state dict .* it has no .pth file"):
        oskt.zoo.load_official_oskt(folder)
    weights.write_bytes(whole)
    (folder / "resnet50_80.pth").write_bytes(whole)
    with pytest.raises(ZooError, match=r"it has resnet50_100\.pth, resnet50_80\.pth; name one with weights="):
        oskt.zoo.load_official_oskt(folder)
    assert oskt.zoo.load_official_oskt(folder, weights="resnet50_80.pth").widths
    labels.write_text("{")
    with pytest.raises(ZooError, match=r"gene_matcher\.json' holds damaged JSON"):
        oskt.zoo.load_official_oskt(folder, weights="resnet50_80.pth")
    labels.unlink()
    with pytest.raises(ZooError, match=r"no file at '.*gene_matcher\.json'"):
        oskt.zoo.load_official_oskt(folder, weights="resnet50_80.pth")


def test_worked_examples():
    assert _parts(np.array([1, 0, 2, 3])) == 2
    narrow = torch.tensor([[6.0, 5.0]])
    assert spread_columns(narrow, np.array([0, 1, 0, 0])).tolist() == [[2, 5, 2, 2]]


# ---- the authors' own files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet_chain():
    return oskt.zoo.load_official_oskt(RESNET)


@pytest.fixture(scope="module")
def vit_chain():
    return oskt.zoo.load_official_oskt(VIT)


def assert_same_tensors(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], prefix: str = "") -> None:
    for name, tensor in theirs.items():
        error = float((own[prefix + name] - tensor).abs().max() / tensor.abs().max())
        assert own[prefix + name].shape == tensor.shape and error < 1e-6, name


@needs_reference
@pytest.mark.parametrize("name", ["2_2-4-8", "3_2-4-8", "4_2-3-4", "8_2-3-4", "8_2-4-8"])
def test_resnet_students_are_the_authors(resnet_chain, name):
    theirs = torch.load(RESNET / f"student_{name}.pth", weights_only=True)
    assert len(theirs) == 159
    assert_same_tensors(oskt.expand(resnet_chain, like=theirs).state_dict(), theirs, "backbone.")


@needs_reference
@pytest.mark.parametrize("width", [24, 32, 48])
def test_vit_students_are_the_authors(vit_chain, width):
    stored = torch.load(VIT / f"student_{width}.pth", weights_only=True)
    theirs = {name: tensor for name, tensor in stored["state_dict"].items() if not name.startswith("fc.")}
    student = oskt.expand(vit_chain, width / 48)
    assert_same_tensors(student.state_dict(), theirs)
    assert_same_tensors(
        oskt.expand(vit_chain, like=stored["state_dict"]).state_dict(), theirs
    )  # with 'fc', never called
    images = torch.load(VIT / "refine_step.pth", weights_only=True)["input"]
    with torch.no_grad():
        for own, token in zip(student.tokens(images), stored["tokens"], strict=True):
            torch.testing.assert_close(own, token, rtol=0, atol=1e-5)


@needs_reference
@pytest.mark.parametrize("folder", [RESNET, VIT], ids=["resnet", "vit"])
def test_clustering_gives_the_authors_partition(folder):
    """The teacher in the folder is the one that was clustered."""
    official = oskt.zoo.load_official_oskt(folder)
    teacher = oskt.zoo.load_official_teacher(folder)
    own = WeightChain.from_teacher(teacher, official.widths, graph=official.graph)
    for group, labels in official.teacher_to_chain.items():
        pairs = np.unique(np.stack([own.teacher_to_chain[group], labels]), axis=1)
        assert pairs.shape[1] == labels.max() + 1, f"another partition of {group}"


@needs_reference
@pytest.mark.parametrize("folder", [RESNET, VIT], ids=["resnet", "vit"])
def test_writing_the_authors_files_again(folder, tmp_path):
    """Names, labels and everything but scratch; the S-student's statistics are averaged inside clusters."""
    chain, teacher = oskt.zoo.load_official_oskt(folder), oskt.zoo.load_official_teacher(folder)
    oskt.zoo.save_official(chain, tmp_path, teacher)
    own, theirs = (torch.load(weights_in(place), weights_only=True) for place in (tmp_path, folder))
    scratch = {name for name in theirs if ".entire." in name or ".s1." in name or name.startswith("base.fc.")}
    assert own.keys() - scratch == theirs.keys() - scratch
    changed = {name for name, tensor in own.items() if not torch.allclose(tensor, theirs[name], rtol=1e-6, atol=1e-7)}
    assert all("running_" in name or name.endswith("proj_bias_gene") for name in changed)
    assert all("Gene" in name or name.endswith("_gene") for name in changed)
    first, second = (json.loads((place / "gene_matcher.json").read_text()) for place in (tmp_path, folder))
    assert first == second
