"""Training and evaluating networks of sets, with the data of one configuration."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

from torch import nn

from ...config import Config, Effect, get, settings
from ...datasets.set_manager import build_set_datamanager
from ...host.distributed import rank_zero_first
from ...host.interfaces import DataManager
from ...host.vkd_engine import VKDEngine
from ..recipes import Recipe
from ..trainer import Trainer

NETWORK_NAME = "network.pth"
TEACHER_STAGE, STUDENT_STAGE = "vkd.teacher_stage", "vkd.student_stage"
TAUGHT = ("temperature", "alpha", "beta", "distances")
"""Keys of `vkd` that matter to distillation alone."""
_SET_KEYS = tuple(
    f"vkd.{key}" for key in ("num_views", "strategy", "no_camera", "test_frames", "protocols", "query_in_gallery")
)


class SetTrainer(Trainer):
    """Trains and evaluates networks of sets on the data of one configuration."""

    def datamanager(
        self,
        batch_size: int,
        batch_key: str = "vkd.teacher_stage.batch_size",
        num_views: int = 0,
        strategy: str = "",
    ) -> DataManager:
        """The data manager of sets for a training batch; made once per size, number of views and strategy.

        Args:
            batch_size: sets in a batch.
            batch_key: its key in the configuration.
            num_views: frames of a set; 0: `vkd.num_views`.
            strategy: where they come from; empty: `vkd.strategy`.
        """
        key = (batch_size, num_views or self.config.vkd.num_views, strategy or self.config.vkd.strategy)
        if key not in self._managers:
            with rank_zero_first():
                self._managers[key] = build_set_datamanager(self.config, *key, batch_key=batch_key)
        return self._managers[key]

    def stage_datamanager(self, stage: Config, key: str = TEACHER_STAGE) -> DataManager:
        """The data manager of a stage; the teacher's may have its own number of views."""
        views, strategy = stage.get("num_views", 0), stage.get("strategy", "")
        return self.datamanager(stage.batch_size, f"{key}.batch_size", views, strategy)

    @property
    def first_datamanager(self) -> DataManager:
        """The data manager of the first stage: the teacher's, or the student's if a teacher is given."""
        key = STUDENT_STAGE if self.config.vkd.teacher else TEACHER_STAGE
        return self.stage_datamanager(get(self.config, key), key)

    @cached_property
    def shared(self) -> Recipe:
        """The recipe shared by all networks of sets."""
        shared = super().shared
        weights = {**shared.weights, **settings(self.config, _SET_KEYS, Effect.WEIGHTS)}
        numbers = {**shared.numbers, **settings(self.config, _SET_KEYS, Effect.NUMBERS)}
        return Recipe(weights, numbers, shared.idle)

    def engine(self, **options: Any) -> partial[VKDEngine]:
        """A builder of VKD engines with the configuration's evaluation."""
        node = self.config.vkd
        evaluation = {"protocols": tuple(node.protocols), "query_in_gallery": node.query_in_gallery}
        return partial(VKDEngine, no_camera=node.no_camera, **evaluation, **options)

    def distilling_engine(self, teacher: nn.Module) -> partial[VKDEngine]:
        """A builder of engines that distil a teacher as the `vkd` node says."""
        return self.engine(teacher=teacher, **{key: self.config.vkd[key] for key in (*TAUGHT, "num_student_views")})

    def protocols(self, model: nn.Module) -> dict[str, Any]:
        """Numbers of every protocol on every target."""
        engine = self.engine()(self.first_datamanager, model, use_gpu=self.config.use_gpu)
        engine.test(rerank=self.config.test.rerank, ranks=list(self.config.test.ranks))
        return dict(engine.protocols)
