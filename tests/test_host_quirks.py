"""Facts about torchreid that this package relies on or works around; a failure means that torchreid changed."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from oskt_torchreid.files import load_checkpoint
from oskt_torchreid.host.compat import host_table, torchreid
from oskt_torchreid.host.evaluation import evaluate_target

ENGINE = torchreid.engine.Engine


def test_models_live_in_a_private_table_with_one_signature():
    factory = host_table(torchreid.models.build_model, "__model_factory")
    stock = [name for name, builder in factory.items() if builder.__module__.startswith("torchreid.")]
    assert len(stock) == 49
    for name in stock:
        parameters = inspect.signature(factory[name]).parameters
        assert {"num_classes", "loss"} <= set(parameters), name


def test_data_sets_live_in_a_private_table_with_a_public_register_function():
    assert "market1501" in host_table(torchreid.data.register_image_dataset, "__image_datasets")


def test_there_is_no_engine_table():
    assert {"ImageSoftmaxEngine", "ImageTripletEngine", "Engine"} <= set(dir(torchreid.engine))
    assert not any("registry" in name for name in dir(torchreid.engine))


def test_own_checkpoints_do_not_load(tmp_path, capsys):
    torchreid.utils.save_checkpoint({"state_dict": {}, "epoch": 1, "rank1": np.float32(0.5)}, str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    with pytest.raises(Exception, match="Weights only load failed"):
        torchreid.utils.load_checkpoint(str(path))
    assert load_checkpoint(path)["rank1"] == 0.5
    assert "Unable to load" in capsys.readouterr().out


def test_misfitting_weights_load_as_a_success(tmp_path, capsys):
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(7)}, tmp_path / "other.pth")
    torchreid.utils.load_pretrained_weights(nn.Linear(1, 1), str(tmp_path / "other.pth"))
    assert "Successfully loaded" in capsys.readouterr().out


def test_saving_needs_a_scheduler(tmp_path):
    class Manager:
        train_loader = test_loader = None

    engine = ENGINE(Manager(), use_gpu=False)
    model = nn.Linear(1, 1)
    engine.register_model("model", model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(AttributeError, match="state_dict"):
        engine.save_model(0, 0.5, str(tmp_path))


def test_every_epoch_unfreezes_everything():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).eval()
    model[0].weight.requires_grad_(False)
    torchreid.utils.open_all_layers(model)
    assert model[0].weight.requires_grad and model[1].training


def test_the_loop_calls_what_the_engine_overrides():
    train, run, test = (inspect.getsource(method) for method in (ENGINE.train, ENGINE.run, ENGINE.test))
    for call in ("set_model_mode('train')", "two_stepped_transfer_learning(", "forward_backward(data)", "update_lr()"):
        assert f"self.{call}" in train
    for call in ("train(", "test(", "save_model(self.epoch, rank1, save_dir)"):
        assert f"self.{call}" in run
    assert "self._evaluate(" in test


def test_evaluation_is_given_its_settings_by_name():
    theirs = inspect.signature(inspect.unwrap(ENGINE._evaluate)).parameters
    assert list(theirs)[1:] == list(inspect.signature(evaluate_target).parameters)[1:]
    assert "dataset_name=name" in inspect.getsource(ENGINE.test)


def test_short_galleries_break_the_ranking():
    random = np.random.default_rng(0)
    gallery_pids = np.arange(40) % 4
    gallery_cameras = np.arange(40) % 3
    arguments = (np.arange(4), gallery_pids, np.array([0, 1, 1, 2]), gallery_cameras)
    with pytest.raises(ValueError, match="inhomogeneous"):
        torchreid.metrics.evaluate_rank(random.random((4, 40)), *arguments)


def test_optimizers_take_whole_modules_only():
    with pytest.raises(TypeError, match="must be an instance of nn.Module"):
        torchreid.optim.build_optimizer([nn.Parameter(torch.zeros(1))])


def test_hacnn_needs_the_loss_to_be_understood():
    model = torchreid.models.build_model("hacnn", 5, loss="softmax", pretrained=False, use_gpu=False)
    assert "(prelogits_global, prelogits_local)" in inspect.getsource(type(model).forward)
