"""Schedules against their definitions, biases with their own rate, and what a further module adds."""

import math

import pytest
import torch
from torch import nn

from oskt_torchreid.config import default_config
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.optimization import add_to_optimizer, build_optimizer, build_scheduler, check_layers


def configured(**changes):
    config = default_config()
    for key, value in changes.items():
        config.train[key] = value
    return config


def rates(config, epochs, iterations=1, lr=1.0):
    """Learning rate at the start of every epoch."""
    config.train.lr = lr
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2)), config)
    scheduler = build_scheduler(optimizer, config.train, iterations)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        for _ in range(iterations if config.train.per_iteration else 1):
            optimizer.step()
            scheduler.step()
    return seen


def test_warmup_multi_step_follows_the_strong_baseline():
    config = configured(lr_scheduler="warmup_multi_step", warmup_epochs=10, stepsize=[40, 70, 130], max_epoch=200)
    seen = rates(config, 200, lr=3.5e-4)
    assert seen[:3] == pytest.approx([3.5e-6, 3.5e-4 * 0.109, 3.5e-4 * 0.208])
    expected = {9: 0.901, 10: 1, 39: 1, 40: 0.1, 69: 0.1, 70: 0.01, 129: 0.01, 130: 0.001, 199: 0.001}
    assert {epoch: seen[epoch] for epoch in expected} == pytest.approx(
        {epoch: 3.5e-4 * share for epoch, share in expected.items()}
    )


def test_warmup_cosine_counts_from_the_first_epoch_and_ends_at_its_lowest_rate():
    config = configured(lr_scheduler="warmup_cosine", warmup_epochs=20, min_lr_factor=0.002, max_epoch=120)
    seen = rates(config, 121, lr=4e-4)
    assert seen[0] == pytest.approx(4e-6) and seen[10] == pytest.approx(4e-4 * 0.505)
    for epoch in (20, 60, 119, 120):
        share = 0.002 + 0.998 * (1 + math.cos(math.pi * epoch / 120)) / 2
        assert seen[epoch] == pytest.approx(4e-4 * share)
    assert seen[120] == pytest.approx(8e-7)


@pytest.mark.parametrize("name", ["warmup_multi_step", "warmup_cosine"])
def test_a_schedule_per_iteration_passes_the_rates_of_the_epochs(name):
    changes = {"lr_scheduler": name, "warmup_epochs": 3, "stepsize": [5], "max_epoch": 8}
    by_epoch = rates(configured(**changes), 8)
    by_iteration = rates(configured(**changes, per_iteration=True), 8, iterations=4)
    assert by_iteration == pytest.approx(by_epoch)


def test_no_warmup_is_torchreids_multi_step():
    changes = {"stepsize": [2, 4], "max_epoch": 6}
    own = rates(configured(lr_scheduler="warmup_multi_step", **changes), 6)
    assert own == pytest.approx(rates(configured(lr_scheduler="multi_step", **changes), 6))


def test_biases_have_their_own_rate_through_the_whole_schedule():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    config = configured(optim="sgd", lr=0.1, bias_lr_factor=2.0, lr_scheduler="warmup_cosine", max_epoch=4)
    optimizer = build_optimizer(network, config)
    weights, biases = optimizer.param_groups
    assert [id(p) for p in biases["params"]] == [id(network[0].bias), id(network[1].bias)]
    assert len(weights["params"]) == 3 and weights["lr"] == pytest.approx(0.1)
    assert weights["weight_decay"] == biases["weight_decay"]
    scheduler = build_scheduler(optimizer, config.train, 1)
    for _ in range(3):
        assert biases["lr"] == pytest.approx(2 * weights["lr"])
        optimizer.step()
        scheduler.step()


def test_a_further_module_joins_the_groups_by_kind():
    further = nn.Linear(2, 2)
    config = configured(bias_lr_factor=2.0)
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2)), config)
    add_to_optimizer(optimizer, further)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert optimizer.param_groups[1]["params"][1] is further.bias


