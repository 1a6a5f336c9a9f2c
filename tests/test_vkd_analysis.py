"""Curves and the camera probe on features made by hand, where the answers are known."""

import numpy as np
import pytest
import torch
from sets import SetManager, tiny

from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.report.analysis import curve_plot, curve_table, probe_plot, probe_table
from oskt_torchreid.report.heat_maps import HeatMapRow, heat_map_sheet
from oskt_torchreid.vkd.analysis import FrameFeatures, extract_frames, gallery_curve, views_curves
from oskt_torchreid.vkd.camera_probe import CameraProbe, camera_probe, fit_cameras
from oskt_torchreid.vkd.evaluate import evaluate_protocols, extract_side

# ---- features of frames --------------------------------------------------------------------------------------------

NUMBERS = [torch.tensor(frames)[:, None] for frames in ([0.0, 1, 2, 3], [10.0, 12], [20.0, 21, 22])]


def test_sets_of_frames_by_hand():
    side = FrameFeatures.of(NUMBERS, [5, 6, 5], [0, 1, 1])
    assert side.starts.tolist() == [0, 4, 6] and side.lengths.tolist() == [4, 2, 3]
    assert side.first_frames().flatten().tolist() == [0, 10, 20]
    # Tracklet 0's frame 3 and tracklet 2's frame 1; tracklet 1's frames.
    sets = side.set_embeddings(np.array([[0, 2], [1, 1]]), np.array([[3, 1], [0, 1]]))
    assert sets.flatten().tolist() == [(3 + 21) / 2, 11]
    # Evenly spaced: frames 0 and 2; 0 and 1; 0 and 1. Of three, the second tracklet has its first one twice.
    assert side.side(2).sets.flatten().tolist() == [1, 11, 20.5]
    torch.testing.assert_close(side.side(3).sets.flatten(), torch.tensor([1, 32 / 3, 21]))
    assert side.side(0).sets.flatten().tolist() == [1.5, 11, 21]
    both = side.chosen(np.array([False, True, True])).followed_by(side.chosen(np.array([0])))
    assert both.first_frames().flatten().tolist() == [10, 20, 0] and both.pids.tolist() == [6, 5, 5]


def test_all_frames_make_the_sets_of_the_evaluation():
    model, loaders = tiny().eval(), SetManager(test_views=3).test_loader["toy"]
    query, gallery = (extract_frames(model, loaders[side]) for side in ("query", "gallery"))
    expected = [extract_side(model, loaders[side]) for side in ("query", "gallery")]
    assert not query.frames.requires_grad
    torch.testing.assert_close(query.side(3).sets, expected[0].sets)
    torch.testing.assert_close(gallery.side(1).sets, expected[1].images)
    found = gallery_curve(query, gallery, (1, 3))
    results = evaluate_protocols(*expected, ("I2V", "I2I"))
    assert found == pytest.approx({1: results["I2I"]["mAP_interpolated"], 3: results["I2V"]["mAP_interpolated"]})


def test_a_side_without_tracklets_has_no_frames():
    with pytest.raises(DataError, match="the gallery has no tracklets"):
        extract_frames(tiny(), [], side="gallery")


# ---- curves --------------------------------------------------------------------------------------------------------

PEOPLE, CAMERAS, TRACKLETS, FRAMES = 24, 3, 2, 4


def seen(noise_of_frames: float, noise_of_tracklets: float):
    """Queries at camera 0, people as they are; two gallery tracklets at each other camera, with noise of two kinds."""
    random = torch.Generator().manual_seed(3)
    people = torch.randn(PEOPLE, 8, generator=random)

    def tracklet(person):
        start = people[person] + noise_of_tracklets * torch.randn(1, 8, generator=random)
        return start + noise_of_frames * torch.randn(FRAMES, 8, generator=random)

    query = FrameFeatures.of([person.expand(FRAMES, -1) for person in people], range(PEOPLE), [0] * PEOPLE)
    labels = [(p, c) for p in range(PEOPLE) for c in range(1, CAMERAS) for _ in range(TRACKLETS)]
    return query, FrameFeatures.of([tracklet(person) for person, _ in labels], *zip(*labels, strict=True))


def test_frames_of_a_tracklet_help_where_frames_differ():
    values = list(gallery_curve(*seen(1.5, 0.0), (1, 2, 4)).values())
    assert values[0] + 0.05 < values[1] and values[1] + 0.05 < values[2]


