"""The scripts of torchreid's README and user guide, with an engine of this package in the place of torchreid's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from oskt_torchreid import registry
from oskt_torchreid.host.compat import host_table, torchreid

ENGINES = {"softmax": "softmax", "triplet": "triplet", "oskt": "softmax", "vkd": "triplet"}
"""Engines, and the loss that a script builds its model for."""
IMAGES_ALONE = [name for name in ENGINES if name != "vkd"]  # sets have no ranked lists


class NewDataset(torchreid.data.ImageDataset):
    """A data set of one's own, as the user guide has it: lists of (path, identity, camera)."""

    dataset_dir = "market1501/Market-1501-v15.09.15"

    def __init__(self, root="", **options):
        folder = Path(root) / self.dataset_dir
        train = self.items(folder / "bounding_box_test")
        labels = {pid: label for label, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        train = [(path, labels[pid], camera) for path, pid, camera in train]
        super().__init__(train, self.items(folder / "query"), self.items(folder / "bounding_box_test"), **options)

    @staticmethod
    def items(folder):
        return [(str(path), int(path.name[:4]), int(path.name[6]) - 1) for path in sorted(folder.glob("*.jpg"))]


@pytest.fixture(autouse=True)
def new_dataset():
    """Registered as in a script; a name can be registered once."""
    torchreid.data.register_image_dataset("new_dataset", NewDataset)
    yield
    del host_table(torchreid.data.register_image_dataset, "__image_datasets")["new_dataset"]


class Script:
    """What the lines of every script have in common."""

    def __init__(self, engine, root, folder):
        self.engine, self.root, self.folder = engine, str(root), str(folder)

    def data(self, sources="market1501", **options):
        sizes = {"height": 32, "width": 16, "batch_size_train": 8, "batch_size_test": 20, "workers": 0}
        return torchreid.data.ImageDataManager(self.root, sources, use_gpu=False, **{**sizes, **options})

    def model(self, manager, prefix=""):
        name = prefix + ("vkd_tiny_net" if self.engine == "vkd" else "tiny_net")
        return torchreid.models.build_model(name, manager.num_train_pids, ENGINES[self.engine], pretrained=False)

    def optimizer(self, model, **options):
        return torchreid.optim.build_optimizer(model, optim="adam", lr=0.003, **options)

    def build(self, manager, model, optimizer=None, scheduler=None):
        options = {"width": 0.5} if self.engine == "oskt" else {}
        return registry.build_engine(
            self.engine, manager, model, optimizer=optimizer, scheduler=scheduler, use_gpu=False, **options
        )

    def whole(self, manager):
        """Model and engine of the 30-second start."""
        model = self.model(manager)
        optimizer = self.optimizer(model)
        scheduler = torchreid.optim.build_lr_scheduler(optimizer, lr_scheduler="single_step", stepsize=20)
        return model, self.build(manager, model, optimizer, scheduler)

    def files(self):
        paths = [path.relative_to(self.folder) for path in Path(self.folder).rglob("*") if path.is_file()]
        return sorted(str(path) for path in paths if "tfevents" not in path.name)


@pytest.fixture
def script(request, market_root, tiny_net, tmp_path):
    return Script(request.param, market_root, tmp_path)


def every(engines=tuple(ENGINES)):
    return pytest.mark.parametrize("script", engines, indirect=True)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    """Names of the model's tensors that are others now."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def layers(names):
    return {name.partition(".")[0] for name in names}


@every()
def test_thirty_second_start(script):
    manager = script.data(targets="market1501", transforms=["random_flip", "random_crop"])
    model, engine = script.whole(manager)
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=2, eval_freq=1, print_freq=10, test_only=False)
    assert layers(moved(model, before)) == layers(before), "every layer has learnt"
    assert script.files() == ["model/model.pth.tar-1", "model/model.pth.tar-2"]
    assert 0 < engine.results["market1501"]["mAP"] <= 1 and 0 <= engine.results["market1501"]["rank1"] <= 1


@every()
def test_another_target(script):
    """Cross-domain: trained on one data set, tested on another."""
    _, engine = script.whole(script.data(targets="new_dataset"))
    engine.run(save_dir=script.folder, max_epoch=1)
    assert engine.results.keys() == {"new_dataset"} and engine.results["new_dataset"]["mAP"] > 0


@every()
def test_several_sources_and_targets(script):
    names = ["market1501", "new_dataset"]
    manager = script.data(names, targets=names)
    model, engine = script.whole(manager)
    assert model.classifier.out_features == 12, "6 identities of each"
    engine.run(save_dir=script.folder, max_epoch=1)
    assert list(engine.results) == names


@every()
def test_all_pictures_in_training(script):
    manager = script.data(combineall=True)
    model, engine = script.whole(manager)
    assert model.classifier.out_features == 12, "identities of training, query and gallery"
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=1)
    assert "classifier" in layers(moved(model, before))


@every()
@pytest.mark.parametrize("open_layers", ["classifier", ["classifier"]])
def test_two_stepped_training(script, open_layers):
    """The base frozen at first, all open afterwards."""
    model, engine = script.whole(script.data())
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=1, fixbase_epoch=1, open_layers=open_layers)
    assert layers(moved(model, before)) == {"classifier"}
    engine.run(save_dir=script.folder, max_epoch=2, start_epoch=1, fixbase_epoch=1, open_layers=open_layers)
    assert layers(moved(model, before)) == layers(before)


@every()
def test_staged_rates(script):
    """A tenth of the rate for the base, whose steps Adam makes as long as its rate."""
    manager = script.data()
    model = script.model(manager)
    optimizer = script.optimizer(model, staged_lr=True, new_layers="classifier", base_lr_mult=0.1)
    engine = script.build(manager, model, optimizer)
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=1)
    steps = {name: (tensor - before[name]).abs().max() for name, tensor in model.named_parameters()}
    base = max(step for name, step in steps.items() if not name.startswith("classifier"))
    assert 0 < base < 0.5 * steps["classifier.weight"]


@every()
def test_batches_of_identities(script):
    """The user guide's triplet loss."""
    manager = script.data(num_instances=4, train_sampler="RandomIdentitySampler")
    model, engine = script.whole(manager)
    assert len(next(iter(engine.train_loader))["pid"].unique()) == 2
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=1)
    assert moved(model, before)
    assert ("loss_t" in engine.last_summary) == (ENGINES[script.engine] == "triplet")


