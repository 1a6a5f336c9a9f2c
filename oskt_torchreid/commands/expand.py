"""Makes a student from a chain, of a requested width or the widest within a budget.

oskt expand chain.safetensors --latency 5ms -o student.pth
oskt expand chain.safetensors --latency 5ms --pareto crops/ -o student.pth
oskt expand chain.safetensors --like osnet_x0_5 -o student.pth
oskt expand chain.safetensors --table --no-latency
oskt expand chain.safetensors chain-2.safetensors --width 0.2 -o student.pth
oskt expand chain.safetensors --trim 0.75 -o smaller.safetensors

A network of your own is registered by a file that --import names; the folder of a run remembers it.
Several chains are a ladder, from wide to narrow: the student is expanded from the nearest.
"""

import argparse
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from ..chain.budgets import Choice, held_groups, in_half_precision, show_amount
from ..chain.chain import WeightChain
from ..chain.counting import Costs
from ..chain.expansion import Measure, choose_widths, expand_to_plan
from ..chain.ladder import Ladder
from ..chain.measured import MeasuredTable
from ..chain.searching import measured_ratios, search_widths
from ..chain.student_file import save_plain, save_student
from ..chain.trimming import trimmed
from ..cli import carried_out, parse_with_imports, parser_of, positive, say
from ..config import import_for_file
from ..datasets.unlabelled import unlabelled_batches
from ..deploy import measure_latency
from ..deploy.latency import AUTO, BACKENDS, chosen_backend
from ..errors import ConfigError
from ..lab.costs import cost_table, spaced_ratios
from ..models import NeckModel, without_neck
from ..runs.oskt.specification import StudentSpec

SEARCHED = ("params", "flops", "size", "latency")
WAY_HELP = {
    "width": "ratio of the teacher's channels, preset such as res50-s1, or YAML file of widths per channel group",
    "params": "widest student of at most so many parameters, such as 1M",
    "flops": "widest student of at most so many multiply-adds, such as 200M",
    "size": "widest student whose file is at most so large, such as 4MB or '4MB fp16'",
    "latency": "widest student that takes at most so long on this machine, such as 5ms",
    "like": "registered model whose shapes the student gets, such as osnet_x0_5",
}

LATENCY_DEFAULTS = {"batch": 1, "threads": None, "device": "cpu", "backend": AUTO}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("expand", __doc__)
    parser.add_argument("chains", nargs="+", metavar="chain", help="file that WeightChain.save or oskt run wrote")
    ways = parser.add_mutually_exclusive_group(required=True)
    for way, text in WAY_HELP.items():
        ways.add_argument(f"--{way}", metavar=way.upper(), help=text)
    ways.add_argument(
        "--table", action="store_true", help="print what students of a range of widths cost, write nothing"
    )
    ways.add_argument("--trim", metavar="WIDTH", help="write a smaller chain, without students wider than this")
    ways.add_argument("--widths", action="store_true", help="print which widths each channel group can have")
    parser.add_argument("--model", help="registered name of the teacher, if it was not registered for the chain")
    parser.add_argument("-o", "--output", help="checkpoint to write; not with --table or --widths")
    parser.add_argument(
        "--pareto",
        metavar="FOLDER",
        help="of pictures without labels: search the widths of single channel groups within the budget, not one ratio",
    )
    parser.add_argument("--half", action="store_true", help="write numbers in half precision")
    parser.add_argument("--plain", action="store_true", help="write the stock form: no neck, only a state dict")
    parser.add_argument("--attention", choices=("folded", "paper"), help="queries and keys (default: as the chain's)")
    parser.add_argument("--distance", choices=("none", "chain", "teacher"), default="none", help="of features")
    table = parser.add_argument_group("table")
    table.add_argument("--rows", type=positive, default=10, help="number of widths (default: 10)")
    table.add_argument("--no-latency", action="store_true", help="leave out what has to be measured")
    latency = parser.add_argument_group("how latency is measured")
    latency.add_argument("--batch", type=positive, help="images at a time (default: 1)")
    latency.add_argument("--threads", type=positive, help="threads of one operator (default: torch's choice)")
    latency.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu")
    latency.add_argument(
        "--backend", choices=(AUTO, *BACKENDS), help="default: ONNX Runtime where it is installed, else PyTorch"
    )
    latency.add_argument("--measured", metavar="CSV", help="instead: milliseconds of widths, measured elsewhere")
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    parsed = parse_with_imports(parser, arguments)
    if parsed.pareto and all(getattr(parsed, way) is None for way in SEARCHED):
        parser.error(f"--pareto searches within a budget; add one of {', '.join(f'--{way}' for way in SEARCHED)}")
    if not (parsed.table or parsed.widths or parsed.output):
        parser.error("-o/--output says where the student or the chain goes, such as -o student.pth")
    if (parsed.table or parsed.widths) and parsed.output:
        parser.error("-o/--output is for a student; --table and --widths write nothing")
    of_students = {"half": False, "plain": False, "attention": None, "distance": "none"}
    if parsed.trim is not None and (given := [f"--{k}" for k, v in of_students.items() if getattr(parsed, k) != v]):
        parser.error(
            f"{', '.join(given)} is about a student; --trim writes a chain, from which students are made later"
        )
    given = [f"--{name}" for name in LATENCY_DEFAULTS if getattr(parsed, name) is not None]
    if given and parsed.latency is None and (not parsed.table or parsed.no_latency):
        parser.error(f"{', '.join(given)} says how latency is measured, and none is; add --latency or --table")
    if parsed.measured and (given or parsed.latency is None):
        parser.error("--measured is for --latency, instead of measuring here: leave out how that is done")
    for name, default in LATENCY_DEFAULTS.items():
        setattr(parsed, name, default if getattr(parsed, name) is None else getattr(parsed, name))
    return parsed


