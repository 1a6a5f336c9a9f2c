"""torchreid's model factory: building, recognising, outputs, weights; and both of torchreid's distributions."""

import io
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from oskt_torchreid.errors import CheckpointError, ConfigError
from oskt_torchreid.files import save_checkpoint, weights
from oskt_torchreid.host import compat, models
from oskt_torchreid.networks import ModelSpec, Outputs, parse_outputs
from oskt_torchreid.printing import printing_to

SMALL = "osnet_x0_25"
# One backbone per family, for time; identifying is checked for all in the slow test.
FAMILIES = ("resnet50_fc512", "osnet_x0_5", "mobilenetv2_x1_4", "shufflenet_v2_x0_5", "hacnn", "pcb_p6", "mudeep")


@pytest.fixture
def new_name():
    """A model name that leaves torchreid's factory again after the test."""
    yield "test_model"
    compat.host_table(compat.torchreid.models.build_model, "__model_factory").pop("test_model", None)
    models.skeleton.cache_clear()


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown model 'osnet_x0_35'; did you mean .*'osnet_x0_25'"):
        models.build("osnet_x0_35", 3)
    with pytest.raises(ConfigError, match="loss of model 'resnet18' is 'center'; allowed: softmax, triplet"):
        models.build("resnet18", 3, loss="center")


def test_skeleton_has_the_shapes_and_takes_no_memory_and_no_random_numbers():
    state = torch.get_rng_state()
    skeleton = models.skeleton("resnet18", 11)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    real = models.build("resnet18", 11)
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    assert models.skeleton("resnet18", 11) is skeleton


def test_skeleton_of_a_builder_that_needs_values(new_name):
    def builder(num_classes, loss, pretrained, use_gpu):
        layer = nn.Linear(4, num_classes)
        float(layer.weight.detach().sum())  # cannot be known without memory
        return layer

    models.register_model(new_name, builder)
    state = torch.get_rng_state()
    assert models.skeleton(new_name, 3).weight.is_meta
    assert torch.equal(torch.get_rng_state(), state)


def identified(name, num_classes):
    return models.identify(models.skeleton(name, num_classes, "triplet"))


@pytest.mark.parametrize("name", FAMILIES)
def test_models_are_identified(name):
    assert identified(name, 13) == ModelSpec(name, 13, "triplet")


@pytest.mark.slow
def test_every_stock_model_is_identified():
    names = [name for name in models.model_names() if not name.startswith(("oskt_", "neck_", "vkd_"))]
    assert {name: identified(name, 13) for name in names} == {n: ModelSpec(n, 13, "triplet") for n in names}


def test_changed_and_foreign_models_are_not_identified():
    model = models.build(SMALL, 3)
    model.classifier = nn.Linear(512, 3, bias=False)
    assert models.identify(model) is None
    assert models.identify(nn.Linear(4, 3)) is None


def test_registering_again(new_name):
    def builder(num_classes, loss, pretrained, use_gpu):
        return nn.Linear(4, num_classes)

    models.register_model(new_name, builder)
    models.register_model(new_name, builder)
    assert compat.torchreid.models.build_model(new_name, 2, pretrained=False).out_features == 2
    with pytest.raises(ConfigError, match="model name 'resnet18' belongs to .*resnet18; choose another"):
        models.register_model("resnet18", builder)


def test_input_sizes():
    assert models.input_size("resnet50") == (3, 256, 128)
    assert models.input_size("hacnn") == (3, 160, 64)
    with pytest.raises(ConfigError, match="unknown model"):
        models.input_size("resnet51")


def test_outputs_have_one_shape():
    logits, features = torch.zeros(2, 5), torch.zeros(2, 8)
    assert parse_outputs(features, training=False) == Outputs((), (features,))
    assert parse_outputs(logits, training=True) == Outputs((logits,), ())
    assert parse_outputs((logits, features), training=True) == Outputs((logits,), (features,))
    assert parse_outputs([logits] * 4, training=True) == Outputs((logits,) * 4, ())
    assert parse_outputs(([logits] * 4, features), training=True) == Outputs((logits,) * 4, (features,))
    branches = ((logits, logits), (features, features))
    assert parse_outputs(branches, training=True) == Outputs(*branches)


def test_two_equally_wide_outputs_need_the_loss():
    first, second = torch.zeros(2, 5), torch.zeros(2, 5)
    assert parse_outputs((first, second), training=True, loss="softmax") == Outputs((first, second), ())
    assert parse_outputs((first, second), training=True, loss="triplet") == Outputs((first,), (second,))
    with pytest.raises(ConfigError, match="pass loss='triplet' or loss='softmax'"):
        parse_outputs((first, second), training=True)


