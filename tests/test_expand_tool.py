"""The command that makes students of a chain file, and the table of what they cost."""

from __future__ import annotations

import pytest
import torch
from backbones import NUM_CLASSES
from chains import arbitrary_chain
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.chain.budgets import parse_amount
from oskt_torchreid.chain.expansion import expand_to_plan
from oskt_torchreid.host import models
from oskt_torchreid.lab.benchmark import random_chain

COMMAND = tool("expand")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    chain = arbitrary_chain(models.build("osnet_x0_5", NUM_CLASSES), 0.5, (3, 64, 32))
    chain.save(folder / "chain.safetensors")
    return folder


@pytest.fixture
def paths(folder, tmp_path):
    return [str(folder / "chain.safetensors"), "-o", str(tmp_path / "student.pth")]


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("width", "0.6"),
        ("params", "300k"),
        ("flops", "8M"),
        ("size", "1.2MB"),
        ("size", "700kB fp16"),
        ("like", "osnet_x0_25"),
        ("latency", "100s"),
    ],
)
def test_a_student_of_every_way_of_asking(paths, folder, capsys, way, value):
    measured = ["--backend", "pytorch"] if way == "latency" else []  # an export of this network takes its time
    assert COMMAND.main([*paths, f"--{way}", value, *measured]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{way}={value}") and f"wrote {paths[-1]}: params " in printed
    student = oskt.load_student(paths[-1])
    chain = oskt.WeightChain.load(paths[0])
    request = {"width": 1.0} if way == "latency" else {way: float(value) if way == "width" else value}
    expected = oskt.expand(chain, **request).state_dict()
    assert {name: t.shape for name, t in student.state_dict().items()} == {
        name: t.shape for name, t in expected.items()
    }
    if way == "size":
        written = (folder.parent / paths[-1]).stat().st_size
        assert 0.95 * parse_amount("size", value) < written <= parse_amount("size", value)


def test_widths_of_a_file(paths, tmp_path):
    (tmp_path / "plan.yaml").write_text("conv2.*: 0.5\nconv1.conv: 20\n")
    assert COMMAND.main([*paths, "--width", str(tmp_path / "plan.yaml")]) == 0
    student = oskt.load_student(paths[-1])
    assert student.conv1.conv.out_channels == 20 and student.conv2[0].conv1.conv.out_channels == 16


def test_half_precision_is_an_option(paths):
    assert COMMAND.main([*paths, "--width", "0.5", "--half"]) == 0
    assert torch.load(paths[-1], weights_only=True)["state_dict"]["fc.0.weight"].dtype == torch.float16


def test_the_table(paths, capsys):
    assert COMMAND.main([paths[0], "--table", "--no-latency", "--rows", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["width", "params", "FLOPs", "size", "size", "fp16"]
    rows = [line.split() for line in lines[3:]]
    assert [row[0] for row in rows] == ["0.5", "0.625", "0.75", "0.875", "1"]
    chain = oskt.WeightChain.load(paths[0])
    for width, params, *_ in rows:
        student = oskt.expand(chain, float(width))
        count = sum(p.numel() for name, p in student.named_parameters() if not name.startswith("classifier"))
        assert parse_amount("params", params) == pytest.approx(count, rel=0.005)


def test_the_table_with_latency(paths, capsys):
    assert COMMAND.main([paths[0], "--table", "--rows", "2", "--threads", "1", "--backend", "pytorch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-2:] == ["latency", "spread"]
    assert all(parse_amount("latency", line.split()[-2]) > 0 for line in lines[4:]) and len(lines) == 6


@pytest.mark.parametrize("backend", ["pytorch", "onnxruntime", "openvino"])
def test_latency_of_every_backend(tiny_net, tmp_path, capsys, backend):
    for package in ("onnxruntime", "onnxscript", backend) if backend != "pytorch" else ():
        pytest.importorskip(package)
    oskt.WeightChain.from_teacher(models.build(tiny_net, 5), 0.5).save(tmp_path / "chain.safetensors")
    command = [str(tmp_path / "chain.safetensors"), "--latency", "100s", "-o", str(tmp_path / "student.pth")]
    assert COMMAND.main([*command, "--backend", backend, "--batch", "2"]) == 0
    assert "latency=100s: width ratio 1: latency " in capsys.readouterr().out


def test_the_range_of_widths(paths, capsys):
    assert COMMAND.main([paths[0], "--widths"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("students have ") and "conv5.conv" in printed and "output of the network" in printed


def test_a_chain_that_has_some_groups_wider(tmp_path, capsys):
    chain = arbitrary_chain(models.build("osnet_x0_25", NUM_CLASSES), {"conv?.*": 0.5}, (3, 64, 32))
    chain.save(tmp_path / "chain.safetensors")
    assert COMMAND.main([str(tmp_path / "chain.safetensors"), "--table", "--no-latency", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["0.5+", "0.75+", "1"]
    assert lines[6] == "+ some groups are wider, as in the chain (--widths prints them)"


def test_a_ladder_gives_the_nearest_chain(tmp_path, capsys):
    top = arbitrary_chain(models.build("osnet_x0_25", NUM_CLASSES), 0.5, (3, 64, 32))
    below = oskt.WeightChain.from_student(expand_to_plan(top, top.widths), top, 0.5)
    files = [str(tmp_path / name) for name in ("chain.safetensors", "chain-2.safetensors")]
    for chain, path in zip((top, below), files, strict=True):
        chain.save(path)
    ladder, output = oskt.Ladder((top, below)), tmp_path / "student.pth"
    for ratio, nearest in (("0.75", files[0]), ("0.3", files[1])):
        assert COMMAND.main([*files, "--width", ratio, "-o", str(output)]) == 0
        assert f"expanded from '{nearest}', the nearest of 2" in capsys.readouterr().out
        expected = ladder.expand(float(ratio)).state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in oskt.load_student(output).state_dict().items())
    assert COMMAND.main([*files, "--widths"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-4:]] == ["rung", "------", "1", "2"]
    assert COMMAND.main([files[1], files[0], "--table"]) == 2
    assert capsys.readouterr().err.startswith("error: the first chain of a ladder is one of a first teacher")


def test_a_chain_is_trimmed(tmp_path, paths, capsys):
    chain = random_chain(models.build("osnet_x0_25", NUM_CLASSES), 0.5, nested=True)
    whole, small = (str(tmp_path / name) for name in ("whole.safetensors", "small.safetensors"))
    chain.save(whole)
    assert COMMAND.main([whole, "--trim", "0.75", "-o", small]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {small}: <WeightChain of osnet_x0_25" in printed and "instead of" in printed
    assert oskt.WeightChain.load(small).graph.sizes == oskt.chain.width_plan(chain, 0.75)
    assert COMMAND.main([paths[0], "--trim", "0.75", "-o", small]) == 2
    assert "only a nested chain whose slots have leaders" in capsys.readouterr().err
    assert COMMAND.main([whole, whole, "--trim", "0.75", "-o", small]) == 2
    with pytest.raises(SystemExit):
        COMMAND.main([whole, "--trim", "", "-o", small])
    with pytest.raises(SystemExit):
        COMMAND.main([whole, "--trim", "0.75", "--half", "-o", small])
    assert "--half is about a student" in capsys.readouterr().err


def test_the_stock_form_of_a_student_with_a_neck(tmp_path, capsys):
    chain = arbitrary_chain(models.build("oskt_osnet_x0_5", NUM_CLASSES), 0.5, (3, 64, 32))
    chain.save(tmp_path / "chain.safetensors")
    command = [str(tmp_path / "chain.safetensors"), "--like", "osnet_x0_25", "-o", str(tmp_path / "osnet_x0_25.pth")]
    assert COMMAND.main(command) == 0
    assert "its shapes under 'backbone.', and a neck; --plain" in capsys.readouterr().out
    assert COMMAND.main([*command, "--plain"]) == 0
    assert "the state dict loads strictly into it" in capsys.readouterr().out
    content = torch.load(tmp_path / "osnet_x0_25.pth", weights_only=True)
    models.build("osnet_x0_25", NUM_CLASSES).load_state_dict(content["state_dict"], strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "1k"], "error: params='1k' cannot be met: students of this chain have from 169k"),
        (["--params", "many"], "error: the command line has 'params=many': params='many' is no budget"),
        (["--width", "0.2"], "error: width 6 of group 'conv1.conv' is outside of"),
        (["--width", "half"], "error: the command line has 'width=half'; the width is a ratio"),
        (["--width", "missing.yaml"], "error: no file of widths at 'missing.yaml'"),
        (["--width", "res50-s1"], "error: preset 'res50-s1' belongs to a ResNet-50"),
        (["--like", "osnet_x0_4"], "error: unknown model 'osnet_x0_4'"),
        (["--like", "resnet18"], "error: 'resnet18' is of another depth or family"),
    ],
)
def test_errors_are_one_line(paths, tmp_path, capsys, arguments, message):
    assert COMMAND.main([*paths, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1
    assert not (tmp_path / "student.pth").exists()


def test_a_missing_chain(tmp_path, capsys):
    assert COMMAND.main([str(tmp_path / "none.safetensors"), "--table"]) == 2
    assert "error: no file at" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--width", "0.5"], ["--width", "0.5", "--params", "1M", "-o", "x.pth"]])
def test_arguments_that_are_missing_or_too_many(paths, arguments):
    with pytest.raises(SystemExit) as stopped:
        COMMAND.main([paths[0], *arguments])
    assert stopped.value.code == 2


def saved_student(path):
    chain = arbitrary_chain(models.build("osnet_x0_25", 4), 0.5, (3, 64, 32))
    oskt.save_student(oskt.expand(chain, 0.5), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (saved_student, "it is a checkpoint, not a weight chain: oskt export takes networks and students"),
        (lambda path: torch.save(models.build("osnet_x0_25", 4).state_dict(), path), "it is a checkpoint, not a"),
        (lambda path: path.write_bytes(b""), "it is an empty file, not a weight chain"),
        (lambda path: path.write_text('{"rows": []}'), "it is a JSON file, not a weight chain"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(20)), "it is a picture, not a weight chain"),
        (lambda path: path.write_bytes(b"\x08\x0a" + bytes(20)), "it is an ONNX file, not a weight chain: programs on"),
    ],
    ids=["student", "state dict", "empty", "json", "picture", "onnx"],
)
def test_a_file_that_is_no_chain_is_told_for_what_it_is(tmp_path, capsys, make, message):
    make(tmp_path / "student.pth")
    assert COMMAND.main([str(tmp_path / "student.pth"), "--widths"]) == 2
    assert message in capsys.readouterr().err


def test_a_chain_that_is_given_as_a_student(folder):
    with pytest.raises(oskt.errors.CheckpointError, match="it is a weight chain, not a checkpoint: oskt expand"):
        oskt.load_student(folder / "chain.safetensors")


def test_an_output_that_would_cost_the_chain(folder, tmp_path, capsys):
    chain = folder / "chain.safetensors"
    before = chain.read_bytes()
    assert COMMAND.main([str(chain), "--width", "0.5", "-o", str(folder / "." / chain.name)]) == 2
    assert "the chain itself, which would be lost; give another path" in capsys.readouterr().err
    assert chain.read_bytes() == before
    assert COMMAND.main([str(chain), "--width", "0.5", "-o", str(tmp_path)]) == 2
    assert "a folder; give the path of a file in it" in capsys.readouterr().err
