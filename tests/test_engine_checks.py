"""What every engine checks when a run is asked for: arguments, optimiser, batches, labels, names of layers."""

from __future__ import annotations

import copy

import pytest
import torch
from sets import SetManager
from sets import tiny as tiny_sets
from small_networks import TinyNet
from test_torchreid_scripts import ENGINES, Script
from torch import nn

from oskt_torchreid.errors import ConfigError, DataError, TrainingError
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.labels import in_order, unordered_labels
from oskt_torchreid.host.losses import ReidLoss
from oskt_torchreid.host.models import unwrapped
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.host.run_checks import check_batch
from oskt_torchreid.host.vkd_engine import VKDEngine
from oskt_torchreid.networks import Outputs


@pytest.fixture(params=ENGINES)
def script(request, market_root, tiny_net, tmp_path):
    return Script(request.param, market_root, tmp_path)


@pytest.fixture
def plain(market_root, tiny_net, tmp_path):
    """For what does not depend on the engine."""
    return Script("softmax", market_root, tmp_path)


def assert_refused(script, engine, error, message, **arguments):
    """Asserts that a run is refused before it leaves or changes anything."""
    before = copy.deepcopy(engine.model.state_dict())
    with pytest.raises(error, match=message):
        engine.run(save_dir=script.folder, **{"max_epoch": 1, **arguments})
    assert script.files() == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())


# ---- arguments of a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"print_freq": 0}, "print_freq of a run is 0; allowed: whole numbers from 1"),
        ({"max_epoch": 0}, "max_epoch of a run is 0 and start_epoch 0, so that nothing would be trained; set"),
        ({"max_epoch": 2, "start_epoch": 3}, "max_epoch of a run is 2 and start_epoch 3"),
        ({"max_epoch": 1.5}, "max_epoch of a run is 1.5; allowed: whole numbers from 0"),
        ({"start_epoch": -1}, "start_epoch of a run is -1"),
        ({"max_epoch": True}, "max_epoch of a run is True"),
        ({"ranks": [0, 5]}, r"ranks of a run are \[0, 5\]; allowed: a list of whole numbers from 1"),
        ({"dist_metric": "cosin"}, "dist_metric of a run is 'cosin'; allowed: euclidean, cosine"),
        ({"dist_metric": "cosin", "test_only": True}, "dist_metric of a run is 'cosin'"),
        ({"visrank": True}, "visrank of a run is True while it trains"),
        ({"eval_freq": None}, "eval_freq of a run is None; allowed: whole numbers from -1"),
        ({"fixbase_epoch": 1, "open_layers": 3}, "open_layers is 3, so that nothing would be frozen"),
        ({"fixbase_epoch": 1}, "fixbase_epoch of a run is 1, and open_layers is None, so that nothing would be frozen"),
        ({"fixbase_epoch": 1, "open_layers": []}, r"open_layers is \[\], so that nothing would be frozen"),
    ],
)
def test_arguments_out_of_range(plain, arguments, message):
    assert_refused(plain, plain.whole(plain.data())[1], ConfigError, message, **arguments)


