"""Keys of evaluation."""

from __future__ import annotations

from ..allowed import AtLeast, Between, Entries, OneOf
from ..keys import NEITHER, NUMBERS, Key, Node

TEST: Node = {
    "batch_size": Key(100, "pictures in a batch of query or gallery", AtLeast(1), NEITHER),
    "dist_metric": Key("euclidean", "distance between features", OneOf("euclidean", "cosine"), NUMBERS),
    "normalize_feature": Key(False, "distances between L2-normalised features", effect=NUMBERS),
    "ranks": Key([1, 5, 10, 20], "ranks of the CMC that are reported", Entries(1, each=AtLeast(1)), NUMBERS),
    "evaluate": Key(False, "evaluate only, train nothing", effect=NEITHER),
    # Evaluations during training restore the random state.
    "eval_freq": Key(-1, "epochs from one evaluation to the next; -1: once, after training", AtLeast(-1), NEITHER),
    "start_eval": Key(0, "first epoch that is followed by an evaluation", AtLeast(0), NEITHER),
    "rerank": Key(False, "numbers after k-reciprocal re-ranking besides the plain ones", effect=NUMBERS),
    "visrank": Key(False, "draw the ranked list of every query", effect=NUMBERS),
    "visrank_topk": Key(10, "places of such a list", Between(1, 1000), NUMBERS),
}
