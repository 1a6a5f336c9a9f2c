"""Parts of a network that stay whole: operators without a rule, modules asked for, and what is said of both."""

from __future__ import annotations

import math
import re
import types
from pathlib import Path

import pytest
import torch
from runs import configured
from small_networks import IMAGE, Head, Network, conv
from test_tools import tool
from torch import library, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import oskt_torchreid as oskt
from oskt_torchreid.chain import Refinement
from oskt_torchreid.chain.proof import TOLERANCE
from oskt_torchreid.errors import CheckpointError, ConfigError, GraphError
from oskt_torchreid.graph.storage import from_arrays, to_arrays
from oskt_torchreid.runs.oskt.plan import make_plan

# ---- operators without a rule ----------------------------------------------------------------------------------------


def around(odd, columns=8, **parts):
    """Two convolutions before something odd, and two behind it, of eight channels each."""

    def forward(self, images):
        maps = odd(self, self.before(self.first(images)).relu())
        return self.head(self.last(self.behind(maps).relu()))

    layers = {"first": conv(3, 8), "before": conv(8, 8), "behind": conv(columns, 8), "last": conv(8, 8)}
    return Network(forward, **layers, head=Head(8), **parts).eval()


class Sums(nn.Module):
    """What no rule says anything about, as a module."""

    def forward(self, maps):
        return maps.cumsum(1)


class Accumulated(torch.autograd.Function):
    """Sums over channels with a gradient of its own."""

    @staticmethod
    def forward(context, maps):
        return maps.cumsum(1)

    @staticmethod
    def backward(context, gradient):
        return gradient.flip(1).cumsum(1).flip(1)


@library.custom_op("odd_operators::reversed", mutates_args=())
def reverse_outside(maps: torch.Tensor) -> torch.Tensor:
    """An operator of a library, which leaves torch."""
    return torch.from_numpy(maps.numpy()[:, ::-1].copy())


reverse_outside.register_autograd(lambda context, gradient: gradient.flip(1))


def tokens_of(maps):
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens):
    return tokens.transpose(1, 2).unflatten(2, (8, 8))


def in_place(self, maps):
    maps = maps.clone()
    maps[:, :4].cumsum_(1)
    return maps


def positions_that_are_computed(self, maps):
    order = maps.mean((2, 3)).topk(8, 1)[1][0]
    return self.other(maps).index_select(1, order)


def into_a_part(self, maps):
    larger = torch.zeros(len(maps), 12, 8, 8)
    larger[:, 2:10] = maps
    return larger


def into_channels(self, maps):
    other = self.other(maps)
    other[:, :4] = maps.cumsum(1)[:, :4]
    return other


def standardised(self, maps):
    weight = self.other.weight
    weight = weight - weight.cumsum(0).mean((1, 2, 3), keepdim=True)
    return functional.conv2d(maps, weight / weight.std((1, 2, 3), keepdim=True))


def first_token(self, maps):
    tokens = tokens_of(maps)
    return maps_of(torch.cat([tokens.cumsum(2)[:, :1], self.other(tokens)], 1)[:, :64])