def load_chains(arguments: argparse.Namespace) -> tuple[WeightChain, Ladder | None]:
    """The chain, of several that which spans their widths, and these as a ladder."""
    for path in arguments.chains:
        import_for_file(path, arguments.imports)
    chains = [WeightChain.load(path, arguments.model) for path in arguments.chains]
    ladder = Ladder(tuple(chains)) if len(chains) > 1 else None
    return (ladder.span if ladder else chains[0]), ladder


def check_output(arguments: argparse.Namespace) -> None:
    """Raises `ConfigError` if the student's path is a folder, or one of the chains."""
    output = Path(arguments.output)
    if output.is_dir():
        raise ConfigError(f"-o is '{output}', a folder; give the path of a file in it, such as student.pth")
    if any(output.resolve() == Path(chain).resolve() for chain in arguments.chains):
        raise ConfigError(f"-o is '{output}', the chain itself, which would be lost; give another path")


def make_student(arguments: argparse.Namespace, chain: WeightChain, ladder: Ladder | None) -> None:
    """Writes the student and prints its costs; `chain` defines the possible widths."""
    way, value = next((way, getattr(arguments, way)) for way in WAY_HELP if getattr(arguments, way) is not None)
    wanted = StudentSpec.parse(f"{way}={value}").arguments("the command line")
    measured = MeasuredTable.read(arguments.measured) if arguments.measured else None
    measure = measured or (_measure(arguments) if way == "latency" else None)
    if arguments.pareto:
        choice = _searched(arguments, chain, way, value, measure)
    else:
        choice = choose_widths(chain, **wanted, measure=measure)
    nearest = ladder.nearest(choice.widths) if ladder else chain
    student = expand_to_plan(nearest, choice.widths, arguments.attention, arguments.distance)
    half = arguments.half or (way == "size" and in_half_precision(value))
    if arguments.plain:
        has_neck = isinstance(student, NeckModel)
        save_plain(without_neck(student) if has_neck else student, arguments.output, half=half)
    else:
        save_student(student, arguments.output, half=half)
    counts = Costs(chain).count([choice.widths])
    costs = {"params": counts.params[0], "flops": counts.flops[0], "size": Path(arguments.output).stat().st_size}
    shown = ", ".join(f"{name} {show_amount(name, cost)}" for name, cost in costs.items())
    say(f"{way}={value}: {choice}" if choice.budget is not None else f"{way}={value}{_form(arguments, student, way)}")
    if ladder:
        say(f"expanded from '{arguments.chains[ladder.chains.index(nearest)]}', the nearest of {len(ladder.chains)}")
    say(f"wrote {arguments.output}: {shown} (parameters and multiply-adds without the classifier)")


