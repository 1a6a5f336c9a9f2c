"""CMC and average precision as functions of arrays: by hand and against torchreid's."""

import numpy as np
import pytest
import torch

from oskt_torchreid.errors import ConfigError, DataError
from oskt_torchreid.host import ranking
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.ranking import rank_distances, rank_features
from oskt_torchreid.host.reranking import Reranking


def test_four_entries_by_hand():
    distances, pids = [[0.1, 0.2, 0.3, 0.4]], [2, 1, 1, 3]
    cmc, mean_ap, mean_inp = rank_distances(distances, [1], pids)
    assert cmc.tolist() == [0, 1, 1, 1] and mean_ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_inp == pytest.approx(2 / 3), "two matches, the last in the third place"
    cmc, mean_ap, mean_inp = rank_distances(distances, [1], pids, ap="trapezoid")
    assert cmc.tolist() == [0, 1, 1, 1] and mean_ap == pytest.approx(5 / 12) and mean_inp == pytest.approx(2 / 3)


def test_own_camera_is_left_out_and_queries_without_match_count_for_nothing():
    distances = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
    # The first query's first place is of its own camera; the second has no other match, the third none.
    cmc, mean_ap, mean_inp = rank_distances(distances, [1, 2, 3], [1, 2, 1, 2], [0, 0, 0], [0, 0, 1, 0], max_rank=2)
    assert cmc.tolist() == [0, 1] and mean_ap == pytest.approx(1 / 2) and mean_inp == pytest.approx(1 / 2)
    without_cameras = ((1 + 2 / 3) / 2 + (1 / 2 + 1 / 2) / 2) / 2
    assert rank_distances(distances, [1, 2, 3], [1, 2, 1, 2]).mean_ap == pytest.approx(without_cameras)


def mean_inp_by_definition(distances, q_pids, g_pids, q_camids, g_camids):
    """Query by query: how many matches there are, as a share of the place of the last one."""
    shares = []
    for row, pid, camid in zip(distances, q_pids, q_camids, strict=True):
        order = np.argsort(row)
        kept = order[(g_pids[order] != pid) | (g_camids[order] != camid)]
        places = np.flatnonzero(g_pids[kept] == pid) + 1
        if len(places):
            shares.append(len(places) / places[-1])
    return np.mean(shares)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tied", [False, True])
def test_torchreids_numbers(seed, tied, monkeypatch):
    """On random labels, some queries without a match, and distances of which many are equal."""
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", 400)  # several chunks
    random = np.random.default_rng(seed)
    queries, gallery = 23, 90
    distances = random.random((queries, gallery))
    distances = np.round(distances, 1 if tied else 9)
    limits = ((9, queries), (7, gallery), (3, queries), (3, gallery))
    labels = [random.integers(0, limit, count) for limit, count in limits]
    cmc, mean_ap = torchreid.metrics.evaluate_rank(distances, *labels, use_cython=False)
    found = rank_distances(torch.from_numpy(distances), *labels)
    assert found.mean_inp == pytest.approx(mean_inp_by_definition(distances, *labels))
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-6)
    assert found.mean_ap == pytest.approx(mean_ap, abs=1e-6)
    trapezoid = rank_distances(distances, *labels, ap="trapezoid")
    assert np.array_equal(trapezoid.cmc, found.cmc) and trapezoid.mean_ap != pytest.approx(found.mean_ap, abs=1e-3)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_features_in_parts_give_torchreids_numbers(metric, monkeypatch):
    """Galleries shorter than the CMC curve, without cameras in common, so that torchreid's curves are equally long."""
    random = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(count, 8, generator=random) for count in (20, 30))
    labels = [torch.randint(0, 5, (count,), generator=random).numpy() for count in (20, 30)]
    labels += [np.zeros(20, int), np.ones(30, int)]
    distances = torchreid.metrics.compute_distance_matrix(queries, gallery, metric).numpy()
    cmc, mean_ap = torchreid.metrics.evaluate_rank(distances, *labels, use_cython=False)
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", 100)
    found = rank_features(queries, gallery, labels, metric, ("interpolated", "trapezoid"))
    np.testing.assert_allclose(found["interpolated"].cmc, cmc, atol=1e-6)
    assert found["interpolated"].mean_ap == pytest.approx(mean_ap, abs=1e-6)
    assert found["trapezoid"].mean_ap == pytest.approx(
        rank_distances(distances, *labels, ap="trapezoid").mean_ap, abs=1e-6
    )
    assert found["interpolated"].at(1) == cmc[0] and found["interpolated"].at(50) == cmc[-1]


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (5, 1), (7, 3), (60, 6)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_reranking_gives_torchreids_distances(k1, k2, metric, monkeypatch):
    random = torch.Generator().manual_seed(1)
    centers = torch.randn(6, 8, generator=random)
    queries, gallery = (
        centers[torch.randint(0, 6, (count,), generator=random)] + 0.5 * torch.randn(count, 8, generator=random)
        for count in (15, 40)
    )
    pairs = ((queries, gallery), (queries, queries), (gallery, gallery))
    matrices = [torchreid.metrics.compute_distance_matrix(*pair, metric).numpy() for pair in pairs]
    expected = torchreid.utils.re_ranking(*matrices, k1=k1, k2=k2, lambda_value=0.3)
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", 200)
    found = Reranking(queries, gallery, metric, k1, k2).matrix()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (np.abs(found - matrices[0]) > 0.01).any()


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="distance is 'manhattan'; allowed: euclidean, cosine"):
        rank_features(torch.ones(2, 2), torch.ones(2, 2), ([0, 0], [0, 0], None, None), "manhattan")
    with pytest.raises(ConfigError, match="re-ranking has k1=0, k2=6, weight=0.3"):
        Reranking(torch.ones(2, 2), torch.ones(2, 2), k1=0)
    with pytest.raises(DataError, match="there are 0 queries and 2 gallery entries"):
        rank_features(torch.ones(0, 2), torch.ones(2, 2), ([], [0, 1], None, None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distmat": np.zeros((0, 4))}, r"shape \(0, 4\); it must be \[queries, gallery\] with at least one of each"),
        ({"distmat": np.zeros((1, 0)), "g_pids": []}, r"shape \(1, 0\)"),
        ({"distmat": [[0, 1, np.nan, 2]]}, "1 of 4 distances are not numbers"),
        ({"g_pids": [1, 2]}, r"g_pids has shape \(2,\), and the distance matrix is of 1 queries and 4 gallery"),
        ({"q_camids": [1]}, "cameras are given of one side only"),
        ({"q_pids": [7]}, "none of 1 queries has a match among 4 gallery entries"),
    ],
)
def test_bad_data(change, message):
    given = {"distmat": [[0.1, 0.2, 0.3, 0.4]], "q_pids": [1], "g_pids": [1, 2, 1, 2]}
    with pytest.raises(DataError, match=message):
        rank_distances(**{**given, **change})


def test_unknown_average_precision():
    with pytest.raises(ConfigError, match="average precision is 'area'; allowed: interpolated, trapezoid"):
        rank_distances([[0.0]], [1], [1], ap="area")