ODD = {
    "cumsum": (lambda self, x: x.cumsum(1), {}),
    "sort": (lambda self, x: sum(part * 0.5 for part in x.sort(1)), {}),
    "in place": (in_place, {}),
    "a view": (lambda self, x: x.as_strided(x.shape, x.stride()), {}),
    "autograd": (lambda self, x: Accumulated.apply(x), {}),
    "library": (lambda self, x: reverse_outside(x), {}),
    "computed positions": (positions_that_are_computed, {"other": conv(8, 8)}),
    "into a part": (into_a_part, {"columns": 12}),
    "into channels": (into_channels, {"other": conv(8, 8)}),
    "fourier": (lambda self, x: torch.fft.fft(x, dim=1).real, {}),
    "distances": (lambda self, x: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(-1), {}),
    "lstm": (lambda self, x: maps_of(self.lstm(tokens_of(x))[0]), {"lstm": nn.LSTM(8, 8, batch_first=True)}),
    "bilinear": (lambda self, x: x + self.two(*[x.mean((2, 3))] * 2)[..., None, None], {"two": nn.Bilinear(8, 8, 8)}),
    "number": (lambda self, x: x * (1 + x.std().item()), {}),
    "branch": (lambda self, x: x if x.cumsum(1).sum() > 1e9 else -x, {}),
    "parameter": (lambda self, x: x + self.row.cumsum(0), {"row": nn.Parameter(torch.rand(8, 1, 1))}),
    "computed weight": (standardised, {"other": conv(8, 8)}),
    "weight norm": (lambda self, x: self.normed(x), {"normed": parametrizations.weight_norm(conv(8, 8))}),
    "matrix behind": (
        lambda self, x: maps_of(tokens_of(x.cumsum(1)) @ self.matrix),
        {"matrix": nn.Parameter(torch.eye(8))},
    ),
    "norm behind": (lambda self, x: self.norm(x.cumsum(1)), {"norm": nn.BatchNorm2d(8)}),
    "slopes behind": (lambda self, x: self.slopes(x.cumsum(1)), {"slopes": nn.PReLU(8)}),
    "norm around": (lambda self, x: self.norm(self.norm(x).cumsum(1)), {"norm": nn.BatchNorm2d(8)}),
    "layer around": (lambda self, x: self.other(self.other(x).cumsum(1)), {"other": conv(8, 8)}),
    "sum": (lambda self, x: x.cumsum(1) + self.other(x), {"other": conv(8, 8)}),
    "joined": (lambda self, x: torch.cat([x.cumsum(1), self.other(x)], 1), {"other": conv(8, 8), "columns": 16}),
    "beside": (first_token, {"other": nn.Linear(8, 8)}),
    "gate": (lambda self, x: self.other(x) * x.cumsum(1).mean((2, 3), True).sigmoid(), {"other": conv(8, 8)}),
}


def odd_network(name):
    torch.manual_seed(0)
    odd, parts = ODD[name]
    return around(odd, **parts)


@pytest.mark.parametrize("name", ODD)
def test_the_rest_is_compressed_and_exact(name, tmp_path, caplog):
    model, images = odd_network(name), torch.randn(2, *IMAGE)
    chain = oskt.WeightChain.from_teacher(model, width=0.25, input_size=IMAGE)
    assert chain.graph.kept and 0 < chain.graph.kept_share <= chain.graph.immovable_share < 1
    assert "parts of Network stay whole: '" in caplog.text and "test_keeping.py:" in caplog.text
    assert max(oskt.prove(model, IMAGE).differences.values()) <= TOLERANCE

    refinement = Refinement(model, chain).train()
    losses = refinement.losses(images, lambda scores: functional.cross_entropy(scores, torch.tensor([0, 1])))
    losses.total().backward()
    assert refinement.sstudent.rows["first/weight"].grad.abs().max() > 0

    refinement.to_chain().save(tmp_path / "chain.safetensors")
    again = oskt.WeightChain.load(tmp_path / "chain.safetensors", model=odd_network(name))
    assert [part.reason for part in again.graph.kept] == [part.reason for part in chain.graph.kept]
    student = oskt.expand(again, width=0.25)
    rows = [len(layer.weight) for layer in (student.first, student.before, student.behind, student.last)]
    assert rows == [2, 5 if name == "in place" else 8, 2, 2]
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), student(images))


@pytest.mark.parametrize("name", ODD)
def test_unknown_operators_are_refused_on_request(name):
    with pytest.raises(GraphError, match=r"\(.*test_keeping\.py:\d+\)") as info:
        oskt.trace(odd_network(name), IMAGE, unknown="refuse")
    words = "operator", "unknown='keep'", "keep=", "register_rule('", "register_attribute_rule("
    missing = [word for word in words if word not in str(info.value)]
    assert not missing or (missing == ["operator"] and "module '" in str(info.value))


