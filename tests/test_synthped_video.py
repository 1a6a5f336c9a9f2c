"""The synthetic tracklets: settings, movement within a walk, the folder, and torchreid's own video manager on it."""

import numpy as np
import pytest
import torch

from oskt_torchreid.config import load_config
from oskt_torchreid.datasets import synthped_video
from oskt_torchreid.datasets.contact_sheet import tracklet_sheet
from oskt_torchreid.datasets.drawn_folder import MANIFEST, drawn_folder, is_whole
from oskt_torchreid.datasets.synthetic import PRESETS, VIDEO_PRESETS, Renderer, VideoSettings, video_preset
from oskt_torchreid.datasets.synthetic.camera import Camera
from oskt_torchreid.datasets.synthetic.walk import draw_walk
from oskt_torchreid.datasets.tracklet_layout import TRACKLET_LAYOUT, tracklet_files
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.compat import quiet, torchreid
from oskt_torchreid.host.data import dataset_class
from oskt_torchreid.runs.trainer import configure_data

SIZE = {"height": 32, "width": 16, "train_identities": 4, "test_identities": 18, "cameras": 3, "walks": 2, "frames": 2}
SETTINGS = video_preset("quick", **SIZE)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    """A root with a finished set; tests only read it."""
    root = tmp_path_factory.mktemp("data")
    drawn_folder(root, "synthped_video", SETTINGS, TRACKLET_LAYOUT)
    return root


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIDEO_PRESETS)
def test_presets_have_many_views_of_an_identity(name):
    settings = video_preset(name)
    assert settings.cameras >= 3 and settings.walks >= 2 and settings.frames >= 8
    assert settings.images_per_camera == 16 and len(list(tracklet_files(settings))) == (80 + 32) * 4 * 2 * 8
    for difficulty in ("camera_cast", "white_balance", "jitter", "noise", "occlusion", "min_differences"):
        assert getattr(settings, difficulty) == getattr(PRESETS[name], difficulty)


def test_medium_turns_and_hides_more():
    assert VIDEO_PRESETS["medium"].turning > VIDEO_PRESETS["quick"].turning
    assert VIDEO_PRESETS["medium"].crossing > VIDEO_PRESETS["quick"].crossing


def test_pictures_per_camera_follow_from_frames_and_walks():
    assert VIDEO_PRESETS["quick"].replace(frames=3, walks=4).images_per_camera == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1}, "synthped: frames is 1, but must be a whole number from 2 to 49"),
        ({"crossing": 1.5}, "synthped: crossing is 1.5, but must be a number from 0.0 to 1.0"),
        ({"turn": 1.0}, "synthped: unknown setting 'turn'; did you mean 'turning'"),
        ({"walks": 1}, "1 tracklets leave 0 gallery tracklets per query.*raise test_identities, cameras or walks"),
        ({"test_identities": 8}, "8 test identities x 4 cameras x 2 tracklets leave 31 gallery tracklets per query"),
    ],
)
def test_settings_that_are_not_allowed_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        video_preset("quick", **changes)
    with pytest.raises(ConfigError, match="unknown preset 'quik'; did you mean 'quick'"):
        video_preset("quik")


def test_digest_changes_with_what_tracklets_have_of_their_own():
    changes = ({}, {"frames": 9}, {"turning": 0.1}, {"crossing": 0.1})
    digests = {VIDEO_PRESETS["quick"].replace(**change).digest() for change in changes}
    assert len(digests) == len(changes)


# ---- movement ------------------------------------------------------------------------------------------------------


def walks(settings, count=200):
    camera = Camera(settings, 0)
    return [draw_walk(settings, camera, 0, identity, 0, 0) for identity in range(count)]


def test_neighbouring_pictures_are_alike_and_tracklets_differ():
    calm = {"crossing": 0.0, "occlusion": 0.0, "jitter": 0.0, "noise": 0.0}
    renderer = Renderer(video_preset("quick", height=64, width=32, **calm))
    near, far = [], []
    for identity in range(6):
        first = [renderer.picture(0, identity, 0, 0, 2 * number).astype(float) for number in range(8)]
        other = [renderer.picture(0, identity, 0, 1, 2 * number).astype(float) for number in range(8)]
        near += [np.abs(a - b).mean() for a, b in zip(first, first[1:], strict=False)]
        far += [np.abs(a - b).mean() for a, b in zip(first, other, strict=True)]
    assert min(near) > 0  # no picture twice
    assert np.mean(near) < 0.75 * np.mean(far)


def test_people_turn_further_in_tracklets_than_in_single_pictures():
    turning = np.std([walk.yaw_step for walk in walks(VIDEO_PRESETS["quick"])])
    assert 2.5 < turning / np.std([walk.yaw_step for walk in walks(PRESETS["quick"])]) < 4.2
    assert all(walk.crossing is None for walk in walks(PRESETS["medium"], 50))


def test_what_crosses_hides_the_person_for_some_pictures_only():
    settings = video_preset("quick", crossing=1.0)
    for walk in walks(settings, 50):
        places = np.array([walk.crossing.across(frame) for frame in range(0, settings.last_frame + 1, 2)])
        steps = np.diff(places)
        assert np.allclose(steps, steps[0]) and 0.1 <= abs(steps[0]) <= 0.24  # it moves steadily
        assert 1 <= (np.abs(places - 0.5) < 0.25).sum() < 8
    share = np.mean([walk.crossing is not None for walk in walks(VIDEO_PRESETS["quick"])])
    assert 0.75 < share < 0.95


