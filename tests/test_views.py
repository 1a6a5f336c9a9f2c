"""Views: the identity index, the strategies, the student's views, sets and batches of sets."""

import logging
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from oskt_torchreid.config.tree import every_key
from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.pictures import read_picture
from oskt_torchreid.vkd.index import IdentityIndex, as_tracklets, completed
from oskt_torchreid.vkd.sets import FrameReader, IdentitySampler, TestSets, TrainingSets
from oskt_torchreid.vkd.views import (
    STRATEGIES,
    draw_chunk,
    draw_multiview,
    draw_random,
    draw_temporal,
    evenly_spaced,
    frame_of_chunk,
    strategy_of,
    student_views,
)


def tracklet(label, camera, length, folder=""):
    name = f"{folder}{label}_c{camera}"
    return tuple(f"{name}_{frame:02d}.png" for frame in range(length)), label, camera, 0


def uniform(seed=0):
    return np.random.default_rng(seed).random


# Identity 5: cameras 0 (three tracklets) and 1 (one); identity 8: one tracklet.
INDEX = IdentityIndex([tracklet(5, 0, 4), tracklet(8, 2, 3), tracklet(5, 1, 6), tracklet(5, 0, 5), tracklet(5, 0, 2)])


# ---- index ---------------------------------------------------------------------------------------------------------


def test_the_documented_index():
    index = IdentityIndex([tracklet(7, 1, 1), tracklet(3, 0, 1), tracklet(7, 0, 1), tracklet(7, 1, 1)])
    assert index.identities.tolist() == [1, 0, 1, 1]
    assert index.order.tolist() == [1, 2, 0, 3]
    assert index.starts.tolist() == [0, 1, 4]
    assert index.turns.tolist() == [0, 0, 0, 1]
    assert index.num_identities == 2 and len(index) == 4


def test_identities_with_one_camera_or_tracklet_are_counted():
    assert INDEX.count_poor() == (1, 1)
    assert IdentityIndex(INDEX.tracklets, no_camera=True).count_poor() == (2, 1)
    assert IdentityIndex([tracklet(1, 0, 1), tracklet(1, 0, 1), tracklet(2, 0, 1)]).count_poor() == (2, 1)


def test_no_tracklets_and_empty_tracklets_are_refused():
    with pytest.raises(DataError, match="no tracklets to draw views from"):
        IdentityIndex([])
    with pytest.raises(DataError, match="a tracklet of identity 4 at camera 3 has no frames"):
        IdentityIndex([tracklet(1, 0, 2), tracklet(4, 3, 0)])


def test_pictures_of_an_identity_at_a_camera_become_a_tracklet():
    items = [("b.jpg", 1, 0, 0), ("c.jpg", 1, 1, 0), ("a.jpg", 1, 0, 0), ("x.jpg", -1, 0, 0), ("y.jpg", -1, 0, 0)]
    expected = [(("a.jpg", "b.jpg"), 1, 0, 0), (("c.jpg",), 1, 1, 0)]
    single = [(("x.jpg",), -1, 0, 0), (("y.jpg",), -1, 0, 0)]
    assert as_tracklets(items, alone=[-1]) == single + expected
    assert as_tracklets(items, no_camera=True) == [((path,), *rest) for path, *rest in items]
    assert as_tracklets(INDEX.tracklets) == INDEX.tracklets


def test_queries_are_completed_with_their_own_camera():
    gallery = [(("a.jpg", "b.jpg"), 7, 0, 0), (("c.jpg",), 7, 1, 0), (("d.jpg",), 8, 0, 0), (("e.jpg",), 7, 0, 1)]
    queries = [(("q.jpg",), 7, 0, 0), (("r.jpg",), 8, 1, 0)]
    assert completed(queries, gallery) == [(("q.jpg", "a.jpg", "b.jpg"), 7, 0, 0), (("r.jpg",), 8, 1, 0)]


# ---- strategies ----------------------------------------------------------------------------------------------------


def test_multiview_takes_cameras_in_turns_and_begins_where_it_is_asked_to():
    seen = Counter()
    for seed in range(50):
        tracklets, frames = draw_multiview(INDEX, 3, 4, uniform(seed))
        assert tracklets[0] == 3 and tracklets[1] == 2  # the other camera's only tracklet
        assert sorted(tracklets.tolist()) == [0, 2, 3, 4]  # every tracklet once
        assert (frames < INDEX.lengths[tracklets]).all()
        seen[tuple(tracklets[2:].tolist())] += 1
    assert set(seen) == {(0, 4), (4, 0)}


