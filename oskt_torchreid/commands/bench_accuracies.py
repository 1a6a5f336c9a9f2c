"""How good networks are, of runs that these commands of `oskt bench` make, or of one that was made."""

import argparse
import logging
from pathlib import Path

from ..chain.chain import WeightChain
from ..cli import positive, say
from ..config import load_config
from ..lab import ablation_report as ablation
from ..lab import fleet, set_controls, thresholds
from ..lab.ablation import TERMS, ablate
from ..lab.comparison import run_comparison
from ..lab.comparison.report import MARKDOWN_NAME
from ..lab.set_controls import measure_controls
from ..lab.untrained import untrained_table


def add_accuracies(commands: "argparse._SubParsersAction") -> None:
    """Adds the commands that measure mAP."""
    _add_studies(commands)
    _add_measures(commands)


def _add_studies(commands: "argparse._SubParsersAction") -> None:
    accuracy = commands.add_parser("accuracy", help="the chain against baselines, over seeds; resumes where it stopped")
    accuracy.add_argument("--config-file", required=True, help="YAML with a comparison node")
    accuracy.add_argument("--processes", type=positive, default=1, help="runs at a time, of one thread each")
    accuracy.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    accuracy.set_defaults(run=run_accuracy)
    terms = commands.add_parser(
        "vkd-ablation", help="students of VKD with single terms left out; resumes where it stopped"
    )
    terms.add_argument("--config-file", required=True, help="YAML of a run of VKD")
    terms.add_argument(
        "--terms", nargs="+", choices=list(TERMS), default=[], help="(default: all that the configuration has)"
    )
    terms.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="of students (default: train.seed and the next 2)"
    )
    terms.add_argument(
        "--teacher-views",
        type=positive,
        nargs="+",
        default=[],
        metavar="N",
        help="also students of teachers that see N views while they teach, such as 2 4 8 (default: none)",
    )
    terms.add_argument(
        "--student-views",
        type=positive,
        nargs="+",
        default=[1, 2, 4],
        metavar="M",
        help="of these views, how many such students see (default: 1 2 4)",
    )
    terms.add_argument("--processes", type=positive, default=1, help="runs at a time, of one thread each")
    terms.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    terms.set_defaults(run=run_ablation)
    controls = commands.add_parser(
        "vkd-controls", help="students of VKD beside their controls, over seeds; resumes where it stopped"
    )
    controls.add_argument("--config-file", required=True, help="YAML of a run of VKD")
    controls.add_argument("--seeds", type=int, nargs="+", default=[], help="(default: train.seed and the next 2)")
    controls.add_argument("--processes", type=positive, default=1, help="runs at a time, of one thread each")
    controls.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    controls.set_defaults(run=run_controls)


def _add_measures(commands: "argparse._SubParsersAction") -> None:
    mixed = commands.add_parser("fleet", help="queries of every width of a run against galleries of every other")
    mixed.add_argument("folder", help="that oskt run wrote")
    mixed.add_argument("--output", default="", help="folder for table and picture (default: the run's)")
    mixed.set_defaults(run=run_fleet)
    told = commands.add_parser("threshold", help="similarities at which a share of impostors passes, for the students")
    told.add_argument("folder", help="of a run of engine oskt, that oskt run wrote")
    told.add_argument("--rates", type=float, nargs="+", default=thresholds.RATES, help="default: 0.01 0.001 0.0001")
    told.add_argument("--no-keep", action="store_true", help="leave the files of the students as they are")
    told.add_argument("-o", "--output", default="", help="folder of tables and picture (default: the run's)")
    told.set_defaults(run=run_thresholds)
    untrained = commands.add_parser("untrained", help="mAP of a chain's students before any fine-tuning")
    untrained.add_argument("chain", help="file that WeightChain.save or oskt run wrote")
    untrained.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    untrained.add_argument("--config-file", default="", help="of the run: its data and its test settings")
    untrained.add_argument("--root", default="", help="folder that holds the data sets")
    untrained.add_argument("--students", nargs="+", default=["width=0.5", "width=0.75"], help="as in oskt.students")
    untrained.add_argument("--batches", type=positive, default=24, help="for recalibration (default: 24)")
    untrained.set_defaults(run=show_untrained)


def run_accuracy(arguments: argparse.Namespace) -> None:
    """Runs a comparison of the chain with baselines and prints its report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    folder = run_comparison(config, arguments.processes)
    say((folder / MARKDOWN_NAME).read_text(encoding="utf-8"))
    say(f"written to {folder}")


def run_ablation(arguments: argparse.Namespace) -> None:
    """Runs students of VKD with single terms left out and prints the report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    views = (arguments.teacher_views, arguments.student_views)
    folder = ablate(config, arguments.terms, arguments.seeds, arguments.processes, *views)
    say((folder / ablation.MARKDOWN_NAME).read_text(encoding="utf-8"))
    say(f"written to {folder}")


def run_controls(arguments: argparse.Namespace) -> None:
    """Runs VKD with its controls over several seeds and prints the report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    folder = measure_controls(config, arguments.seeds, arguments.processes)
    say((folder / set_controls.MARKDOWN_NAME).read_text(encoding="utf-8"))
    say(f"written to {folder}")


def run_fleet(arguments: argparse.Namespace) -> None:
    """Prints the mAP of every pair of a run's networks, and writes table and picture into the run's folder."""
    fleets = fleet.measure_fleet(arguments.folder)
    folder = Path(arguments.output or arguments.folder)
    fleet.write_fleet(folder, fleets, Path(arguments.folder).name)
    say((folder / fleet.MARKDOWN_NAME).read_text(encoding="utf-8"))
    say(f"written to {folder}")


def run_thresholds(arguments: argparse.Namespace) -> None:
    """Prints the cosine thresholds of a run's networks, and writes tables and picture into the run's folder."""
    found = thresholds.measure_thresholds(arguments.folder, arguments.rates, keep=not arguments.no_keep)
    folder = Path(arguments.output or arguments.folder)
    thresholds.write_thresholds(folder, found, Path(arguments.folder).name)
    say((folder / thresholds.MARKDOWN_NAME).read_text(encoding="utf-8"))
    say(f"written to {folder}{'' if arguments.no_keep else ', and into the files of the students'}")


def show_untrained(arguments: argparse.Namespace) -> None:
    """Prints the mAP of students as they are expanded, by choice of statistics and distance."""
    config = load_config(arguments.config_file, arguments.options, {"data.root": arguments.root}, arguments.imports)
    table = untrained_table(config, WeightChain.load(arguments.chain), arguments.students, arguments.batches)
    say(f"mAP in % on {config.data.targets[0]}, before any fine-tuning")
    say(table)
