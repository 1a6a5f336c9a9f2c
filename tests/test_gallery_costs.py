"""The costs of a shared gallery: what is measured, in small."""

from __future__ import annotations

import re
import sys
import types

import numpy as np
import pytest
from test_tools import tool

from oskt_torchreid.deploy.gallery import rank
from oskt_torchreid.lab import benchmark_gallery


def test_the_command_prints_what_was_measured(capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small = ["--queries", "5", "--gallery", "300", "--length", "16", "--backbone", "osnet_x0_25", "--rounds", "3"]
    assert tool("benchmark").main(["gallery", *small]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("5 queries, 300 entries of 16, ") and "oskt.rank" in printed
    own, whole, share = map(float, re.search(r"([\d.]+) ms, lifted ([\d.]+) ms \(([-+][\d.]+) %\)", printed).groups())
    assert own > 0 and share == pytest.approx(100 * (whole / own - 1), abs=3)


class FlatIndex:
    """The part of faiss' flat index that is used, by its definition."""

    def __init__(self, length):
        self.pool = np.empty((0, length), np.float32)

    def add(self, pool):
        self.pool = np.concatenate([self.pool, pool])

    def search(self, queries, most):
        alike = queries @ self.pool.T
        places = np.argsort(-alike, axis=1)[:, :most]
        return np.take_along_axis(alike, places, 1), places


def test_first_places_are_those_of_a_flat_index(monkeypatch):
    module = types.SimpleNamespace(IndexFlatIP=FlatIndex, omp_set_num_threads=lambda threads: None)
    monkeypatch.setitem(sys.modules, "faiss", module)
    shape = (7, 200, 8, 1)
    cost, places = benchmark_gallery._faiss(*shape)
    ours, own = benchmark_gallery._ours(*shape)
    assert np.array_equal(places, own) and cost.seconds > 0 and ours.name == "oskt.rank"
    queries, pool = benchmark_gallery._sides(*shape)
    assert np.array_equal(rank(queries, pool, most=1).places[:, 0].numpy(), own)
