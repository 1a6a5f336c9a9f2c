"""Attention: what the graph says of it, what folding makes exact, what cannot be followed."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from small_networks import Network, groups_of
from test_identity import collapse, logits, plans, random_labels
from torch import nn
from torch.nn import functional

from oskt_torchreid import graph
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand, expand_to_plan
from oskt_torchreid.chain.layout import Layout
from oskt_torchreid.chain.narrowing import attention_factors
from oskt_torchreid.chain.network import trace
from oskt_torchreid.chain.sstudent import SStudent
from oskt_torchreid.errors import ConfigError, GraphError, WidthError
from oskt_torchreid.graph.plans import balanced, ratio_plan
from oskt_torchreid.graph.storage import from_arrays, to_arrays
from oskt_torchreid.models.vit import Attention

IMAGE = (3, 8, 8)
attend = functional.scaled_dot_product_attention


def network(forward, width=4, **parts):
    """Patches of 4 x 4, an attention given by parts and a forward function of tokens, a classifier of the mean."""

    def run(self, images):
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        return self.classifier(forward(self, tokens).mean(1))

    torch.manual_seed(0)
    return Network(run, stem=nn.Conv2d(3, width, 4, 4), **parts, classifier=nn.Linear(width, 2))


def with_attention(width=4, heads=2):
    """One attention, in double precision, whose products are large enough to matter."""
    model = network(lambda self, tokens: self.attention(tokens), width, attention=Attention(width, heads)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model.eval()


def separate(heads=2, **options):
    """Queries, keys and values from separate layers."""

    def forward(self, tokens):
        split = [part(tokens).unflatten(2, (heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        return self.out(attend(*split, **options).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(4, 4) for name in ("q", "k", "v", "out")}
    return network(forward, **parts).double().eval()


# ---- graph -------------------------------------------------------------------------------------------------------


def test_the_documented_example():
    traced = graph.trace_module(with_attention(), IMAGE)
    (attention,) = traced.attentions
    first, second = (groups_of(traced)[f"attention.qkv:{head}"][0] for head in (0, 1))
    assert attention.module == "attention" and attention.scale_follows
    assert attention.channels.tolist() == [first, second] and len(first) == len(second) == 2
    assert {name: part.tolist() for name, part in attention.positions.items()} == {
        "attention.qkv.weight": list(range(8)),
        "attention.qkv.bias": list(range(8)),
    }
    rows = traced.row_ties["attention.qkv.weight"].channels[0]
    assert rows.tolist() == 3 * (first + second), "queries, keys and values of a head are one set of channels"
    assert traced.column_ties["attention.proj.weight"].channels[0].tolist() == first + second


def test_layers_of_their_own_and_a_scale_of_the_codes():
    (attention,) = graph.trace_module(separate(scale=0.5), IMAGE).attentions
    assert not attention.scale_follows
    assert {name: len(part) for name, part in attention.positions.items()} == {
        f"{part}.{kind}": 4 for part in "qk" for kind in ("weight", "bias")
    }


def test_heads_get_equal_widths(caplog):
    model = with_attention(width=8)
    chain = WeightChain.from_teacher(model, 0.25, graph=graph.trace_module(model, IMAGE))
    with caplog.at_level(logging.WARNING):
        student = expand(chain, {"attention.qkv:0": 3})
    assert student.attention.qkv.weight.shape == (18, 8)
    assert "widths lowered to the next legal ones" in caplog.text and "'attention.qkv:1' 4 -> 3" in caplog.text
    traced = chain.graph
    assert balanced(traced, {**traced.sizes, "attention.qkv:1": 2})["attention.qkv:0"] == 2


def test_impossible_widths_name_group_and_sizes():
    model = with_attention()
    model.fixed_modules = ("attention",)
    traced = graph.trace_module(model, IMAGE)
    with pytest.raises(WidthError, match=r"width 1 of group 'attention.qkv:0' is outside of \[2, 2\]"):
        WeightChain.from_teacher(model, {"attention.qkv:0": 1}, graph=traced)
    with pytest.raises(WidthError, match=r"width 1 of group 'attention.qkv:0' is outside of \[2, 2\]"):
        balanced(traced, {**traced.sizes, "attention.qkv:0": 1})


def test_storage_keeps_attentions():
    traced = graph.trace_module(with_attention(), IMAGE)
    stored = from_arrays(*to_arrays(traced))
    (before,), (after,) = traced.attentions, stored.attentions
    assert before.module == after.module and before.scale_follows == after.scale_follows
    assert np.array_equal(before.channels, after.channels)
    assert before.positions.keys() == after.positions.keys()
    assert all(np.array_equal(part, after.positions[name]) for name, part in before.positions.items())


def test_damaged_attentions_are_seen():
    arrays, description = to_arrays(graph.trace_module(with_attention(), IMAGE))
    arrays["attended"] = arrays["attended"] + 100
    with pytest.raises(GraphError, match="has no such queries and keys"):
        from_arrays(arrays, description)


def cut(self, tokens):
    return self.qkv(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind()


def joined(tokens):
    return tokens.transpose(1, 2).flatten(2)


def unfused(self, tokens):
    q, k, v = cut(self, tokens)
    return joined((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v)


def scaled_by_its_size(self, tokens):
    q, k, v = cut(self, tokens)
    return joined((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v)


def by_names(self, tokens):
    q, k, v = cut(self, tokens)
    return joined(torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1), v))


def of_directions(self, tokens):
    q, k, v = cut(self, tokens)
    product = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-1, -2)
    return joined((3 * product).softmax(-1) @ v)


def with_mask(self, tokens):
    return joined(attend(*cut(self, tokens), attn_mask=self.table[:, self.places]))


def in_parts(self, tokens):
    """Attention as torch's own module computes it."""
    return self.torch(tokens, tokens, tokens)[0]