KNOWN = {
    "product": (lambda self, x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(-1), "mixed by a product"),
    "sum": (lambda self, x: x + x.sum(1, keepdim=True), "summed over"),
    "sum and mean": (lambda self, x: self.both(x), "summed over"),
    "softmax": (lambda self, x: x.softmax(1), "normalised over"),
    "padding": (lambda self, x: functional.pad(x, (0, 0, 0, 0, 0, 2))[:, :8], "padded by channels"),
}
"""What a rule knows, and why it follows no channels there."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_rule_says_why_its_part_stays_whole(name):
    """It is listed, counted, warned of and refused as a part without a rule is."""
    odd, why = KNOWN[name]
    both = Network(lambda self, x: x - x.sum(1, keepdim=True) * x.mean(1, keepdim=True))
    model = around(odd, **({"both": both} if "both" in odd.__code__.co_names else {}))
    graph = oskt.trace(model, IMAGE)
    assert [part.why for part in graph.kept] == [why] and graph.kept_share > 0
    assert {group.fixed for group in graph.groups if group.name == "before"} == {graph.kept[0].reason}
    assert graph.whole[graph.row_ties["before.weight"].channels].all()
    assert max(oskt.prove(model, IMAGE).differences.values()) <= TOLERANCE
    with pytest.raises(GraphError, match=rf"operator '{graph.kept[0].operator}' .*test_keeping\.py:\d+.*keep="):
        oskt.trace(model, IMAGE, unknown="refuse")


def test_parameters_that_are_mixed_with_each_other_are_constants():
    """No channel meets them, so nothing is kept that was not asked for, and nothing is refused."""
    model = around(lambda self, x: x * (self.table @ self.table.T).softmax(1).mean(), table=nn.Parameter(torch.eye(8)))
    assert not oskt.trace(model, IMAGE, unknown="refuse").kept


@pytest.mark.parametrize(
    "odd",
    [
        lambda self, x: torch.where(x > 0, x, torch.linspace(-1, 1, 8).view(1, 8, 1, 1)),
        lambda self, x: functional.layer_norm(torch.cat([x, torch.ones_like(x[:, :2])], 1), (10, 8, 8))[:, :8],
        lambda self, x: x - torch.cat([x, torch.ones(len(x), 2, 8, 8)], 1).mean(1, keepdim=True),
    ],
    ids=["choice", "norm", "mean"],
)
def test_channels_beside_constants_stay(odd):
    model = around(odd)
    assert next(group for group in oskt.trace(model, IMAGE).groups if group.name == "before").fixed
    assert max(oskt.prove(model, IMAGE).differences.values()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_function_is_followed_by_its_operators():
    @torch.jit.script
    def scripted(maps):
        return torch.cumsum(maps, 1) * 2

    graph = oskt.trace(around(lambda self, x: scripted(x)), IMAGE)
    assert [part.operator for part in graph.kept] == ["cumsum"]


@pytest.mark.parametrize("name", ["cumsum", "in place", pytest.param("norm behind", marks=pytest.mark.slow)])
def test_students_are_exported(name, tmp_path):
    pytest.importorskip("onnxruntime")
    chain = oskt.WeightChain.from_teacher(odd_network(name), width=0.5, input_size=IMAGE)
    exported = oskt.export(oskt.expand(chain, width=0.5), tmp_path / "student.onnx", input_size=IMAGE, output="scores")
    assert exported.path.is_file()


def test_class_scores_may_be_the_result_of_an_odd_operator():
    model = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), Sums())
    graph = oskt.trace(model, IMAGE)
    assert [str(part).partition(" (")[0] for part in graph.kept] == ["'cumsum' in '4'"]
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.5, graph=graph), 0.5)
    assert student(torch.randn(2, *IMAGE)).shape == (2, 5) and len(student[0].weight) == 4


def test_a_feature_that_stays_whole_has_the_teachers_distances():
    """A feature that is whole in part: its other part is multiplied by the root of its members."""

    def forward(self, images):
        maps = self.first(images)
        parts = [self.whole(maps).mean((2, 3)).cumsum(1), self.merged(maps).mean((2, 3))]
        return self.head(torch.cat(parts, 1)) if self.training else torch.cat(parts, 1)

    torch.manual_seed(0)
    parts = {"whole": conv(8, 4), "merged": conv(8, 4), "head": nn.Linear(8, 2)}
    model = Network(forward, first=conv(3, 8), **parts).eval()
    with torch.no_grad():
        model.merged.weight[1::2] = model.merged.weight[::2]
    chain = oskt.WeightChain.from_teacher(model, {"merged": 2}, input_size=IMAGE)
    assert oskt.chain.feature_scale(chain, chain.widths, "teacher").tolist() == pytest.approx([1] * 4 + [2**0.5] * 2)
    images = torch.randn(5, *IMAGE)
    with torch.no_grad():
        found = oskt.expand(chain, {"merged": 2}, distance="teacher")(images)
        torch.testing.assert_close(torch.cdist(found, found), torch.cdist(model(images), model(images)))


# ---- modules that are asked for --------------------------------------------------------------------------------------


class Rooted(nn.Module):
    """Divides by the root of its width, and keeps a number of channels: it is right at its whole width alone."""

    def __init__(self, width=8):
        super().__init__()
        self.width, self.inner, self.norm = width, conv(width, width), nn.BatchNorm2d(width)

    def forward(self, maps):
        return self.norm(self.inner(maps)).view(-1, self.width, 8, 8) / math.sqrt(maps.shape[1])


def rooted():
    """Two modules that are right whole alone, side by side with what is not odd at all."""

    def forward(self, images):
        maps = self.odd(self.before(self.first(images)))
        return self.head(self.last(self.blocks(self.middle(maps).relu())))

    torch.manual_seed(0)
    layers = {"first": conv(3, 8), "before": conv(8, 8), "middle": conv(8, 8), "last": conv(8, 8)}
    return Network(forward, **layers, odd=Rooted(), blocks=nn.Sequential(Rooted()), head=Head(8)).eval()


KEEPS = {
    "names": lambda model: ["odd", "blocks.0"],
    "patterns": lambda model: ["o?d", "bl*.0"],
    "modules": lambda model: [model.odd, model.blocks[0]],
    "both": lambda model: (model.odd, "blocks"),
}


@pytest.mark.parametrize("kind", KEEPS)
def test_modules_stay_whole(kind, tmp_path, caplog):
    model = rooted()
    with pytest.raises(GraphError, match=r"keep=\['odd', 'blocks\.0'\]"):
        oskt.WeightChain.from_teacher(model, width=0.25, input_size=IMAGE)
    chain = oskt.WeightChain.from_teacher(model, width=0.25, input_size=IMAGE, keep=KEEPS[kind](model))
    assert chain.graph.keep == (("blocks", "odd") if kind == "both" else ("blocks.0", "odd"))
    assert "parts of Network stay whole: 'odd', 'blocks" in caplog.text
    chain.save(tmp_path / "chain.safetensors")
    student = oskt.expand(oskt.WeightChain.load(tmp_path / "chain.safetensors", model=rooted()), width=0.25)
    assert [len(p) for n, p in student.named_parameters() if n.endswith("weight")] == [2, 8, 8, 2, 8, 8, 8, 8, 2]
    assert type(student.odd) is Rooted
    oskt.save_student(student, tmp_path / "student.pth")
    loaded = oskt.load_student(tmp_path / "student.pth", model=rooted())
    images = torch.randn(2, *IMAGE)
    torch.testing.assert_close(loaded(images), student(images))
    assert oskt.trace(loaded, IMAGE).keep == chain.graph.keep, "a student keeps what its teacher kept"
    again = oskt.WeightChain.from_student(student, chain, width=0.5)
    assert again.graph.keep == chain.graph.keep and len(oskt.expand(again, width=0.5).first.weight) == 1


def test_a_kept_module_is_trained_with_the_teacher():
    """Its parameters are the teacher's in S-student and students, its statistics are the S-student's own."""
    model = rooted().train()
    refinement = Refinement(model, oskt.WeightChain.from_teacher(model, 0.25, IMAGE, keep=["odd", "blocks.*"]))
    optimizer = torch.optim.SGD(refinement.parameters(), 0.1)
    loss = refinement.train().losses(torch.randn(4, *IMAGE), lambda scores: scores.square().sum()).total()
    before = model.odd.inner.weight.clone()
    loss.backward()
    optimizer.step()
    student = oskt.expand(refinement.to_chain(), width=0.5)
    assert not torch.equal(before, model.odd.inner.weight)
    assert torch.equal(student.odd.inner.weight, model.odd.inner.weight)
    assert not torch.equal(student.odd.norm.running_mean, model.odd.norm.running_mean)


def test_tensors_without_channels_are_refined_with_the_teacher():
    """A number that the network multiplies by, which the chain had as it was before."""

    def forward(self, images):
        return self.head(self.first(images) * self.factor)

    model = Network(forward, first=conv(3, 8), head=Head(8), factor=nn.Parameter(torch.ones(1)))
    refinement = Refinement(model, oskt.WeightChain.from_teacher(model, 0.5, IMAGE))
    with torch.no_grad():
        model.factor.fill_(3)
    assert oskt.expand(refinement.to_chain(), width=0.5).factor.tolist() == [3]


def test_nested_kept_modules_and_parameters_that_others_use():
    """`inner` is inside of what is kept; `other` is read by code outside of it, and stays whole there too."""
    model = around(lambda self, x: self.keeper(x) + functional.conv2d(x, self.keeper.other.weight), keeper=Rooted())
    model.keeper.other = conv(8, 8)
    graph = oskt.trace(model, IMAGE, keep=["keeper", "keeper.inner"])
    assert max(oskt.prove(model, IMAGE, keep=["keeper*"]).differences.values()) <= TOLERANCE
    assert graph.whole[graph.row_ties["keeper.other.weight"].channels].all()
    assert not graph.whole[graph.row_ties["last.weight"].channels].any()
    assert [part.module for part in graph.kept] == ["keeper"]


def test_a_module_whose_input_is_used_for_its_width_alone():
    class Width(nn.Module):
        def forward(self, maps):
            return torch.full((), float(maps.shape[1]))

    model = around(lambda self, x: x * self.width(self.other(x)), width=Width(), other=conv(8, 8))
    assert max(oskt.prove(model, IMAGE, keep=[model.width]).differences.values()) <= TOLERANCE
    assert oskt.trace(model, IMAGE, keep="width").kept_share > 0


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["ood"], r"keep has 'ood', and Network has no such module; did you mean 'odd'\?"),
        (["odd", "blocks.7.*"], r"keep has 'blocks\.7\.\*', and Network has no such module"),
        ([3], "keep has 3; give modules of the network, their names, or patterns"),
        (3, "keep is 3; give modules of the network"),
        (nn.ReLU(), "keep has a ReLU that is not in this Network"),
    ],
)
def test_what_cannot_be_kept(keep, message):
    with pytest.raises(ConfigError, match=message):
        oskt.trace(rooted(), IMAGE, keep=keep)


def test_other_wrong_arguments():
    model = rooted()
    with pytest.raises(ConfigError, match="keep has the network itself"):
        oskt.trace(model, IMAGE, keep=[model])
    with pytest.raises(ConfigError, match="unknown is 'drop'; allowed: keep .* and refuse"):
        oskt.trace(model, IMAGE, unknown="drop")
    graph = oskt.trace(model, IMAGE, keep=["odd", "blocks"])
    with pytest.raises(ConfigError, match="keep is given with a graph, which says already"):
        oskt.WeightChain.from_teacher(model, graph=graph, keep=["odd"])


def test_what_stays_whole_is_in_plain_data_and_in_a_students_file(tmp_path):
    graph = oskt.trace(rooted(), IMAGE, keep=["odd", "blocks"])
    arrays, description = to_arrays(graph)
    again = from_arrays(arrays, description)
    assert (again.keep, again.kept) == (graph.keep, graph.kept) and again.kept_share == graph.kept_share
    for key in ("keep", "kept"):
        del description[key]  # as in files of earlier versions
    assert from_arrays(arrays, description).keep == ()
    student = oskt.expand(oskt.WeightChain.from_teacher(rooted(), graph=graph), 0.5)
    vars(student)["student_record"] = types.SimpleNamespace(**vars(student.student_record))
    with pytest.raises(CheckpointError, match="was not made by expand"):
        oskt.save_student(student, tmp_path / "student.pth")


def test_a_students_file_that_keeps_what_there_is_not(tmp_path):
    student = oskt.expand(oskt.WeightChain.from_teacher(rooted(), 0.5, IMAGE, keep=["odd", "blocks"]), 0.5)
    oskt.save_student(student, tmp_path / "student.pth")
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    content["oskt"]["keep"] = ["odd", "even"]
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="keeps 'even' whole, which Network does not have"):
        oskt.load_student(tmp_path / "other.pth", model=rooted())


# ---- refusals name what to keep, and it works ------------------------------------------------------------------------


def layered(between, **parts):
    return around(lambda self, x: self.other(between(self, self.other(x))), other=conv(8, 8), **parts)


PROVED = {
    "root": lambda: layered(lambda self, x: x / math.sqrt(x.shape[1])),
    "sum": lambda: layered(lambda self, x: x + x.shape[1]),
    "branch": lambda: layered(lambda self, x: x if x.shape[1] > 6 else -x),
    "rows": lambda: around(lambda self, x: x * len(self.behind.weight)),
    "slices": lambda: around(lambda self, x: torch.cat([x[:, 5:], x[:, :5].square()], 1)),
    "unread": lambda: around(lambda self, x: x.square()[:, 2:6].repeat(1, 2, 1, 1)),
    "training": lambda: layered(lambda self, x: x * x.shape[1] if self.training else x),
    "module": lambda: around(lambda self, x: self.rooted(x), rooted=Rooted()),
    "several": lambda: around(lambda self, x: self.rooted(x), rooted=nn.Sequential(Rooted(), conv(8, 8), Rooted())),
}


@pytest.mark.parametrize("name", PROVED)
def test_a_failed_proof_says_what_to_keep_and_it_works(name):
    torch.manual_seed(0)
    model, keep = PROVED[name](), []
    for _ in range(3):
        try:
            graph = oskt.trace(model, IMAGE, keep=keep)
            break
        except GraphError as error:
            keep = re.findall(r"'([^']+)'", re.search(r"keep=\[([^]]+)\]", str(error)).group(1))
    assert 1 <= len(keep) <= 2 and graph.keep
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.25, graph=graph), 0.25)
    assert len(student.first.weight) == len(student.last.weight) == 2


def test_a_pattern_names_all_modules_of_a_users_class():
    model = around(lambda self, x: self.blocks(x), blocks=nn.Sequential())
    for number in range(2):
        model.blocks.append(nn.Sequential())
        model.blocks[number].rooted = Rooted()
    with pytest.raises(GraphError, match=r"keep=\['\*\.rooted'\]"):
        oskt.trace(model, IMAGE)
    assert oskt.trace(model, IMAGE, keep="*.rooted").keep == ("blocks.0.rooted", "blocks.1.rooted")


def test_parts_of_one_line_of_code_are_told_together(caplog):
    sums = [layer for _ in range(3) for layer in (Sums(), conv(8, 8))]
    graph = oskt.trace(nn.Sequential(conv(3, 8), *sums, Head(8)), IMAGE)
    assert len(graph.kept) == 3
    assert re.search(r"stay whole: 'cumsum' in '1' \(.*test_keeping\.py:\d+\) and 2 modules like it; ", caplog.text)


def test_code_of_the_network_itself_is_to_become_a_module():
    model = Network(
        lambda self, x: self.head(self.first(x)) * self.first.weight.shape[0], first=conv(3, 8), head=Head(8)
    )
    with pytest.raises(GraphError, match=r"Put this code into a module of its own; keep=\[module\]"):
        oskt.trace(model, IMAGE)


MOVES = {
    "roll": lambda self, x: x.square().roll(3, 1),
    "shuffle": lambda self, x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(x.shape).relu(),
}


@pytest.mark.parametrize("name", MOVES)
def test_channels_that_code_moves_stay_whole(name, caplog):
    model = around(MOVES[name])
    student = oskt.expand(oskt.WeightChain.from_teacher(model, 0.25, IMAGE), 0.25)
    assert len(student.before.weight) == 8 and len(student.first.weight) == 2
    assert "parts of Network stay whole: '" in caplog.text
    with pytest.raises(GraphError, match="takes channels apart or reorders them"):
        oskt.trace(model, IMAGE, unknown="refuse")


def test_what_no_whole_channels_make_right_is_kept_as_a_module():
    """One branch reorders channels, the other keeps their number: the whole module stays."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv(8, 8), conv(8, 8)

        def forward(self, maps):
            return torch.cat([self.one(maps).relu().roll(3, 1), self.two(maps).view(-1, 8, 8, 8)], 1)

    model = around(lambda self, x: self.both(x), columns=16, both=Both())
    assert oskt.trace(model, IMAGE).keep == ("both",)
    with pytest.raises(GraphError, match=r"'roll' in 'both'.*test_keeping\.py:\d+\); keep=\['both'\]"):
        oskt.trace(model, IMAGE, unknown="refuse")


