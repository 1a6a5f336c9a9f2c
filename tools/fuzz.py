"""Damages users' input in many ways: files, folders of pictures, keys of runs.

python tools/fuzz.py --cases 1000
python tools/fuzz.py --cases 1 --first 417      one case of these again
python tools/fuzz.py --mode data --cases 300    damaged data folders, each followed by a run
python tools/fuzz.py --mode keys --cases 300    odd values of keys, each followed by a run

Every case must end in a typed error, or well where the damage changes nothing that matters. A crash, a raw traceback, a
hang, code of a file that was run, a network that was filled in part, or memory beyond the limit is a failure.
"""

import argparse
import dataclasses
import faulthandler
import json
import multiprocessing
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz import data_folders, files, keys  # noqa: E402

from oskt_torchreid.lab.benchmark import process_memory  # noqa: E402

BATCH = 250  # cases of one process
MODES = {"files": files.run_case, "data": data_folders.run_case, "keys": keys.run_case}
MEMORY = {"files": 1024, "data": 8192, "keys": 8192}  # MB


def prepare(mode: str, memory: int) -> None:
    """Limits the memory of a process to some MB beyond its memory after start."""
    faulthandler.enable()
    torch.set_num_threads(1)
    if mode == "files":
        for name in files.READERS:
            files.reader(name)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_batch(mode: str, numbers: list[int], seed: int) -> tuple[list[Any], int]:
    """The cases, and by how many bytes their peak exceeded what the process had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = process_memory("VmRSS")
    cases = [MODES[mode](number, seed) for number in numbers]
    return cases, process_memory("VmHWM") - before


def run_cases(mode: str, numbers: list[int], seed: int, memory: int) -> Iterator[tuple[list[Any], int]]:
    """Batches, each in a separate process; the cases of a batch that ended early are repeated one by one."""
    context = multiprocessing.get_context("spawn")
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        try:
            with ProcessPoolExecutor(1, context, prepare, (mode, memory)) as pool:
                yield pool.submit(run_batch, mode, batch, seed).result()
        except BrokenProcessPool:
            if len(batch) == 1:
                yield [files.Case(batch[0], "?", "?", "crash", "the process ended")], 0
            else:
                for number in batch:
                    yield from run_cases(mode, [number], seed, memory)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(MODES), default="files", help="what is damaged (default: files)")
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="another seed damages other places")
    parser.add_argument("--memory", type=int, default=0, help="MB that cases may take (default: 1024, of runs 8192)")
    return parser.parse_args(arguments)


def group_of(case: Any) -> str:
    """The reader of a file, or the kind of a run."""
    return case.reader if isinstance(case, files.Case) else re.split("[,:]", case.what)[0]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if a case failed."""
    parsed = parse_arguments(arguments)
    numbers = list(range(parsed.first, parsed.first + parsed.cases))
    start, cases, peak = time.perf_counter(), [], 0
    with tqdm(total=len(numbers), disable=None, unit="case") as bar:
        for batch, extra in run_cases(parsed.mode, numbers, parsed.seed, parsed.memory or MEMORY[parsed.mode]):
            cases += batch
            peak = max(peak, extra)
            bar.update(len(batch))
    failed = [case for case in cases if case.failure]
    counts = Counter((group_of(case), case.outcome if not case.failure else "FAILED") for case in cases)
    outcomes = sorted({outcome for _, outcome in counts})
    names = sorted({group_of(case) for case in cases})
    rows = [(name, *(counts[name, outcome] for outcome in outcomes)) for name in names]
    print(tabulate(rows, headers=("what", *outcomes)))
    seconds = time.perf_counter() - start
    print(f"{len(cases)} cases, {len(failed)} failures, {seconds:.0f} s, {peak / 2**20:.0f} MB more at most")
    for case in failed:
        print(json.dumps(dataclasses.asdict(case)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