def normalised(self, tokens):
    q, k, v = cut(self, tokens)
    return joined(attend(self.norm(q), self.norm(k), v))


FORWARDS = {
    "unfused": (unfused, False),
    "scaled by its size": (scaled_by_its_size, True),
    "einsum": (by_names, False),
    "directions": (of_directions, False),
    "mask": (with_mask, True),
    "module": (in_parts, True),
    "norms": (normalised, True),
}


def attending(forward):
    parts = {"norm": nn.LayerNorm(8)} if forward is normalised else {}
    if forward is in_parts:
        model = network(forward, 16, torch=nn.MultiheadAttention(16, 2, batch_first=True))
    else:
        model = network(forward, 16, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16), **parts)
    model.register_parameter("table", nn.Parameter(torch.randn(2, 7)))
    model.register_parameter("matrix", nn.Parameter(torch.randn(8, 8)))
    model.register_buffer("places", torch.arange(4)[:, None] - torch.arange(4) + 3)
    return model.eval()


@pytest.mark.parametrize("name", FORWARDS)
def test_attention_in_parts_is_exact(name):
    """However it is written: products are folded into rows, and a scale that follows the size of a head is seen."""
    forward, follows = FORWARDS[name]
    model = attending(forward)
    traced = trace(model, IMAGE)
    (attention,) = traced.attentions
    assert attention.scale_follows == follows and attention.positions
    assert attention.channels.shape == (1 if name == "norms" else 2, 8), "heads under one norm are merged alike"
    assert not [group.name for group in traced.groups if group.fixed and not group.name.startswith("classifier")]


def test_queries_of_two_tables():
    """As of relative heights and widths: a factor on queries is on the rows of both tables as well."""

    def both(self, tokens):
        q, k, v = cut(self, tokens)
        biases = (q @ self.table.transpose(0, 1) + q @ self.other.transpose(0, 1))[..., :4]
        return joined((q @ k.transpose(-1, -2) + biases).softmax(-1) @ v)

    model = network(both, 16, qkv=nn.Linear(16, 48))
    for name in ("table", "other"):
        model.register_parameter(name, nn.Parameter(torch.randn(5, 8)))
    traced = trace(model.eval(), IMAGE)
    assert {"table", "other", "qkv.weight"} <= {name for found in traced.attentions for name in found.positions}
    assert not [group.name for group in traced.groups if group.fixed and not group.name.startswith("classifier")]


