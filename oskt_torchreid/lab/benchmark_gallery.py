"""The costs of a gallery that all widths share: ranking it, beside faiss, and lifting a feature."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..chain.chain import WeightChain
from ..chain.expansion import expand
from ..chain.network import trace
from ..deploy.deployment import Deployed
from ..deploy.gallery import rank
from ..deploy.lifting import lifting_of_student
from ..deploy.onnx_format import to_onnx
from ..deploy.runtimes import run_onnx
from ..host import models
from .benchmark import in_fresh_process, process_memory

QUERIES, GALLERY, LENGTH, MOST = 1_000, 100_000, 512, 10
CLASSES = 1


class GalleryCost(NamedTuple):
    """Seconds of ranking, the memory that it took besides both sides, and how many first places are faiss' own."""

    name: str
    seconds: float
    extra_bytes: int
    agreeing: float | None = None


class LiftingCost(NamedTuple):
    """Median milliseconds of one image with a student's own feature and with the lifted one."""

    own_ms: float
    lifted_ms: float

    @property
    def share(self) -> float:
        """What lifting adds, as a share."""
        return self.lifted_ms / self.own_ms - 1


def measure_gallery(queries: int = QUERIES, gallery: int = GALLERY, length: int = LENGTH) -> list[GalleryCost]:
    """Ranks random features in separate processes, by `oskt.rank` and, where it is installed, by faiss' flat index.

    Args:
        queries: how many.
        gallery: how many entries.
        length: of a feature.
    """
    shape = (queries, gallery, length, torch.get_num_threads())
    ours, places = in_fresh_process(_ours, *shape)
    if importlib.util.find_spec("faiss") is None:
        return [ours]
    theirs, other = in_fresh_process(_faiss, *shape)
    return [ours._replace(agreeing=float((places == other).mean())), theirs]


def _sides(queries: int, gallery: int, length: int, threads: int) -> tuple[Tensor, Tensor]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(count, length, generator=generator) for count in (queries, gallery)]
    return sides[0], sides[1]


def _timed(name: str, action: Callable[[], np.ndarray]) -> tuple[GalleryCost, np.ndarray]:
    before, start = process_memory("VmRSS"), time.perf_counter()
    places = action()
    return GalleryCost(name, time.perf_counter() - start, max(0, process_memory("VmHWM") - before)), places


def _ours(queries: int, gallery: int, length: int, threads: int) -> tuple[GalleryCost, np.ndarray]:
    asked, pool = _sides(queries, gallery, length, threads)
    return _timed("oskt.rank", lambda: rank(asked, pool, most=MOST).places[:, 0].numpy())


def _faiss(queries: int, gallery: int, length: int, threads: int) -> tuple[GalleryCost, np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(threads)
    asked, pool = (nn.functional.normalize(side).numpy() for side in _sides(queries, gallery, length, threads))

    def search() -> np.ndarray:
        index = faiss.IndexFlatIP(length)
        index.add(pool)
        return index.search(asked, MOST)[1][:, 0]

    return _timed("faiss, flat index", search)


def measure_lifting(name: str = "osnet_x1_0", width: float = 0.5, rounds: int = 50) -> LiftingCost:
    """Times a student in ONNX Runtime with its own feature and with a lifted one, one image at a time, in turns.

    Args:
        name: registered name of the teacher, with initial weights.
        width: of the student.
        rounds: images of each kind.
    """
    model = models.build(name, CLASSES).eval()
    size = models.input_size(name)
    chain = WeightChain.from_teacher(model, width, graph=trace(model, size))
    student = expand(chain, width)
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    networks = (Deployed(student), Deployed(student, lifting=lifting_of_student(student)))
    runs = [run_onnx(to_onnx(network, images).SerializeToString(), torch.get_num_threads()) for network in networks]
    one, times = images[:1].numpy(), np.zeros((rounds + 3, len(runs)))
    for row in times:
        for place, run in enumerate(runs):
            start = time.perf_counter()
            run(one)
            row[place] = 1e3 * (time.perf_counter() - start)
    own, whole = np.median(times[3:], axis=0)
    return LiftingCost(float(own), float(whole))