def test_a_crossing_changes_the_pictures_in_which_it_shows():
    hidden, free = (
        Renderer(video_preset("quick", **SIZE, crossing=1.0)),
        Renderer(video_preset("quick", **SIZE, crossing=0.0)),
    )
    changed = [
        not np.array_equal(hidden.picture(0, identity, 0, 0, 2), free.picture(0, identity, 0, 0, 2))
        for identity in range(4)
    ]
    assert any(changed)


# ---- folder and torchreid ------------------------------------------------------------------------------------------


def test_layout_is_that_of_mars(shared_root):
    (folder,) = shared_root.iterdir()
    assert folder.name == f"synthped_video_32x16_{SETTINGS.digest()}"
    files = list(tracklet_files(SETTINGS))
    assert len(files) == len(list(folder.rglob("*.jpg"))) == 22 * 3 * 2 * 2
    assert (folder / "bbox_train" / "0001" / "0001C1T0001F001.jpg").is_file()
    assert (folder / "bbox_test" / "0022" / "0022C3T0002F002.jpg").is_file()


def test_a_whole_folder_is_only_read_and_a_part_is_drawn_again(shared_root, tmp_path):
    (folder,) = shared_root.iterdir()
    before = (folder / MANIFEST).stat().st_mtime_ns
    assert drawn_folder(shared_root, "synthped_video", SETTINGS, TRACKLET_LAYOUT) == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == before
    small = SETTINGS.replace(train_identities=2)
    folder = drawn_folder(tmp_path, "synthped_video", small, TRACKLET_LAYOUT)
    lost = folder / "bbox_train" / "0002" / "0002C1T0001F002.jpg"
    content = lost.read_bytes()
    lost.unlink()
    assert not is_whole(folder, small, TRACKLET_LAYOUT)
    drawn_folder(tmp_path, "synthped_video", small, TRACKLET_LAYOUT)
    assert lost.read_bytes() == content and is_whole(folder, small, TRACKLET_LAYOUT)
    (folder / "bbox_test" / "0007").rename(folder / "holidays")
    with pytest.raises(DataError, match="holidays.* is not one of them; nothing was removed"):
        drawn_folder(tmp_path, "synthped_video", small, TRACKLET_LAYOUT)


def test_torchreids_own_manager_reads_it(shared_root):
    synthped_video.configure(SETTINGS)
    with quiet():
        manager = torchreid.data.VideoDataManager(
            root=str(shared_root),
            sources="synthped_video",
            height=32,
            width=16,
            batch_size_train=4,
            seq_len=2,
            workers=0,
            use_gpu=False,
        )
    assert (manager.num_train_pids, manager.num_train_cams) == (4, 3)
    assert next(iter(manager.train_loader))["img"].shape == (4, 2, 3, 32, 16)
    query, gallery = manager.fetch_test_loaders("synthped_video")
    assert len(query) == len(gallery) == 18 * 3
    for paths, person, camera, _ in query:
        assert all(f"/{person:04d}C{camera + 1}T0001F" in path for path in paths) and len(paths) == 2
        assert sum(item[1] == person and item[2] != camera for item in gallery) == 2


def test_train_identities_count_from_zero(shared_root):
    dataset = synthped_video.SynthPedVideo(str(shared_root), SETTINGS, transform=torch.tensor, verbose=False)
    assert [item[1:3] for item in dataset.train[:6]] == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2)]
    assert {item[1] for item in dataset.train} == {0, 1, 2, 3}


def test_configuration_decides_what_is_drawn():
    options = ["synthped_video.num_train=8", "synthped_video.tracklets=3", "synthped_video.frames=5", "data.height=64"]
    names = ["data.type=video", "data.sources=['synthped_video']", "data.targets=['synthped_video']"]
    configure_data(load_config(options=[*options, *names, "synthped_video.seed=4", "data.width=32"]))
    expected = {"height": 64, "width": 32, "seed": 4, "train_identities": 8, "walks": 3, "frames": 5}
    for name, kind in (("synthped_video", "quick"), ("synthped_video_medium", "medium")):
        assert dataset_class(name, "video").settings == video_preset(kind, **expected)


def test_configure_names_what_it_takes():
    with pytest.raises(
        ConfigError, match="unknown variant 'synthped' of synthped_video.*did you mean 'synthped_video'"
    ):
        synthped_video.configure(SETTINGS, "synthped")
    with pytest.raises(
        ConfigError, match="synthped_video takes VideoSettings, but got SyntheticSettings.*video_preset"
    ):
        synthped_video.configure(PRESETS["quick"])


def test_sheet_has_a_row_per_camera():
    assert tracklet_sheet(SETTINGS, rows=2).shape == (2 * 3 * 36, 2 * 2 * 20, 3)


def test_settings_are_a_kind_of_those_of_pictures():
    assert VideoSettings(**VIDEO_PRESETS["medium"].as_dict()) == VIDEO_PRESETS["medium"]