def _searched(
    arguments: argparse.Namespace, chain: WeightChain, way: str, value: str, measure: Measure | MeasuredTable | None
) -> Choice:
    """Widths that keep more of the teacher than the uniform ratio at the same cost; prints both."""
    batches = unlabelled_batches(arguments.pareto, chain.input_size)
    here = measure if callable(measure) else None
    tabled = measured_ratios(chain, here) if here else measure
    pictures = sum(map(len, batches))
    say(f"searching widths on {pictures} pictures: some hundred students are compared, which takes minutes")
    found = search_widths(chain, batches, way, value, tabled)
    shown = [("uniform ratio", found.uniform.widths, found.uniform.cost or 0, found.uniform_agreement)]
    shown.append(("searched", found.widths, found.cost, found.agreement))
    headers = ["widths", way, "agreement with the teacher"]
    rows = [[name, show_amount(way, cost), f"{agreement:.4f}"] for name, _, cost, agreement in shown]
    if here:  # what the search has interpolated is measured
        headers.append("measured")
        for row, (_, widths, *_) in zip(rows, shown, strict=True):
            row.append(str(here(expand_to_plan(chain, widths), chain.input_size)))
    say(tabulate(rows, headers, disable_numparse=True))
    say(f"{found.tried} students compared on {pictures} pictures")
    return replace(found.uniform, widths=found.widths, cost=found.cost, ratio=None)


def _form(arguments: argparse.Namespace, student: torch.nn.Module, way: str) -> str:
    """How a student with the shapes of a stock model compares with it."""
    if way != "like":
        return ""
    if isinstance(student, NeckModel) and not (arguments.plain or arguments.like.startswith(("oskt_", "neck_"))):
        return ": its shapes under 'backbone.', and a neck; --plain writes the stock model's own form"
    return ": its shapes; the state dict loads strictly into it"


def trim_chain(arguments: argparse.Namespace, chain: WeightChain, ladder: Ladder | None) -> None:
    """Writes a chain without its widest students."""
    if ladder:
        raise ConfigError(f"--trim takes one chain, not {len(ladder.chains)}; trim them one by one")
    wanted = StudentSpec.parse(f"width={arguments.trim}").arguments("the command line")
    smaller = trimmed(chain, wanted["width"])
    smaller.save(arguments.output)
    before, after = (show_amount("size", Path(path).stat().st_size) for path in (arguments.chains[0], arguments.output))
    say(f"wrote {arguments.output}: {smaller!r}, {after} instead of {before}; ratios are of its own widest student")


def show_table(arguments: argparse.Namespace, chain: WeightChain, _: Ladder | None) -> None:
    """Prints the costs of a range of widths."""
    measure = None if arguments.no_latency else _measure(arguments)
    size = "x".join(str(length) for length in chain.input_size[1:])
    say(f"params and FLOPs (multiply-adds of one {size} image) without the classifier, files with everything")
    if measure is not None:
        backend = chosen_backend(arguments.device, arguments.backend)
        say(f"latency of {arguments.batch} image(s) by {backend} on {arguments.device}, median")
    ratios = spaced_ratios(chain, arguments.rows)
    say(cost_table(chain, ratios, measure))
    if held_groups(chain, ratios[0]):
        say("+ some groups are wider, as in the chain (--widths prints them)")


def show_widths(_: argparse.Namespace, chain: WeightChain, ladder: Ladder | None) -> None:
    """Prints the range of widths of every channel group, and of every chain of a ladder."""
    say(chain.summary())
    if ladder:
        say(f"\n{ladder.summary()}")


def _measure(arguments: argparse.Namespace) -> partial:
    backend = chosen_backend(arguments.device, arguments.backend)  # at once, not after the first student
    settings = {name: getattr(arguments, name) for name in ("batch", "threads", "device")}
    return partial(measure_latency, **settings, backend=backend)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for errors that the user can fix."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if parsed.latency:
        logging.getLogger("oskt_torchreid.chain.expansion").setLevel(logging.INFO)  # every measurement
    return carried_out(lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> None:
    if parsed.output:
        check_output(parsed)
    chain, ladder = load_chains(parsed)
    named = {show_table: parsed.table, show_widths: parsed.widths, trim_chain: parsed.trim is not None}
    action = next((action for action, wanted in named.items() if wanted), make_student)
    action(parsed, chain, ladder)
