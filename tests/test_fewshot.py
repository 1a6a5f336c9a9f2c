"""Few-shot subsets: seeded, nested, defined by files, recorded; and transforms and protocols of the data manager."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode

from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import synthped
from oskt_torchreid.datasets.fewshot import few_identities, few_shot_dataset, save_list
from oskt_torchreid.datasets.manager import build_datamanager
from oskt_torchreid.datasets.stand_in import IMAGE_LAYOUTS, make_stand_in
from oskt_torchreid.datasets.synthetic import preset
from oskt_torchreid.datasets.transforms import pad_crop
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.data import dataset_class

ITEMS = [(f"{name}{view}.jpg", label, view) for label, name in enumerate("dcab") for view in range(2)]


def people(items):
    """Identities by the letter in their file names."""
    return {path[0] for path, *_ in items}


def configured(root, name, *options):
    settings = [
        f"data.sources=['{name}']",
        f"data.targets=['{name}']",
        "data.workers=0",
        "data.height=32",
        "data.width=16",
        "train.batch_size=8",
        "sampler.train_sampler=RandomIdentitySampler",
        "use_gpu=False",
    ]
    return load_config(options=[*settings, f"data.root={root}", *options])


@pytest.fixture(scope="module", params=IMAGE_LAYOUTS)
def stand_in(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    make_stand_in(root, request.param, identities=10)
    return root, request.param


# ---- subsets -------------------------------------------------------------------------------------------------------


def test_every_picture_of_a_kept_identity_stays_with_a_new_label():
    kept = few_identities(ITEMS, 0.5, seed=3)
    assert len(kept) == 4 and {item[1] for item in kept} == {0, 1}
    assert sorted(kept) == [(path, label, view) for path, label, view in sorted(kept) if path[0] in people(kept)]
    labels = {path[0]: label for path, label, _ in kept}
    assert labels[min(labels)] == 0, "labels follow the order of the files"


def test_the_seed_decides_and_labels_do_not():
    draws = [people(few_identities(ITEMS, 0.5, seed)) for seed in range(20)]
    assert people(few_identities(ITEMS, 0.5, 7)) == draws[7]
    assert len({frozenset(draw) for draw in draws}) > 3
    relabelled = [(path, 3 - label, view) for path, label, view in reversed(ITEMS)]
    for seed, draw in enumerate(draws):
        assert people(few_identities(relabelled, 0.5, seed)) == draw


def test_smaller_subsets_of_a_seed_lie_in_larger_ones():
    items = [(f"{person:03d}_{view}.jpg", person, 0) for person in range(30) for view in range(3)]
    for seed in range(5):
        subsets = [{path for path, *_ in few_identities(items, ratio, seed)} for ratio in (0.1, 0.3, 0.5, 1.0)]
        assert [len(subset) for subset in subsets] == [9, 27, 45, 90]
        assert all(small < large for small, large in zip(subsets, subsets[1:], strict=False))


def test_ratios_that_are_no_exact_binary_numbers_keep_their_whole_share():
    items = [(f"{person:04d}.jpg", person, 0) for person in range(10)]
    assert [len(few_identities(items, ratio, 0)) for ratio in (0.1, 0.3, 0.7, 0.29)] == [1, 3, 7, 2]


def test_a_ratio_that_keeps_no_identity_is_refused():
    with pytest.raises(DataError, match=r"few_shot.ratio 0.1 of 4 training identities keeps none; give a larger"):
        few_identities(ITEMS, 0.1, 0)


def test_a_few_shot_variant_is_registered_once_and_the_whole_keeps_its_name():
    assert few_shot_dataset("market1501", 1.0, 0) == "market1501"
    assert few_shot_dataset("market1501", 0.5, 4) == few_shot_dataset("market1501", 0.5, 4)
    with pytest.raises(ConfigError, match="unknown data set 'market1502'.*did you mean 'market1501'"):
        few_shot_dataset("market1502", 0.5, 0)


def test_training_shrinks_and_the_test_stays_whole(stand_in, tmp_path):
    root, name = stand_in
    whole = build_datamanager(configured(root, name))
    few = build_datamanager(configured(root, name, "few_shot.ratio=0.3", "few_shot.seed=1"))
    assert whole.num_train_pids == 10 and few.num_train_pids == 3
    assert len(few.train_loader.dataset) == len(few.train_loader.dataset.train) == 12
    assert few.test_dataset[name] == whole.test_dataset[name]
    assert set(next(iter(few.train_loader))["pid"].tolist()) <= {0, 1, 2}

    path = save_list(tmp_path, few.train_loader.dataset.train, root, 0.3, 1)
    head, *lines = path.read_text().splitlines()
    assert path.name == "few_shot_list.txt" and head == "# 3 identities, 12 pictures: ratio 0.3, seed 1"
    assert lines == sorted(lines) and all((root / line.split()[0]).is_file() for line in lines)
    assert {line.split()[1] for line in lines} == {"0", "1", "2"}


def test_too_few_identities_for_a_batch_are_reported(stand_in):
    root, name = stand_in
    with pytest.raises(DataError, match="RandomIdentitySampler needs 2 training identities for a batch, and there are"):
        build_datamanager(configured(root, name, "few_shot.ratio=0.1"))
    with pytest.raises(DataError, match="keeps none"):
        build_datamanager(configured(root, name, "few_shot.ratio=0.05"))


# ---- transforms ----------------------------------------------------------------------------------------------------


def test_pad_crop_moves_the_picture_by_at_most_ten_pixels_over_black():
    picture = np.full((32, 16, 3), 200, np.uint8)
    crops = [np.asarray(pad_crop(32, 16)(Image.fromarray(picture))) for _ in range(200)]
    assert {crop.shape for crop in crops} == {(32, 16, 3)}
    assert all(set(np.unique(crop)) <= {0, 200} for crop in crops)
    rows = [int((crop[:, :, 0] > 0).any(axis=1).sum()) for crop in crops]
    assert min(rows) >= 22 and max(rows) == 32 and len(set(rows)) > 3


def test_pad_crop_comes_before_tensors_and_every_resize_is_bicubic(stand_in):
    root, name = stand_in
    options = ["data.transforms=['random_flip', 'pad_crop', 'random_erase']", "data.interpolation=bicubic"]
    manager = build_datamanager(configured(root, name, *options))
    names = [type(step).__name__ for step in manager.transform_tr.transforms]
    assert names == ["Resize", "RandomHorizontalFlip", "RandomCrop", "ToTensor", "Normalize", "RandomErasing"]
    for steps in (manager.transform_tr.transforms, manager.transform_te.transforms):
        assert steps[0].interpolation is InterpolationMode.BICUBIC
    assert next(iter(manager.train_loader))["img"].shape == (8, 3, 32, 16)


def test_without_them_torchreids_transforms_are_as_they_were(stand_in):
    manager = build_datamanager(configured(*stand_in))
    names = [type(step).__name__ for step in manager.transform_tr.transforms]
    assert names == ["Resize", "RandomHorizontalFlip", "ToTensor", "Normalize"]
    assert manager.transform_tr.transforms[0].interpolation is InterpolationMode.BILINEAR


def test_an_unknown_transform_is_no_longer_ignored():
    with pytest.raises(ConfigError, match="data.transforms is 'random_erasing'; did you mean 'random_erase'"):
        load_config(options=["data.transforms=['random_erasing']"])


# ---- protocols -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing", "advice"),
    [
        (
            "market1501",
            "market1501/Market-1501-v15.09.15/query",
            "lacks query .looked in '.*v15.09.15'.: unpack Market",
        ),
        (
            "msmt17",
            "msmt17/MSMT17_V1/list_val.txt",
            "lacks list_val.txt .looked in '.*MSMT17_V1'.: request MSMT17 from",
        ),
        (
            "cuhk03",
            "cuhk03/cuhk03_new_protocol_config_labeled.mat",
            "lacks cuhk03_new_protocol_config_labeled.mat .looked in '.*cuhk03'.: .*CUHK03-NP.*person-re-ranking",
        ),
    ],
)
def test_a_missing_part_of_a_protocol_says_where_it_comes_from(tmp_path, name, missing, advice):
    make_stand_in(tmp_path, name)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=advice):
        build_datamanager(configured(tmp_path, name))


def test_msmt17_of_the_second_version_and_market_without_its_inner_folder_are_found(tmp_path):
    make_stand_in(tmp_path, "msmt17")
    version = tmp_path / "msmt17" / "MSMT17_V1"
    for part in ("train", "test"):
        (version / part).rename(version / f"mask_{part}_v2")
    version.rename(version.with_name("MSMT17_V2"))
    assert build_datamanager(configured(tmp_path, "msmt17")).num_train_pids == 2
    make_stand_in(tmp_path, "market1501")
    (tmp_path / "market1501" / "Market-1501-v15.09.15").rename(tmp_path / "moved")
    (tmp_path / "market1501").rmdir()
    (tmp_path / "moved").rename(tmp_path / "market1501")
    assert build_datamanager(configured(tmp_path, "market1501")).num_train_pids == 2


def test_there_is_no_stand_in_of_an_unknown_layout(tmp_path):
    with pytest.raises(
        ConfigError, match="no stand-in of data set 'viper'.*a dry run knows market1501, msmt17, cuhk03"
    ):
        make_stand_in(tmp_path, "viper")


def test_a_variant_follows_what_the_name_stands_for():
    """Settings of a drawn set that change between two runs of one process change its variants too."""
    first = dataset_class(few_shot_dataset("synthped", 0.5, 3), "image")
    assert dataset_class(few_shot_dataset("synthped", 0.5, 3), "image") is first
    synthped.configure(preset("quick", seed=5))
    second = dataset_class(few_shot_dataset("synthped", 0.5, 3), "image")
    assert second is not first and issubclass(second, dataset_class("synthped", "image"))
