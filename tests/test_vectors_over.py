"""Whose vectors students without training have: what a chain says, and what is asked of it."""

from dataclasses import replace

import pytest
import torch
from backbones import build, input_size
from runs import tiny
from small_networks import TinyNet

from oskt_torchreid.chain import WeightChain, expand, load_student
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.runs import run
from oskt_torchreid.runs.conditions import idle_keys


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    return WeightChain.from_teacher(build("resnet18"), 0.5, input_size=input_size("resnet18"))


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_chain_says_it_and_its_file_keeps_it(chain, tmp_path):
    slots = replace(chain, vectors_over="slots")
    slots.save(tmp_path / "chain.safetensors")
    read = WeightChain.load(tmp_path / "chain.safetensors")
    assert read.vectors_over == "slots" and same(expand(read, 0.75), expand(chain, 0.75, vectors_over="slots"))
    assert same(expand(read, 0.75, vectors_over="clusters"), expand(chain, 0.75))
    assert not same(expand(read, 0.75), expand(chain, 0.75))
    assert same(expand(read, 0.5), expand(chain, 0.5)), "at the chain's width slots are clusters"
    below = WeightChain.from_student(expand(slots, 0.75), slots, 0.8)
    assert below.vectors_over == "slots"


def test_what_it_cannot_be(chain):
    for wrong in ("", "cluster", 0, []):
        with pytest.raises(ConfigError, match="vectors_over is .*allowed: clusters .* and slots"):
            expand(chain, 0.75, vectors_over=wrong)
    with pytest.raises(ConfigError, match="vectors_over is 'x'"):
        expand(chain, 0.75, statistics="merged", vectors_over="x")
    with pytest.raises(ConfigError, match="vectors_over is 'x'"):
        replace(chain, vectors_over="x").validate()


def test_runs_follow_the_key_without_refining_again(tiny_net, data_root, tmp_path):
    """With recalibration slots' own means, without what the chain says; the key decides where it is given."""
    place = tmp_path / "students" / "width=0.75"

    def vectors(*words):
        run(tiny(data_root, tmp_path, "oskt.students=['width=0.75']", *words))
        state = load_student(place / "expanded.pth").state_dict()
        return [tensor for name, tensor in state.items() if name in learned]

    learned = {name for name, parameter in TinyNet(2).named_parameters() if parameter.dim() == 1}
    found = {"first": vectors()}
    refined = (tmp_path / "refine" / "stage.json").stat().st_mtime_ns
    chain = WeightChain.load(tmp_path / "chain.safetensors")
    assert chain.vectors_over == "clusters" and chain.statistics
    expected = {}
    for over in ("clusters", "slots"):
        state = expand(chain, 0.75, vectors_over=over).state_dict()
        expected[over] = [tensor for name, tensor in state.items() if name in learned]
    assert not all_equal(expected["clusters"], expected["slots"])
    assert all_equal(found["first"], expected["slots"])
    for words, over in (
        (["oskt.recalibrate=0"], "clusters"),
        (["oskt.vectors_over=clusters"], "clusters"),
        (["oskt.recalibrate=0", "oskt.vectors_over=slots"], "slots"),
    ):
        assert all_equal(vectors(*words), expected[over]), words
    assert len(list(place.glob("kept-*"))) == 3, "the student was made again each time"
    assert (tmp_path / "refine" / "stage.json").stat().st_mtime_ns == refined, "and the chain never"


def all_equal(some, others):
    return all(torch.equal(*pair) for pair in zip(some, others, strict=True))


def test_where_it_has_no_effect():
    idle = idle_keys(load_config(options=["engine=oskt", "oskt.nested=True"]))
    assert idle["oskt.vectors_over"].startswith("oskt.nested is True")
    idle = idle_keys(load_config(options=["engine=oskt", "oskt.statistics=merged"]))
    assert "oskt.statistics is merged" in idle["oskt.vectors_over"]
    assert "oskt.vectors_over" not in idle_keys(load_config(options=["engine=oskt"]))
