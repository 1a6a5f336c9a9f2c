"""What steps of training, students, drawing, ranking and a device's inference cost: commands of `oskt bench`."""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm.auto import tqdm

from ..cli import positive, say
from ..deploy.latency import BACKENDS, DEVICES
from ..lab import benchmark, benchmark_gallery, benchmark_rank, benchmark_sets, benchmark_views
from ..lab.latency import Setting, measure_run
from ..lab.latency_report import latency_table, write_latency
from ..models import backbone_names

MEGABYTE = 2**20


def add_costs(commands: "argparse._SubParsersAction") -> None:
    """Adds the commands that measure time and memory."""
    _add_training(commands)
    _add_deployment(commands)


def _add_training(commands: "argparse._SubParsersAction") -> None:
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


def _add_deployment(commands: "argparse._SubParsersAction") -> None:
    expand = commands.add_parser("expand", help="ResNet-50 S1-S6 from loaded chains")
    expand.add_argument("--rounds", type=positive, default=15, help="timed expansions of each (default: 15)")
    expand.add_argument("--all", action="store_true", help="every backbone, at half its width")
    expand.add_argument("--names", nargs="+", help="these students alone, or with --all these backbones")
    expand.set_defaults(run=show_expand)
    latency = commands.add_parser("latency", help="a run's networks and stock models, by backend, batch and threads")
    latency.add_argument("folder", help="that oskt run wrote")
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
    shared = commands.add_parser("gallery", help="ranking a large gallery of lifted features, and lifting one")
    shared.add_argument("--queries", type=positive, default=benchmark_gallery.QUERIES, help="default: 1000")
    shared.add_argument("--gallery", type=positive, default=benchmark_gallery.GALLERY, help="default: 100000")
    shared.add_argument("--length", type=positive, default=benchmark_gallery.LENGTH, help="of a feature (default: 512)")
    shared.add_argument("--backbone", default="osnet_x1_0", help="of the teacher (default: osnet_x1_0)")
    shared.add_argument("--rounds", type=positive, default=50, help="timed images of each kind (default: 50)")
    shared.set_defaults(run=show_gallery)
    ranked = commands.add_parser("rank", help="evaluation at the sizes of Market-1501 and MSMT17")
    ranked.add_argument("--no-large", action="store_true", help="leave out the size of MSMT17")
    ranked.add_argument("--rerank", action="store_true", help="also k-reciprocal re-ranking at Market-1501's size")
    ranked.set_defaults(run=show_rank)


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
    say(f"one training step of ResNet-50, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    say(tabulate(rows, headers=headers, disable_numparse=True, stralign="right"))


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
    say(f"expansion from a loaded chain, {torch.get_num_threads()} threads, median of {arguments.rounds}")
    say(tabulate(rows, headers=headers, disable_numparse=True, stralign="right"))
    if arguments.all:
        say(f"{sum(cost.expand_ms <= 100 for cost in costs)} of {len(costs)} take at most 100 ms")


def _expand_costs(arguments: argparse.Namespace) -> Iterable[benchmark.ExpandCost]:
    if not arguments.all:
        return benchmark.measure_expand(arguments.rounds, arguments.names or tuple(benchmark.SERIES))
    names = arguments.names or backbone_names()
    return tqdm(benchmark.measure_expand_all(arguments.rounds, names), total=len(names), disable=None, leave=False)


def show_views(arguments: argparse.Namespace) -> None:
    """Prints the cost of drawing the views of a batch on an index of the size of MARS."""
    build_ms, costs = benchmark_views.measure_draws(arguments.sets, arguments.views, arguments.rounds)
    size = f"{benchmark_views.MARS_TRACKLETS} tracklets of {benchmark_views.MARS_IDENTITIES} identities"
    say(f"{size}: index built in {build_ms:.1f} ms")
    say(f"{arguments.sets} sets of {arguments.views} views, median of {arguments.rounds}")
    rows = [(cost.name, f"{cost.draw_ms:.2f}") for cost in costs]
    say(tabulate(rows, headers=("strategy", "ms per batch"), disable_numparse=True, stralign="right"))


def show_distillation(arguments: argparse.Namespace) -> None:
    """Prints the cost of a step of view distillation and of its parts."""
    views = (arguments.views, arguments.student_views)
    cost = benchmark_sets.measure_distillation(
        arguments.backbone, arguments.sets, views, tuple(arguments.size), arguments.rounds, arguments.gpu
    )
    size = "x".join(map(str, arguments.size))
    say(f"{arguments.backbone}, {arguments.sets} sets of {views[0]} and {views[1]} views at {size}, ", end="")
    say(f"{torch.get_num_threads()} threads, median of {arguments.rounds}")
    rows = [
        (f"teacher's forward pass, {views[0]} views", f"{cost.teacher_ms:.1f}"),
        (f"student's step, {views[1]} views", f"{cost.student_ms:.1f}"),
        ("step of distillation", f"{cost.step_ms:.1f}"),
        ("ratio to the sum of both", f"{cost.ratio:.3f}"),
    ]
    say(tabulate(rows, headers=("", "ms"), disable_numparse=True, colalign=("left", "right")))


def show_latency(arguments: argparse.Namespace) -> None:
    """Prints the latency of a run's networks and stock models, and writes table and picture into the run's folder."""
    ways = [(batch, count) for batch in arguments.batch for count in arguments.measured_threads]
    settings = [Setting(backend, *way) for backend in arguments.backends for way in ways]
    rows = measure_run(arguments.folder, settings, arguments.stock, arguments.device, arguments.rounds)
    write_latency(arguments.output or arguments.folder, rows, f"Latency of {Path(arguments.folder).name}")
    say(f"milliseconds on {arguments.device}, median / 95th percentile of {arguments.rounds}")
    say(latency_table(rows))
    say(f"written to {arguments.output or arguments.folder}")


def show_gallery(arguments: argparse.Namespace) -> None:
    """Prints the cost of ranking a large gallery and of lifting a feature."""
    costs = benchmark_gallery.measure_gallery(arguments.queries, arguments.gallery, arguments.length)
    say(f"{arguments.queries:,} queries, {arguments.gallery:,} entries of {arguments.length}, ", end="")
    say(f"{torch.get_num_threads()} threads")
    rows = [
        (
            cost.name,
            f"{cost.seconds:.2f}",
            f"{cost.extra_bytes / MEGABYTE:.0f}",
            "-" if cost.agreeing is None else f"{100 * cost.agreeing:.1f}",
        )
        for cost in costs
    ]
    headers = ("way", "s", "extra MB", "first places as faiss' (%)")
    say(tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right", "right")))
    lifting = benchmark_gallery.measure_lifting(arguments.backbone, rounds=arguments.rounds)
    say(f"{arguments.backbone} at width 0.5, one image by ONNX Runtime: {lifting.own_ms:.2f} ms, ", end="")
    say(f"lifted {lifting.lifted_ms:.2f} ms ({100 * lifting.share:+.1f} %)")


def show_rank(arguments: argparse.Namespace) -> None:
    """Prints the cost of ranking against torchreid's, and of a large gallery."""
    market, msmt = benchmark_rank.MARKET1501_SIZE, benchmark_rank.MSMT17
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
    say(f"ranking, {torch.get_num_threads()} threads")
    headers = ("queries x gallery", "way", "s", "extra MB", "mAP", "rank-1")
    say(tabulate(table, headers=headers, disable_numparse=True, stralign="right"))
    say(f"{theirs.seconds / ours.seconds:.0f} times as fast as torchreid's Python evaluation")
