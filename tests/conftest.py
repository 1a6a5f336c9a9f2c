"""Settings and fixtures that every test shares."""

import gc
import os
import random
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_networks import TinyNet

import oskt_torchreid as oskt
from oskt_torchreid import registry
from oskt_torchreid.baselines import BASELINES
from oskt_torchreid.datasets import crops, synthped, synthped_video
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import host_table, torchreid

# Commands that a test starts import this checkout, whatever else is installed.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
# Small tensors run fastest on one thread, and single-threaded sums do not depend on the machine's core count.
torch.set_num_threads(1)
# At its first backward pass torch looks for devices. After an export it finds one, starts a thread for it, and no
# process that a test forks can train any more.
torch.ones(1, requires_grad=True).backward()

SYNTHETIC = (synthped, synthped_video)
REGISTER_DATA = {"image": torchreid.data.register_image_dataset, "video": torchreid.data.register_video_dataset}

# Looking for cycles among all imported objects again and again took 17 of 200 s.
gc.freeze()
gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers in every run, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals():
    """After every test Ctrl-C and SIGTERM do what they did: a command that has ended ignores both."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def registered_settings():
    """After every test data sets with settings are what they are at first, whatever a run configured."""
    yield
    crops.configure(crops.CropSettings())
    for module in SYNTHETIC:
        for variant, settings in module.VARIANTS.items():
            module.configure(settings, variant)


@pytest.fixture(scope="module")
def tiny_net():
    """The name of a registered backbone that trains in milliseconds, for what does not depend on the backbone."""
    factory = host_table(torchreid.models.build_model, "__model_factory")
    before = set(factory)
    oskt.register_backbone("tiny_net", TinyNet, input_size=(3, 32, 16))
    yield "tiny_net"
    for name in factory.keys() - before:
        del factory[name]


@pytest.fixture(autouse=True)
def registered_names():
    """Models, data sets, engines and baselines that a test registers end with it."""
    factory = host_table(torchreid.models.build_model, "__model_factory")
    data = (host_table(register, f"__{kind}_datasets") for kind, register in REGISTER_DATA.items())
    tables = [factory, *data, registry._ENGINES, BASELINES]
    before, names, calls = [set(table) for table in tables], list(registry._BASELINE_NAMES), registry.registrations()
    yield
    if factory.keys() != before[0]:
        models.skeleton.cache_clear()
    for table, known in zip(tables, before, strict=True):
        for name in table.keys() - known:
            del table[name]
    registry._BASELINE_NAMES[:], registry._REGISTRATIONS[:] = names, calls


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A data root for the tiny runs, which draw their pictures there once."""
    return tmp_path_factory.mktemp("data")


TRAIN_IDS, TEST_IDS, CAMERAS = 6, 6, 2
TRAIN_VIEWS, GALLERY_VIEWS = 2, 5  # images per identity and camera


@pytest.fixture(scope="session")
def market_root(tmp_path_factory) -> Path:
    """A data root with a tiny Market-1501: random pictures, and galleries long enough for torchreid's evaluation."""
    root = tmp_path_factory.mktemp("reid-data")
    folder = root / "market1501" / "Market-1501-v15.09.15"
    random = np.random.default_rng(0)
    train = range(1, TRAIN_IDS + 1)
    test = range(101, 101 + TEST_IDS)
    for name, ids, views in [
        ("bounding_box_train", train, TRAIN_VIEWS),
        ("query", test, 1),
        ("bounding_box_test", test, GALLERY_VIEWS),
    ]:
        (folder / name).mkdir(parents=True)
        for pid in ids:
            for camera in range(1, CAMERAS + 1):
                for view in range(views):
                    picture = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                    cv2.imwrite(str(folder / name / f"{pid:04d}_c{camera}s1_{view:06d}_00.jpg"), picture)
    return root
