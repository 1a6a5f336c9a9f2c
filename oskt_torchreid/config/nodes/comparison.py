"""Keys of oskt bench accuracy: the chain against baselines; how all are trained, other nodes say."""

from __future__ import annotations

from functools import partial

from ..allowed import SEED, WIDTH, AtLeast, Between, Entries, Registered
from ..keys import NEITHER, Key, Node
from .oskt import STOCK_BASELINES, known_baselines

_Key = partial(Key, effect=NEITHER)  # its runs have their own keys
_WIDTHS, _SEEDS, _RATES = (Entries(each=each) for each in (WIDTH, SEED, AtLeast(1e-12)))

COMPARISON: Node = {
    "widths": _Key([0.25, 0.5, 0.75], "widths of students by chain and baselines", _WIDTHS),
    "methods": _Key(
        [name for name in STOCK_BASELINES if name != "depgraph"],  # which needs a package more
        "baselines that the chain is compared with",
        Registered(known_baselines),
    ),
    "seeds": _Key([1, 2, 3], "values of train.seed", _SEEDS),
    "data_seeds": _Key([0, 1], "values of synthped.seed; one entry for data that are not drawn", _SEEDS),
    "continues": _Key(
        "",
        "comparison.json of an earlier part with other seeds: its rates are used, its measurements are reported "
        "besides; or a rates.json",
    ),
    "equal_passes_widths": _Key(
        [0.25], "widths at which baselines also get the passes that the chain was refined for", _WIDTHS
    ),
    "trained_on": _Key(
        False, "whether the teacher is also trained on without a chain, for the refinement's epochs; width 1 needs it"
    ),
    "compute": {
        "widths": _Key([], "widths for which baselines get, all together, the compute of the chain", _WIDTHS),
        "methods": _Key([], "baselines that do, of comparison.methods", Registered(known_baselines)),
    },
    "total_methods": _Key(
        [],
        "baselines whose narrowest network is trained for the epochs of teacher, refinement and fine-tuning together",
        Registered(known_baselines),
    ),
    "teacher_rates": _Key([], "candidate learning rates of the teacher; empty: train.lr as it is", _RATES),
    "refine_rates": _Key([], "candidate learning rates of the refinement; empty: oskt.refine.lr as it is", _RATES),
    "rates": _Key([0.001, 0.003, 0.01], "candidate learning rates of every student", _RATES),
    "further_rates": _Key(
        2, "steps by which any of these is prolonged where the best is the first or last", AtLeast(0)
    ),
    "tuning_width": _Key(
        0.25,
        "width of the students that rates are chosen by; the refinement's, by the mean of comparison.widths",
        WIDTH,
    ),
    "validation_share": _Key(0.25, "share of the training identities on which rates are chosen", Between(0.01, 0.9)),
    "transfer": {
        "identities": _Key(
            [], "numbers of identities of other people to learn from: [16, 32]", Entries(each=AtLeast(1))
        ),
        "data_seed": _Key(100, "added to the data seed of the source"),
        "widths": _Key([0.25], "widths of the students that learn from these people", _WIDTHS),
        "max_epoch": _Key(20, "epochs in which these students learn", AtLeast(1)),
        "half_resolution_epochs": _Key(0, "first of these epochs, which see average-pooled images"),
    },
    "ablations": _Key([], "'random labels: oskt.clustering=random', ...: name and changed keys"),
    "ablation_epochs": _Key(0, "epochs of refinement in ablations; 0: oskt.refine.max_epoch", AtLeast(0)),
}