def test_views_help_where_tracklets_differ_and_time_where_frames_do():
    differing_tracklets = views_curves(*seen(0.0, 1.5), (1, 2, 4), draws=2)
    assert differing_tracklets["temporal"][4] == pytest.approx(differing_tracklets["temporal"][1])
    views = list(differing_tracklets["multiview"].values())
    assert views[0] == pytest.approx(differing_tracklets["temporal"][1]), "a set of one frame has no views"
    assert views[0] + 0.05 < views[1] and views[1] + 0.05 < views[2]
    differing_frames = views_curves(*seen(1.5, 0.0), (1, 4), draws=4)
    assert differing_frames["multiview"][1] == differing_frames["temporal"][1]
    for curve in differing_frames.values():
        assert curve[1] + 0.2 < curve[4]
    assert differing_frames["multiview"][4] == pytest.approx(differing_frames["temporal"][4], abs=0.05)


def test_gallery_sets_are_of_other_cameras():
    """The query's own camera would answer at once, but what it saw takes no part: neither its image nor its sets."""
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    query = FrameFeatures.of([east, north], [1, 2], [0, 0])
    # At camera 0 each is seen as it is; at camera 1 person 1 looks like 2, and 2 like 1.
    gallery = FrameFeatures.of([east, north, north, east], [1, 2, 1, 2], [0, 0, 1, 1])
    assert views_curves(query, gallery, (1,), 1)["multiview"] == {1: 0.5}
    # Without cameras the right one and the wrong one are equally near: places 1 and 3 or 2 and 4, as they are sorted.
    both = views_curves(query, gallery, (1,), 1, no_camera=True)["multiview"][1]
    assert 0.5 <= both <= (1 + 2 / 3) / 2


def test_distractors_take_no_part_in_sets():
    query, gallery = seen(1.0, 1.0)
    crowd = FrameFeatures.of([query.frames] * 3, [0, 0, -1], [1, 2, 2])
    crowd.pids[:] = 999
    assert views_curves(query, gallery.followed_by(crowd), (2,), 2) == views_curves(query, gallery, (2,), 2)
    assert gallery_curve(query, gallery.followed_by(crowd), (2,)) != gallery_curve(query, gallery, (2,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q, g: gallery_curve(q, g, (1, 5)), ConfigError, r"frames are \[1, 5\]; allowed: .* 1 to the 4 frames"),
        (lambda q, g: gallery_curve(q, g, ()), ConfigError, r"numbers of frames are \[\]"),
        (lambda q, g: gallery_curve(q, g, (1,), "V2I"), ConfigError, "no difference to protocol V2I, whose gallery is"),
        (lambda q, g: gallery_curve(q, g, (1,), "W2V"), ConfigError, r"protocols are \['W2V'\]; allowed"),
        (lambda q, g: views_curves(q, g, (0,)), ConfigError, r"numbers of frames are \[0\]"),
        (lambda q, g: views_curves(q, g, (1,), 0), ConfigError, "draws is 0; allowed: 1 or more"),
        (lambda q, g: views_curves(q, q, (1,)), DataError, "none of 24 queries has its identity at another camera"),
    ],
)
def test_curves_that_cannot_be_drawn(call, error, message):
    with pytest.raises(error, match=message):
        call(*seen(0.0, 0.0))


# ---- cameras -------------------------------------------------------------------------------------------------------


def labelled(per_camera: int = 2, people: int = 30, cameras: int = 3):
    pids = np.repeat(np.arange(people), cameras * per_camera)
    return pids, np.tile(np.repeat(np.arange(cameras), per_camera), people)


def test_cameras_that_lie_apart_are_read_off():
    pids, camids = labelled()
    noise = torch.randn(len(pids), 10)
    features = noise + 20 * torch.eye(10)[camids]
    probe = camera_probe(features, pids, camids)
    assert (probe.accuracy, probe.deviation, probe.uniform) == (1, 0, pytest.approx(1 / 3))
    assert probe.majority == pytest.approx(1 / 3)


def test_without_cameras_in_them_features_give_chance():
    pids, camids = labelled(4, people=100)
    probe = camera_probe(torch.randn(len(pids), 10), pids, camids)
    assert probe.accuracy == pytest.approx(1 / 3, abs=0.05) and 0 < probe.deviation < 0.1


