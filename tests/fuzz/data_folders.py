"""Data folders in Market-1501's layout, damaged at random, and runs on them."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from oskt_torchreid.config import load_config
from oskt_torchreid.runs import run, run_dry

from .runs import NETWORK, Case, outcome_of, ready

PARTS = ("bounding_box_train", "query", "bounding_box_test")
FOLDER = Path("market1501") / "Market-1501-v15.09.15"
BASE = [
    f"model.name={NETWORK}",
    "model.pretrained=False",
    "data.height=32",
    "data.width=16",
    "train.max_epoch=1",
    "train.batch_size=4",
    "test.batch_size=16",
    "use_gpu=False",
]
OSKT = [
    *("engine=oskt", "oskt.width=0.5", "oskt.students=['width=0.5']", "oskt.recalibrate=1"),
    *("oskt.refine.max_epoch=1", "oskt.refine.batch_size=4", "oskt.finetune.max_epoch=1", "oskt.finetune.batch_size=4"),
]
IDENTITY = ["sampler.train_sampler=RandomIdentitySampler", "sampler.num_instances=2"]
VKD = [
    *("engine=vkd", "loss.name=triplet", "loss.triplet.weight_x=1.0", "sampler.num_instances=2", "vkd.num_views=2"),
    *("vkd.test_frames=2", "vkd.num_student_views=1", "vkd.teacher_stage.max_epoch=1", "vkd.student_stage.max_epoch=1"),
    *("vkd.teacher_stage.batch_size=4", "vkd.student_stage.batch_size=4"),
]
_OF_SETS = [word for word in BASE if not word.startswith("train.")]
RUNS: dict[str, list[str]] = {
    "softmax": [*BASE, "engine=softmax"],
    "triplet": [*BASE, *IDENTITY, "engine=triplet", "loss.name=triplet"],
    "evaluation": [*BASE, "engine=softmax", "test.evaluate=True", "test.rerank=True"],
    "oskt": [*BASE, *OSKT],
    "vkd": [*_OF_SETS, *VKD],
    "dry run": [*BASE, "engine=softmax"],
}
"""Ways to use a data folder."""


@cache
def pictures() -> dict[str, bytes]:
    """Path and bytes of a whole set: 6 people to train on, 4 others to test, 2 cameras."""
    random, found = np.random.default_rng(0), {}
    views = {PARTS[0]: (range(1, 7), 2), PARTS[1]: (range(11, 15), 1), PARTS[2]: (range(11, 15), 2)}
    for part, (identities, count) in views.items():
        for identity in identities:
            for camera in (1, 2):
                for number in range(count):
                    pixels = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                    stream = io.BytesIO()
                    Image.fromarray(pixels).save(stream, "JPEG")
                    found[f"{part}/{identity:04d}_c{camera}s1_{number:06d}_00.jpg"] = stream.getvalue()
    return found


def run_case(number: int, seed: int = 0) -> Case:
    """Damages a data folder in one to three ways, and runs something on it."""
    ready()
    random = Random(f"data/{seed}/{number}")
    way = random.choice(sorted(RUNS))
    chosen = random.choices(sorted(DAMAGES), k=random.choice((1, 1, 2, 3)))
    options = [f"data.check={random.choice(('headers', 'all', 'none'))}", f"data.workers={random.choice((0, 0, 0, 2))}"]
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        folder = root / FOLDER
        for path, content in pictures().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        for name in chosen:
            with contextlib.suppress(OSError):  # what an earlier damage took away cannot be damaged again
                DAMAGES[name](folder, random)
        places = [f"data.root={root}", f"data.save_dir={root / 'run'}"]
        config = load_config(options=[*RUNS[way], *options, *places])
        outcome, failure = outcome_of(lambda: run_dry(config) if way == "dry run" else run(config))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Case(number, f"{way}, {', '.join(options)}: {', '.join(chosen)}", outcome, failure)


# ---- damages ---------------------------------------------------------------------------------------------------------

Damage = Callable[[Path, Random], None]
DAMAGES: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    """Adds a damage under the name of its function."""
    DAMAGES[function.__name__.replace("_", " ")] = function
    return function


def _any(folder: Path, random: Random) -> Path | None:
    """Some picture that is still there."""
    found = sorted(path for part in PARTS for path in (folder / part).glob("*") if path.is_file())
    return random.choice(found) if found else None


def _rewritten(make: Callable[[bytes, Random], bytes]) -> Damage:
    """A damage of the bytes of some picture."""

    def change(folder: Path, random: Random) -> None:
        if (path := _any(folder, random)) is not None:
            path.write_bytes(make(path.read_bytes(), random))

    return change


def _saved(mode: str, kind: str, size: tuple[int, int] = (16, 32)) -> Damage:
    """Some picture as another kind of picture, under its name."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return _rewritten(lambda content, random: stream.getvalue())


def _renamed(make: Callable[[str, Random], str]) -> Damage:
    """Another name of some picture."""

    def change(folder: Path, random: Random) -> None:
        path = _any(folder, random)
        if path is not None:
            target = path.with_name(make(path.name, random))
            if not target.exists():
                path.rename(target)

    return change


