"""Training and evaluating one network of a run, with the engine and the schedule of its stage."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..chain.counting import multiply_adds
from ..config import Config, Effect, get, save_resolved, settings
from ..datasets import crops, synthped, synthped_video
from ..datasets.checks import data_digest
from ..datasets.fewshot import save_list
from ..datasets.manager import build_datamanager
from ..datasets.synthetic import SyntheticSettings, preset, video_preset
from ..host.compat import seed_everything
from ..host.distributed import broadcast, rank_zero_first
from ..host.engine import TransferEngine
from ..host.interfaces import DataManager
from ..host.losses import loss_from_config
from ..host.optimization import build_optimizer, build_scheduler
from ..host.ranking import Labels
from .conditions import idle_keys
from .oskt.specification import students_of
from .recipes import Recipe
from .stages import Stage, attempt_key
from .use import data_nodes

logger = logging.getLogger(__name__)

_SHARED_NODES = ("model", "data", "sampler", "loss", "test", "sgd", "rmsprop", "adam", "few_shot", "validation")
_SHARED_TRAIN_KEYS = (
    *("seed", "optim", "bias_lr_factor", "staged_lr", "new_layers", "base_lr_mult"),
    *("mixed_precision", "channels_last", "sync_batch_norm"),
)
_NOT_SHARED = ("model.load_weights",)  # by its content, if a network starts from it

LISTS = "ranked_lists"
Numbers = dict[str, Any]
"""mAP and ranks of a network on the first target, those of all under `targets`, and some ranked lists under `LISTS`."""
EngineBuilder = Callable[..., TransferEngine]


class Trainer:
    """Trains and evaluates networks on the data of one configuration.

    Args:
        config: whole tree.
        resume: a checkpoint from which a stage resumes, besides the configuration's files.
    """

    def __init__(self, config: Config, resume: str = "") -> None:
        self.config = config
        self.given = [*given_files(config), *([resume] if resume else [])]
        self._managers: dict[Hashable, DataManager] = {}
        configure_data(config)

    def datamanager(self, batch_size: int, batch_key: str = "train.batch_size") -> DataManager:
        """torchreid's data manager for a training batch size from a key of the configuration; made once."""
        if batch_size not in self._managers:
            with rank_zero_first():
                self._managers[batch_size] = build_datamanager(self.config, batch_size, batch_key=batch_key)
        return self._managers[batch_size]

    def stage_datamanager(self, stage: Config, key: str = "train") -> DataManager:
        """The data manager of a stage, given by the node of its schedule and that node's key."""
        return self.datamanager(stage.batch_size, f"{key}.batch_size")

    @property
    def first_datamanager(self) -> DataManager:
        """The data manager of the first stage, for everything that is the same in all stages."""
        return self.datamanager(self.config.train.batch_size)

    @cached_property
    def num_classes(self) -> int:
        """Training identities of the data."""
        return self.first_datamanager.num_train_pids

    @cached_property
    def shared(self) -> Recipe:
        """The recipe shared by all networks: keys, and the pictures themselves."""
        config = self.config
        train, tested = data_nodes(config.data.sources), data_nodes(config.data.targets)
        keys = (*_SHARED_NODES, *(f"train.{key}" for key in _SHARED_TRAIN_KEYS), *train)
        weights = settings(config, keys, Effect.WEIGHTS)
        numbers = settings(config, (*keys, "cuhk03", *tested), Effect.NUMBERS)
        only_tested = [node for node in tested if node not in train]
        numbers |= settings(config, only_tested, Effect.WEIGHTS)
        for key in _NOT_SHARED:
            del weights[key]
        manager = self.first_datamanager
        weights["the training pictures"] = data_digest(manager.train_loader.dataset.train)
        parts = [items for part in manager.test_dataset.values() for items in part.values()]
        numbers["the test pictures"] = [data_digest(items) for items in parts]
        return Recipe(weights, numbers, frozenset(idle_keys(config)))

    def recipe(self, *nodes: str, **further: Any) -> Recipe:
        """The recipe of a stage.

        Args:
            *nodes: keys, or nodes of keys, that determine its weights, besides those shared by all stages.
            **further: other names and values that do; digests have names that begin with "the".
        """
        return self.shared.with_weights(**settings(self.config, nodes, Effect.WEIGHTS), **further)

    def stage(self, folder: Path, recipe: Recipe, *outputs: str) -> Stage:
        """A stage of this run, which does not move the files that the run is given."""
        return Stage(folder, recipe, outputs, self.given)

    def record(self, folder: Path) -> None:
        """Writes into a run's folder the resolved configuration, and the pictures of a few-shot run."""
        save_resolved(self.config, folder)
        few = self.config.few_shot
        if few.ratio < 1:
            pictures = self.first_datamanager.train_loader.dataset.train
            save_list(folder, pictures, self.config.data.root, few.ratio, few.seed)

    def train(
        self,
        model: nn.Module,
        stage: Config,
        folder: Path,
        continued: bool = False,
        engine: EngineBuilder = TransferEngine,
        curve: bool = False,
        resume: str = "",
        key: str = "train",
    ) -> TransferEngine:
        """Trains a network, in place, and evaluates it.

        Args:
            model: network to train.
            stage: node of the configuration with the schedule (`train`, `oskt.refine`, `oskt.finetune`).
            folder: for checkpoints and TensorBoard files.
            continued: resume where an interrupted attempt stopped, if it left a checkpoint.
            engine: called with data manager, model and the arguments of `TransferEngine`.
            curve: evaluate after every epoch, whatever `test.eval_freq` says.
            resume: a checkpoint to resume from if there is no interrupted attempt.
            key: of the stage's node, for messages.

        Returns:
            The engine after its run, with `results`.
        """
        config = self.config
        seed_everything(config.train.seed)
        trainer = self.build_engine(model, stage, engine, key)
        start_epoch = self._start(trainer, stage, folder, continued, resume)
        trainer.run(
            save_dir=str(folder),
            max_epoch=stage.max_epoch,
            start_epoch=start_epoch,
            print_freq=config.train.print_freq,
            fixbase_epoch=stage.get("fixbase_epoch", 0),
            open_layers=list(config.train.open_layers),
            start_eval=config.test.start_eval,
            eval_freq=1 if curve else config.test.eval_freq,
            **self._test_settings(),
        )
        if config.test.rerank or config.test.visrank:  # torchreid allows it after training only
            trainer.test(**self._test_settings(), **self._extras(folder))
        return trainer

    def check_resume(self, model: nn.Module, stage: Config, resume: str, run_key: str) -> None:
        """Raises `CheckpointError` unless a training can resume from a checkpoint.

        Args:
            model: not changed.
            stage: node of the configuration with the schedule.
            resume: the checkpoint.
            run_key: digest of the resumed stage.
        """
        engine = self.build_engine(copy.deepcopy(model), stage)
        engine.run_key = run_key
        engine.resume(resume)

    def build_engine(
        self, model: nn.Module, stage: Config, build: EngineBuilder = TransferEngine, key: str = "train"
    ) -> TransferEngine:
        """The engine of a stage with its data, optimiser, schedule and loss; arguments as of `train`."""
        config = self.config
        datamanager = self.stage_datamanager(stage, key)
        optimizer = build_optimizer(model, config, stage)
        return build(
            datamanager,
            model,
            optimizer,
            build_scheduler(optimizer, stage, len(datamanager.train_loader)),
            loss=loss_from_config(config, datamanager.num_train_pids, config.use_gpu and torch.cuda.is_available()),
            use_gpu=config.use_gpu,
            schedule_per_iteration=stage.per_iteration,
            half_resolution_epochs=stage.half_resolution_epochs,
            channels_last=config.train.channels_last,
            mixed_precision=config.train.mixed_precision,
            sync_batch_norm=config.train.sync_batch_norm,
        )

    def _start(self, engine: TransferEngine, stage: Config, folder: Path, continued: bool, resume: str) -> int:
        """The epoch that training starts from; the engine has then loaded the checkpoint, if any."""
        engine.run_key = broadcast(lambda: attempt_key(folder))
        found = None
        if continued:
            found = engine.resume_latest(folder, stage.max_epoch)
        else:
            engine.discard(folder, stage.max_epoch)
        if found is None and resume:
            found = engine.resume(resume)
        if found is None:
            return stage.get("start_epoch", 0)
        seed_everything(self.config.train.seed + found)  # for a checkpoint without the generators' states
        logger.info("%s: resuming after epoch %d%s", folder.name, found, engine.place_within_epoch)
        return found

    def evaluate(self, model: nn.Module, folder: Path | None = None) -> Numbers:
        """Numbers of a network, see `measured`.

        Args:
            model: not changed, but moved to the device.
            folder: where pictures of ranked lists go, if the configuration asks for them; `None`: there are none.
        """
        channels_last = self.config.train.channels_last
        engine = TransferEngine(self.first_datamanager, model, use_gpu=self.config.use_gpu, channels_last=channels_last)
        engine.test(**self._test_settings(), **self._extras(folder))
        return measured(engine)

    def features(self, model: nn.Module) -> tuple[Tensor, Tensor, Labels]:
        """Features of the first target's queries and gallery, and their labels: identities and cameras of both.

        Args:
            model: not changed, but moved to the device.
        """
        channels_last = self.config.train.channels_last
        engine = TransferEngine(self.first_datamanager, model, use_gpu=self.config.use_gpu, channels_last=channels_last)
        return engine.features()

    def _extras(self, folder: Path | None) -> dict[str, Any]:
        """Evaluations that torchreid makes on request only."""
        test = self.config.test
        pictures = {"visrank": test.visrank and folder is not None, "visrank_topk": test.visrank_topk}
        return {"rerank": test.rerank, "save_dir": str(folder or ""), **pictures}

    def _test_settings(self) -> dict[str, Any]:
        test = self.config.test
        return {
            "dist_metric": test.dist_metric,
            "normalize_feature": test.normalize_feature,
            "ranks": list(test.ranks),
            "use_metric_cuhk03": self.config.cuhk03.use_metric_cuhk03,
        }