def test_majority_is_that_of_the_most_frequent_camera():
    pids, camids = np.repeat(np.arange(20), 4), np.tile([7, 7, 7, 9], 20)
    probe = camera_probe(torch.randn(80, 2), pids, camids, folds=4)
    assert (probe.majority, probe.uniform) == (0.75, 0.5)


def test_identities_are_held_out():
    """Each identity has one camera, and features only distinguish identities: a probe learns nothing about others."""
    people = 40
    pids, camids = np.repeat(np.arange(people), 5), np.repeat(np.arange(people) % 2, 5)
    features = torch.eye(people)[pids] + 0.01 * torch.randn(len(pids), people)
    assert camera_probe(features, pids, camids).accuracy < 0.75


def test_length_is_not_read():
    pids, camids = labelled()
    features = torch.randn(len(pids), 3)
    longer = features * torch.from_numpy(1.0 + 50 * camids)[:, None]
    assert camera_probe(longer, pids, camids) == camera_probe(features, pids, camids)


def test_the_classifier_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = torch.randn(60, 4, dtype=torch.float64), torch.randint(3, (60,))
    features += torch.eye(4, dtype=torch.float64)[labels]
    weight, bias = fit_cameras(features, labels, 3)
    theirs = linear_model.LogisticRegression(tol=1e-10, max_iter=1000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(weight.t().numpy(), theirs.coef_, atol=1e-4)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"camids": np.full(12, 4)}, DataError, "all 12 tracklets are of camera 4, so there is no camera to predict"),
        ({"folds": 1}, ConfigError, "folds is 1; allowed: 2 to the 6 identities"),
        ({"folds": 7}, ConfigError, "folds is 7; allowed: 2 to the 6 identities"),
    ],
)
def test_probes_that_cannot_be_made(arguments, error, message):
    given = {"features": torch.randn(12, 2), "pids": np.arange(12) // 2, "camids": np.arange(12) % 2}
    with pytest.raises(error, match=message):
        camera_probe(**{**given, **arguments})


# ---- tables and pictures -------------------------------------------------------------------------------------------

CURVES = {
    "teacher": {"multiview": {1: 0.5, 2: 0.61, 4: 0.7}, "temporal": {1: 0.5, 2: 0.55, 4: 0.58}},
    "student": {"multiview": {1: 0.6, 2: 0.68, 4: 0.74}, "temporal": {1: 0.6, 2: 0.63, 4: 0.645}},
}
PROBE = CameraProbe(0.8123, 0.05, 0.3, 0.25)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_tables():
    head, _, *rows = cells(curve_table(CURVES))
    assert head == ["mAP in %", "1 frame", "2 frames", "4 frames"]
    assert rows[0] == ["teacher, views", "50.0", "61.0", "70.0"]
    assert rows[3] == ["student, time", "60.0", "63.0", "64.5"]
    assert cells(curve_table({"teacher": {"": {8: 0.5}}}))[2] == ["teacher", "50.0"]
    head, _, *rows = cells(probe_table({"teacher": {"tracklets": PROBE, "images": PROBE}}))
    assert head == ["camera read off, in %", "from tracklets", "from images"]
    assert rows[0] == ["teacher", "81.2 ± 5.0", "81.2 ± 5.0"]
    assert [row[:2] for row in rows[1:]] == [["chance: majority", "30.0"], ["chance: uniform", "25.0"]]


def test_pictures(tmp_path):
    curve_plot(CURVES, tmp_path / "curves.png", "frames in a gallery set", "osnet_x0_25 on synthped_video")
    probes = {name: {"tracklets": PROBE, "images": PROBE} for name in ("teacher", "student")}
    probe_plot(probes, tmp_path / "probe.png", "osnet_x0_25 on synthped_video")
    heat = np.linspace(0, 1, 64 * 32).reshape(1, 64, 32).repeat(2, 0)
    row = HeatMapRow("identity 81\ncamera 1", np.full((2, 64, 32, 3), 0.4), {"teacher": heat, "student": 1 - heat})
    heat_map_sheet([row, row], tmp_path / "sheet.png", "osnet_x0_25 on synthped_video")
    for name in ("curves", "probe", "sheet"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="there are curves of 0 networks; allowed: 1 to 5"):
        curve_plot({}, tmp_path / "none.png", "")
    other = HeatMapRow("", np.zeros((1, 64, 32, 3)), {"teacher": heat})
    with pytest.raises(ConfigError, match="need one shape and the same networks, got 2 kinds"):
        heat_map_sheet([row, other], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
