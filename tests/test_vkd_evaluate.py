"""The four protocols: by hand, against torchreid's own evaluation, and on galleries that are not as usual."""

import numpy as np
import pytest
import torch
from sets import SetManager, tiny
from torch.nn import functional

from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host.compat import quiet, torchreid
from oskt_torchreid.host.ranking import rank_distances
from oskt_torchreid.vkd.evaluate import SideFeatures, evaluate_protocols, extract_side, protocol_table


def side(angles, pids, camids, first=None):
    """Tracklets whose embeddings are unit vectors at these angles (degrees), and first frames at others."""

    def at(degrees):
        radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
        return torch.stack([radians.cos(), radians.sin()], 1)

    return SideFeatures(at(angles), at(first or angles), np.array(pids), np.array(camids))


def test_every_protocol_by_hand():
    query = side([0], [1], [0], first=[90])
    gallery = side([10, 80, 40], [1, 2, 3], [1, 1, 1], first=[95, 0, 5])
    results = evaluate_protocols(query, gallery, ("V2V", "I2V", "V2I", "I2I"))
    mean_aps = {protocol: values["mAP_interpolated"] for protocol, values in results.items()}
    # Places of the match: the nearest set; the farthest set; the farthest image; the nearest image.
    assert mean_aps == pytest.approx({"V2V": 1, "I2V": 1 / 3, "V2I": 1 / 3, "I2I": 1})
    assert results["I2V"]["mAP_trapezoid"] == pytest.approx((1 / 3 + 0) / 2)
    assert [results["I2V"][f"rank{place}"] for place in (1, 5, 20)] == [0, 1, 1]


@pytest.mark.parametrize("query_in_gallery", [False, True])
def test_v2v_is_torchreids(query_in_gallery):
    """torchreid's own video engine and CMC on the same batches; its mean over frames, its cosine, its numbers."""
    manager, model = SetManager(), tiny().eval()
    query, gallery = (manager.test_loader["toy"][name] for name in ("query", "gallery"))
    sides = (extract_side(model, loader) for loader in (query, gallery))
    results = evaluate_protocols(*sides, query_in_gallery=query_in_gallery)
    with quiet():
        engine = torchreid.engine.VideoSoftmaxEngine(
            manager, model, torch.optim.SGD(model.parameters(), 1), use_gpu=False
        )
        whole = [*query, *gallery] if query_in_gallery else gallery
        rank1, mean_ap = engine._evaluate("toy", query, whole, dist_metric="cosine")
    assert results["V2V"]["mAP_interpolated"] == pytest.approx(mean_ap, abs=1e-6)
    assert results["V2V"]["rank1"] == pytest.approx(rank1, abs=1e-6)
    assert 0.2 < mean_ap < 1


def test_one_pass_gives_sets_and_first_frames_whatever_the_chunks():
    model = tiny().eval()
    loader = SetManager(test_views=5).test_loader["toy"]["query"]
    calls = []

    def embed(frames):
        calls.append(len(frames))
        return model(frames)

    with torch.no_grad():
        found = extract_side(embed, loader, frames_at_once=3)
        images = torch.cat([batch["img"] for batch in loader])
        torch.testing.assert_close(found.sets, model(images))
        torch.testing.assert_close(found.images, model(images[:, 0]))
    assert sum(calls) == images.shape[0] * 5 and max(calls) == 3
    assert found.pids.tolist() == [pid for pid in range(8) for _ in range(2)] and set(found.camids.tolist()) == {0, 1}


def test_tracklets_of_different_lengths_and_single_images():
    model = tiny().eval()
    tracklets = [torch.randn(length, 3, 16, 8) for length in (1, 4, 2)]
    labels = {"pid": torch.tensor([0, 1, 2]), "camid": torch.tensor([0, 0, 1])}
    with torch.no_grad():
        found = extract_side(model, [{"img": tracklets, **labels}])
        torch.testing.assert_close(found.sets[1], model(tracklets[1]).mean(0))
        firsts = torch.stack([frames[0] for frames in tracklets])
        images = extract_side(model, [{"img": firsts, **labels}])
    torch.testing.assert_close(found.images, images.sets)
    assert torch.equal(images.sets, images.images)


def test_queries_in_the_gallery_find_each_other_and_never_themselves():
    query = side([0, 20], [1, 1], [0, 1])
    gallery = side([90, 80], [2, 3], [0, 0])
    with pytest.raises(DataError, match="none of 2 queries has a match"):
        evaluate_protocols(query, gallery, ("V2V",))
    found = evaluate_protocols(query, gallery, ("V2V",), query_in_gallery=True)
    assert found["V2V"]["mAP_interpolated"] == 1
    # Without cameras it is the query's own copy alone that is left out: were it found, ranks would be 1 by itself.
    alone = evaluate_protocols(side([0, 80], [1, 1], [0, 0]), side([10, 20], [2, 3], [0, 0]), ("V2V",), True, True)
    assert alone["V2V"]["rank1"] == 0 and alone["V2V"]["mAP_interpolated"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("camera", [0, -1])
def test_sets_without_cameras(camera):
    query = side([0, 50], [1, 2], [camera] * 2)
    gallery = side([10, 40, 5], [1, 2, 2], [camera] * 3)
    with pytest.raises(DataError, match="leave the cameras out where there are none"):
        evaluate_protocols(query, gallery)
    found = evaluate_protocols(query, gallery, ("V2V",), no_camera=True)["V2V"]
    assert found["mAP_interpolated"] == pytest.approx((1 / 2 + (1 + 2 / 3) / 2) / 2) and found["rank1"] == 0.5


def test_the_table_names_both_average_precisions():
    query, gallery = side([0], [1], [0], first=[90]), side([10, 80, 40], [1, 2, 3], [1, 1, 1])
    lines = protocol_table(evaluate_protocols(query, gallery)).splitlines()
    assert lines[0].replace(" ", "").startswith("|protocol|mAP_interpolated|mAP_trapezoid|mINP|rank1|rank5|")
    assert lines[3].replace(" ", "").startswith("|I2V|33.3|16.7|33.3|0.0|100.0|")


def test_distances_are_cosine():
    query, gallery = torch.randn(3, 4), torch.randn(30, 4)
    sides = [SideFeatures(f, f, np.arange(len(f)) % 3, np.full(len(f), len(f))) for f in (query, gallery)]
    found = evaluate_protocols(*sides, ("V2V",))["V2V"]
    distances = 1 - functional.normalize(query) @ functional.normalize(gallery).t()
    assert found["mAP_interpolated"] == pytest.approx(rank_distances(distances, *(s.pids for s in sides)).mean_ap)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q, g: extract_side(None, [], side="query"), DataError, "the query has no tracklets, so there is"),
        (lambda q, g: extract_side(None, q, 0), ConfigError, "frames_at_once is 0; allowed: 1 or more"),
        (lambda q, g: evaluate_protocols(side([0], [1], [0]), side([0], [1], [1]), ()), ConfigError,
         r"protocols are \[\]; allowed"),
        (lambda q, g: extract_side(None, [{**q[0], "img": q[0]["img"][:, :0]}], side="query"), DataError,
         "a tracklet of the query has no frames"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    loaders = SetManager().test_loader["toy"]
    with pytest.raises(error, match=message):
        call(loaders["query"], loaders["gallery"])