def test_without_cameras_all_orders_come():
    index = IdentityIndex(INDEX.tracklets, no_camera=True)
    seen = {tuple(draw_multiview(index, 3, 4, uniform(seed))[0].tolist()) for seed in range(100)}
    assert len(seen) == 6 and {order[0] for order in seen} == {3}


def test_multiview_cycles_few_tracklets_and_takes_another_frame_each_time():
    for seed in range(20):
        tracklets, frames = draw_multiview(INDEX, 2, 8, uniform(seed))
        assert tracklets[:4].tolist() == tracklets[4:].tolist()
        assert len(set(zip(tracklets.tolist(), frames.tolist(), strict=True))) == 8
    tracklets, frames = draw_multiview(INDEX, 1, 8, uniform())
    assert tracklets.tolist() == [1] * 8
    assert frames.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]  # eight views of three frames


def test_multiview_draws_every_frame_of_a_tracklet():
    frames = [draw_multiview(INDEX, 2, 1, uniform(seed))[1][0] for seed in range(100)]
    assert set(frames) == set(range(6))


def test_temporal_draws_one_frame_per_chunk():
    index = IdentityIndex([tracklet(0, 0, 10)])
    drawn = np.array([draw_temporal(index, 0, 4, uniform(seed))[1] for seed in range(100)])
    chunks = [{0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}]
    assert [set(column.tolist()) for column in drawn.T] == chunks


def test_chunk_draws_the_first_frame_of_each():
    index = IdentityIndex([tracklet(0, 0, 10), tracklet(0, 0, 2)])
    assert draw_chunk(index, 0, 4, uniform())[1].tolist() == [0, 2, 5, 7]
    assert draw_chunk(index, 1, 4, uniform())[1].tolist() == [0, 1, 0, 1]


def test_random_draws_without_replacement_and_cycles():
    index = IdentityIndex([tracklet(0, 0, 10), tracklet(0, 0, 3)])
    drawn = draw_random(index, 0, 4, uniform())[1].tolist()
    assert len(set(drawn)) == 4 and max(drawn) < 10
    drawn = draw_random(index, 1, 7, uniform())[1].tolist()
    assert set(drawn[:3]) == {0, 1, 2} and drawn[3:6] == drawn[:3] and drawn[6] == drawn[0]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 8, 13])
def test_every_strategy_gives_valid_views_of_the_identity(name, count):
    for seed, own in enumerate(range(5)):
        tracklets, frames = strategy_of(name)(INDEX, own, count, uniform(seed))
        assert tracklets.shape == frames.shape == (count,)
        assert (INDEX.identities[tracklets] == INDEX.identities[own]).all() and tracklets[0] == own
        assert (frames >= 0).all() and (frames < INDEX.lengths[tracklets]).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_draw_looks_at_one_identity_alone(name):
    """Its cost does not grow with the data set: random numbers for the identity's tracklets and the views alone."""
    others = [tracklet(label, camera, 9) for label in range(100, 400) for camera in range(3)]
    index = IdentityIndex([*others, *INDEX.tracklets])
    index.tracklets = None  # nothing is looked up in the data set
    drawn = []

    def counted(shape):
        numbers = uniform()(shape)
        drawn.append(numbers.size)
        return numbers

    tracklets, _ = strategy_of(name)(index, len(others) + 3, 8, counted)
    assert set(tracklets.tolist()) <= {len(others) + own for own in (0, 2, 3, 4)}
    assert sum(drawn) <= 2 * 4 + 8


def test_the_configuration_knows_all_strategies():
    keys = every_key()
    assert keys["vkd.strategy"].allowed.choices == tuple(STRATEGIES)
    assert keys["vkd.teacher_stage.strategy"].allowed.choices == ("", *STRATEGIES)


def test_unknown_strategy_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown strategy 'multi_view'; did you mean 'multiview'.*temporal, chunk"):
        strategy_of("multi_view")


def test_the_documented_chunks():
    assert frame_of_chunk(np.full(4, 10), np.arange(4), 4).tolist() == [0, 2, 5, 7]
    assert frame_of_chunk(np.full(4, 2), np.arange(4), 4, uniform()).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("length", "count", "frames"), [(9, 4, [0, 2, 4, 6]), (3, 4, [0, 1, 2, 0]), (3, 0, [0, 1, 2])])
def test_the_documented_evenly_spaced_frames(length, count, frames):
    assert evenly_spaced(length, count).tolist() == frames


def test_evenly_spaced_frames_are_torchreids():
    for length in range(8, 40):
        whole = length - length % 8
        assert evenly_spaced(length, 8).tolist() == np.arange(0, whole, whole / 8).astype(int).tolist()


