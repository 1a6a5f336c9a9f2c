"""What readers of the paper ask to have switched off: Ward's clusters, the S-student's loss, merged statistics."""

import numpy as np
import pytest
import torch
from test_oskt_engine import SIZE, datamanager, make_engine, teacher_of  # noqa: F401  a fixture is used by name
from torch import nn

from oskt_torchreid.baselines.partitions import PARTITIONS, kmeans_labels, random_labels
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.expansion import expand, expand_to_plan
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.graph import trace_module


def test_random_labels_keep_the_sizes():
    labels = np.array([0, 0, 0, 1, 2, 2])
    drawn = random_labels(labels, np.random.default_rng(0))
    assert sorted(drawn) == sorted(labels) and not np.array_equal(drawn, labels)


def test_kmeans_finds_what_lies_together():
    rows = np.array([[0.0], [10], [1], [11], [10.5]])
    for seed in range(5):
        labels = kmeans_labels(rows, 2, np.random.default_rng(seed))
        assert labels[0] == labels[2] != labels[1] == labels[3] == labels[4]


def test_kmeans_uses_every_cluster():
    """Rows 5, 5, 5, 9: whatever the starts, three clusters; and of four equal rows too."""
    for rows in ([5.0, 5, 5, 9], [5.0, 5, 5, 5]):
        for seed in range(5):
            labels = kmeans_labels(np.array(rows)[:, None], 3, np.random.default_rng(seed))
            assert sorted(set(labels)) == [0, 1, 2]
            assert rows[3] == 5 or np.count_nonzero(labels == labels[3]) == 1


@pytest.mark.parametrize("clustering", ["kmeans", "random"])
def test_chains_of_other_clusters(clustering):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))
    graph = trace_module(teacher, (3, 1, 1))
    ward = WeightChain.from_teacher(teacher, 0.5, graph=graph).teacher_to_chain["1"]
    labels = [
        WeightChain.from_teacher(teacher, 0.5, graph=graph, clustering=PARTITIONS[clustering](seed)).teacher_to_chain[
            "1"
        ]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(labels[0], labels[1]) and labels[0].max() == 5
    first = [list(labels[0]).index(cluster) for cluster in range(6)]
    assert first == sorted(first), "clusters are numbered by their first channel"
    if clustering == "random":
        assert sorted(np.bincount(labels[0])) == sorted(np.bincount(ward))
        assert not np.array_equal(labels[0], labels[2]) and not np.array_equal(labels[0], ward)


def test_without_its_loss_the_sstudent_only_follows(datamanager):  # noqa: F811
    """No gradient reaches the chain but that of the refining loss; statistics are its own all the same."""
    engine = make_engine(datamanager, sstudent_weight=0.0, lambda_weight=0.0, lambda_shape="constant")
    batch = next(iter(engine.train_loader))
    summary = engine.forward_backward(batch)
    assert summary["s_loss_x"] > 0
    gradients = [parameter.grad for parameter in engine.model.sstudent.rows.values()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert any(parameter.grad.any() for parameter in engine.model.teacher.parameters() if parameter.grad is not None)
    merged = expand_to_plan(engine.chain, engine.chain.widths, statistics="merged").state_dict()
    own = expand_to_plan(engine.chain, engine.chain.widths).state_dict()
    assert any(not torch.equal(tensor, merged[name]) for name, tensor in own.items() if "running_mean" in name)
    with_loss = make_engine(datamanager, lambda_weight=0.0, lambda_shape="constant")
    with_loss.forward_backward(batch)
    assert any(parameter.grad.any() for parameter in with_loss.model.sstudent.rows.values())


def test_the_sstudents_loss_counts_by_its_weight(datamanager):  # noqa: F811
    engine = make_engine(datamanager, sstudent_weight=0.25, lambda_weight=0.0)
    images, pids = engine.prepare(next(iter(engine.train_loader)))
    loss, terms = engine.compute_losses(images, pids)
    assert loss.item() == pytest.approx(terms["loss_x"] + 0.25 * terms["s_loss_x"], rel=1e-6)
    with pytest.raises(ConfigError, match="sstudent_weight is -1.0; allowed: numbers of at least 0"):
        make_engine(datamanager, sstudent_weight=-1.0)


def test_statistics_of_students(datamanager):  # noqa: F811
    """Own: the S-student's; merged: means over members of the teacher's; initial: 0 and 1."""
    engine = make_engine(datamanager)
    for batch in engine.train_loader:
        engine.forward_backward(batch)
    chain = engine.chain
    name = next(name for name in chain.statistics if name.endswith("running_mean"))
    variance = name.replace("running_mean", "running_var")
    students = {way: expand(chain, 0.5, statistics=way).state_dict() for way in ("own", "merged", "initial")}
    assert torch.equal(students["own"][name], chain.statistics[name])
    labels = chain.layout.axis(chain.graph.row_ties[name]).teacher_to_student
    expected = [chain.vectors[name][labels == slot].mean() for slot in range(int(labels.max()) + 1)]
    torch.testing.assert_close(students["merged"][name], torch.stack(expected))
    assert not students["initial"][name].any() and (students["initial"][variance] == 1).all()
    assert chain.statistics, "the chain stays as it is"
    other = [key for key in students["own"] if "running_" not in key and "num_batches" not in key]
    assert all(torch.equal(students["own"][key], students["initial"][key]) for key in other)
    with pytest.raises(ConfigError, match="statistics is 'none'; allowed: own, merged, initial"):
        expand(chain, 0.5, statistics="none")
