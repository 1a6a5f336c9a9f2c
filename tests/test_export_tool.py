"""The command that exports networks, and the table of what can be exported."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from runs import TINY
from small_networks import TinyNet
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.deploy import open_exported, read_metadata
from oskt_torchreid.host import models
from oskt_torchreid.lab.exports import BEGIN, END, parsed_rows, update_document

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
COMMAND = tool("export")


@pytest.fixture(scope="module")
def folder(tiny_net, tmp_path_factory):
    """A teacher's checkpoint and a student's file."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    teacher = models.build(tiny_net, 6).eval()
    torch.save({"state_dict": teacher.state_dict()}, folder / "teacher.pth")
    chain = oskt.WeightChain.from_teacher(teacher, 0.5)
    chain.save(folder / "chain.safetensors")
    oskt.save_student(oskt.expand(chain, 0.75), folder / "student.pth")
    return folder


def test_a_students_file(folder, tmp_path, capsys):
    assert COMMAND.main([str(folder / "student.pth"), "-o", str(tmp_path / "student.onnx"), "--normalize"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {tmp_path}/student.onnx: onnx, fp32, ") and "cosine 1.000000" in printed
    facts = read_metadata(tmp_path / "student.onnx", "onnx")
    assert facts["input_size"] == [3, 32, 16] and facts["l2_normalized"] and facts["feature_dim"] == 18


def test_a_checkpoint_and_a_name(folder, tiny_net, tmp_path, capsys, caplog):
    """A checkpoint needs the name of its network, whatever the number of its classes."""
    checkpoint = [str(folder / "teacher.pth"), "-o", str(tmp_path / "teacher.torchscript"), "--size", "48", "24"]
    assert COMMAND.main([*checkpoint, "--model", tiny_net]) == 0
    images = torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        teacher = models.build(tiny_net, 6).eval()
        teacher.load_state_dict(torch.load(folder / "teacher.pth")["state_dict"])
        expected = teacher(images).numpy()
    found = open_exported(tmp_path / "teacher.torchscript", "torchscript")(images.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert COMMAND.main([tiny_net, "-o", str(tmp_path / "initial.torchscript")]) == 0
    assert f"'{tiny_net}' is built with initial weights" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_map_of_network_and_file(precision, folder, data_root, tmp_path, capsys):
    options = ["--options", *TINY, f"data.root={data_root}", f"data.save_dir={tmp_path}"]
    command = [str(folder / "student.pth"), "-o", str(tmp_path / "student.onnx"), "--precision", precision]
    assert COMMAND.main([*command, "--calibration-images", "20", *options]) == 0
    written, measured = capsys.readouterr().out.splitlines()
    assert f"onnx, {precision}, " in written
    numbers = re.fullmatch(
        r"mAP \(%\) on synthped: ([\d.]+) of the network, ([\d.]+) of the file \(([+-][\d.]+)\)", measured
    )
    before, after, change = (float(number) for number in numbers.groups())
    assert before > 0 and after - before == pytest.approx(change, abs=0.011)
    assert abs(change) < 0.01 if precision == "fp32" else abs(change) < 5
    assert read_metadata(tmp_path / "student.onnx", "onnx")["input_size"] == [3, 32, 16]


def test_a_file_of_pixels_in_eight_bits_within_a_budget(folder, data_root, tmp_path, capsys):
    """What importers of accelerators ask for, in one command; the mAP is that of the file as it is fed."""
    options = ["--options", *TINY, f"data.root={data_root}", f"data.save_dir={tmp_path}"]
    command = [str(folder / "student.pth"), "-o", str(tmp_path / "student.onnx"), "--precision", "int8", "--layers"]
    fed = ["--input", "uint8", "--inputs", "static", "--batch", "2", "--max-drop", "0.01", "--calibration-images", "8"]
    assert COMMAND.main([*command, *fed, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    before, after = map(float, re.search(r"([\d.]+) of the network, ([\d.]+) of the file", lines[-1]).groups())
    assert before - after < 0.1
    table = [line.split() for line in lines if re.fullmatch(r"\S+\s+[\d.]+\s+[\d.]+", line)]
    errors = [float(relative) for _, relative, _ in table]
    assert len(table) > 3 and errors == sorted(errors, reverse=True)
    kept = re.search(r"kept in fp16: ([^;]*)", lines[0])
    assert kept is None or set(kept[1].split(", ")) <= {name for name, *_ in table}
    said = read_metadata(tmp_path / "student.onnx", "onnx")
    assert (said["input"], said["layout"], said["batch"], said["precision"]) == ("uint8", "NHWC", 2, "int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student.pth", "-o", "net.tflite"], "error: the suffix '.tflite' of 'net.tflite' stands for no format"),
        (["none.pth", "-o", "net.onnx"], "error: no file at 'none.pth'"),
        (["osnet_x0_26", "-o", "net.onnx"], "error: unknown model 'osnet_x0_26'; did you mean 'osnet_x0_25'"),
        (["teacher.pth", "-o", "net.onnx"], "error: 'teacher.pth' does not say what network it is of; name it: --mod"),
        (["teacher.pth", "--model", "resnet18", "-o", "net.onnx"], "error: 'teacher.pth' does not fit ResNet"),
        (["chain.safetensors", "-o", "net.onnx"], "error: 'chain.safetensors' is a chain, not a network"),
        (["student.pth", "-o", "net.onnx", "--precision", "int8"], "error: --precision int8 needs real images"),
        (["student.pth", "-o", "net.torchscript", "--opset", "20"], "error: opset is about ONNX's operators"),
        (["student.pth", "-o", "net.xml", "--format", "onnx"], "error: the suffix of 'net.xml' stands for openvino"),
        (["student.pth", "-o", "net.onnx", "--max-drop", "0.5"], "error: --max-drop is measured on a data set; give"),
        (
            ["student.pth", "-o", "net.torchscript", "--inputs", "static"],
            "error: TorchScript has no fixed batch; choose the format onnx or openvino",
        ),
        (["student.pth", "-o", "student.pth/net.onnx"], "error: 'student.pth/net.onnx' cannot be written"),
        (["--table", "osnet_x0_26"], "error: unknown model 'osnet_x0_26'"),
    ],
)
def test_errors_are_one_line(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert COMMAND.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["student.pth"], ["student.pth", "-o", "net.onnx", "--precision", "fp8"]])
def test_arguments_that_are_missing_or_wrong(arguments):
    with pytest.raises(SystemExit) as stopped:
        COMMAND.main(arguments)
    assert stopped.value.code == 2


# ---- the table -----------------------------------------------------------------------------------------------------


class Hidden(TinyNet):
    """The batch size is hidden from a trace, as in torchreid's ShuffleNetV2."""

    def forward(self, images):
        batch, *size = images.data.size()
        return super().forward(images.view(batch, *size))


def test_the_table_keeps_the_rows_of_other_backbones(tiny_net, tmp_path, capsys):
    pytest.importorskip("openvino")
    document = tmp_path / "export.md"
    document.write_text(f"# Head\n\n{BEGIN}\n{END}\n\nTail\n")
    update_document(document, ("resnet50", "256x128", "24 M", "2048", "1 MB, 0", "no: why", "2 MB, 0"))
    assert COMMAND.main(["--table", tiny_net, "-o", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("# Head\n\n<!--") and text.endswith("-->\n\nTail\n")
    rows = parsed_rows(text)
    assert list(rows) == ["resnet50", tiny_net] and rows["resnet50"][5] == "no: why"
    assert rows[tiny_net][:2] == (tiny_net, "32x16") and all(" MB, " in cell for cell in rows[tiny_net][4:])
    assert 0.9 < float(rows[tiny_net][7].partition(", cosine ")[2]) <= 1
    oskt.register_backbone("hidden_net", Hidden, input_size=(3, 32, 16))
    assert COMMAND.main(["--table", "hidden_net"]) == 0
    row = parsed_rows(capsys.readouterr().out)["hidden_net"]
    assert " MB, " in row[4] and row[6] == "no: does not run on a batch of 1"
    with pytest.raises(oskt.errors.ConfigError, match="has no lines '<!-- exports:begin -->'"):
        (tmp_path / "other.md").write_text("nothing")
        update_document(tmp_path / "other.md", rows[tiny_net])