def test_a_further_module_joins_the_first_group_where_biases_have_none():
    further = nn.Linear(2, 2)
    further.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    add_to_optimizer(optimizer, further)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_chain_has_its_own_rate_beside_its_teacher(schedule):
    """The teacher's is a share of the chain's through the whole schedule, that of its biases too."""
    config = configured(optim="adam", bias_lr_factor=2.0)
    stage = config.oskt.refine
    stage.lr, stage.teacher_lr_factor, stage.lr_scheduler, stage.max_epoch = 0.01, 0.1, schedule, 4
    teacher, chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2)), nn.Linear(4, 4)
    optimizer = build_optimizer(teacher, config, stage)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.002, 0.01])
    scheduler = build_scheduler(optimizer, stage, 1)
    add_to_optimizer(optimizer, chain)
    weights, biases, own = optimizer.param_groups
    assert [id(p) for p in own["params"]] == [id(chain.weight), id(chain.bias)]
    assert [len(group["params"]) for group in (weights, biases)] == [2, 2]
    sum(p.square().sum() for p in (*teacher.parameters(), *chain.parameters())).backward()
    for _ in range(3):
        before, moved = chain.weight.detach().clone(), teacher[0].weight.detach().clone()
        optimizer.step()
        steps = [(now - then).abs().mean().item() for now, then in ((teacher[0].weight, moved), (chain.weight, before))]
        assert steps[0] == pytest.approx(0.1 * steps[1], rel=2e-2) and steps[1] > 0
        assert [weights["lr"], biases["lr"]] == pytest.approx([0.1 * own["lr"], 0.2 * own["lr"]])
        scheduler.step()
    stage.teacher_lr_factor = 1.0
    assert len(build_optimizer(teacher, config, stage).param_groups) == 2


def test_frozen_biases_leave_no_empty_group():
    network = nn.Linear(2, 2, bias=False)
    assert len(build_optimizer(network, configured(bias_lr_factor=2.0)).param_groups) == 1


def test_two_ways_of_grouping_are_refused():
    config = configured(staged_lr=True, bias_lr_factor=2.0)
    with pytest.raises(ConfigError, match=r"train.staged_lr and train.bias_lr_factor=2.0 both divide"):
        build_optimizer(nn.Sequential(nn.Linear(2, 2)), config)


def test_unknown_schedule_names_the_nearest():
    config = configured(lr_scheduler="warmup_cosin")
    with pytest.raises(ConfigError, match="unknown lr_scheduler 'warmup_cosin'; did you mean 'warmup_cosine'"):
        build_scheduler(build_optimizer(nn.Linear(2, 2), config), config.train, 1)


# ---- staged rates ----------------------------------------------------------------------------------------------------


class Layered(nn.Module):
    """Three layers, one of them without parameters, and a parameter that belongs to none."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.base, self.pool, self.classifier = nn.Linear(2, 3), nn.AvgPool2d(2), nn.Linear(3, 2, bias=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fc9"], r"train.new_layers is \['fc9'\], and 'fc9' is no layer; the layers of Layered are base, classifier"),
        (["classifer"], "'classifer' is no layer; did you mean 'classifier'"),
        (["classifier", "fc9"], "'fc9' is no layer"),
        (["classifier.weight"], "'classifier.weight' is no layer; name the whole 'classifier'"),
        ([""], "'' is no layer"),
        ([], r"train.new_layers is \[\], in which there is nothing to train"),
        (["pool"], r"train.new_layers is \['pool'\], in which there is nothing to train"),
        (["base", "classifier"], "which leaves no other layer; name only some"),
    ],
)
def test_new_layers_that_are_none(names, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Layered(), configured(staged_lr=True, new_layers=names))


def test_all_layers_may_be_open():
    check_layers(Layered(), ["base", "pool", "classifier"], "open_layers")
    check_layers(Layered(), "classifier", "open_layers")


@pytest.mark.parametrize("optim", ["adam", "amsgrad", "sgd", "rmsprop"])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_staged_groups_are_torchreids_and_leave_nothing_out(optim, wrap):
    model = Layered()
    config = configured(staged_lr=True, new_layers=["classifier"], base_lr_mult=0.2, optim=optim, lr=0.5)
    base, new = build_optimizer(wrap(model), config).param_groups
    theirs = torchreid.optim.build_optimizer(
        model, optim, lr=0.5, staged_lr=True, new_layers=["classifier"], base_lr_mult=0.2
    )
    assert [base["lr"], new["lr"]] == [group["lr"] for group in theirs.param_groups] == pytest.approx([0.1, 0.5])
    assert [id(p) for p in base["params"]] == [id(model.token), id(model.base.weight), id(model.base.bias)]
    assert [id(p) for p in new["params"]] == [id(model.classifier.weight)]
    assert base.get("amsgrad") == theirs.param_groups[0].get("amsgrad")
