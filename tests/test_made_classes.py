"""Objects of classes that functions make reach other processes, also where these do not inherit what was imported."""

import copy
import io
import pickle
from abc import ABC

import pytest
import torch
from test_crops import people
from torch.utils.data import DataLoader

from oskt_torchreid.datasets import crops, synthped
from oskt_torchreid.datasets.fewshot import few_shot_dataset
from oskt_torchreid.datasets.synthetic import preset
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.data import dataset_class
from oskt_torchreid.host.pictures import install_reader
from oskt_torchreid.made_classes import Made, made_kind


def sent(value):
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def folder(tmp_path):
    """A folder of crops that the data set `crops` has."""
    crops.configure(crops.CropSettings(str(people(tmp_path / "crops"))))
    return tmp_path


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_folder_of_crops_and_a_part_of_it(folder, kind):
    for name in ("crops", few_shot_dataset("crops", 0.5, 1, kind)):
        dataset = dataset_class(name, kind)(root=str(folder), transform=len)
        again = sent(dataset)
        assert (again.train, again.query, again.gallery) == (dataset.train, dataset.query, dataset.gallery)
        assert isinstance(again, crops.Crops if kind == "image" else crops.CropTracklets)
        assert type(copy.copy(dataset)) is type(dataset) is type(copy.deepcopy(dataset)), "here nothing is made anew"


def test_drawn_people(tmp_path):
    synthped.configure(preset("quick", train_identities=4, test_identities=10, height=32, width=16))
    dataset = dataset_class("synthped", "image")(root=str(tmp_path))
    again = sent(dataset)
    assert again.train == dataset.train and again.settings == dataset.settings
    assert again[0]["img"].tobytes() == dataset[0]["img"].tobytes()


@pytest.mark.slow
def test_a_worker_that_begins_afresh(folder):
    dataset = dataset_class("crops", "image")(root=str(folder))
    ways = {"num_workers": 1, "multiprocessing_context": "spawn", "worker_init_fn": install_reader}
    loader = DataLoader(dataset, 2, collate_fn=as_they_are, **ways)
    batch = next(iter(loader))
    assert [item["pid"] for item in batch] == [identity for _, identity, *_ in dataset.train[:2]]


def as_they_are(items):
    return items


def test_a_network_whose_last_relu_was_taken_out():
    model = models.build("vkd_resnet18", 3, "triplet").eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images = torch.randn(2, 1, 3, 32, 16)
    with torch.no_grad():
        features = model(images)
        assert torch.equal(again(images), features) and (features < 0).any(), "no ReLU at its end"
    assert str(again) == str(model)


class Own(torchreid.data.ImageDataset, ABC):
    """A user's class with a metaclass of its own."""


def test_other_metaclasses_stay():
    assert made_kind(Own) is type(Own) and made_kind(torchreid.data.ImageDataset) is Made


Base = Made("Base", (), {"made_by": (dict, ())})


class Derived(Base):
    """A class in a module, derived from a made one: it is found by its name."""


def test_classes_of_modules_are_found_by_their_names():
    assert sent(Derived) is Derived