def test_weights_load_from_each_kind_of_checkpoint(tmp_path):
    source = models.build(SMALL, 3)
    state = source.state_dict()
    kinds = {
        "plain": state,
        "torchreid": {"state_dict": state, "epoch": 1},
        "parallel": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    }
    for kind, content in kinds.items():
        save_checkpoint(tmp_path / kind, content)
        model = models.build(SMALL, 3)
        weights.load_weights(model, tmp_path / kind)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def assert_refused(model, path, message, **kwargs):
    """Loading fails with the message and leaves the model alone."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        weights.load_weights(model, path, **kwargs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_backbone_are_refused(tmp_path):
    save_checkpoint(tmp_path / "resnet.pth", models.build("resnet18", 3).state_dict())
    model = models.build(SMALL, 3)
    message = r"does not fit OSNet .*\d+ missing: conv1.conv.weight.*\d+ unexpected: "
    assert_refused(model, tmp_path / "resnet.pth", message)


def test_missing_unexpected_and_misshaped_tensors_are_counted_and_named(tmp_path):
    state = models.build(SMALL, 3).state_dict()
    state["extra"] = state.pop("fc.0.bias")
    state["classifier.weight"] = torch.zeros(4, 512)
    save_checkpoint(tmp_path / "model.pth", state)
    message = (
        r"1 missing: fc.0.bias; 1 unexpected: extra; 1 misshaped: classifier.weight \(4, 512\) instead of \(3, 512\)"
    )
    assert_refused(models.build(SMALL, 3), tmp_path / "model.pth", message)


def test_a_classifier_of_another_label_set_can_be_left_out(tmp_path):
    source = models.build(SMALL, 9)
    save_checkpoint(tmp_path / "model.pth", source.state_dict())
    model = models.build(SMALL, 3)
    kept = model.classifier.weight.clone()
    assert_refused(model, tmp_path / "model.pth", "2 misshaped")
    weights.load_weights(model, tmp_path / "model.pth", ignore=("classifier.weight", "classifier.bias"))
    assert torch.equal(model.classifier.weight, kept)
    assert torch.equal(model.fc[0].weight, source.fc[0].weight)


def test_files_without_a_state_dict(tmp_path):
    save_checkpoint(tmp_path / "list.pth", [1, 2])
    assert_refused(nn.Linear(2, 2), tmp_path / "list.pth", "holds no state dict")
    assert_refused(nn.Linear(2, 2), tmp_path / "absent.pth", "no file at .*absent.pth")


def test_host_prints_go_to_the_log(capsys, caplog):
    with caplog.at_level("INFO", logger="oskt_torchreid.host"), compat.quiet():
        print("first\n\nsecond", end="")
    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["first", "second"]


def test_device_is_the_cpu_when_no_gpu_is_wanted():
    assert compat.device(use_gpu=False) == torch.device("cpu")


def test_the_source_layout_works():
    """The parts of the installed torchreid, rearranged as the source repository has them: no `torchreid.reid`."""
    script = """
        import sys, types
        import torchreid as installed
        names = ("data", "engine", "losses", "metrics", "models", "optim", "utils")
        parts = {name: getattr(installed, name) for name in names}
        for name in [name for name in sys.modules if name.split(".")[0] == "torchreid"]:
            del sys.modules[name]
        fake = types.ModuleType("torchreid")
        fake.__dict__.update(parts, __path__=[], __file__="/fake/torchreid/__init__.py")
        sys.modules.update({"torchreid": fake, **{f"torchreid.{name}": part for name, part in parts.items()}})
        import oskt_torchreid as oskt
        assert not any(name.startswith("torchreid.reid") for name in sys.modules)
        model = fake.models.build_model("oskt_osnet_x0_25", num_classes=3, pretrained=False)
        print(fake.engine.ImageOSKTEngine is oskt.OSKTEngine, type(model).__name__)
    """
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=root, check=False
    )
    assert result.stdout.split() == ["True", "NeckModel"], result.stderr


def test_stdout_comes_back_whichever_block_ends_first():
    """Blocks of two threads overlap in this way; written out in one."""
    before, streams = sys.stdout, (io.StringIO(), io.StringIO())
    first, second = map(printing_to, streams)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    print("inside")
    second.__exit__(None, None, None)
    assert sys.stdout is before
    assert [stream.getvalue() for stream in streams] == ["", "inside\n"]


def test_an_incomplete_torchreid_is_named(monkeypatch):
    fake = types.ModuleType("torchreid")
    fake.__dict__.update(dict.fromkeys(set(compat.ATTRIBUTES) - {"metrics", "optim"}), __file__="/fake/__init__.py")
    monkeypatch.setitem(sys.modules, "torchreid", fake)
    with pytest.raises(ConfigError, match="the torchreid at '/fake/__init__.py' has no metrics, optim: an incomplete"):
        compat._find_torchreid()


def test_a_missing_torchreid_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchreid", None)
    message = r"cannot import torchreid: 'torchreid' is missing .*; run `pip install torchreid`"
    with pytest.raises(ConfigError, match=message):
        compat._find_torchreid()
