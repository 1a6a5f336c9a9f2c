"""The costs and the accuracy of the method.

python tools/benchmark.py refine      one refinement step against one of the teacher alone
python tools/benchmark.py expand      expansion from a loaded chain
python tools/benchmark.py accuracy --config-file configs/comparison/resnet18.yaml
python tools/benchmark.py views       drawing the sets of a batch, against a scan of the data set
python tools/benchmark.py vkd-ablation --config-file configs/vkd_synthped.yaml
python tools/benchmark.py vkd-controls --config-file configs/vkd_synthped.yaml
python tools/benchmark.py vkd         one step of distillation against a teacher's forward pass and a student's step
python tools/benchmark.py latency log/oskt_osnet
python tools/benchmark.py fleet log/oskt_osnet   queries of every width against galleries of every other
python tools/benchmark.py rank        evaluation at the sizes of Market-1501 and MSMT17, against torchreid's
python tools/benchmark.py untrained log/oskt_osnet/chain.safetensors --config-file configs/oskt_osnet.yaml
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oskt_torchreid.chain.chain import WeightChain  # noqa: E402
from oskt_torchreid.cli import parse_with_imports, positive  # noqa: E402
from oskt_torchreid.config import load_config  # noqa: E402
from oskt_torchreid.deploy.latency import BACKENDS, DEVICES  # noqa: E402
from oskt_torchreid.errors import OsktError  # noqa: E402
from oskt_torchreid.host.termination import status_of  # noqa: E402
from oskt_torchreid.lab import ablation_report as ablation  # noqa: E402
from oskt_torchreid.lab import benchmark, benchmark_rank, benchmark_sets, benchmark_views, fleet, set_controls
from oskt_torchreid.lab.ablation import TERMS, ablate
from oskt_torchreid.lab.comparison import run_comparison  # noqa: E402
from oskt_torchreid.lab.comparison.report import MARKDOWN_NAME  # noqa: E402
from oskt_torchreid.lab.latency import Setting, measure_run  # noqa: E402
from oskt_torchreid.lab.latency_report import latency_table, write_latency  # noqa: E402
from oskt_torchreid.lab.set_controls import measure_controls  # noqa: E402
from oskt_torchreid.lab.untrained import untrained_table  # noqa: E402
from oskt_torchreid.models import backbone_names  # noqa: E402
from oskt_torchreid.user_code import import_user_code  # noqa: E402

MEGABYTE = 2**20


def show_refine(arguments: argparse.Namespace) -> None:
    """Prints the cost of a refinement step and of a teacher-only step."""
    rows = []
    for batch in arguments.batch:
        for method, planes in itertools.product(arguments.method, arguments.planes):
            how = (batch, arguments.size, arguments.rounds, not arguments.no_memory)
            cost = benchmark.measure_refine(method, planes, *how)
            times = (f"{cost.teacher_ms:.0f}", f"{cost.refine_ms:.0f}", f"{cost.time_ratio:.2f}")
            peaks = (cost.teacher_bytes, cost.refine_bytes, cost.memory_bound if cost.refine_bytes else 0)
            rows.append((method, batch, planes, *times, *(f"{peak / MEGABYTE:.0f}" if peak else "-" for peak in peaks)))
    headers = (
        "method",
        "batch",
        "chain planes",
        "teacher ms",
        "refine ms",
        "ratio",
        "teacher MB",
        "refine MB",
        "bound MB",
    )
    print(f"one training step of ResNet-50, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    print(tabulate(rows, headers=headers, disable_numparse=True, stralign="right"))


def show_expand(arguments: argparse.Namespace) -> None:
    """Prints the cost of expanding each of the paper's students of ResNet-50, or every backbone at half its width."""
    costs = list(_expand_costs(arguments))
    rows = [
        (
            cost.name,
            f"{cost.chain_width:.4g}",
            f"{cost.params / 1e6:.2f}",
            f"{cost.expand_ms:.1f}",
            f"{cost.copy_ms:.1f}",
            f"{cost.touched_bytes / MEGABYTE:.0f}",
        )
        for cost in costs
    ]
    headers = ("student", "chain width", "params M", "expand ms", "plain copy ms", "touched MB")
    print(f"expansion from a loaded chain, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    print(tabulate(rows, headers=headers, disable_numparse=True, stralign="right"))
    if arguments.all:
        print(f"{sum(cost.expand_ms <= 100 for cost in costs)} of {len(costs)} take at most 100 ms")


def _expand_costs(arguments: argparse.Namespace) -> Iterable[benchmark.ExpandCost]:
    if not arguments.all:
        return benchmark.measure_expand(arguments.rounds, arguments.names or tuple(benchmark.SERIES))
    names = arguments.names or backbone_names()
    return tqdm(benchmark.measure_expand_all(arguments.rounds, names), total=len(names), disable=None, leave=False)


def run_accuracy(arguments: argparse.Namespace) -> None:
    """Runs a comparison of the chain with baselines and prints its report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    folder = run_comparison(config, arguments.processes)
    print((folder / MARKDOWN_NAME).read_text(encoding="utf-8"))
    print(f"written to {folder}")


def show_views(arguments: argparse.Namespace) -> None:
    """Prints the cost of drawing the views of a batch on an index of the size of MARS."""
    build_ms, costs = benchmark_views.measure_draws(arguments.sets, arguments.views, arguments.rounds)
    size = f"{benchmark_views.MARS_TRACKLETS} tracklets of {benchmark_views.MARS_IDENTITIES} identities"
    print(f"{size}: index built in {build_ms:.1f} ms")
    print(f"{arguments.sets} sets of {arguments.views} views, median of {arguments.rounds}")
    rows = [(cost.name, f"{cost.draw_ms:.2f}") for cost in costs]
    print(tabulate(rows, headers=("strategy", "ms per batch"), disable_numparse=True, stralign="right"))


def run_ablation(arguments: argparse.Namespace) -> None:
    """Runs students of VKD with single terms left out and prints the report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    views = (arguments.teacher_views, arguments.student_views)
    folder = ablate(config, arguments.terms, arguments.seeds, arguments.processes, *views)
    print((folder / ablation.MARKDOWN_NAME).read_text(encoding="utf-8"))
    print(f"written to {folder}")


def run_controls(arguments: argparse.Namespace) -> None:
    """Runs VKD with its controls over several seeds and prints the report."""
    config = load_config(arguments.config_file, arguments.options, imports=arguments.imports)
    logging.basicConfig(level=logging.WARNING)
    folder = measure_controls(config, arguments.seeds, arguments.processes)
    print((folder / set_controls.MARKDOWN_NAME).read_text(encoding="utf-8"))
    print(f"written to {folder}")


def show_distillation(arguments: argparse.Namespace) -> None:
    """Prints the cost of a step of view distillation and of its parts."""
    views = (arguments.views, arguments.student_views)
    cost = benchmark_sets.measure_distillation(
        arguments.backbone, arguments.sets, views, tuple(arguments.size), arguments.rounds, arguments.gpu
    )
    size = "x".join(map(str, arguments.size))
    print(f"{arguments.backbone}, {arguments.sets} sets of {views[0]} and {views[1]} views at {size}, ", end="")
    print(f"{torch.get_num_threads()} threads, median of {arguments.rounds}")
    rows = [
        (f"teacher's forward pass, {views[0]} views", f"{cost.teacher_ms:.1f}"),
        (f"student's step, {views[1]} views", f"{cost.student_ms:.1f}"),
        ("step of distillation", f"{cost.step_ms:.1f}"),
        ("ratio to the sum of both", f"{cost.ratio:.3f}"),
    ]
    print(tabulate(rows, headers=("", "ms"), disable_numparse=True, colalign=("left", "right")))


def show_latency(arguments: argparse.Namespace) -> None:
    """Prints the latency of a run's networks and stock models, and writes table and picture into the run's folder."""
    ways = [(batch, count) for batch in arguments.batch for count in arguments.measured_threads]
    settings = [Setting(backend, *way) for backend in arguments.backends for way in ways]
    rows = measure_run(arguments.folder, settings, arguments.stock, arguments.device, arguments.rounds)
    write_latency(arguments.output or arguments.folder, rows, f"Latency of {Path(arguments.folder).name}")
    print(f"milliseconds on {arguments.device}, median / 95th percentile of {arguments.rounds}")
    print(latency_table(rows))
    print(f"written to {arguments.output or arguments.folder}")


def run_fleet(arguments: argparse.Namespace) -> None:
    """Prints the mAP of every pair of a run's networks, and writes table and picture into the run's folder."""
    fleets = fleet.measure_fleet(arguments.folder)
    folder = Path(arguments.output or arguments.folder)
    fleet.write_fleet(folder, fleets, Path(arguments.folder).name)
    print((folder / fleet.MARKDOWN_NAME).read_text(encoding="utf-8"))
    print(f"written to {folder}")


def show_rank(arguments: argparse.Namespace) -> None:
    """Prints the cost of ranking against torchreid's, and of a large gallery."""
    market, msmt = benchmark_rank.MARKET1501, benchmark_rank.MSMT17
    rows = []
    if not arguments.no_large:
        rows.append((msmt, benchmark_rank.measure_memory(msmt)))
    if arguments.rerank:
        rows.append((market, benchmark_rank.measure_memory(market, rerank=True)))
    theirs, ours, ordering = benchmark_rank.compare_with_torchreid(market)
    rows += [(market, cost) for cost in (theirs, ours, ordering)]
    table = [
        (
            f"{size.queries:,} x {size.gallery:,}",
            cost.name,
            f"{cost.seconds:.2f}",
            f"{cost.extra_bytes / MEGABYTE:.0f}" if cost.extra_bytes else "-",
            f"{100 * cost.mean_ap:.4f}" if cost.mean_ap else "-",
            f"{100 * cost.rank1:.4f}" if cost.rank1 else "-",
        )
        for size, cost in rows
    ]
    print(f"ranking, {torch.get_num_threads()} threads")
    headers = ("queries x gallery", "way", "s", "extra MB", "mAP", "rank-1")
    print(tabulate(table, headers=headers, disable_numparse=True, stralign="right"))
    print(f"{theirs.seconds / ours.seconds:.0f} times as fast as torchreid's Python evaluation")


def show_untrained(arguments: argparse.Namespace) -> None:
    """Prints the mAP of students as they are expanded, by choice of statistics and distance."""
    config = load_config(arguments.config_file, arguments.options, {"data.root": arguments.root}, arguments.imports)
    table = untrained_table(config, WeightChain.load(arguments.chain), arguments.students, arguments.batches)
    print(f"mAP in % on {config.data.targets[0]}, before any fine-tuning")
    print(table)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of all subcommands; `run` is the chosen one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, help="threads of torch (default: its own choice)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_training_costs(commands)
    _add_deployment_costs(commands)
    _add_accuracies(commands)
    return parse_with_imports(parser, arguments)


def _add_training_costs(commands: "argparse._SubParsersAction") -> None:
    refine = commands.add_parser("refine", help="one refinement step against one teacher-only step")
    refine.add_argument("--planes", type=int, nargs="+", choices=(8, 16, 32, 64), default=[8, 16, 32], help="chains")
    refine.add_argument(
        "--method",
        nargs="+",
        choices=benchmark.METHODS[1:],
        default=["paper"],
        help="paper (default); nested; level: a level besides; first: all learn from the first teacher",
    )
    refine.add_argument("--batch", type=positive, nargs="+", default=[8], help="batch sizes (default: 8)")
    refine.add_argument("--size", type=positive, nargs=2, default=[256, 128], metavar=("H", "W"), help="image size")
    refine.add_argument("--rounds", type=positive, default=7, help="timed steps of each kind (default: 7)")
    refine.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    refine.set_defaults(run=show_refine)
    views = commands.add_parser("views", help="drawing the sets of a batch, against a scan of the data set")
    views.add_argument("--sets", type=positive, default=32, help="sets in a batch (default: 32, 8 identities x 4)")
    views.add_argument("--views", type=positive, default=8, help="frames of a set (default: 8)")
    views.add_argument("--rounds", type=positive, default=30, help="timed batches (default: 30)")
    views.set_defaults(run=show_views)
    vkd = commands.add_parser("vkd", help="one step of view distillation against its parts")
    vkd.add_argument("--backbone", default="osnet_x0_25", help="of teacher and student (default: osnet_x0_25)")
    vkd.add_argument("--sets", type=positive, default=16, help="sets in a batch, 4 of an identity (default: 16)")
    vkd.add_argument("--views", type=positive, default=8, help="frames of a set, for the teacher (default: 8)")
    vkd.add_argument("--student-views", type=positive, default=2, help="of these, for the student (default: 2)")
    vkd.add_argument("--size", type=positive, nargs=2, default=[128, 64], metavar=("H", "W"), help="image size")
    vkd.add_argument("--rounds", type=positive, default=15, help="timed steps of each kind (default: 15)")
    vkd.add_argument("--gpu", action="store_true", help="run on the GPU where there is one")
    vkd.set_defaults(run=show_distillation)


def _add_deployment_costs(commands: "argparse._SubParsersAction") -> None:
    expand = commands.add_parser("expand", help="ResNet-50 S1-S6 from loaded chains")
    expand.add_argument("--rounds", type=positive, default=15, help="timed expansions of each (default: 15)")
    expand.add_argument("--all", action="store_true", help="every backbone, at half its width")
    expand.add_argument("--names", nargs="+", help="these students alone, or with --all these backbones")
    expand.set_defaults(run=show_expand)
    latency = commands.add_parser("latency", help="a run's networks and stock models, by backend, batch and threads")
    latency.add_argument("folder", help="that tools/main.py wrote")
    latency.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all")
    latency.add_argument("--batch", type=positive, nargs="+", default=[1, 16], help="images (default: 1 16)")
    latency.add_argument(
        "--threads", dest="measured_threads", type=positive, nargs="+", default=[1, 2], help="default: 1 2"
    )
    latency.add_argument("--device", default="cpu", choices=DEVICES, help="default: cpu")
    latency.add_argument("--stock", nargs="*", metavar="NAME", help="stock models (default: of the same family)")
    latency.add_argument("--rounds", type=positive, default=15, help="timed batches of each kind (default: 15)")
    latency.add_argument("--output", default="", help="folder for table and picture (default: the run's)")
    latency.set_defaults(run=show_latency)
    mixed = commands.add_parser("fleet", help="queries of every width of a run against galleries of every other")
    mixed.add_argument("folder", help="that tools/main.py wrote")
    mixed.add_argument("--output", default="", help="folder for table and picture (default: the run's)")
    mixed.set_defaults(run=run_fleet)
    ranked = commands.add_parser("rank", help="evaluation at the sizes of Market-1501 and MSMT17")
    ranked.add_argument("--no-large", action="store_true", help="leave out the size of MSMT17")
    ranked.add_argument("--rerank", action="store_true", help="also k-reciprocal re-ranking at Market-1501's size")
    ranked.set_defaults(run=show_rank)


def _add_accuracies(commands: "argparse._SubParsersAction") -> None:
    accuracy = commands.add_parser("accuracy", help="the chain against baselines, over seeds; resumes where it stopped")
    accuracy.add_argument("--config-file", required=True, help="YAML with a comparison node")
    accuracy.add_argument("--processes", type=positive, default=1, help="runs at a time, of one thread each")
    accuracy.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    accuracy.set_defaults(run=run_accuracy)
    terms = commands.add_parser(
        "vkd-ablation", help="students of VKD with single terms left out; resumes where it stopped"
    )
    terms.add_argument("--config-file", required=True, help="YAML of a run of VKD")
    terms.add_argument("--terms", nargs="+", choices=list(TERMS), default=list(TERMS), help="(default: all)")
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
    untrained = commands.add_parser("untrained", help="mAP of a chain's students before any fine-tuning")
    untrained.add_argument("chain", help="file that WeightChain.save or tools/main.py wrote")
    untrained.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    untrained.add_argument("--config-file", default="", help="of the run: its data and its test settings")
    untrained.add_argument("--root", default="", help="folder that holds the data sets")
    untrained.add_argument("--students", nargs="+", default=["width=0.5", "width=0.75"], help="as in oskt.students")
    untrained.add_argument("--batches", type=positive, default=24, help="for recalibration (default: 24)")
    untrained.set_defaults(run=show_untrained)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parsed = parse_arguments(arguments)
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    try:
        import_user_code(parsed.imports)
        parsed.run(parsed)
    except OsktError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
