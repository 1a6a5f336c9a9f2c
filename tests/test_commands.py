"""The front door: one help page, commands by name, configurations without a path, keys that explain themselves."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from test_tools import command

from oskt_torchreid.commands import page
from oskt_torchreid.config import config_path, load_config, shipped_configs
from oskt_torchreid.config.tree import every_key
from oskt_torchreid.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DOOR = "import sys; sys.path[:0] = [{tools!r}, {root!r}]; import oskt_command; {what}"


def through_the_door(what):
    """Code in a new process that has the console script's door and the package."""
    script = DOOR.format(tools=str(ROOT / "tools"), root=str(ROOT), what=what)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


# ---- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_page_names_every_command(capsys, words):
    assert page.main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in page.COMMANDS)
    assert max(map(len, printed.splitlines())) <= 120


def test_every_command_is_a_file_and_every_file_a_command():
    """A command of many commands has files of its name with more behind it."""
    files = {path.stem for path in (ROOT / "oskt_torchreid" / "commands").glob("*.py")} - {"__init__", "page"}
    assert {name.partition("_")[0] for name in files} == set(page.COMMANDS) == files & set(page.COMMANDS)


@pytest.mark.parametrize("name", page.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(name).main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and printed.startswith(f"usage: oskt {name} ")
    assert f"\noskt {name}" in printed, "an example"


def test_the_page_comes_without_torch():
    """Importing torch takes seconds; an error in a command's name needs none either."""
    shown = "print(oskt_command.main(), sorted({'torch', 'torchreid'} & set(sys.modules)))"
    found = through_the_door(f"sys.argv[1:] = ['--help']; {shown}")
    assert found.stdout.splitlines()[0] == "usage: oskt COMMAND ..." and found.stdout.endswith("0 []\n"), found.stderr
    found = through_the_door("sys.argv[1:] = ['expnad']; print(oskt_command.main(), 'torch' in sys.modules)")
    assert found.stdout == "2 False\n" and "no command 'expnad'; did you mean `oskt expand`?" in found.stderr


def test_a_command_through_the_door():
    found = through_the_door("sys.argv[1:] = ['config', 'oskt.width']; sys.exit(oskt_command.main())")
    assert found.returncode == 0 and found.stdout.startswith("oskt.width = 0.25\n"), found.stderr


def test_a_command_of_the_module():
    """In a process of its own, for one that ends ignores signals."""
    words = [sys.executable, "-m", "oskt_torchreid", "config", "oskt.widht"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert found.returncode == 2 and found.stdout == "" and "did you mean 'oskt.width'" in found.stderr


def test_a_command_that_is_not_there(capsys):
    assert page.main(["frobnicate"]) == 2
    assert capsys.readouterr().err == "error: oskt has no command 'frobnicate'; `oskt --help` lists them\n"


# ---- configurations ------------------------------------------------------------------------------------------------


def test_configurations_are_found_without_a_path(tmp_path, monkeypatch):
    shipped = shipped_configs()
    assert {"oskt_osnet", "vkd_synthped", "comparison/cuhk03", "paper/oskt/res50_chain8_market1501"} <= set(shipped)
    monkeypatch.chdir(tmp_path)
    assert config_path("oskt_osnet") == shipped["oskt_osnet"]
    assert load_config("oskt_osnet").oskt.nested is True
    (tmp_path / "oskt_osnet").write_text("train: {max_epoch: 7}\n")
    assert load_config("oskt_osnet").train.max_epoch == 7, "a file of the user's goes first"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oskt_osnett", "no file 'oskt_osnett' and no configuration of this name; did you mean 'oskt_osnet'"),
        ("zzz", "no configuration of this name; those that come with the package are .*oskt_osnet"),
        ("mine.yaml", "no configuration file at 'mine.yaml'"),
    ],
)
def test_configurations_that_are_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(name)


@pytest.mark.parametrize(
    ("words", "file", "options"),
    [
        (["oskt_osnet"], "oskt_osnet", []),
        (["mine.yaml", "train.lr", "0.1"], "mine.yaml", ["train.lr", "0.1"]),
        (["oskt_osnet", "train.lr=0.1", "-s", "market1501"], "oskt_osnet", ["train.lr=0.1"]),
        (["train.lr=0.1"], "", ["train.lr=0.1"]),
        (["engine", "oskt"], "", ["engine", "oskt"]),
        (["--config-file", "a.yaml", "train.lr=1"], "a.yaml", ["train.lr=1"]),
    ],
)
def test_a_configuration_is_the_first_word(words, file, options):
    parsed = command("run").parse_arguments(words)
    assert (parsed.config_file, parsed.options) == (file, options)


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_every_key_explains_itself(capsys):
    assert command("config").main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} = {key.default!r}\n" in f"\n{printed}" for name, key in every_key().items())
    assert command("config").main(["oskt.refine"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert len(lines) > 10 and all(line.startswith("oskt.refine.") for line in lines)
    assert command("config").main(["--files"]) == 0
    assert "comparison/cuhk03" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(capsys, shell):
    assert command("completion").main([shell]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in page.COMMANDS) and "max-drop" in printed


# ---- the demonstration ---------------------------------------------------------------------------------------------


def test_the_demonstration_is_a_configuration_that_ships(monkeypatch):
    demo, given = command("demo"), []
    monkeypatch.setattr(
        importlib.import_module("oskt_torchreid.commands.run"), "main", lambda words: given.append(words) or 0
    )
    assert demo.main([]) == demo.main(["--fast", "data.save_dir=log/mine"]) == 0
    assert given[0] == ["oskt_osnet"] and given[1][0] == "oskt_osnet" and given[1][-1] == "data.save_dir=log/mine"
    load_config("oskt_osnet", given[1][1:])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", ["oskt_osnet", "--data", ""]),
        ("run", ["oskt_osnet", "--root="]),
        ("expand", ["", "--params", "1M", "-o", "s.pth"]),
        ("export", ["student.pth", "-o", ""]),
        ("report", [""]),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_seen(name, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(name).main(words)
    assert stopped.value.code == 2
    assert "has an empty value; is a variable of the shell not set?" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["data.save_dir", "data.root"])
def test_a_run_has_a_folder(key, capsys):
    assert command("run").main(["oskt_osnet", f"{key}="]) == 2
    assert f"{key} is empty; give a folder, '.' for the one you are in" in capsys.readouterr().err
