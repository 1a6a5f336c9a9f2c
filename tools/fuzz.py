"""Damages files in many ways and has everything read them that reads files.

python tools/fuzz.py --cases 1000
python tools/fuzz.py --cases 1 --first 417      one case of these again

Every case must end in a typed error, or in what the whole file gives where the damage changes nothing that matters. A
crash, a hang, code of a file that was run, a network that was filled in part, or memory beyond the limit is a failure.
"""

import argparse
import faulthandler
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oskt_torchreid.report.benchmark import process_memory  # noqa: E402
from oskt_torchreid.zoo.fuzzing import READERS, Case, case_text, reader, run_case  # noqa: E402

BATCH = 250  # cases of one process


def prepare(memory: int) -> None:
    """Limits what a process can take, beyond what it has once every reader is ready, to some MB."""
    faulthandler.enable()
    torch.set_num_threads(1)
    for name in READERS:
        reader(name)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_batch(numbers: list[int], seed: int) -> tuple[list[Case], int]:
    """The cases, and by how many bytes their peak exceeded what the process had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = process_memory("VmRSS")
    cases = [run_case(number, seed) for number in numbers]
    return cases, process_memory("VmHWM") - before


def run_cases(numbers: list[int], seed: int, memory: int) -> Iterator[tuple[list[Case], int]]:
    """Batches, each in a process of its own; the cases of one that ended early one by one."""
    context = multiprocessing.get_context("spawn")
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        try:
            with ProcessPoolExecutor(1, context, prepare, (memory,)) as pool:
                yield pool.submit(run_batch, batch, seed).result()
        except BrokenProcessPool:
            if len(batch) == 1:
                yield [Case(batch[0], "?", "?", "crash", "the process ended")], 0
            else:
                for number in batch:
                    yield from run_cases([number], seed, memory)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="another seed damages other places")
    parser.add_argument("--memory", type=int, default=1024, help="MB that reading may take (default: 1024)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if a case failed."""
    parsed = parse_arguments(arguments)
    numbers = list(range(parsed.first, parsed.first + parsed.cases))
    start, cases, peak = time.perf_counter(), [], 0
    with tqdm(total=len(numbers), disable=None, unit="file") as bar:
        for batch, extra in run_cases(numbers, parsed.seed, parsed.memory):
            cases += batch
            peak = max(peak, extra)
            bar.update(len(batch))
    failed = [case for case in cases if case.failure]
    counts = Counter((case.reader, case.outcome if not case.failure else "FAILED") for case in cases)
    outcomes = sorted({outcome for _, outcome in counts})
    names = sorted({case.reader for case in cases})
    rows = [(name, *(counts[name, outcome] for outcome in outcomes)) for name in names]
    print(tabulate(rows, headers=("reader", *outcomes)))
    seconds = time.perf_counter() - start
    print(f"{len(cases)} damaged files, {len(failed)} failures, {seconds:.0f} s, {peak / 2**20:.0f} MB more at most")
    for case in failed:
        print(case_text(case))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