def given_files(config: Config) -> list[str]:
    """The files that a configuration tells a run to read."""
    oskt, vkd = config.oskt, config.vkd
    named = [config.model.load_weights, oskt.teacher, oskt.chain, vkd.teacher, vkd.student, vkd.last_stage_weights]
    named += [spec.value for spec in students_of(config) if spec.is_file]
    return [path for path in named if path]


def configure_data(config: Config) -> None:
    """Configures the registered data sets with settings, drawn ones and crops, that the configuration uses."""
    names = {*config.data.sources, *config.data.targets}
    if crops.NAME in names:
        decoded = config.data.check == "all"
        crops.configure(crops.CropSettings(**config.crops, decoded=decoded))
    if names & synthped.VARIANTS.keys():
        for name, settings in drawn_settings(config).items():
            synthped.configure(settings, name)
    if names & synthped_video.VARIANTS.keys():
        node = config.synthped_video
        size = {"height": config.data.height, "width": config.data.width}
        keys = {"num_train": "train_identities", "num_test": "test_identities", "cameras": "cameras"}
        keys |= {"tracklets": "walks", "frames": "frames"}
        chosen = {setting: node[key] for key, setting in keys.items() if node[key]}
        synthped_video.configure(video_preset(node.preset, seed=node.seed, **size, **chosen))
        medium = video_preset("medium", seed=node.seed, **size, **chosen)
        synthped_video.configure(medium, "synthped_video_medium")