@every()
def test_test_only_with_weights_of_a_file(script):
    manager = script.data()
    model, engine = script.whole(manager)
    engine.run(save_dir=script.folder, max_epoch=1)
    files = script.files()
    torch.save(model.state_dict(), Path(script.folder) / "weights.pth")
    fresh = script.model(manager)
    torchreid.utils.load_pretrained_weights(fresh, str(Path(script.folder) / "weights.pth"))
    before = snapshot(fresh)
    tested = script.build(manager, fresh)
    tested.run(save_dir=script.folder, test_only=True)
    assert tested.results == engine.results
    assert not moved(fresh, before) and script.files() == [*files, "weights.pth"]


@every(IMAGES_ALONE)
def test_ranked_lists(script):
    manager = script.data()
    engine = script.build(manager, script.model(manager))
    engine.run(save_dir=script.folder, test_only=True, visrank=True, visrank_topk=3)
    lists = [name for name in script.files() if name.startswith("visrank_market1501/")]
    assert len(lists) == 12, "one picture per query"


@every()
def test_reranked_numbers(script):
    manager = script.data()
    engine = script.build(manager, script.model(manager))
    engine.run(save_dir=script.folder, test_only=True, rerank=True)
    numbers = engine.results["market1501"]
    assert {"mAP", "rank1", "reranked_mAP", "reranked_rank1"} <= numbers.keys()
    assert numbers["reranked_mAP"] != numbers["mAP"]


@every()
def test_resumed_by_torchreids_function(script):
    manager = script.data()
    _, engine = script.whole(manager)
    engine.run(save_dir=script.folder, max_epoch=1)
    _, again = script.whole(manager)
    path = str(Path(script.folder) / "model" / "model.pth.tar-1")
    start = torchreid.utils.resume_from_checkpoint(path, again.model, again.optimizer, again.scheduler)
    assert start == 1 and not moved(again.model, snapshot(engine.model))
    again.run(save_dir=script.folder, max_epoch=2, start_epoch=start)
    assert script.files() == ["model/model.pth.tar-1", "model/model.pth.tar-2"]
    assert again.scheduler.last_epoch == 2 and moved(again.model, snapshot(engine.model))


@every()
def test_a_data_set_of_ones_own(script):
    manager = script.data("new_dataset", targets="new_dataset")
    model, engine = script.whole(manager)
    before = snapshot(model)
    engine.run(save_dir=script.folder, max_epoch=1)
    assert moved(model, before) and engine.results.keys() == {"new_dataset"}


def data_parallel(model):
    return nn.DataParallel(model)


def twice_parallel(model):
    return nn.DataParallel(nn.DataParallel(model))


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def one_process(tmp_path):
    """A group of one process, without which torch makes no distributed wrapper."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every()
@pytest.mark.parametrize("wrap", [data_parallel, twice_parallel, distributed])
def test_models_in_torchs_wrappers(script, wrap, one_process, caplog):
    """`model = nn.DataParallel(model).cuda()` of the guide; files fit the model as it is built."""
    manager = script.data()
    model = script.model(manager)
    wrapped = wrap(model)
    before = snapshot(model)
    with caplog.at_level("INFO", "oskt_torchreid"):
        engine = script.build(manager, wrapped, script.optimizer(wrapped))
    assert "several share batches under torchrun" in caplog.text
    engine.run(save_dir=script.folder, max_epoch=1, fixbase_epoch=1, open_layers="classifier")
    assert layers(moved(model, before)) == {"classifier"}
    checkpoint = torch.load(Path(script.folder) / "model" / "model.pth.tar-1", weights_only=True)
    assert checkpoint["state_dict"].keys() == engine.model.state_dict().keys()
    assert not any("module." in name for name in checkpoint["state_dict"])