# ---- the student's views -------------------------------------------------------------------------------------------


def test_student_views_are_frames_of_their_own_set_without_repetition():
    frames = torch.arange(6 * 8).view(6, 8, 1, 1, 1).expand(6, 8, 3, 2, 2).float()
    seen = set()
    for seed in range(40):
        views = student_views(frames, 2, torch.Generator().manual_seed(seed))
        assert views.shape == (6, 2, 3, 2, 2)
        numbers = views[:, :, 0, 0, 0]
        assert (numbers // 8 == torch.arange(6)[:, None]).all()
        assert (numbers[:, 0] != numbers[:, 1]).all()
        seen |= set((numbers[0] % 8).tolist())
    assert seen == set(range(8))
    assert not torch.equal(numbers[0] % 8, numbers[1] % 8) or not torch.equal(numbers[1] % 8, numbers[2] % 8)


def test_student_views_are_repeatable_and_all_of_them_are_a_permutation():
    frames = torch.randn(2, 4, 3, 2, 2)
    one, other = (student_views(frames, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, other)
    everything = student_views(frames, 4)
    assert torch.allclose(everything.sum(dim=1), frames.sum(dim=1), atol=1e-6)


def test_more_student_views_than_views_are_refused():
    with pytest.raises(ConfigError, match="vkd.num_student_views is 5; allowed: 1 to vkd.num_views=4"):
        student_views(torch.zeros(2, 4, 3, 2, 2), 5)
    with pytest.raises(ConfigError, match="vkd.num_student_views is 0; allowed: 1 to vkd.num_views=4"):
        student_views(torch.zeros(2, 4, 3, 2, 2), 0)
    with pytest.raises(ConfigError, match=r"sets \[B, N, C, H, W\]; got a tensor \[2, 3, 4, 4\]"):
        student_views(torch.zeros(2, 3, 4, 4), 1)


# ---- sets and batches ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures on disk whose blue channel is 10 * label + camera and whose green one is the frame's number."""
    root = tmp_path_factory.mktemp("frames")
    for label, camera, length in SHAPES:
        for frame, path in enumerate(tracklet(label, camera, length, f"{root}/")[0]):
            colour = (10 * label + camera, frame, 0)
            cv2.imwrite(path, np.full((4, 2, 3), colour, dtype=np.uint8))
    return root


SHAPES = [(0, 0, 4), (0, 1, 5), (0, 2, 3), (1, 0, 2), (1, 1, 6), (2, 1, 4), (3, 0, 2), (3, 2, 9)]


def sets_of(folder, **arguments):
    index = IdentityIndex([tracklet(*shape, f"{folder}/") for shape in SHAPES])
    return TrainingSets(index, as_tensor, **{"num_views": 4, **arguments})


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_batches_are_sets_of_p_identities_k_times(folder):
    sets = sets_of(folder)
    sampler = IdentitySampler(sets.index, 6, 3)
    loader = DataLoader(sets, 6, sampler=sampler, drop_last=True)
    batches = list(loader)
    assert len(loader) == len(batches) == 2 and len(sampler) == 12
    assert sorted(label for batch in batches for label in batch["pid"].tolist()) == sorted([0, 1, 2, 3] * 3)
    for batch in batches:
        assert batch["img"].shape == (6, 4, 3, 4, 2)
        labels = batch["pid"].view(2, 3)
        assert (labels == labels[:, :1]).all() and labels[0, 0] != labels[1, 0]
        blue = batch["img"][:, :, 2, 0, 0].long()
        assert (blue // 10 == batch["pid"][:, None]).all()  # every frame shows the set's identity
        assert (blue[:, 0] % 10 == batch["camid"]).all()  # the set begins at its camera
    cameras = [set(batch["camid"][batch["pid"] == 0].tolist()) for batch in batches if 0 in batch["pid"]]
    assert cameras == [{0, 1, 2}]  # three sets begin in three tracklets


def test_torchreids_own_sampler_takes_all_tracklets_and_tells_more_than_it_gives():
    """Why it is not used: see IdentitySampler."""
    items = [tracklet(label, camera, 1) for label in range(3) for camera in range(2 + 6 * (label == 0))]
    sampler = torchreid.data.ImageDataManager.__init__.__globals__["build_train_sampler"](
        items, "RandomIdentitySampler", batch_size=4, num_instances=2
    )
    assert len(sampler) == 12 and len(list(sampler)) <= 8


def test_batches_follow_from_the_seed(folder):
    def draw(workers):
        torch.manual_seed(3)
        sets = sets_of(folder)
        loader = DataLoader(sets, 4, sampler=IdentitySampler(sets.index, 4, 2), num_workers=workers)
        return [batch["img"] for _ in range(2) for batch in loader]

    for workers in (0, 2):
        one, other = draw(workers), draw(workers)
        assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))
        assert not torch.equal(one[0], one[2])  # another epoch, other sets


def test_workers_draw_different_views(folder):
    sets = sets_of(folder, num_views=3, strategy="random")
    loader = DataLoader(sets, 1, sampler=[7] * 12, num_workers=2)
    views = [tuple(batch["img"][0, :, 1, 0, 0].tolist()) for batch in loader]
    assert len(set(views)) > 6


def test_batches_that_cannot_be_made_are_refused(folder):
    index = sets_of(folder).index
    with pytest.raises(ConfigError, match="a batch of 6 sets cannot hold 4 of each identity"):
        IdentitySampler(index, 6, 4)
    with pytest.raises(DataError, match="needs 5 training identities, and there are 4"):
        IdentitySampler(index, 20, 4)
    with pytest.raises(ConfigError, match="vkd.num_views is 0"):
        sets_of(folder, num_views=0)
    with pytest.raises(ConfigError, match="unknown strategy 'temporl'; did you mean 'temporal'"):
        sets_of(folder, strategy="temporl")


def test_multiview_logs_how_many_identities_are_poor(folder, caplog):
    with caplog.at_level(logging.INFO, logger="oskt_torchreid"):
        sets_of(folder)
        sets_of(folder, strategy="temporal")
    (record,) = caplog.records
    assert record.getMessage() == (
        "multiview: of 4 identities 1 have one camera, 1 one tracklet, and 4 fewer than 4 tracklets (cycled)"
    )


def test_test_sets_are_evenly_spaced_and_begin_with_the_first_frame(folder):
    tracklets = [tracklet(*shape, f"{folder}/") for shape in SHAPES]
    batch = next(iter(DataLoader(TestSets(tracklets, as_tensor, 4), 8)))
    green = batch["img"][:, :, 1, 0, 0].tolist()
    assert green[0] == [0, 1, 2, 3] and green[2] == [0, 1, 2, 0] and green[7] == [0, 2, 4, 6]
    assert batch["impath"] == [paths[0] for paths, *_ in tracklets]
    whole = [item["img"].shape[1] for item in DataLoader(TestSets(tracklets, as_tensor, 0), 1)]
    assert whole == [length for _, _, length in SHAPES]


def test_a_missing_frame_is_named_whoever_reads_it(tmp_path):
    paths, *rest = tracklet(0, 0, 3, f"{tmp_path}/")
    for path in (paths[0], paths[2]):
        cv2.imwrite(path, np.zeros((4, 2, 3), dtype=np.uint8))
    sets = TrainingSets(IdentityIndex([(paths, *rest)]), as_tensor, 3)
    # In this process: the error of a worker is the same, but ending the worker after it takes torch five seconds.
    with pytest.raises(DataError, match="0_c0_01.png' cannot be read: it is missing; replace the file"):
        list(DataLoader(sets, 1))
    with pytest.raises(DataError, match="0_c0_01.png' cannot be read: it is missing"):
        TestSets([(paths, *rest)], as_tensor, 3)[0]


def test_decoded_frames_are_kept_within_their_share_of_memory(tmp_path):
    """Two frames of 4 x 2 fit, and are whole copies even after their files are gone; the third is read again."""
    paths, *_ = tracklet(0, 0, 3, f"{tmp_path}/")
    for number, path in enumerate(paths):
        cv2.imwrite(path, np.full((4, 2, 3), number, dtype=np.uint8))
    read = FrameReader(2 * 24e-6)
    first = [np.asarray(read(path)) for path in paths]
    read(paths[0]).putpixel((0, 0), (9, 9, 9))
    for path in paths[:2]:
        Path(path).unlink()
    assert all((np.asarray(read(path)) == pixels).all() for path, pixels in zip(paths, first, strict=True))
    Path(paths[2]).unlink()
    with pytest.raises(DataError, match="0_c0_02.png' cannot be read: it is missing"):
        read(paths[2])
    with pytest.raises(DataError, match="0_c0_00.png' cannot be read: it is missing"):
        FrameReader(0)(paths[0])


def test_a_damaged_frame_is_named(tmp_path):
    whole = cv2.imencode(".jpg", np.zeros((64, 32, 3), dtype=np.uint8))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-40])
    with pytest.raises(DataError, match="cut.jpg' cannot be read: .*; replace the file"):
        read_picture(str(tmp_path / "cut.jpg"))