def read_by_a_matrix(self, tokens):
    """A product with a parameter is a layer, which reads queries that then cannot be multiplied by factors."""
    q, k, v = cut(self, tokens)
    return joined((q @ k.transpose(-1, -2)).softmax(-1) @ v + q @ self.matrix)


def with_itself_added(self, tokens):
    q, k, v = cut(self, tokens)
    return joined(attend(q, k, v) + q)


def of_constants(self, tokens):
    q, k, v = cut(self, tokens)
    return joined(attend(q, torch.ones(k.shape).to(k), v))


def turned(self, tokens):
    """A constant that differs by channel, as in rotary position embeddings."""
    q, k, v = cut(self, tokens)
    return joined(attend(q * torch.arange(8).to(q), k, v))


def of_channels(self, tokens):
    """Products over tokens: what is mixed are the channels themselves."""
    q, k, v = cut(self, tokens)
    return joined(((v.transpose(-1, -2) @ k / 4).softmax(-1) @ q.transpose(-1, -2)).transpose(-1, -2))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (with_itself_added, "no rows make the products of"),
        (read_by_a_matrix, "no rows make the products of"),
        (of_constants, "multiplied with a constant"),
        (turned, "meets a constant that differs by channel"),
        (of_channels, "mixed by a product"),
    ],
)
def test_queries_and_keys_that_nothing_makes_exact_stay_whole(forward, reason):
    traced = trace(attending(forward), IMAGE)
    reasons = {
        group.fixed.partition(" in '")[0].partition(" 'the")[0] for group in traced.groups if "qkv" in group.name
    }
    assert any(found.startswith(reason) for found in reasons), reasons


def test_several_heads_of_queries_share_one_of_keys():
    def forward(self, tokens):
        q = self.q(tokens).unflatten(2, (4, -1)).transpose(1, 2)
        k, v = (part(tokens)[:, None] for part in (self.k, self.v))
        return joined(attend(q, k, v))

    model = network(forward, 16, q=nn.Linear(16, 16), k=nn.Linear(16, 4), v=nn.Linear(16, 4)).eval()
    (attention,) = trace(model, IMAGE).attentions
    assert attention.channels.shape == (4, 4)
    assert (attention.channels == attention.channels[0]).all(), "the four heads of queries are merged as the keys are"


def test_fixed_modules_keep_their_width():
    model = with_attention()
    model.fixed_modules = ("stem",)
    traced = graph.trace_module(model, IMAGE)
    assert groups_of(traced)["stem"][1] == "'stem' is one of the network's fixed_modules"
    assert ratio_plan(traced, 0.5)["stem"] == 4
    inside = nn.Sequential(model)
    assert graph.trace_module(inside, IMAGE).sizes["0.stem"] == 4
    assert ratio_plan(graph.trace_module(inside, IMAGE), 0.5)["0.stem"] == 4


# ---- exactness ---------------------------------------------------------------------------------------------------


def errors(model, attention):
    """Worst output difference at each width over the output's spread, after equal rows were made of random clusters."""
    images = 3 * torch.randn(16, *IMAGE, dtype=torch.float64)
    traced = graph.trace_module(model, IMAGE)
    labels = random_labels(traced)
    collapse(model, traced, labels)
    expected = logits(model, images)
    chain = WeightChain.from_labels(model, traced, labels, attention)
    students = {kind: expand_to_plan(chain, widths) for kind, widths in plans(traced, chain).items()}
    return {k: float((logits(s, images) - expected).abs().max() / expected.std()) for k, s in students.items()}


def test_folding_is_exact_and_leaving_it_out_is_not():
    assert max(errors(with_attention(12, 2), "folded").values()) <= 1e-10
    paper = errors(with_attention(12, 2), "paper")
    assert paper["chain"] > 0.3 and paper["full"] <= 1e-10