def _bomb(content: bytes, random: Random) -> bytes:
    """A picture that claims to be far larger than its file."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    head = bytearray(stream.getvalue())
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    return bytes(head)


DAMAGES |= {
    "empty file": _rewritten(lambda content, random: b""),
    "cut short": _rewritten(lambda content, random: content[: random.randrange(len(content) or 1)]),
    "web page": _rewritten(lambda content, random: b"<!DOCTYPE html><html><body>404</body></html>"),
    "noise": _rewritten(lambda content, random: random.randbytes(500)),
    "flipped bytes": _rewritten(lambda content, random: bytes(b ^ (random.random() < 0.02) for b in content)),
    "bomb": _rewritten(_bomb),
    "one pixel": _saved("RGB", "JPEG", (1, 1)),
    "grey": _saved("L", "JPEG"),
    "four inks": _saved("CMYK", "JPEG"),
    "palette": _saved("P", "PNG"),
    "transparent": _saved("RGBA", "PNG"),
    "deep": _saved("I;16", "PNG"),
    "gif": _saved("P", "GIF"),
    "wide": _saved("RGB", "JPEG", (3000, 2)),
    "copy": _renamed(lambda name, random: "copy.jpg"),
    "no camera": _renamed(lambda name, random: name.partition("_")[0] + ".jpg"),
    "camera 12": _renamed(lambda name, random: name.replace("_c1", "_c12").replace("_c2", "_c12")),
    "camera 0": _renamed(lambda name, random: name.replace("_c1", "_c0").replace("_c2", "_c0")),
    "identity 1600": _renamed(lambda name, random: "1600" + name[4:]),
    "long identity": _renamed(lambda name, random: "9" * random.choice((9, 12, 25)) + name[4:]),
    "junk": _renamed(lambda name, random: "-1" + name[4:]),
    "background": _renamed(lambda name, random: "0000" + name[4:]),
    "other letters": _renamed(lambda name, random: name.replace(".jpg", " ü 図.jpg")),
    "upper case": _renamed(lambda name, random: name.replace(".jpg", ".JPG")),
    "png": _renamed(lambda name, random: name.replace(".jpg", ".png")),
    "text": _renamed(lambda name, random: name.replace(".jpg", ".txt")),
    "hidden": _renamed(lambda name, random: f"._{name}"),
    "two lines": _renamed(lambda name, random: name.replace("s1_", "s1\n_")),
}


@damage
def folder_instead_of_a_picture(folder: Path, random: Random) -> None:
    if (path := _any(folder, random)) is not None:
        path.unlink()
        path.mkdir()


@damage
def link_to_nothing(folder: Path, random: Random) -> None:
    if (path := _any(folder, random)) is not None:
        path.unlink()
        path.symlink_to(random.choice((path, folder / "nowhere.jpg")))


@damage
def pipe(folder: Path, random: Random) -> None:
    """A file that is never written to: opening it blocks."""
    if (path := _any(folder, random)) is not None:
        path.unlink()
        os.mkfifo(path)


@damage
def a_part_is_gone(folder: Path, random: Random) -> None:
    shutil.rmtree(folder / random.choice(PARTS), ignore_errors=True)


@damage
def a_part_is_empty(folder: Path, random: Random) -> None:
    part = folder / random.choice(PARTS)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(exist_ok=True)


@damage
def a_part_is_a_file(folder: Path, random: Random) -> None:
    part = folder / random.choice(PARTS)
    shutil.rmtree(part, ignore_errors=True)
    if not part.exists():
        part.write_bytes(b"x")


@damage
def all_is_gone(folder: Path, random: Random) -> None:
    shutil.rmtree(random.choice((folder, folder.parent)), ignore_errors=True)


@damage
def few_pictures(folder: Path, random: Random) -> None:
    """Of a part only some are left."""
    found = sorted((folder / random.choice(PARTS)).glob("*"))
    for path in random.sample(found, max(0, len(found) - random.randrange(1, 5))):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@damage
def one_camera(folder: Path, random: Random) -> None:
    """Everything was taken by one camera, so that no query has a match."""
    for path in sorted(folder.rglob("*_c2*")):
        path.rename(path.with_name(path.name.replace("_c2", "_c1").replace("s1_", "s2_")))


@damage
def one_person(folder: Path, random: Random) -> None:
    for path in sorted((folder / PARTS[0]).glob("*_c*")):
        target = path.with_name("0001" + path.name[4:].replace("s1_", f"s{path.name[3]}_"))
        if not target.exists():
            path.rename(target)


@damage
def strangers_in_the_query(folder: Path, random: Random) -> None:
    for path in sorted((folder / PARTS[1]).glob("0*_c*")):
        path.rename(path.with_name("09" + path.name[2:]))


@damage
def folders_within(folder: Path, random: Random) -> None:
    """Pictures lie one folder deeper, by identity, as other sets have them."""
    part = folder / random.choice(PARTS)
    for path in sorted(part.glob("*.jpg")):
        if path.is_file():
            (part / path.name[:4]).mkdir(exist_ok=True)
            path.rename(part / path.name[:4] / path.name)
