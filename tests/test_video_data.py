"""The data sets of VKD in their real layouts, and the data manager that makes sets of them."""

import numpy as np
import pytest
import torch

from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import atrw, synthped_video, veri776
from oskt_torchreid.datasets.protocols import PROTOCOL_FILES
from oskt_torchreid.datasets.set_manager import build_set_datamanager
from oskt_torchreid.datasets.stand_in import make_stand_in
from oskt_torchreid.datasets.stand_in_video import VIDEO_LAYOUTS, write_picture
from oskt_torchreid.datasets.synthetic import video_preset
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.data import dataset_class, image_dataset_names, video_dataset_names

IDENTITIES = 4


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A stand-in of every data set; tests only read them."""
    found = {}
    for name in VIDEO_LAYOUTS:
        found[name] = tmp_path_factory.mktemp(name)
        make_stand_in(found[name], name, IDENTITIES)
    return found


def configured(root, name, *options, kind="video"):
    options = [
        f"data.root={root}",
        f"data.type={kind}",
        f"data.sources=['{name}']",
        f"data.targets=['{name}']",
        "data.height=32",
        "data.width=16",
        "data.workers=0",
        "use_gpu=False",
        "sampler.num_instances=2",
        "vkd.teacher_stage.batch_size=4",
        "vkd.num_views=4",
        *options,
    ]
    return load_config(options=options)


def names_of(paths):
    return [path.rpartition("/")[2] for path in paths]


# ---- VeRi-776 ------------------------------------------------------------------------------------------------------


def test_veri_training_tracklets_are_vehicle_and_camera(roots):
    dataset = veri776.VeRi776Video(str(roots["veri776"]), transform=torch.tensor, verbose=False)
    assert [item[1:3] for item in dataset.train] == [(label, camera) for label in range(4) for camera in range(2)]
    paths = dataset.train[3][0]
    assert names_of(paths) == ["0002_c002_00030600_0.jpg", "0002_c002_00030605_1.jpg", "0002_c002_00030610_2.jpg"]
    assert all(f"{roots['veri776']}/veri776/image_train/" in path for path in paths)


def test_veri_test_tracklets_are_those_of_the_list_and_queries_begin_with_the_published_picture(roots):
    dataset = veri776.VeRi776Video(str(roots["veri776"]), transform=torch.tensor, verbose=False)
    assert [item[1:3] for item in dataset.gallery] == [(5, 0), (5, 1), (6, 0), (6, 1)]
    assert names_of(dataset.gallery[0][0]) == [f"0005_c001_000306{5 * n:02d}_{n}.jpg" for n in range(3)]
    paths, vehicle, camera, _ = dataset.query[1]
    assert (vehicle, camera) == (5, 1)
    assert [path.split("/")[-2] for path in paths] == ["image_query", "image_test", "image_test"]
    assert names_of(paths) == names_of(dataset.gallery[1][0])


def test_veri_queries_that_no_tracklet_has_get_the_first_one_of_vehicle_and_camera(tmp_path):
    make_stand_in(tmp_path, "veri776")
    folder = tmp_path / "veri776"
    write_picture(folder / "image_query" / "0003_c001_00099999_9.jpg")
    (folder / "name_query.txt").write_text("0003_c001_00099999_9.jpg\n")
    tracks = (folder / "test_track.txt").read_text()
    # Without the name of the tracklet, and with its name as that of its first picture: the same tracklets.
    stripped = "".join(line.partition(" ")[2] + "\n" for line in tracks.splitlines())
    doubled = "".join(line.replace(" ", ".jpg ", 1) + "\n" for line in tracks.splitlines())
    for text in (tracks, stripped, doubled):
        (folder / "test_track.txt").write_text(text)
        dataset = veri776.VeRi776Video(str(tmp_path), transform=torch.tensor, verbose=False)
        ((paths, vehicle, camera, _),) = dataset.query
        assert names_of(paths) == ["0003_c001_00099999_9.jpg", *names_of(dataset.gallery[0][0])]
        assert (vehicle, camera) == (3, 0) and len(dataset.gallery[0][0]) == 3


def test_veri_pictures(roots):
    dataset = veri776.VeRi776(str(roots["veri776"]), verbose=False)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (24, 4, 12)
    assert {item[1] for item in dataset.train} == {0, 1, 2, 3}
    assert dataset.query[0][0].endswith("image_query/0005_c001_00030600_0.jpg") and dataset.query[0][1:3] == (5, 0)


def test_veri_lies_under_its_own_name_too(roots, tmp_path):
    (tmp_path / "VeRi").symlink_to(roots["veri776"] / "veri776")
    assert len(veri776.VeRi776(str(tmp_path), verbose=False).train) == 24


def test_veri_lists_that_are_wrong_are_named(tmp_path):
    make_stand_in(tmp_path, "veri776")
    folder = tmp_path / "veri776"

    def load():
        return veri776.VeRi776Video(str(tmp_path), transform=torch.tensor, verbose=False)

    good = (folder / "test_track.txt").read_text()
    (folder / "test_track.txt").write_text("0003_c001_00030600_0.jpg 0004_c001_00030600_0.jpg\n")
    with pytest.raises(DataError, match="test_track.txt' should name pictures of one vehicle at one camera; got '0003"):
        load()
    (folder / "test_track.txt").write_text(good)
    (folder / "name_query.txt").write_text("\n")
    with pytest.raises(DataError, match="name_query.txt' is empty; copy the file again"):
        load()
    (folder / "name_query.txt").write_text("holiday.jpg\n")
    with pytest.raises(DataError, match="'holiday.jpg' is no name of a VeRi-776 picture, such as 0002_c002"):
        load()
    (folder / "name_query.txt").unlink()
    with pytest.raises(DataError, match="'veri776' lacks name_query.txt .looked in '.*/veri776'.: request VeRi-776"):
        load()


# ---- ATRW ----------------------------------------------------------------------------------------------------------


def test_atrw_keeps_every_third_identity_for_the_test(roots):
    dataset = atrw.ATRWVideo(str(roots["atrw"]), transform=torch.tensor, verbose=False)
    assert [(len(paths), label, camera) for paths, label, camera, _ in dataset.train] == [(6, n, 0) for n in range(4)]
    # Six pictures make two sets of three.
    assert [(names_of(paths), *labels) for paths, *labels, _ in dataset.query + dataset.gallery] == [
        (["000012.jpg", "000013.jpg", "000014.jpg"], 2, 0),
        (["000030.jpg", "000031.jpg", "000032.jpg"], 5, 0),
        (["000015.jpg", "000016.jpg", "000017.jpg"], 2, 1),
        (["000033.jpg", "000034.jpg", "000035.jpg"], 5, 1),
    ]
    assert names_of(dataset.train[2][0])[0] == "000018.jpg"  # identity 3 has label 2


def test_atrw_pictures_have_one_query_per_identity(roots):
    dataset = atrw.ATRW(str(roots["atrw"]), verbose=False)
    assert len(dataset.train) == 24
    assert [(names_of([path]), *labels) for path, *labels, _ in dataset.query] == [
        (["000012.jpg"], 2, 0),
        (["000030.jpg"], 5, 0),
    ]
    assert len(dataset.gallery) == 10 and {item[2] for item in dataset.gallery} == {1}


def test_atrw_challenge_trains_on_everybody(roots):
    root = str(roots["atrw_challenge"])
    dataset = atrw.ATRWChallengeVideo(root, transform=torch.tensor, verbose=False)
    assert len(dataset.train) == 6 and len(dataset.query) == len(dataset.gallery) == 2
    assert all("/test/" in path for paths, *_ in dataset.gallery for path in paths)
    assert len(atrw.ATRWChallenge(root, verbose=False).gallery) == 10


@pytest.mark.parametrize(
    ("pictures", "sizes"), [(1, [1]), (2, [1, 1]), (5, [3, 2]), (9, [3, 3, 3]), (17, [4, 4, 3, 3, 3])]
)
def test_atrw_sets_are_equal_and_at_most_four(pictures, sizes):
    paths = [f"{number:02d}" for number in range(pictures)]
    sets = atrw._sets(paths)
    assert [len(part) for part in sets] == sizes and [path for part in sets for path in part] == paths


def test_atrw_identities_with_one_picture_are_in_the_gallery_alone(tmp_path):
    lines = [
        "1,000000.jpg",
        "2,000001.jpg",
        "3,000002.jpg",
        "4,000003.jpg",
        "6,000004.jpg",
        "6,000005.jpg",
        "5,000006.jpg",
    ]
    for number in range(7):
        write_picture(tmp_path / "atrw" / "train" / f"{number:06d}.jpg")
    (tmp_path / "atrw" / "reid_list_train.csv").write_text("\r\n".join(lines))
    dataset = atrw.ATRWVideo(str(tmp_path), transform=torch.tensor, verbose=False)
    assert [item[1] for item in dataset.query] == [6]
    assert [item[1] for item in dataset.gallery] == [3, 6]


def test_atrw_mistakes_are_named(tmp_path):
    make_stand_in(tmp_path, "atrw", 2)
    folder = tmp_path / "atrw"
    listing = folder / "reid_list_train.csv"

    def load(name="atrw"):
        return dataset_class(name, "video")(str(tmp_path), transform=torch.tensor, verbose=False)

    good = listing.read_text()
    listing.write_text(good.replace("000004.jpg", "000044.jpg"))
    with pytest.raises(DataError, match="lists '.*train/000044.jpg', which is missing; unpack the pictures again"):
        load()
    listing.write_text("id;file\n")
    with pytest.raises(DataError, match="reid_list_train.csv' should be 'identity,picture'; got 'id;file'"):
        load()
    listing.write_text("".join(good.splitlines(keepends=True)[:6]))
    with pytest.raises(DataError, match="has 1 identities to train on and 0 to query with"):
        load()
    listing.write_text(good)
    (folder / "gt_test_plain.json").write_text('[{"image": 1}]')
    with pytest.raises(DataError, match="gt_test_plain.json' should be a list of entries with imgid and entityid"):
        load("atrw_challenge")
    (folder / "gt_test_plain.json").unlink()
    with pytest.raises(DataError, match="lacks gt_test_plain.json .*atrw_reid_test.tar.gz, and gt_test_plain.json of"):
        load("atrw_challenge")
    listing.unlink()
    with pytest.raises(
        DataError, match="lacks reid_list_train.csv .looked in '.*atrw'.: unpack atrw_reid_train.tar.gz"
    ):
        load()


# ---- the data manager ----------------------------------------------------------------------------------------------


def test_registered_names():
    added = {"veri776", "atrw", "atrw_challenge"}
    assert added | {"synthped_video", "synthped_video_medium", "mars", "dukemtmcvidreid"} <= set(video_dataset_names())
    assert added <= set(image_dataset_names())


@pytest.mark.parametrize("name", VIDEO_LAYOUTS)
def test_every_data_set_gives_sets(roots, name):
    manager = build_set_datamanager(configured(roots[name], name))
    assert manager.num_train_pids >= IDENTITIES and manager.num_train_cams == (1 if "atrw" in name else 2)
    batch = next(iter(manager.train_loader))
    assert batch["img"].shape == (4, 4, 3, 32, 16) and batch["img"].dtype == torch.float32
    assert len(set(batch["pid"].tolist())) == 2 and max(batch["pid"].tolist()) < manager.num_train_pids
    for part in ("query", "gallery"):
        tracklets = manager.test_dataset[name][part]
        batches = list(manager.test_loader[name][part])
        assert torch.cat([batch["img"] for batch in batches]).shape == (len(tracklets), 8, 3, 32, 16)
        assert torch.cat([batch["pid"] for batch in batches]).tolist() == [item[1] for item in tracklets]
        assert torch.cat([batch["camid"] for batch in batches]).tolist() == [item[2] for item in tracklets]
    query, gallery = manager.fetch_test_loaders(name)
    assert query and {item[1] for item in query} <= {item[1] for item in gallery}


def test_the_first_test_frame_is_the_tracklets_first(roots):
    manager = build_set_datamanager(configured(roots["mars"], "mars", "vkd.test_frames=2"))
    batch = next(iter(manager.test_loader["mars"]["query"]))
    first = torchreid.utils.read_image(manager.test_dataset["mars"]["query"][0][0][0])
    assert torch.equal(batch["img"][0, 0], manager.transform_te(first))
    assert batch["impath"][0] == manager.test_dataset["mars"]["query"][0][0][0]


def test_all_frames_come_one_tracklet_at_a_time(roots):
    manager = build_set_datamanager(configured(roots["veri776"], "veri776", "vkd.test_frames=0"))
    sizes = [tuple(batch["img"].shape[:2]) for batch in manager.test_loader["veri776"]["gallery"]]
    assert sizes == [(1, 3)] * 4


def test_image_sets_are_put_together_by_identity_and_camera(roots, market_root):
    manager = build_set_datamanager(configured(market_root, "market1501", kind="image"))
    tracklets = manager.train_loader.dataset.train
    assert len(tracklets) == 6 * 2 and {len(item[0]) for item in tracklets} == {2}
    assert [len(item[0]) for item in manager.test_dataset["market1501"]["gallery"]] == [5] * 12
    assert next(iter(manager.train_loader))["img"].shape == (4, 4, 3, 32, 16)
    # Without cameras nothing says which pictures belong together.
    manager = build_set_datamanager(configured(market_root, "market1501", "vkd.no_camera=True", kind="image"))
    index = manager.train_loader.dataset.index
    assert set(index.lengths.tolist()) == {1} and len(index) == 24 and not index.cameras.any()
    assert [len(item[0]) for item in manager.test_dataset["market1501"]["gallery"]] == [5] * 12


def test_queries_of_image_sets_go_on_with_the_gallery_of_their_camera(market_root):
    """Their first frame is the published picture, the others are those that its ranking passes over."""
    manager = build_set_datamanager(configured(market_root, "market1501", kind="image"))
    parts = manager.test_dataset["market1501"]
    gallery = {item[1:]: item[0] for item in parts["gallery"]}
    longer = [item for item in parts["query"] if item[1:] in gallery]
    assert longer and all(item[0][1:] == gallery[item[1:]] for item in longer)
    assert all("/query/" in item[0][0] and "/bounding_box_test/" in item[0][1] for item in longer)
    assert all(len(item[0]) == 1 for item in parts["query"] if item[1:] not in gallery)
    single = build_set_datamanager(configured(market_root, "market1501", "vkd.no_camera=True", kind="image"))
    assert all(len(item[0]) == 1 for item in single.test_dataset["market1501"]["query"])


def test_frames_are_transformed_one_by_one(roots):
    options = ["data.transforms=['random_flip']", "vkd.strategy=chunk", "vkd.num_views=8"]
    manager = build_set_datamanager(configured(roots["mars"], "mars", *options))
    frames = manager.train_loader.dataset[0]["img"]  # three pictures, cycled
    flipped = [not torch.equal(frames[n], frames[n % 3]) for n in range(3, 8)]
    assert any(flipped) and not all(torch.equal(frames[n], frames[0]) for n in range(8))


def test_few_shot_and_batch_size(roots):
    config = configured(roots["mars"], "mars", "few_shot.ratio=0.5", "few_shot.seed=1")
    manager = build_set_datamanager(config, batch_size=2)
    assert manager.num_train_pids == 2 and len(manager.train_loader) == 2
    assert len(manager.train_loader.dataset) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["vkd.num_student_views=5"], ConfigError, "vkd.num_student_views is 5; allowed: 1 to vkd.num_views=4"),
        (["vkd.teacher_stage.batch_size=5"], ConfigError, "a batch of 5 sets cannot hold 2 of each identity"),
        (["vkd.teacher_stage.batch_size=12"], DataError, "needs 6 training identities, and there are 4"),
        (["data.sources=['market1501']"], ConfigError, "'market1501' is a data set of type image.*data.type=image"),
        (["data.sources=['marz']"], ConfigError, "unknown data set 'marz'; did you mean 'mars'"),
        (["data.sources=['dukemtmcvidreid']"], DataError, "'dukemtmcvidreid' is not at '.*dukemtmc-vidreid'; download"),
    ],
)
def test_what_cannot_be_is_refused(roots, options, error, message):
    with pytest.raises(error, match=message):
        build_set_datamanager(configured(roots["mars"], "mars", *options))


def test_unknown_strategy_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match="vkd.strategy is 'multi_view'; did you mean 'multiview'"):
        configured("data", "mars", "vkd.strategy=multi_view")


def test_missing_info_files_of_mars_are_named(tmp_path):
    make_stand_in(tmp_path, "mars")
    (tmp_path / "mars" / "info" / "query_IDX.mat").unlink()
    with pytest.raises(DataError, match="'mars' lacks info/query_IDX.mat .looked in '.*mars'.: .*MARS-evaluation"):
        build_set_datamanager(configured(tmp_path, "mars"))


@pytest.mark.parametrize("name", VIDEO_LAYOUTS)
def test_every_file_that_is_missing_is_named(name, tmp_path):
    protocol = PROTOCOL_FILES[name]
    for number, missing in enumerate(protocol.files):
        folder = tmp_path / str(number) / protocol.folders[0]
        for file in protocol.files:
            if file != missing:
                (folder / file).mkdir(parents=True)
        with pytest.raises(DataError, match=rf"data set '{name}' lacks {missing} .looked in '{folder}'.: "):
            build_set_datamanager(configured(tmp_path / str(number), name))


def test_an_empty_query_is_reported(tmp_path):
    make_stand_in(tmp_path, "dukemtmcvidreid", 4)
    for folder in (tmp_path / "dukemtmc-vidreid" / "DukeMTMC-VideoReID" / "query").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(DataError, match="the query part of data set 'dukemtmcvidreid' is empty; it needs at least"):
        build_set_datamanager(configured(tmp_path, "dukemtmcvidreid"))


def test_torchreids_engine_takes_the_sets(roots):
    """A stock video engine trains on them and evaluates them."""
    settings = video_preset(
        "quick", height=32, width=16, train_identities=4, test_identities=18, cameras=3, walks=2, frames=2
    )
    synthped_video.configure(settings)
    options = ["vkd.num_views=2", "vkd.num_student_views=1", "vkd.test_frames=2"]
    manager = build_set_datamanager(configured(roots["mars"], "synthped_video", *options))
    model = torchreid.models.build_model("osnet_x0_25", manager.num_train_pids, loss="softmax", pretrained=False)
    engine = torchreid.engine.VideoSoftmaxEngine(
        manager, model, torch.optim.SGD(model.parameters(), 0.01), use_gpu=False
    )
    engine.register_model("model", model, engine.optimizer, None)
    engine.set_model_mode("train")
    assert np.isfinite(engine.forward_backward(next(iter(manager.train_loader)))["loss"])
    assert 0 <= engine.test() <= 1
