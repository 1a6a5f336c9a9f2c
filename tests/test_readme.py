"""What the repository says of itself: declared packages, the README's commands, results and table of backbones."""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from oskt_torchreid.chain.counting import Costs
from oskt_torchreid.config import load_config
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.models import model_names
from oskt_torchreid.lab.support import support_table
from oskt_torchreid.models import backbone_names
from oskt_torchreid.report.tables import human_count
from oskt_torchreid.runs.oskt.plan import make_plan, stand_in_chain
from oskt_torchreid.vkd.model import set_model_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BACKBONES = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
VIEWS = (ROOT / "docs" / "vkd.md").read_text(encoding="utf-8")

# ---- packages ----------------------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "pytorch_grad_cam": "grad-cam",
    "faiss": "faiss-cpu",
}
OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "openvino", "torch_pruning", "grad-cam", "faiss-cpu"}
OWN_SCRIPTS = {"setup.py"}  # of torchreid, for building it


def imported(folder: Path) -> set[str]:
    """Distributions that the files below a folder import, wherever they do."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.name not in OWN_SCRIPTS else ():
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
    names = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(name, name) for name in names}


@pytest.fixture
def declared(monkeypatch):
    """Arguments that setup.py gives setuptools."""
    told = {}
    fake = SimpleNamespace(setup=lambda **arguments: told.update(arguments), find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    runpy.run_path(str(ROOT / "setup.py"))
    return told


def test_every_imported_package_is_declared(declared):
    needed = {re.split(r"[<>=!]", name)[0] for name in declared["install_requires"]}
    own = imported(ROOT / "oskt_torchreid") | imported(ROOT / "tools")
    assert own - {"oskt_torchreid", "fuzz", "families"} - OPTIONAL <= needed, "two are parts of the tests"
    assert {name for names in declared["extras_require"].values() for name in names} >= OPTIONAL
    theirs = imported(Path(torchreid.__file__).parent)
    assert theirs - {"torchreid"} <= needed, "torchreid declares nothing of what it imports"


# ---- commands ----------------------------------------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    """Words of every command in a plain block of the README."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        for line in block.splitlines() if not language else ():
            if line.startswith(("python ", "pip ", "oskt ")):
                yield shlex.split(line)


def test_the_gate_runs_the_readmes_test_commands():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    tests = README[README.index("## Tests") :]
    lines = re.search(r"```\n(.*?)```", tests, re.DOTALL).group(1).splitlines()
    assert len(lines) == 2 and all(f"\n{line}\n" in gate for line in lines)


def test_files_that_commands_name_are_there():
    found = list(commands())
    assert len(found) >= 6
    for words in found:
        for word in words:
            if word.startswith(("tools/", "configs/")):  # NAME stands for any
                assert list(ROOT.glob(word.replace("NAME", "*"))), words


# ---- tables ------------------------------------------------------------------------------------------------------


def table(name: str, page: str = README) -> list[dict[str, str]]:
    """Rows of the table between two markers, by column."""
    return parsed(page[page.index(f"<!-- {name}:begin -->") : page.index(f"<!-- {name}:end -->")])


def parsed(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_ladder_takes_the_teacher_of_the_demonstration():
    demonstration, ladder = (load_config(ROOT / "configs" / f"oskt_{name}.yaml") for name in ("osnet", "ladder"))
    assert (ladder.model, ladder.test) == (demonstration.model, demonstration.test)
    assert {**ladder.data, "save_dir": ""} == {**demonstration.data, "save_dir": ""}


def test_results_are_of_the_configuration_and_reach_what_is_promised():
    config = load_config(ROOT / "configs" / "oskt_osnet.yaml")
    plan = make_plan(config, 192)
    rows = {row["network"]: row for row in table("results")}
    epochs = config.oskt.refine.max_epoch + config.oskt.finetune.max_epoch
    longer = [f"{name}, {epochs} epochs" for name in plan.controls]
    assert list(rows) == ["teacher", *(student.name for student in plan.students), *plan.controls, *longer]
    plans = [plan.graph.sizes, *(student.widths for student in plan.students), plan.chain_widths]
    counts = Costs(stand_in_chain(plan.teacher, plan.graph, plan.chain_widths)).count(plans)
    shown = [("teacher", 0), *((student.name, index) for index, student in enumerate(plan.students, 1))]
    shown += [(name, len(plans) - 1) for name in (*plan.controls, *longer)]
    for name, index in shown:
        expected = (human_count(int(counts.params[index])), human_count(int(counts.flops[index])))
        assert (rows[name]["params"], rows[name]["FLOPs"]) == expected, name
    teacher, scratch = (float(rows[name]["mAP"]) for name in ("teacher", "scratch"))
    assert teacher >= 75
    for student in plan.students:
        assert float(rows[student.name]["mAP before"]) >= teacher - 12
        assert float(rows[student.name]["mAP"]) >= scratch + 10
    assert all(float(rows[name]["mAP before"]) < 10 for name in plan.controls), "controls start at chance"
    assert (ROOT / "configs" / "results" / "oskt_osnet.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_table_of_backbones_is_what_the_command_prints():
    rows = {row["backbone"]: row for row in table("support", BACKBONES)}
    assert list(rows) == [name for name in model_names() if not name.startswith(("oskt_", "neck_", "vkd_"))]
    some = ["osnet_x0_25", "shufflenet_v2_x0_5", "squeezenet1_1"]
    for row in parsed(support_table(some)):
        assert row == rows[row["backbone"]]


def test_the_table_of_networks_of_sets_is_what_the_command_prints():
    rows = {row["backbone"]: row for row in table("sets", VIEWS)}
    assert list(rows) == backbone_names()
    for row in parsed(set_model_table(["resnet18", "squeezenet1_1", "vit_small_patch16"])):
        assert row == rows[row["backbone"]]
    resnets = [f"resnet{depth}" for depth in ("18", "34", "50", "101", "50_bam", "101_bam")]
    papers = {rows[name]["last ReLU removed"] for name in (*resnets, "densenet121", "mobilenetv2_x1_0")}
    assert papers == {"yes"}
