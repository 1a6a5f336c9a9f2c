"""Everything that reads a file, given damaged ones: each must give a typed error, or what it would give otherwise."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from oskt_torchreid import files
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand
from oskt_torchreid.chain.student_file import save_student
from oskt_torchreid.chain.student_reading import load_student
from oskt_torchreid.errors import OsktError
from oskt_torchreid.files import weights
from oskt_torchreid.graph import rebuild
from oskt_torchreid.host import models
from oskt_torchreid.models import NeckModel, VisionTransformer
from oskt_torchreid.zoo import vkd_format
from oskt_torchreid.zoo.official import load_official_oskt, save_official

from . import damage

IMAGE = (3, 32, 16)
SECONDS = 60
Made = tuple[dict[str, bytes], Callable[[Path], object]]
LOADED = "loaded"
_MOBILENET = "mobilenet"


class Hang(BaseException):
    """What was not done after `SECONDS`; no handler of ordinary exceptions takes it."""


@dataclass(frozen=True)
class Reader:
    """One thing that reads files.

    Attributes:
        name: for reports.
        content: bytes per path in a folder.
        read: called with the folder; what it returns was read, and is in use.
    """

    name: str
    content: dict[str, bytes]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """What became of one damaged file.

    Attributes:
        number: gives the same case again.
        reader: name of what read it.
        damage: name of what was done to it.
        outcome: name of a typed error, or `loaded`.
        failure: what must not happen, in words; empty if it did not.
    """

    number: int
    reader: str
    damage: str
    outcome: str
    failure: str = ""


# ---- readers ---------------------------------------------------------------------------------------------------------


@cache
def reader(name: str) -> Reader:
    """A reader of `READERS`, with small files that it reads."""
    with tempfile.TemporaryDirectory() as folder:
        content, read = READERS[name](Path(folder))
    return Reader(name, content, read)


def _network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval()


def _files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _chain(folder: Path) -> Made:
    network = _network()
    WeightChain.from_teacher(network, 0.5, IMAGE).save(folder / "chain.safetensors")

    def read(place: Path) -> object:
        return expand(WeightChain.load(place / "chain.safetensors", model=network), 1.0)

    return _files_in(folder), read


def _student(folder: Path) -> Made:
    network = _network()
    save_student(expand(WeightChain.from_teacher(network, 0.5, IMAGE), 0.75), folder / "student.pth")
    return _files_in(folder), lambda place: load_student(place / "student.pth", model=network)


def _checkpoint(folder: Path) -> Made:
    """A checkpoint as torchreid writes it, which goes into a network that must not change in part."""
    content = {"state_dict": _network().state_dict(), "epoch": 3, "rank1": np.float32(0.5), "optimizer": {"lr": [0.1]}}
    files.save_checkpoint(folder / "model.pth.tar-3", content)

    def read(place: Path) -> object:
        network = _network()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        try:
            weights.load_weights(network, place / "model.pth.tar-3")
        except OsktError:
            if not all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()):
                raise RuntimeError("a part of the file was loaded") from None
            raise
        return network

    return _files_in(folder), read


def _official_resnet(folder: Path) -> Made:
    stock = models.build("resnet50", 3, "triplet")
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(stock, stage, getattr(stock, stage)[:1])
    model = NeckModel(stock, 3, "triplet")
    narrow = {name: _narrowed(tensor) for name, tensor in model.state_dict().items()}
    teacher = rebuild(model, narrow).eval()
    save_official(WeightChain.from_teacher(teacher, 0.5, IMAGE), folder, teacher)
    return _files_in(folder), load_official_oskt


def _narrowed(tensor: Tensor) -> Tensor:
    """A sixteenth of every long axis, with finite values."""
    shape = [length // 16 if length >= 64 else length for length in tensor.shape]
    return torch.rand(shape) + 0.5 if tensor.is_floating_point() else tensor


def _official_vit(folder: Path) -> Made:
    torch.manual_seed(0)
    teacher = VisionTransformer(3, "triplet", embed_dim=12, depth=1, num_heads=3, image_size=(64, 32)).eval()
    save_official(WeightChain.from_teacher(teacher, 0.5, input_size=(3, 64, 32)), folder, teacher)
    return _files_in(folder), load_official_oskt


def _official_vkd(folder: Path) -> Made:
    torch.manual_seed(0)
    model = vkd_format.make_network(_MOBILENET, 3, "triplet")
    named = {vkd_format.official_name(name, model): tensor for name, tensor in model.state_dict().items()}
    named.pop("", None)  # what has no place in the format
    files.save_checkpoint(folder / vkd_format.CHECKPOINTS / "chk_end", named)
    files.write_json(folder / vkd_format.SETTINGS, {"backbone_type": _MOBILENET, "num_classes": 3})
    return _files_in(folder), vkd_format.load_official_vkd


# ---- cases -----------------------------------------------------------------------------------------------------------


def run_case(number: int, seed: int = 0, only: Sequence[str] = ()) -> Case:
    """Damages a file and has it read.

    Args:
        number: of the case; with the seed it determines reader and damage.
        seed: of all cases.
        only: names of readers; empty: all.
    """
    random = Random(f"{seed}/{number}")
    torch.manual_seed(number)
    names = only or tuple(READERS)
    chosen = reader(names[number % len(names)])
    path = random.choice(sorted(chosen.content))
    damages = damages_of(path)
    name = random.choice(sorted(damages))
    outcome, failure = read_damaged(chosen, path, damages[name](chosen.content[path], random))
    return Case(number, chosen.name, name, outcome, failure)


def read_damaged(chosen: Reader, path: str, content: bytes) -> tuple[str, str]:
    """Has a reader read its files, one of which has another content; returns outcome and failure, see `Case`."""
    with tempfile.TemporaryDirectory() as place, _working_in(place):
        folder = Path(place) / "files"
        for other, whole in chosen.content.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content if other == path else whole)
        outcome, failure = _outcome(chosen, folder)
        if (Path(place) / damage.BOMB_FOLDER).exists():
            failure = "code of the file was run"
    return outcome, failure


def damages_of(path: str) -> dict[str, damage.Damage]:
    """What can be done to a file of this name."""
    kinds = {".safetensors": damage.SAFETENSORS, ".json": damage.JSON}
    return kinds.get(Path(path).suffix, damage.CHECKPOINT)


def _outcome(chosen: Reader, folder: Path) -> tuple[str, str]:
    """Name of the typed error, or that there was none; and what went wrong."""
    try:
        with timed():
            chosen.read(folder)
    except OsktError as error:
        return type(error).__name__, "" if str(error) else "an error without a message"
    except (Exception, Hang) as error:  # whatever it is, it is what is looked for here
        return type(error).__name__, f"{type(error).__name__}: {str(error)[:300]}"
    return LOADED, ""


@contextmanager
def timed() -> Iterator[None]:
    """Raises `Hang` in the block where it is not left after `SECONDS`."""

    def ring(*_: object) -> None:
        raise Hang(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _working_in(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


READERS = {
    "chain": _chain,
    "student": _student,
    "checkpoint": _checkpoint,
    "official ResNet": _official_resnet,
    "official ViT": _official_vit,
    "official VKD": _official_vkd,
}