def test_values_could_have_clusters_of_their_own():
    """One head of 4 channels: queries and keys share clusters and are folded, values are merged in another way."""
    of_keys, of_values = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 0, 1])
    narrow = [torch.randn(2, 5, 2, dtype=torch.float64) for _ in range(3)]
    queries, keys, values = (
        part[..., labels] for part, labels in zip(narrow, (of_keys, of_keys, of_values), strict=True)
    )
    factors = torch.bincount(of_keys).double().sqrt() * (2 / 4) ** 0.25
    merged = attend(narrow[0] * factors, narrow[1] * factors, narrow[2])
    torch.testing.assert_close(merged[..., of_values], attend(queries, keys, values))
    unfolded = attend(*narrow)[..., of_values]
    assert (unfolded - attend(queries, keys, values)).abs().max() > 0.1


def test_folding_with_a_scale_of_the_codes():
    """The size of a head plays no part in the scale, so multiplicities alone are folded."""
    assert max(errors(separate(scale=0.5), "folded").values()) <= 1e-10
    assert max(errors(separate(), "folded").values()) <= 1e-10


def test_factors_of_the_documented_example():
    model = with_attention(4, 1)
    traced = graph.trace_module(model, IMAGE)
    labels = {g.name: np.arange(g.size) for g in traced.groups} | {"attention.qkv": np.array([0, 1, 0, 0])}
    layout = Layout(traced, labels, {**traced.sizes, "attention.qkv": 2})
    factors = attention_factors(traced, layout)
    expected = torch.tensor([3**0.5 * 0.5**0.25, 0.5**0.25] * 2 + [1.0, 1.0], dtype=torch.float64)
    assert factors.keys() == {"attention.qkv.weight", "attention.qkv.bias"}
    torch.testing.assert_close(factors["attention.qkv.weight"], expected)
    assert attention_factors(traced, layout, "paper") == {}


def test_an_unknown_choice():
    model = with_attention()
    chain = WeightChain.from_teacher(model, 0.5, graph=graph.trace_module(model, IMAGE))
    with pytest.raises(ConfigError, match="attention is 'exact'; allowed: folded .* and paper"):
        expand(chain, 0.5, attention="exact")
    with pytest.raises(ConfigError, match="attention is 'exact'"):
        WeightChain.from_teacher(model, 0.5, graph=chain.graph, attention="exact")


# ---- S-student ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["folded", "paper"])
def test_the_sstudent_folds_as_its_chain_does(attention):
    model = with_attention(8)
    chain = WeightChain.from_teacher(model, 0.5, graph=graph.trace_module(model, IMAGE), attention=attention)
    sstudent = SStudent(chain).eval()
    images = torch.randn(2, *IMAGE, dtype=torch.float64)
    output = sstudent(images, model)
    torch.testing.assert_close(output, expand_to_plan(chain, chain.widths)(images))
    other = expand_to_plan(chain, chain.widths, "paper" if attention == "folded" else "folded")
    assert not torch.allclose(output, other(images))


def test_the_chains_row_gets_the_gradient_times_its_factor():
    model = with_attention(8)
    chain = WeightChain.from_teacher(model, 0.5, graph=graph.trace_module(model, IMAGE))
    sstudent = SStudent(chain)
    weights = sstudent.weights(model)
    name = "attention.qkv.weight"
    factor = attention_factors(chain.graph, chain.layout)[name]
    weights[name].sum().backward()
    assert (factor != 1).any()
    torch.testing.assert_close(sstudent.rows[name.replace(".", "/")].grad, factor[:, None].expand(-1, 8))


def test_a_chain_file_keeps_the_choice(tmp_path):
    model = with_attention(8)
    chain = WeightChain.from_teacher(model, 0.5, graph=graph.trace_module(model, IMAGE), attention="paper")
    chain.save(tmp_path / "chain.safetensors")
    loaded = WeightChain.load(tmp_path / "chain.safetensors", model)
    assert loaded.attention == "paper"
    state = expand_to_plan(chain, chain.widths).state_dict()
    assert all(torch.equal(t, state[n]) for n, t in expand_to_plan(loaded, loaded.widths).state_dict().items())
