"""User code: files and modules that are imported once, by every tool and every process, and that runs remember."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import own_code
import pytest
import yaml
from runs import tiny
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid import user_code
from oskt_torchreid.config import import_for_file, load_config, load_resolved, save_resolved
from oskt_torchreid.errors import ChainError, CheckpointError, ConfigError
from oskt_torchreid.host import data as host_data
from oskt_torchreid.host import models
from oskt_torchreid.runs import run
from oskt_torchreid.runs.processes import in_processes, own_registrations
from oskt_torchreid.user_code import import_user_code

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def undone(monkeypatch, tmp_path_factory):
    """Modules of a test's own files end with it, and Python's path is as it was; others stay.

    Native modules that are imported a second time, such as ONNX Runtime's, end the process.
    """
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_IMPORTED", {})
    yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    """Writes a file of user code under a name that no other test uses."""

    def write(text="import sys\nTIMES = []\n", name="", folder=tmp_path):
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / f"{name or f'user_code_{next(NUMBERS)}'}.py"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def own(file, tmp_path):
    """A file with a network and a data set of one's own, and the data root that has the pictures."""
    own_code.draw(tmp_path / "data")
    return file(own_code.TEXT)


# ---- importing -----------------------------------------------------------------------------------------------------


def test_a_file_is_imported_once_under_its_own_name(file, tmp_path, monkeypatch):
    count = tmp_path / "count"
    path = file(f"with open({str(count)!r}, 'a') as file:\n    file.write('.')\nclass Thing:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    assert import_user_code([path.name, str(path)]) == [str(path)]
    monkeypatch.chdir("/")
    assert import_user_code([str(path)]) == [str(path)]
    module = __import__(path.stem)
    assert Path(module.__file__) == path and count.read_text() == "."
    assert type(pickle.loads(pickle.dumps(module.Thing()))) is module.Thing


def test_a_file_imports_its_neighbours_and_a_module_is_named(file, tmp_path):
    other = file("VALUE = 7\n")
    path = file(f"from {other.stem} import VALUE\n")
    assert import_user_code([str(path)]) == [str(path)]
    assert sys.modules[path.stem].VALUE == 7 and sys.path[-1] == str(tmp_path)
    assert import_user_code([other.stem, "json.tool"]) == [other.stem, "json.tool"]


FAULTS = {
    "raises": (
        "x = 1\n1 / 0\n",
        r"user_code_\d+.py' cannot be imported, line 2: ZeroDivisionError: division by zero; me",
    ),
    "below": (
        "def f():\n    return [][1]\n\nf()\n",
        r", line 2: IndexError: list index out of range; mend it, or take",
    ),
    "syntax": ("x = 1\n\ndef f(:\n", r", line 3: SyntaxError: "),
    "ends": ("import sys\nsys.exit(3)\n", r", line 2: SystemExit: 3; mend it"),
    "absent": ("import nowhere_at_all\n", r"line 1: ModuleNotFoundError: No module named 'nowhere_at_all'; mend it"),
    "relative": ("from .nets import Net\n", r"line 1: ImportError: .*; name it as a module of its package, such as"),
    "refused": (
        "import oskt_torchreid\noskt_torchreid.register_engine('mine', 3)\n",
        r"line 2: ConfigError: engine 'mine' is 3; give a class",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_code_that_fails_is_named_with_its_line_and_can_be_mended(file, fault):
    text, message = FAULTS[fault]
    path, places = file(text), list(sys.path)
    with pytest.raises(ConfigError, match=message):
        import_user_code([str(path)])
    assert sys.path == places and path.stem not in sys.modules
    path.write_text("MENDED = True\n")
    os.utime(path, (1, 1))  # Python compares times, of whole seconds, and sizes
    import_user_code([str(path)])
    assert sys.modules[path.stem].MENDED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.py", r"user code '/.*/gone.py' is not there; give the path of a file"),
        ("folder.py", r"user code '/.*/folder.py' is not there"),
        (
            "folder",
            r"user code 'folder' is no module that Python finds, and no file \(.py\); add its folder to PYTHONPATH",
        ),
        ("./folder", r"user code './folder' is a folder; give a path that ends in .py"),
        ("my-net.py", r"user code 'my-net.py' cannot be a module of its name, 'my-net'"),
        ("my.net.py", r"cannot be a module of its name, 'my.net'"),
        ("folder/__init__.py", r"cannot be a module of its name, '__init__'; .* \(a package is named as a module"),
        ("notes.txt", r"user code 'notes.txt' is no module|user code 'notes.txt' is neither"),
        ("json.py", r"user code '/.*/json.py' cannot be imported: the name 'json' belongs to the module in '.*json"),
        (
            "antigravity.py",
            r"the name 'antigravity' belongs to the module in '.*antigravity.py'; give the file another",
        ),
        ("sys.py", r"the name 'sys' belongs to the module in 'Python itself'"),
        ("helper", r"user code 'helper' is no module that Python finds, .* did you mean the file 'helper.py'\?"),
        ("", r"user code '' is neither a file of Python nor the name of a module"),
        ("no such", r"user code 'no such' is neither"),
        (3, r"an entry of --import and the key imports is 3; give the path of a file"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.py"):
        (tmp_path / folder).mkdir()
    for made in ("my-net.py", "my.net.py", "notes.txt", "json.py", "antigravity.py", "sys.py", "helper.py"):
        (tmp_path / made).write_text("")
    places = list(sys.path)
    with pytest.raises(ConfigError, match=message):
        import_user_code([name])
    assert sys.path == places


def test_all_names_are_looked_at_before_the_first_is_imported(file, tmp_path):
    path = file()
    with pytest.raises(ConfigError, match="gone.py' is not there"):
        import_user_code([str(path), str(tmp_path / "gone.py")])
    assert path.stem not in sys.modules


def test_a_file_that_was_moved_is_named_again(file, tmp_path):
    before, moved = file(name="moved_code"), file(name="moved_code", folder=tmp_path / "elsewhere")
    assert import_user_code([str(before), str(moved)]) == [str(moved)], "the last counts"
    with pytest.raises(ConfigError, match="the name 'moved_code' belongs to the module in '.*elsewhere"):
        import_user_code([str(before)])
    before.unlink()
    assert import_user_code([str(before)]) == [str(moved)]


# ---- configurations ------------------------------------------------------------------------------------------------


def test_imports_come_before_every_other_key(file, tmp_path):
    """A name that user code registers may be a key of the same file."""
    path = file(
        "from oskt_torchreid.baselines import Baseline, register_baseline\n"
        "from oskt_torchreid.baselines.scratch import from_scratch\n"
        "register_baseline('of_user_code', Baseline(from_scratch, 'mine'))\n"
    )
    (tmp_path / "run.yaml").write_text(f"oskt: {{control_lr: {{of_user_code: 0.25}}}}\nimports: ['{path}']\n")
    assert load_config(tmp_path / "run.yaml").oskt.control_lr.of_user_code == 0.25


def test_the_resolved_configuration_names_user_code_in_full(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, given, chosen = file(), file(), file()
    (tmp_path / "base.yaml").write_text(f"imports: [{named.name}]\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\n")
    config = load_config("run.yaml", imports=[given.name])
    assert config.imports == [str(named), str(given)]
    save_resolved(config, tmp_path / "run")
    monkeypatch.chdir("/")
    assert load_resolved(tmp_path / "run").imports == config.imports
    options = [f"imports=['{chosen}']"]
    assert load_config(tmp_path / "run.yaml", options).imports == [str(chosen)], "the command line replaces the key"
    assert load_config().imports == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imports: mine.py", r"imports in '.*run.yaml' is 'mine.py' \(str\); expected list"),
        ("imports: {a: 1}", r"imports in '.*run.yaml' is \{'a': 1\}"),
        ("imports: [gone.py]", r"user code '/.*/gone.py' is not there"),
        ("imports: [1]", r"an entry of --import and the key imports is 1"),
    ],
)
def test_a_configuration_that_names_no_code(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml")


def test_code_that_comes_with_a_run_is_not_run_unasked(file, tmp_path, monkeypatch, caplog):
    """Whoever opens somebody else's folder runs none of its code, by whatever path it is named."""
    folder = tmp_path / "run"
    evil = file("raise RuntimeError('it ran')\n", "evil_code", folder)
    monkeypatch.chdir(tmp_path)
    for name in (str(evil), "run/evil_code.py", "evil_code.py", str(folder / ".." / "run" / "evil_code.py")):
        (folder / "config.yaml").write_text(yaml.safe_dump({"imports": [name], "oskt": {}}))
        with pytest.raises(
            ConfigError, match=r"not run unasked; read it, .* name it yourself: --import .*evil_code.py"
        ):
            load_resolved(folder)
        caplog.clear()
        import_for_file(folder / "students" / "width=0.5" / "student.pth")
        assert "not run unasked" in caplog.text
    evil.write_text("RAN = True\n")
    import_user_code([str(evil)])
    assert load_resolved(folder).imports == [str(evil)]


def test_other_programs_configurations_are_left_alone(file, tmp_path, caplog):
    path = file("raise RuntimeError('it ran')\n")
    for text in (f"imports: ['{path}']\n", "a: [", "- 1\n"):
        (tmp_path / "config.yaml").write_text(text)
        import_for_file(tmp_path / "chain.safetensors")
    assert not caplog.records


# ---- tools ---------------------------------------------------------------------------------------------------------


def words(path, tmp_path, *options):
    """A command line of `oskt run`."""
    names = ["--import", str(path), "-s", "own_set", "-t", "own_set", "--root", str(tmp_path / "data")]
    return [*names, *own_code.OPTIONS, f"data.save_dir={tmp_path / 'run'}", *options]


def test_every_tool_takes_user_code_anywhere_in_its_command_line(file, capsys):
    path = file("raise RuntimeError('it ran')\n")
    lines = {
        "main": ["engine=oskt"],
        "expand": ["chain.safetensors", "--widths"],
        "export": ["student.pth", "-o", "student.onnx"],
        "graph": ["osnet_x0_25"],
        "zoo": ["list"],
        "visualize": ["camera", "log"],
        "benchmark": ["latency", "log"],
    }
    for name, line in lines.items():
        for place in (0, len(line)):
            command = [*line[:place], "--import", str(path), *line[place:]]
            assert tool(name).main(command) == 2, name
            assert f"user code '{path}' cannot be imported, line 1: RuntimeError: it ran" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            tool(name).main([*line, "--import"])
        assert "argument --import: expected one argument" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            tool(name).main(["--help"])
        assert "--import CODE" in capsys.readouterr().out


def test_a_dry_run_of_a_data_set_and_a_network_of_ones_own(own, tmp_path, capsys):
    assert tool("main").main([*words(own, tmp_path), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "train 24 pictures of 6 identities by 2 cameras" in printed and "trained on own_set" in printed
    assert "one step on stand-in data: loss_x" in printed
    assert not (tmp_path / "run").exists()


def test_networks_of_ones_own_are_expanded_and_exported(own, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    chain, student = str(tmp_path / "chain.safetensors"), str(tmp_path / "student.pth")
    import_user_code([str(own)])
    oskt.WeightChain.from_teacher(models.build("own_net", 6), 0.5).save(chain)
    assert tool("graph").main(["own_net", "--import", str(own)]) == 0
    assert tool("expand").main([chain, "--import", str(own), "--width", "0.75", "-o", student]) == 0
    output = str(tmp_path / "student.onnx")
    assert tool("export").main([student, "--import", str(own), "-o", output, "-t", "own_set", "--root",
                                str(tmp_path / "data"), "--options", "data.workers=0"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "mAP (%) on own_set: " in printed and Path(output).is_file()


def test_a_teacher_that_was_not_registered_is_named_later(own, tmp_path, capsys):
    """A chain and a student that were made of a network without a name."""
    chain, unnamed = str(tmp_path / "chain.safetensors"), str(tmp_path / "unnamed.pth")
    import_user_code([str(own)])
    teacher = sys.modules[own.stem].OwnNet(6)
    made = models.host_table(models.torchreid.models.build_model, "__model_factory")
    rows = {name: made.pop(name) for name in list(made) if "own_net" in name}
    made_of = oskt.WeightChain.from_teacher(teacher, 0.5, input_size=(3, 32, 16))
    made_of.save(chain)
    oskt.save_student(oskt.expand(made_of, 0.75), unnamed)
    made.update(rows)
    student = str(tmp_path / "student.pth")
    assert tool("expand").main([chain, "--width", "0.75", "-o", student]) == 2
    assert "is not a registered model" in (said := capsys.readouterr().err) and "--model NAME" in said
    assert tool("expand").main([chain, "--width", "0.75", "-o", student, "--model", "own_net"]) == 0
    assert oskt.load_student(student).classifier.out_features == 6, "the student names its network"
    assert tool("expand").main([chain, "--width", "0.75", "-o", student, "--model", "osnet_x0_25"]) == 2
    assert "the channel graph belongs to another network" in capsys.readouterr().err
    with pytest.raises(ChainError, match="unknown model 'own_nett'; did you mean 'own_net'.*--import mine.py"):
        oskt.WeightChain.load(chain, model="own_nett")
    with pytest.raises(CheckpointError, match="is not a registered model; .*oskt export --model NAME"):
        oskt.load_student(unnamed)
    assert tool("export").main([unnamed, "--model", "own_net", "-o", str(tmp_path / "unnamed.torchscript")]) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.name=own_net", "unknown model 'own_net'"),
        ("data.sources=['own_set']", "unknown data set 'own_set'"),
        ("engine=own_engine", "unknown engine 'own_engine'"),
        ("oskt.students=['own:width=0.5']", "unknown baseline 'own'"),
    ],
)
def test_unknown_names_say_how_to_import_ones_own(tiny_net, data_root, tmp_path, option, message):
    with pytest.raises(ConfigError, match=f"{message}.*of your own: --import mine.py, or imports: ") as raised:
        run(tiny(data_root, tmp_path, option))
    assert len(str(raised.value)) < 600


# ---- further processes ---------------------------------------------------------------------------------------------


def find(folder: Path, names: tuple[str, ...]) -> None:
    """A piece of work: notes the class behind the name of a data set."""
    for name in names:
        (folder / name).write_text(host_data.dataset_class(name, "image").__module__)


def begin(folder: Path, number: int) -> None:
    (folder / str(number)).touch()


class ShownSet(host_data.torchreid.data.ImageDataset):
    """A data set that another process finds by its module, with nothing to import."""


def test_further_processes_know_what_is_registered_here(file, tmp_path):
    host_data.torchreid.data.register_image_dataset("shown_set", ShownSet)
    own = file("import torchreid\nclass Named(torchreid.data.ImageDataset): pass\n"
               "torchreid.data.register_image_dataset('named_set', Named)\n")  # fmt: skip
    import_user_code([str(own)])
    pieces = [(tmp_path, ("shown_set", "named_set"))] * 2
    in_processes(find, pieces, 2, "", [str(own)])
    assert (tmp_path / "shown_set").read_text() == __name__ and (tmp_path / "named_set").read_text() == own.stem
    assert [call.arguments[0] for call in own_registrations()][-2:] == ["shown_set", "named_set"]


@pytest.mark.parametrize("fault", ["gone", "local function", "local value"])
def test_work_that_another_process_cannot_take_over_is_a_typed_error(file, tmp_path, fault):
    own = file()
    import_user_code([str(own)])
    piece, message = (tmp_path, 0), "a further process cannot take over work: "
    work = (lambda folder, number: None) if fault == "local function" else begin
    if fault == "gone":
        own.unlink()
        message = "user code '.*' is not there"
    if fault == "local value":
        piece = (tmp_path, lambda: 0)
    with pytest.raises(ConfigError, match=message):
        in_processes(work, [piece, piece], 2, "", [str(own)])


def test_a_run_in_further_processes_is_refused_before_anything_is_trained(own, tmp_path):
    """What only this process knows: classes inside of a function."""
    import_user_code([str(own)])
    known = sys.modules[own.stem]

    class Hidden(known.OwnSet):
        """Nobody finds it by its name."""

    host_data.torchreid.data.register_image_dataset("hidden_set", Hidden)
    options = [*own_code.OPTIONS, f"data.root={tmp_path / 'data'}", f"data.save_dir={tmp_path / 'run'}",
               "data.sources=['hidden_set']", "data.targets=['hidden_set']", "oskt.processes=2"]  # fmt: skip
    message = "oskt.processes is 2, and a further process could not train: unknown data set 'hidden_set'.*processes=1"
    with pytest.raises(ConfigError, match=message):
        run(load_config(options=options, imports=[str(own)]))
    assert not (tmp_path / "run").exists()


def run_alone(tmp_path, *command):
    """A command in a fresh process and another folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_finished_runs_folder_finds_its_user_code_again(own, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    printed = run_alone(tmp_path, ROOT / "tools" / "main.py", *words(own.name, tmp_path))
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["teacher", "width=0.5"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["imports"] == [str(own)]
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "elsewhere"
    chain, expand = folder / "chain.safetensors", ROOT / "tools" / "expand.py"
    run_alone(place, expand, chain, "--width", "0.75", "-o", "student.pth")
    monkeypatch.chdir(place)  # of this process, which has not imported it either
    student = str(folder / "students" / "width=0.5" / "student.pth")
    assert own.stem not in sys.modules and tool("export").main([student, "-o", "s.torchscript"]) == 0
    way = ["--backends", "pytorch", "--stock", "--rounds", "1", "--batch", "1", "--threads", "1"]
    assert tool("benchmark").main(["latency", str(folder), *way]) == 0
    assert "width=0.5" in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} == {"student.pth", "s.torchscript"}


@pytest.mark.slow
def test_a_run_of_sets_finds_its_user_code_again(own, tmp_path, capsys):
    stages = [
        f"vkd.{stage}.{key}" for stage in ("teacher_stage", "student_stage") for key in ("max_epoch=1", "batch_size=4")
    ]
    options = ["loss.name=triplet", "sampler.num_instances=2", "vkd.num_views=2", "vkd.num_student_views=1", *stages]
    own_options = [word for word in words(own, tmp_path) if not word.startswith(("oskt.", "train.", "engine="))]
    run_alone(tmp_path, ROOT / "tools" / "main.py", *own_options, "engine=vkd", *options)
    assert tool("visualize").main(["gallery", str(tmp_path / "run"), "--counts", "1", "2"]) == 0
    table = capsys.readouterr().out
    assert "| teacher" in table and "| student" in table


@pytest.mark.slow
def test_workers_of_loaders_find_user_code_however_they_begin(own, tmp_path):
    """Other systems, and later versions of Python, begin processes without what their parent has imported."""
    script = tmp_path / "elsewhere" / "script.py"  # whose folder is on Python's path
    script.parent.mkdir()
    script.write_text(
        "import multiprocessing, runpy, sys\n"
        f"if __name__ == '__main__':\n    multiprocessing.set_start_method('spawn')\n"
        f"    sys.argv[0] = {str(ROOT / 'tools' / 'main.py')!r}\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [word for word in words(own, tmp_path) if not word.startswith(("oskt.", "engine="))]
    printed = run_alone(script.parent, script, *command, "engine=softmax", "data.workers=1")
    assert "own_net" in printed


@pytest.mark.slow
def test_processes_of_torchrun_import_user_code(own, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", ROOT / "tools" / "main.py"]
    assert "width=0.5" in run_alone(tmp_path, *command, *words(own, tmp_path))
