"""Vision transformers: outputs, names, the identity property, chains, published weights, the authors' files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from runs import SMALL
from tensors import same_tensors
from test_identity import collapse, logits
from torch import nn
from torch.func import functional_call
from vits import IMAGE, TINY, disturbed, equal_labels, tiny

import oskt_torchreid as oskt
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.clustering import cluster_teacher
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.chain.losses import refining_loss
from oskt_torchreid.chain.network import trace
from oskt_torchreid.chain.sstudent import Refinement, SStudent
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ChainError, CheckpointError, ConfigError
from oskt_torchreid.graph.plans import ratio_plan
from oskt_torchreid.host import models
from oskt_torchreid.host.data import build_datamanager
from oskt_torchreid.host.losses import ReidLoss
from oskt_torchreid.models import build_model, load_vit_weights, load_weights
from oskt_torchreid.models.vit import VisionTransformer, resized_positions
from oskt_torchreid.networks import parse_outputs
from oskt_torchreid.runs import run
from oskt_torchreid.runs.oskt.plan import make_plan

NAMES = ("vit_small_patch16", "vit_base_patch16", "vit_small_patch16_plain", "vit_base_patch16_plain")
REFERENCE = Path(os.environ.get("OSKT_REFERENCE") or Path(__file__).parents[2] / "shared" / "fixtures")
OFFICIAL = REFERENCE / "official_vit_d48_chain24"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the authors' files are not there (OSKT_REFERENCE)")


# ---- network -----------------------------------------------------------------------------------------------------


def test_outputs_follow_the_hosts_protocol():
    images = torch.randn(4, *IMAGE)
    softmax, triplet = tiny().train(), tiny(loss="triplet").train()
    assert softmax(images).shape == (4, 7)
    scores, features = triplet(images)
    assert scores.shape == (4, 7) and features.shape == (4, 48) == (4, triplet.feature_dim)
    loss, summary = ReidLoss(7, weight_t=1.0)(parse_outputs((scores, features), True, "triplet"), torch.arange(4) // 2)
    assert torch.isfinite(loss) and {"loss_t", "loss_x"} <= summary.keys()
    assert tiny(num_parts=0).eval()(images).shape == (4, 24)


def test_the_feature_is_the_class_token_and_the_mean_of_the_parts():
    images = torch.randn(3, *IMAGE)
    before, after = tiny(), tiny(feature="after")
    after.load_state_dict(before.state_dict())
    tokens = before.tokens(images)
    assert len(tokens) == 4
    torch.testing.assert_close(before(images), torch.cat([tokens[0], torch.stack(tokens[1:]).mean(0)], 1))
    necks = [before.bottleneck, before.bottleneck_1, before.bottleneck_2, before.bottleneck_3]
    tokens = [neck(token) for neck, token in zip(necks, tokens, strict=True)]
    torch.testing.assert_close(after(images), torch.cat([tokens[0], torch.stack(tokens[1:]).mean(0)], 1))
    torch.testing.assert_close(logits(before, images), before.classifier(after(images)))


def test_dw_is_the_identity_at_first():
    assert torch.equal(VisionTransformer(2, **TINY).dw.weight, torch.eye(24))


def test_other_image_sizes_interpolate_positions():
    model = tiny()
    assert model(torch.randn(2, 3, 48, 24)).shape == (2, 48)
    positions = torch.randn(1, 8, 24)
    assert torch.equal(resized_positions(positions, (4, 2), (4, 2)), positions)
    constant = torch.ones(1, 8, 24)
    torch.testing.assert_close(resized_positions(constant, (4, 2), (6, 3)), torch.ones(1, 18, 24))
    ramp = torch.arange(4.0).repeat_interleave(2).reshape(1, 8, 1)
    rows = resized_positions(ramp, (4, 2), (8, 4)).reshape(8, 4)
    assert (rows.diff(dim=0) > 0).all() and torch.equal(rows, rows[:, :1].expand(8, 4))


def test_stochastic_depth_grows_and_rests_in_evaluation():
    model = tiny(depth=3, drop_path=0.4)
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0, 0.2, 0.4])
    images = torch.randn(2, *IMAGE)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "center"}, "loss of the vision transformer is 'center'; allowed: softmax, triplet"),
        ({"feature": "neck"}, "feature of the vision transformer is 'neck'; allowed: before, after"),
        ({"num_heads": 5}, "embed_dim is 24, which 5 heads cannot share"),
        ({"image_size": (4, 16)}, "is smaller than one patch of 8"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        VisionTransformer(2, **{**TINY, **options})


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_names_are_recognised(name):
    skeleton = models.skeleton(name, 11, "triplet")
    assert next(skeleton.parameters()).is_meta and skeleton.loss == "triplet"
    assert models.identify(skeleton) == models.ModelSpec(name, 11, "triplet")
    parts = 0 if name.endswith("plain") else 3
    expected = {"small": 21.64e6, "base": 85.8e6}[name.split("_")[1]]
    blocks = sum(p.numel() for n, p in skeleton.named_parameters() if n.startswith(("blocks.", "patch_embed.", "dw.")))
    assert blocks == pytest.approx(expected, rel=0.01) and skeleton.num_parts == parts


def test_it_has_a_neck_of_its_own():
    assert not [name for name in models.model_names() if name.startswith("oskt_vit")]
    oskt.models.register_all()
    assert not [name for name in models.model_names() if name.startswith("oskt_vit")]


def test_nothing_is_downloaded():
    with pytest.raises(ConfigError, match="set model.pretrained to False and give a file .* as model.load_weights"):
        models.build("vit_small_patch16", 5, pretrained=True)


# ---- graph and identity ------------------------------------------------------------------------------------------


def test_groups():
    traced = trace(tiny(), IMAGE)
    assert traced.sizes == {
        "patch_embed.proj": 24,
        "dw": 24,
        **{f"blocks.0.attn.qkv:{head}": 8 for head in range(3)},
        "blocks.0.mlp.fc1": 96,
        **{f"blocks.1.attn.qkv:{head}": 8 for head in range(3)},
        "blocks.1.mlp.fc1": 96,
        "classifier": 7,
    }
    fixed = {group.name for group in traced.groups if group.fixed}
    assert fixed == {"patch_embed.proj", "classifier"}
    layers = [module for module in tiny().modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert len(traced.matrices) == len(layers)
    assert all(name in traced.column_ties or name == "patch_embed.proj.weight" for name in traced.matrices)
    assert [norm.module for norm in traced.norms][-1] == "norm" and len(traced.norms) == 5


def identity_errors(model, size):
    """Worst difference of the logits at three widths, and what making rows equal changed, over the logits' spread."""
    images = torch.randn(2, *size, dtype=next(model.parameters()).dtype)
    traced = trace(model, size)
    labels = equal_labels(traced, 4)
    before = logits(model, images)
    collapse(model, traced, labels)
    expected = logits(model, images)
    chain = WeightChain.from_labels(model, traced, labels)
    found = []
    for parts in (4, 2, 1):
        widths = {g.name: g.size if g.fixed else g.size // parts for g in traced.groups}
        student = expand_to_plan(chain, widths)
        found.append(float((logits(student, images) - expected).abs().max() / expected.std()))
    return max(found), float((before - expected).abs().max() / expected.std())


def test_identity_in_double_precision():
    error, changed = identity_errors(tiny().double(), IMAGE)
    assert changed > 1e-2 and error <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_identity(name):
    torch.manual_seed(0)
    size = (3, 64, 32)
    error, changed = identity_errors(disturbed(models.build(name, 7), size), size)
    assert changed > 1e-2 and error <= 1e-4, (error, changed)


def test_plans_of_the_published_students():
    """Residual stream d, heads d / number of heads, MLPs 4 d."""
    traced = trace(models.build("vit_small_patch16", 2), (3, 32, 32))
    for width in (120, 168):
        plan = ratio_plan(traced, width / 384)
        assert plan["dw"] == width and plan["blocks.0.mlp.fc1"] == 4 * width
        assert {plan[name] for name in plan if ".attn." in name} == {width // 6}


# ---- chains and students -----------------------------------------------------------------------------------------


def test_rows_are_normalised_where_there_is_attention():
    model = tiny()
    traced = trace(model, IMAGE)
    chain = WeightChain.from_teacher(model, 0.5, graph=traced)
    expected = cluster_teacher(traced, model.state_dict(), chain.widths, normalize_rows=True)
    assert all(np.array_equal(expected[name], labels) for name, labels in chain.teacher_to_chain.items())
    raw = WeightChain.from_teacher(model, 0.5, graph=traced, normalize_rows=False)
    assert any(not np.array_equal(expected[name], labels) for name, labels in raw.teacher_to_chain.items())


def test_chain_and_student_files(tmp_path):
    model = tiny()
    chain = WeightChain.from_teacher(model, 0.25, graph=trace(model, IMAGE))
    chain.save(tmp_path / "chain.safetensors")
    loaded = WeightChain.load(tmp_path / "chain.safetensors", model)
    student = oskt.expand(loaded, 0.5)
    oskt.save_student(student, tmp_path / "student.pth")
    again = oskt.load_student(tmp_path / "student.pth", tiny())
    images = torch.randn(2, *IMAGE)
    assert torch.equal(again(images), student(images)) and torch.equal(student(images), oskt.expand(chain, 0.5)(images))
    assert student.feature_dim == again.feature_dim == 24
    assert student.blocks[0].attn.qkv.weight.shape == (36, 12)


def test_files_of_another_number_of_heads(tmp_path):
    """The same tensors, other heads: shapes do not tell them apart."""
    chain = WeightChain.from_teacher(tiny(), 0.5, graph=trace(tiny(), IMAGE))
    chain.save(tmp_path / "chain.safetensors")
    oskt.save_student(oskt.expand(chain, 0.5), tmp_path / "student.pth")
    other = tiny(num_heads=4)
    message = "module 'blocks.0.attn' of VisionTransformer splits its channels into 4 heads .*, the teacher's into 3"
    with pytest.raises(ChainError, match=f"cannot be used as a weight chain: {message}"):
        WeightChain.load(tmp_path / "chain.safetensors", other)
    with pytest.raises(CheckpointError, match=f"student.pth' was made of another network: {message}"):
        oskt.load_student(tmp_path / "student.pth", other)
    with pytest.raises(ChainError, match=f"the chain was not made of this VisionTransformer: {message}"):
        Refinement(other, chain)


def test_a_student_of_a_registered_name_needs_no_network(tmp_path):
    model = models.build("vit_small_patch16_plain", 3)
    traced = trace(model, (3, 32, 16))
    labels = equal_labels(traced, 8)
    student = oskt.expand(WeightChain.from_labels(model, traced, labels), 0.25)
    oskt.save_student(student, tmp_path / "student.pth")
    again = oskt.load_student(tmp_path / "student.pth")
    images = torch.randn(1, 3, 64, 32)
    assert torch.equal(again(images), student(images)) and again(images).shape == (1, 96)


def test_widths_are_read_off_another_vit():
    model = tiny()
    chain = WeightChain.from_teacher(model, 0.25, graph=trace(model, IMAGE))
    student = oskt.expand(chain, {**ratio_plan(chain.graph, 0.5), "blocks.0.mlp.fc1": 30})
    for like in (student, student.state_dict()):
        again = oskt.expand(chain, like=like)
        assert same_tensors(again, student)


def test_the_embedding_is_the_teachers_and_its_gradient_flows():
    model = tiny()
    chain = WeightChain.from_teacher(model, 0.5, graph=trace(model, IMAGE))
    sstudent = SStudent(chain).train()
    assert sstudent.weights(model)["patch_embed.proj.weight"] is model.patch_embed.proj.weight
    sstudent(torch.randn(4, *IMAGE), model).pow(2).sum().backward()
    assert all(rows.grad.abs().sum() > 0 for rows in sstudent.rows.values())
    teachers = dict(model.named_parameters())
    for name in ("patch_embed.proj.weight", "part_token2", "pos_embed", "blocks.0.attn.qkv.bias", "norm.weight"):
        assert teachers[name].grad.abs().sum() > 0, name
    assert teachers["blocks.0.attn.qkv.weight"].grad is None
    assert "patch_embed/proj/weight" not in sstudent.rows


def test_vector_copies_are_refined_as_rows_are():
    model = tiny()
    chain = WeightChain.from_teacher(model, 0.5, graph=trace(model, IMAGE))
    refinement = Refinement(model, chain, vector_copies=True)
    own = refinement.sstudent.own_vectors
    assert {"blocks/0/norm1/weight", "blocks/0/attn/qkv/bias", "norm/bias"} <= own.keys() and "cls_token" not in own
    rows_only = refining_loss(refinement.sstudent.row_pairs(model))
    with torch.no_grad():
        own["norm/bias"] += 1
    loss = refining_loss(refinement.sstudent.row_pairs(model))
    torch.testing.assert_close(loss - rows_only, torch.tensor(24.0), rtol=1e-3, atol=1e-2)
    loss.backward()
    torch.testing.assert_close(own["norm/bias"].grad, torch.full((24,), 2.0))
    torch.testing.assert_close(model.norm.bias.grad, torch.full((24,), -2.0))
    refined = refinement.to_chain()
    torch.testing.assert_close(refined.vectors["norm.bias"], model.norm.bias + 1)
    assert torch.equal(refined.rows["patch_embed.proj.weight"], model.patch_embed.proj.weight)


@pytest.mark.parametrize("vector_copies", [False, True])
def test_steps_of_refining_lower_the_loss(market_root, vector_copies):
    options = ["data.workers=0", "data.height=32", "data.width=16", "train.batch_size=8", "use_gpu=False"]
    datamanager = build_datamanager(load_config(options=options, flags={"data.root": str(market_root)}))
    teacher = tiny(datamanager.num_train_pids)
    engine = oskt.OSKTEngine(datamanager, teacher, width=0.5, use_gpu=False, vector_copies=vector_copies)
    engine.epoch, engine.batch_idx, engine.max_epoch = 0, 0, 10
    engine.set_model_mode("train")
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    batch = next(iter(engine.train_loader))
    summaries = [engine.forward_backward(batch) for _ in range(6)]
    assert summaries[-1]["s_loss_x"] < summaries[0]["s_loss_x"] and summaries[-1]["loss_x"] < summaries[0]["loss_x"]
    after = engine.model.state_dict()
    moved = [name for name in before if name.startswith("sstudent.rows") and not torch.equal(before[name], after[name])]
    assert len(moved) == len(engine.model.sstudent.rows)
    engine.chain.validate()


# ---- weights -----------------------------------------------------------------------------------------------------


def imagenet(grid=(4, 4), **more):
    """A state dict in timm's form, for the tiny network."""
    source = tiny(num_parts=0)
    state = {
        n: t for n, t in source.state_dict().items() if n.startswith(("cls_token", "patch_embed", "blocks", "norm"))
    }
    state["pos_embed"] = torch.randn(1, 1 + grid[0] * grid[1], 24)
    return {**state, "head.weight": torch.randn(9, 24), "head.bias": torch.randn(9), **more}


def passed():
    """A state dict in the form of PASS, whose teacher is inside wrappers."""
    state = {n: t for n, t in tiny().state_dict().items() if not n.startswith(("bottleneck", "classifier", "dw"))}
    return {"teacher": {f"module.backbone.{n}": t for n, t in state.items()}, "epoch": 3}


def file_of(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_imagenet_weights(tmp_path):
    state, model = imagenet(), VisionTransformer(5, **TINY)
    first = model.part_token1.clone()
    account = load_vit_weights(model, file_of(state, tmp_path))
    assert account.ignored == ("head.bias", "head.weight") and account.resized == ("pos_embed",)
    assert "part_token1" in account.initialised and "dw.weight" in account.initialised
    assert set(account.taken) | set(account.initialised) == model.state_dict().keys()
    assert torch.equal(model.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])
    assert torch.equal(model.cls_pos, state["pos_embed"][:, :1]) and torch.equal(model.part_token1, first)
    torch.testing.assert_close(model.pos_embed.data, resized_positions(state["pos_embed"][:, 1:], (4, 4), (4, 2)))
    assert "tensors taken (pos_embed interpolated" in account.summary()


def test_a_network_of_timm_computes_the_same_here(tmp_path):
    """The published weights' own program, with random weights: after loading, its class token is our feature."""
    shape = {"img_size": (32, 16), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    theirs = timm.models.VisionTransformer(**shape, num_classes=9).eval()
    ours = VisionTransformer(5, **TINY, num_parts=0).eval()
    load_vit_weights(ours, file_of(theirs.state_dict(), tmp_path))
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.forward_features(images)[:, 0])


def test_dino_weights(tmp_path):
    state = imagenet(grid=(6, 3))
    heads = {"head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_v": torch.zeros(2)}
    backbone = {f"module.backbone.{name}": t for name, t in state.items() if not name.startswith("head")}
    content = {"teacher": {**backbone, **heads}, "student": backbone}
    model = VisionTransformer(5, **TINY, num_parts=0)
    account = load_vit_weights(model, file_of(content, tmp_path))
    assert account.ignored == tuple(sorted(heads))
    torch.testing.assert_close(model.pos_embed.data, resized_positions(state["pos_embed"][:, 1:], (6, 3), (4, 2)))


def test_pass_weights(tmp_path):
    path, source = file_of(passed(), tmp_path), tiny().state_dict()
    model = VisionTransformer(5, **TINY)
    account = load_vit_weights(model, path)
    assert not account.ignored and not account.resized
    assert {n.split(".")[0] for n in account.initialised} == {"classifier", "dw"} | {
        f"bottleneck{suffix}" for suffix in ("", "_1", "_2", "_3")
    }
    taken = model.state_dict()
    assert all(torch.equal(taken[name], source[name]) for name in account.taken)
    plain = VisionTransformer(5, **TINY, num_parts=0)
    assert set(load_vit_weights(plain, path).ignored) == {f"part{i}_pos" for i in (1, 2, 3)} | {
        f"part_token{i}" for i in (1, 2, 3)
    }


def test_own_checkpoints(tmp_path):
    source = tiny()
    path = file_of({"state_dict": source.state_dict()}, tmp_path)
    model = tiny()
    nn.init.zeros_(model.dw.weight)
    load_weights(model, path)
    assert same_tensors(model, source)
    other = tiny(num_classes=3)
    assert load_vit_weights(other, path).initialised == ("classifier.weight",)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: without(imagenet(), "norm.bias"), "1 missing: norm.bias. Nothing was loaded"),
        (lambda: imagenet(adapter=torch.zeros(3)), "1 unexpected: adapter"),
        (lambda: imagenet(cls_token=torch.zeros(1, 1, 48)), r"cls_token \(1, 1, 48\) instead of \(1, 1, 24\)"),
        (lambda: imagenet(pos_embed=torch.zeros(1, 18, 24)), "positions of 17 patches, which are neither"),
        (lambda: {**imagenet(), "module.norm.bias": torch.zeros(24)}, "two tensors for 'norm.bias'"),
        (lambda: {"epoch": 3}, "holds no state dict"),
    ],
)
def test_files_that_do_not_fit_change_nothing(tmp_path, content, message):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_vit_weights(model, file_of(content(), tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_configuration_builds_one():
    options = ["model.name=vit_small_patch16", "model.pretrained=False", "model.neck=True"]
    model = build_model(load_config(options=options), 4)
    assert isinstance(model, VisionTransformer) and model.classifier.weight.shape == (4, 768)


def tiny_builder(num_classes, loss="softmax", pretrained=False, use_gpu=False):
    return VisionTransformer(num_classes, loss, **TINY)


def test_a_run_starts_from_the_file_and_passes_the_choices_on(tmp_path, monkeypatch):
    monkeypatch.setitem(models._FACTORY, "vit_tiny", tiny_builder)
    path = file_of(passed(), tmp_path)
    choices = ["clustering=balanced", "attention=paper", "normalize_rows=no", "refine.vector_copies=True"]
    options = [
        *SMALL,
        *(f"oskt.{choice}" for choice in choices),
        "model.name=vit_tiny",
        f"model.load_weights={path}",
        f"data.root={tmp_path / 'data'}",
        f"data.save_dir={tmp_path / 'run'}",
    ]
    config = load_config(options=options)
    start = make_plan(config, 6).teacher.state_dict()
    assert torch.equal(start["patch_embed.proj.weight"], tiny().patch_embed.proj.weight)
    run(config)
    chain = WeightChain.load(tmp_path / "run" / "chain.safetensors", tiny(num_classes=6))
    assert chain.attention == "paper" and set(np.bincount(chain.teacher_to_chain["dw"])) == {2}


# ---- the authors' files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official():
    """Their teacher as a network, its graph, their clusters by group, their chain by tensor name."""
    state = torch.load(OFFICIAL / "transformer_120.pth", map_location="cpu", weights_only=True)
    state = {name.removeprefix("base."): tensor for name, tensor in state.items()}
    model = VisionTransformer(7, embed_dim=48, depth=2, num_heads=4, image_size=(64, 32)).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    traced = trace(model, (3, 64, 32))
    theirs = json.loads((OFFICIAL / "gene_matcher.json").read_text())["o2g"]
    labels = {group.name: np.arange(group.size) for group in traced.groups if group.fixed}
    for group in (group for group in traced.groups if not group.fixed):
        if ".attn.qkv:" in group.name:
            name, head = group.name.split("qkv:")
            own = np.array(theirs[f"{name}q"]).reshape(4, 12)[int(head)]
            labels[group.name] = own - own.min()
        else:
            labels[group.name] = np.array(theirs["dw_proj_fc2" if group.name == "dw" else group.name])
    endings = {"_weight_gene": ".weight", "_bias_gene": ".bias", "_gene.weight": ".weight", "_gene.bias": ".bias"}
    chain = {
        name.removesuffix(ending) + plain: tensor
        for name, tensor in state.items()
        for ending, plain in endings.items()
        if name.endswith(ending)
    }
    return model, traced, labels, chain


def official_chain(official, proj_bias):
    """Their chain; students take the bias of `proj` from the teacher itself, the S-student from its copy."""
    model, traced, labels, theirs = official
    chain = WeightChain.from_labels(model, traced, labels, attention="paper")
    rows = {name: theirs.get(name, tensor) for name, tensor in chain.rows.items()}
    copies = {n: t for n, t in theirs.items() if n in chain.vectors and (proj_bias or not n.endswith("proj.bias"))}
    return chain.with_tensors(rows, {**chain.vectors, **copies}, {})


@needs_official
def test_clusters_are_the_authors(official):
    model, traced, labels, _ = official
    widths = {name: int(label.max()) + 1 for name, label in labels.items()}
    own = cluster_teacher(traced, model.state_dict(), widths, normalize_rows=True)
    for name, label in labels.items():
        pairs = np.unique(np.stack([own[name], label]), axis=1)
        assert pairs.shape[1] == widths[name], f"another partition of {name}"


@needs_official
@pytest.mark.parametrize("width", [24, 32, 48])
def test_students_are_the_authors(official, width):
    _, traced, *_ = official
    stored = torch.load(OFFICIAL / f"student_{width}.pth", map_location="cpu", weights_only=True)
    plan = {group.name: group.size if group.fixed else group.size * width // 48 for group in traced.groups}
    student = expand_to_plan(official_chain(official, proj_bias=False), plan, vectors_over="slots")
    own = student.state_dict()
    compared = own.keys() & stored["state_dict"].keys()
    assert stored["state_dict"].keys() - compared == {"fc.weight", "fc.bias"}
    assert {name.partition(".")[0].rstrip("_123") for name in own.keys() - compared} == {"bottleneck", "classifier"}
    for name in compared:
        torch.testing.assert_close(own[name], stored["state_dict"][name], rtol=0, atol=1e-7)
    images = torch.load(OFFICIAL / "refine_step.pth", map_location="cpu", weights_only=True)["input"]
    with torch.no_grad():
        torch.testing.assert_close(student.tokens(images), stored["tokens"], rtol=0, atol=1e-5)


@needs_official
def test_a_step_of_refining_is_the_authors(official):
    model = official[0]
    step = torch.load(OFFICIAL / "refine_step.pth", map_location="cpu", weights_only=True)
    sstudent = Refinement(model, official_chain(official, proj_bias=True), vector_copies=True).sstudent.eval()
    with torch.no_grad():
        loss = refining_loss(sstudent.row_pairs(model))
        torch.testing.assert_close(loss, step["refining_loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(model.tokens(step["input"]), step["teacher_tokens"], rtol=0, atol=1e-5)
        sstudent.shell.forward = sstudent.shell.tokens
        tokens = functional_call(sstudent.shell, sstudent.weights(model), (step["input"],))
    torch.testing.assert_close(tokens, step["s_student_tokens"], rtol=0, atol=1e-5)
