"""A run of a nested chain: keys reach the engine, students of every width come out, and the same run again is read."""

import pytest
import torch
from runs import tiny

from oskt_torchreid.baselines import DistillationEngine
from oskt_torchreid.chain import WeightChain, load_student
from oskt_torchreid.config import get, load_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.runs import run, run_dry

NESTED = [
    "oskt.nested=True",
    "oskt.contributions=2",
    "oskt.refine.lambda=0",
    "oskt.refine.distil_weight=0.25",
    "oskt.refine.levels=1",
    "oskt.refine.level_start=0.0",
    "oskt.students=['width=0.5', 'width=0.75', 'width=1.0']",
]


def test_a_run_and_the_same_again(tiny_net, data_root, tmp_path, monkeypatch):
    engines = []
    monkeypatch.setattr(OSKTEngine, "method_state", noting(OSKTEngine.method_state, engines))
    results = run(tiny(data_root, tmp_path, *NESTED))
    assert [row.name for row in results.rows] == ["teacher", "width=0.5", "width=0.75", "width=1.0"]
    (engine,) = {id(engine): engine for engine in engines}.values()
    assert (engine.distil_weight, len(engine.model.levels)) == (0.25, 1)
    assert engine.model.active == (0,), "the level was trained"
    chain = WeightChain.load(tmp_path / "chain.safetensors")
    assert chain.trees and chain.importance
    refined = load_checkpoint(tmp_path / "refine" / "model" / "model.pth.tar-1")["state_dict"]
    widest = load_student(tmp_path / "students" / "width=1.0" / "expanded.pth").state_dict()
    assert torch.equal(widest["outer.weight"], refined["teacher.outer.weight"]), "the widest student is the teacher"
    monkeypatch.setattr("oskt_torchreid.runs.trainer.Trainer.train", None)
    again = run(tiny(data_root, tmp_path, *NESTED))
    assert [row.map_after for row in again.rows] == [row.map_after for row in results.rows]


def noting(method, engines):
    def noted(self):
        engines.append(self)
        return method(self)

    return noted


def test_what_is_said_first(tiny_net, data_root, tmp_path):
    with pytest.raises(ConfigError, match="oskt.refine.levels is .* only a nested chain"):
        load_config(options=["oskt.refine.levels=1"])
    with pytest.raises(ConfigError, match="oskt.contributions is 8, and only .* a nested chain"):
        load_config(options=["oskt.contributions=8"])
    with pytest.raises(ConfigError, match="oskt.clustering is 'balanced', and a nested chain needs Ward's tree"):
        load_config(options=["oskt.nested=True", "oskt.clustering=balanced"])
    with pytest.raises(ConfigError, match="oskt.refine.levels is -1; allowed"):
        load_config(options=["oskt.nested=True", "oskt.refine.levels=-1"])
    assert "width=0.75" in run_dry(tiny(data_root, tmp_path, *NESTED)).summary()


def test_a_ladder_of_nested_chains(tiny_net, data_root, tmp_path):
    words = [word for word in NESTED if "students" not in word]
    students = "oskt.students=['width=0.25', 'width=0.75']"
    results = run(tiny(data_root, tmp_path, *words, "oskt.ladder=[0.5, 0.25]", students))
    assert [row.name for row in results.rows] == ["teacher", "width=0.25", "width=0.75"]
    assert WeightChain.load(tmp_path / "chain-2.safetensors").importance


def test_students_are_distilled_from_the_widest(tiny_net, data_root, tmp_path, monkeypatch):
    """The refined teacher of a nested chain, which its widest student is; another setting trains them again."""
    engines = []
    monkeypatch.setattr(DistillationEngine, "class_means", noting(DistillationEngine.class_means, engines))
    words = [*NESTED[:-1], "oskt.students=['width=0.5', 'slice:width=0.5']", "oskt.distillation.of_chain=True"]
    run(tiny(data_root, tmp_path, *words))
    (engine,) = engines
    refined = load_checkpoint(tmp_path / "refine" / "model" / "model.pth.tar-1")["state_dict"]
    assert torch.equal(engine.teacher.outer.weight, refined["teacher.outer.weight"])
    run(tiny(data_root, tmp_path, *words, "oskt.distillation.weight_kl=0.5"))
    assert len(engines) == 2


def test_the_configuration_for_own_pictures_is_of_a_nested_chain():
    """On stand-in data in Market-1501's layout; the chain is the narrowest student."""
    small = ["model.pretrained=False", "data.height=64", "data.width=32"]
    config = load_config("oskt_nested", options=small)
    assert config.oskt.nested and get(config, "oskt.refine").levels == 12
    _, chain, *students = (params for _, params, _ in run_dry(config, step=False).networks)
    assert students[0] == chain and students[:3] == sorted(students[:3]) and len(students) == 5