def drawn_settings(config: Config) -> dict[str, SyntheticSettings]:
    """Settings of every registered name of the synthetic pictures; `synthped.preset` is that of `synthped`."""
    node, size = config.synthped, {"height": config.data.height, "width": config.data.width}
    chosen = {"train_identities": node.num_train, "test_identities": node.num_test, "cameras": node.cameras}
    chosen = {name: value for name, value in chosen.items() if value}
    presets = {name: name.removeprefix("synthped_") for name in synthped.VARIANTS} | {"synthped": node.preset}
    return {name: preset(kind, seed=node.seed, **size, **chosen) for name, kind in presets.items()}


def measured(engine: TransferEngine) -> Numbers:
    """An engine's last evaluation: numbers of the first target, those of all under `targets`, and its ranked lists."""
    targets = {name: dict(numbers) for name, numbers in engine.results.items()}
    lists = {LISTS: engine.lists._asdict()} if engine.lists else {}
    return {**next(iter(targets.values())), "targets": targets, **lists}


def network_size(model: nn.Module, head: frozenset[str], image_size: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-adds of a network as it is deployed: without its classifier, for one image.

    Args:
        model: not changed.
        head: names of the classifiers' weights (their biases go with them).
        image_size: `(channels, height, width)`.
    """
    owners = {name.rpartition(".")[0] for name in head}
    params = sum(p.numel() for name, p in model.named_parameters() if name.rpartition(".")[0] not in owners)
    return params, multiply_adds(model, image_size)


def schedule(config: Config, key: str, **changes: Any) -> Config:
    """A copy of the schedule node at `key`, some of its values changed."""
    node = get(config, key).clone()
    node.defrost()
    for name, value in changes.items():
        node[name] = value
    return node