@pytest.mark.parametrize("folder", [None, 3, "file/below", "file"])
def test_folders_that_cannot_be_written(script, tmp_path, folder):
    if isinstance(folder, str):
        (tmp_path / "file").write_text("")
        folder = str(tmp_path / folder)
    engine = script.whole(script.data())[1]
    for arguments in ({"max_epoch": 1}, {"test_only": True, "visrank": True}):
        if not (arguments.get("visrank") and isinstance(engine, VKDEngine)):
            with pytest.raises(
                ConfigError, match=r"save_dir of a run '.*' cannot be written \(.*\); give another folder"
            ):
                engine.run(save_dir=folder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": 3}, "loss of an engine is 3; expected oskt_torchreid.host.losses.ReidLoss"),
        ({"loss": nn.CrossEntropyLoss()}, r"loss of an engine is CrossEntropyLoss\(\); expected oskt_torchreid"),
        ({"scheduler": "cosine"}, "scheduler of an engine is 'cosine'; expected torch.optim.lr_scheduler.LRScheduler"),
        ({"datamanager": None}, "datamanager of an engine is None; expected one of torchreid's"),
        ({"optimizer": "adam"}, "optimizer of an engine is 'adam'; expected torch.optim.optimizer.Optimizer"),
        ({"half_resolution_epochs": "two"}, "half_resolution_epochs is 'two'; allowed: numbers of at least 0"),
        ({"model": None}, "model of an engine is None; expected torch.nn.modules.module.Module"),
    ],
)
def test_parts_that_are_none(plain, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TransferEngine(**{"datamanager": plain.data(), "model": nn.Linear(1, 1), **arguments})


def test_an_optimiser_of_another_network_is_seen_before_it_is_given_more(plain):
    """The S-student's parameters are added to the optimiser of a refinement."""
    manager, (teacher, other) = plain.data(), (TinyNet(4), TinyNet(4))
    with pytest.raises(TrainingError, match="the optimiser holds no parameter of this TinyNet"):
        OSKTEngine(manager, teacher, torch.optim.SGD(other.parameters(), 0.1), width=0.5, use_gpu=False)


def test_epochs_that_are_all_frozen_are_told(plain, caplog):
    engine = plain.whole(plain.data())[1]
    engine.run(save_dir=plain.folder, max_epoch=1, fixbase_epoch=1, open_layers="classifier")
    assert "all 1 epochs train nothing but classifier, for fixbase_epoch is 1" in caplog.text


def test_reranking_is_not_passed_over_in_silence(plain, caplog):
    plain.whole(plain.data())[1].run(save_dir=plain.folder, max_epoch=1, rerank=True)
    assert "rerank is for runs with test_only=True" in caplog.text


@pytest.mark.parametrize("fixbase_epoch", [1, 5])
def test_names_of_no_layer_are_refused_before_the_first_epoch(script, fixbase_epoch):
    _, engine = script.whole(script.data())
    message = "open_layers is .'classifer'., and 'classifer' is no layer; did you mean 'classifier'.*; the layers of "
    assert_refused(script, engine, ConfigError, message, fixbase_epoch=fixbase_epoch, open_layers=["classifer"])


def test_names_within_a_wrapper_are_answered_with_its_child(market_root, tiny_net, tmp_path):
    script = Script("vkd", market_root, tmp_path)
    _, engine = script.whole(script.data())
    message = "'backbone.stem' is no layer; name the whole 'backbone'; the layers of SetModel are backbone, neck, class"
    assert_refused(script, engine, ConfigError, message, fixbase_epoch=1, open_layers="backbone.stem")


def test_open_layers_count_only_while_some_are_frozen(script):
    script.whole(script.data())[1].run(save_dir=script.folder, max_epoch=1, open_layers=["no such layer"])
    assert script.files() == ["model/model.pth.tar-1"]


def test_what_belongs_to_no_layer_is_frozen_with_the_base(plain):
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.token, self.classifier = nn.Conv2d(3, 4, 1), nn.Parameter(torch.zeros(1)), nn.Linear(4, 6)

        def forward(self, images):
            features = self.base(images).mean((2, 3)) + self.token
            return self.classifier(features) if self.training else features

    manager = plain.data()
    model = WithToken()
    engine = plain.build(manager, model, plain.optimizer(model))
    engine.run(save_dir=plain.folder, max_epoch=1, fixbase_epoch=1, open_layers="classifier")
    assert model.token == 0
    engine.run(save_dir=plain.folder, max_epoch=2, start_epoch=1)
    assert model.token != 0


def test_layers_without_a_part_in_the_loss(plain):
    """Nothing that is open is reached by the loss."""
    manager = plain.data()
    model = plain.model(manager)
    model.unused = nn.Linear(1, 1)
    engine = plain.build(manager, model, plain.optimizer(model))
    with pytest.raises(TrainingError, match=r"depends on nothing that is trained in epoch 1: open more layers"):
        engine.run(save_dir=plain.folder, max_epoch=1, fixbase_epoch=1, open_layers="unused")


# ---- what would be trained -------------------------------------------------------------------------------------------


def test_a_loader_without_a_batch(script):
    _, engine = script.whole(script.data(batch_size_train=25))
    message = f"{type(engine).__name__} has a training loader, and its 24 pictures fill no batch of 25, so that nothing"
    assert_refused(script, engine, TrainingError, message)


def test_no_optimiser(plain):
    manager = plain.data()
    engine = plain.build(manager, plain.model(manager))
    assert_refused(plain, engine, TrainingError, "there is no optimiser, so that nothing would be trained")
    engine.run(save_dir=plain.folder, test_only=True)
    assert engine.results["market1501"]["mAP"] > 0


def test_an_optimiser_of_another_network(script):
    manager = script.data()
    model = script.model(manager)
    if script.engine == "oskt":  # which gives the optimiser the S-student's parameters as well, once it has looked
        with pytest.raises(TrainingError, match="the optimiser holds no parameter of this"):
            script.build(manager, model, script.optimizer(script.model(manager)))
        return
    engine = script.build(manager, model, script.optimizer(script.model(manager)))
    assert_refused(script, engine, TrainingError, "the optimiser holds no parameter of this .*; build it from the very")


def test_batches_of_one_picture_under_a_batch_norm(script):
    """A neck's norm sees one value per channel and picture."""
    manager = script.data(batch_size_train=1)
    model = script.model(manager, "" if script.engine == "vkd" else "neck_")
    engine = script.build(manager, model, script.optimizer(model))
    random = torch.get_rng_state()
    assert_refused(
        script, engine, TrainingError, "a batch norm cannot be trained on 1 image at a time; raise the batch size"
    )
    assert torch.equal(random, torch.get_rng_state())


def test_batches_of_one_picture_where_norms_are_frozen(plain):
    model, engine = plain.whole(plain.data(batch_size_train=1))
    engine.freeze(*[module for module in model.modules() if isinstance(module, nn.BatchNorm2d)])
    engine.run(save_dir=plain.folder, max_epoch=1)
    assert plain.files() == ["model/model.pth.tar-1"]


def test_a_last_batch_of_one_picture(plain):
    """Loaders of one's own may give a rest."""
    manager = plain.data()
    images = torch.randn(3, 3, 32, 16)
    manager.train_loader = [
        {"img": images[:2], "pid": torch.tensor([0, 1])},
        {"img": images[2:], "pid": torch.tensor([2])},
    ]
    _, engine = plain.whole(manager)
    engine.model.last = nn.Sequential(engine.model.last, nn.AdaptiveAvgPool2d(1))
    with pytest.raises(TrainingError, match="a batch norm cannot be trained on 1 image at a time"):
        engine.run(save_dir=plain.folder, max_epoch=1)


def test_sets_of_one_are_as_many_images_as_they_have_views(tmp_path):
    manager = SetManager(views=4)
    sets = [{name: values[:1] for name, values in data.items()} for data in manager.train_loader]
    manager.train_loader = sets
    model = tiny_sets()
    loss = ReidLoss(4)
    engine = VKDEngine(manager, model, torch.optim.SGD(model.parameters(), lr=0.05), loss=loss, use_gpu=False)
    engine.run(str(tmp_path), max_epoch=1)
    assert engine.last_summary["loss_x"] > 0


def test_the_check_of_a_batch_leaves_the_network_alone():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match="raise the batch size to 2 or more"):
        check_batch(model, (3, 4, 4), 1)
    check_batch(model, (3, 4, 4), 2)
    assert not model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_model_of_fewer_classes_than_identities():
    outputs = Outputs((torch.zeros(2, 4),), ())
    with pytest.raises(ConfigError, match="the model tells 4 identities apart, and the training data have 6; build it"):
        ReidLoss(6)(outputs, torch.tensor([0, 1]))
    assert ReidLoss(3)(outputs, torch.tensor([0, 1]))[0] > 0, "more are allowed, as in torchreid"


