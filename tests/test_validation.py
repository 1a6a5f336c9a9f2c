"""Validation on held-out training identities: who is held out, and what a run then sees."""

import pytest
from test_fewshot import ITEMS, configured, people

from oskt_torchreid.datasets.manager import build_datamanager
from oskt_torchreid.datasets.stand_in import make_stand_in
from oskt_torchreid.datasets.validation import hold_out, validation_dataset
from oskt_torchreid.errors import ConfigError, DataError

TWO_CAMERAS = [
    (f"{name}{camera}{view}.jpg", label, camera)
    for label, name in enumerate("dcab")
    for camera in range(2)
    for view in range(3)
]


def test_held_out_identities_become_query_and_gallery():
    train, query, gallery = hold_out(TWO_CAMERAS, 0.5, seed=0)
    assert people(train).isdisjoint(people(query)) and people(query) == people(gallery)
    assert people(train) | people(query) == set("abcd") and len(people(train)) == 2
    assert {label for _, label, _ in train} == {0, 1}
    assert sorted(path for path, *_ in query) == sorted(
        f"{name}{camera}0.jpg" for name in people(query) for camera in "01"
    )
    assert len(gallery) == 2 * 2 * 2 and len(train) + len(query) + len(gallery) == len(TWO_CAMERAS)
    assert hold_out(list(reversed(TWO_CAMERAS)), 0.5, 0)[1] == query, "the order of the list does not matter"


def test_other_seeds_hold_out_others():
    assert len({frozenset(people(hold_out(TWO_CAMERAS, 0.5, seed)[1])) for seed in range(20)}) > 2


def test_one_picture_each_leaves_no_gallery():
    with pytest.raises(DataError, match="validation.share 0.5 holds out 4 pictures that leave no gallery"):
        hold_out(ITEMS, 0.5, 0)  # two pictures of each, at two cameras


def test_a_run_sees_no_picture_of_the_test_set(tmp_path):
    make_stand_in(tmp_path, "market1501", identities=16)
    whole = build_datamanager(configured(tmp_path, "market1501"))
    manager = build_datamanager(configured(tmp_path, "market1501", "validation.share=0.75"))
    test_set = {path for part in whole.test_dataset["market1501"].values() for path, *_ in part}
    ((name, parts),) = manager.test_dataset.items()
    seen = {path for part in parts.values() for path, *_ in part}
    assert name == "market1501-validation-0.75-0" and seen and seen.isdisjoint(test_set)
    trained = {path for path, *_ in manager.train_loader.dataset.train}
    assert manager.num_train_pids == 4 and trained.isdisjoint(seen)
    assert trained | seen == {path for path, *_ in whole.train_loader.dataset.train}


def test_nothing_is_held_out_by_default(tmp_path):
    assert validation_dataset("market1501", 0, 0) == "market1501"
    with pytest.raises(ConfigError, match="validation.share is 1.0; allowed: 0 to 0.9"):
        configured(tmp_path, "market1501", "validation.share=1.0")
