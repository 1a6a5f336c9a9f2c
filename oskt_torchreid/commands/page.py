"""The commands of `oskt` and their help page. Nothing here imports torch, so that the page comes at once."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "a teacher, a chain, students and a report in minutes: no download, no GPU",
    "run": "a configuration: trains or takes a teacher, refines a chain, makes students, reports",
    "report": "the report of a run again, or runs side by side",
    "expand": "a student of a chain, for a width or for a budget",
    "export": "a network as a file for ONNX Runtime, OpenVINO or TorchScript",
    "graph": "which channels of a network belong together, and whether students of it are exact",
    "bench": "costs and accuracies: latency, fleet, thresholds, comparisons with baselines",
    "visualize": "pictures of data sets, and of what networks look at",
    "zoo": "published weights: what there is, fetching, converting",
    "config": "every key of a configuration with its meaning, default and allowed values",
    "completion": "a script that completes commands and options in bash, zsh or tcsh",
}
"""Commands in the order of the page, and what each is for."""

EXAMPLES = (
    ("oskt demo", "see what it does"),
    ("oskt run oskt_market1501 --data crops/ oskt.teacher=teacher.pth", "your teacher, a folder per person"),
    ("oskt expand log/mine/chain.safetensors --params 300k -o student.pth", "a student for a budget"),
    ("oskt export student.pth -o student.onnx", "a file for a device"),
    ("oskt config oskt.refine", "what there is to set"),
)


def help_page() -> str:
    """What `oskt` alone prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    length = max(len(words) for words, _ in EXAMPLES)
    examples = "\n".join(f"  {words:<{length}}  {what}" for words, what in EXAMPLES)
    return (
        "usage: oskt COMMAND ...\n\n"
        "Model compression for re-identification: one trained teacher, students of any size.\n\n"
        f"{commands}\n\n{examples}\n\n"
        "`oskt COMMAND --help` says what a command takes. `python -m oskt_torchreid` is the same."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Hands a command line to its command; returns the exit status."""
    name, *words = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(f"{help_page()}\n")
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"oskt_torchreid {importlib.metadata.version('oskt_torchreid')}\n")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean `oskt {near[0]}`?" if near else "`oskt --help` lists them"
        sys.stderr.write(f"error: oskt has no command '{name}'; {hint}\n")
        return 2
    command = importlib.import_module(f"oskt_torchreid.commands.{name}")
    status_of = importlib.import_module("oskt_torchreid.host.termination").status_of
    return int(status_of(lambda: command.main(words)))