# ---- labels ----------------------------------------------------------------------------------------------------------


def with_labels(manager, change):
    """A data manager whose training labels are others."""
    dataset = manager.train_loader.dataset
    dataset.train = [(path, change(pid), *rest) for path, pid, *rest in dataset.train]
    if hasattr(dataset, "data"):
        dataset.data = dataset.train
    return manager


def test_labels_that_do_not_begin_at_0(script, caplog):
    """The same training as with labels from 0, and the data manager stays as it is."""
    weights = []
    for change in (lambda pid: pid, lambda pid: 100 + 7 * pid):
        manager = with_labels(script.data(), change)
        items = copy.deepcopy(manager.train_loader.dataset.train)
        torch.manual_seed(0)
        with caplog.at_level("INFO", "oskt_torchreid"):
            model, engine = script.whole(manager)
        torch.manual_seed(1)
        engine.run(save_dir=script.folder, max_epoch=1)
        assert manager.train_loader.dataset.train == items
        weights.append(model.state_dict())
    assert caplog.text.count("training labels, from 100 to 135, are numbered from 0 to 5") == 1
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_labels_of_sets_in_memory():
    """Nothing is known of a loader without a data set, and nothing is changed."""
    engine = TransferEngine(SetManager(), tiny_sets(), use_gpu=False)
    assert engine.prepare(SetManager(views=1).train_loader[0])[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert unordered_labels([], 4) is None


def test_places_of_labels():
    assert in_order(torch.tensor([9, 5, 9]), torch.tensor([5, 7, 9])).tolist() == [2, 0, 2]
    assert in_order(torch.tensor([3, 1]), None).tolist() == [3, 1]


def test_more_labels_than_identities(plain):
    manager = with_labels(plain.data(), lambda pid: pid)
    items = manager.train_loader.dataset.train
    manager.train_loader.dataset.train = [(path, number, *rest) for number, (path, _, *rest) in enumerate(items)]
    message = "the training pictures have 24 distinct labels, but the data manager counts 6 training identities"
    with pytest.raises(DataError, match=message):
        plain.whole(manager)


def test_what_is_not_wrapped_stays_as_it_is(caplog):
    model = nn.Linear(1, 1)
    assert unwrapped(model) is model and unwrapped(nn.DataParallel(model)) is model
    assert caplog.text.count("is taken off its network") <= 1