# ---- where it is asked for -------------------------------------------------------------------------------------------


def test_the_tool_takes_what_to_keep(capsys):
    main = tool("graph").main
    assert main(["resnet18", "--size", "64", "32", "--keep", "layer3.*.conv1", "layer2"]) == 0
    shown = capsys.readouterr().out
    assert "kept whole: 'layer2'" in shown and "whole (" in shown
    assert main(["resnet18", "--keep", "layer9"]) == 2
    assert "did you mean 'layer" in capsys.readouterr().err


def test_a_run_keeps_what_its_keys_name(tmp_path):
    options = ["model.name=resnet18", "oskt.keep=['layer2.?']", "oskt.width=0.25", "oskt.students=['width=0.5']"]
    plan = make_plan(configured(tmp_path, tmp_path, *options), num_classes=6)
    assert plan.graph.keep == ("layer2.0", "layer2.1")
    assert plan.chain_widths["layer3.0.conv1"] == 64 and plan.chain_widths["layer2.0.conv1"] == 128
    with pytest.raises(ConfigError, match="keep has 'layer9', and ResNet has no such module"):
        make_plan(configured(tmp_path, tmp_path, *options, "oskt.keep=['layer9']"), num_classes=6)


def test_places_are_files_and_lines_of_the_networks_code():
    (part,) = oskt.trace(around(lambda self, x: x.cumsum(1)), IMAGE).kept
    name, _, line = part.place.rpartition(":")
    assert Path(name) == Path(__file__) and "x.cumsum(1)" in Path(name).read_text().splitlines()[int(line) - 1]
