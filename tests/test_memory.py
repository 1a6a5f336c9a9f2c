"""What training takes, counted by hand, and what is said of it."""

import pytest
from torch import nn

from oskt_torchreid.errors import ConfigError
from oskt_torchreid.runs.memory import check_stage_memory, training_memory


def network():
    """12 weights; of an image of 4x4 the convolution keeps 3 planes, and the ReLU the 4 that it gives."""
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())


@pytest.mark.parametrize("images", [2, 10])
def test_two_layers_by_hand(images):
    assert training_memory(network(), (3, 4, 4), images) == 12 * 16 + images * (3 + 4) * 16 * 4


def test_a_network_without_numbers_takes_as_much():
    assert training_memory(network().to("meta"), (3, 4, 4), 2) == training_memory(network(), (3, 4, 4), 2)


def test_the_network_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training_memory(model, (3, 4, 4), 2)
    assert not model.training and all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


def test_what_is_said(caplog):
    caplog.set_level("INFO")
    check_stage_memory({"train": (2**20, 32)}, use_gpu=False)
    assert "train: batches of 32 take about 1.05MB" in caplog.text
    with pytest.raises(ConfigError, match="oskt.refine: batches of 64 take about .*; lower oskt.refine.batch_size, or"):
        check_stage_memory({"oskt.refine": (2**50, 64)}, use_gpu=False)
    with pytest.raises(ConfigError, match="train: Sequential cannot be trained on images of 2x2"):
        training_memory(nn.Sequential(nn.Conv2d(3, 4, 5)), (3, 2, 2), 2)
