"""The engine that trains networks of sets: a teacher alone, or a student of few views with a teacher of many."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import ConfigError
from ..networks import Outputs, parse_outputs
from ..registry import register_engine
from ..vkd.evaluate import (
    FRAMES_AT_ONCE,
    ProtocolNumbers,
    check_protocols,
    evaluate_protocols,
    extract_side,
    protocol_table,
)
from ..vkd.losses import SQUARED, check_scale, distance_preservation_loss, kd_loss
from ..vkd.model import FrameAverage, class_count
from ..vkd.views import check_view_counts, student_views
from .compat import device
from .distributed import whole_batch
from .engine import TransferEngine
from .interfaces import EngineData
from .losses import ReidLoss
from .models import unwrapped
from .random_state import random_state, set_random_state
from .ranking import INTERPOLATED, REPORTED_RANKS, TRAPEZOID
from .run_checks import check_number, check_parts

logger = logging.getLogger(__name__)

TEMPERATURE, ALPHA, BETA = 10.0, 0.1, 1e-4  # the paper's
STUDENT_VIEWS = 2
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Evaluation(TypedDict):
    """Arguments of `evaluate_protocols` that an engine is made with."""

    protocols: tuple[str, ...]
    query_in_gallery: bool
    no_camera: bool


class VKDEngine(TransferEngine):
    """Distils views: `L = L_CE + L_TR + alpha * L_KD + beta * L_DP` (paper: equation 8); alone, `L_CE + L_TR`.

    Training batches are sets `[batch, N, 3, height, width]`. The frozen teacher sees all `N` views of a set, the
    student `M` of them, drawn for each set. Without a teacher the network itself learns from all `N`, which is how a
    teacher is trained. Evaluation is that of `vkd/evaluate.py`: `results[target]` holds the first protocol's numbers,
    with its interpolated mAP, and `protocols[target]` those of all.

    Args:
        datamanager: torchreid data manager whose training batches are sets (or images: sets of one).
        model: network of sets built with loss `triplet`; it is trained, and saved.
        optimizer: over the model's parameters.
        scheduler: `None` keeps the learning rate.
        teacher: a trained network of sets, of any architecture. It is copied and not changed, and checkpoints do not
            contain it. `None`: the first stage, a teacher's training.
        loss: re-id loss; `None`: plain cross-entropy and soft-margin triplet.
        num_student_views: `M`, at least 1 and at most the number of views in a batch.
        temperature: `tau` of `L_KD`.
        alpha: weight of `L_KD`. If teacher and student have different numbers of classes, the term is left out, and the
            log says so.
        beta: weight of `L_DP`.
        distances: what `L_DP` compares: `squared` distances, as in the paper, those of embeddings of `unit` length, or
            multiples of their `mean`, see `vkd.losses.SCALES`.
        protocols: evaluated after training, see `evaluate_protocols`.
        query_in_gallery: see `evaluate_protocols`.
        no_camera: see `evaluate_protocols`.
        frames_at_once: frames in one forward pass of evaluation.
        use_gpu: run on the GPU if there is one.
        **options: of `TransferEngine`.

    Raises:
        ConfigError: a network that gives no embeddings or no class scores, a negative weight, a temperature that is not
            above 0, no views, or an unknown protocol.
    """

    def __init__(
        self,
        datamanager: EngineData,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        teacher: nn.Module | None = None,
        loss: ReidLoss | None = None,
        num_student_views: int = STUDENT_VIEWS,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
        beta: float = BETA,
        distances: str = SQUARED,
        protocols: Sequence[str] = ("V2V", "I2V"),
        query_in_gallery: bool = False,
        no_camera: bool = False,
        frames_at_once: int = FRAMES_AT_ONCE,
        use_gpu: bool = True,
        **options: Any,
    ) -> None:
        check_protocols(protocols)
        check_parts(datamanager, model, optimizer, scheduler, loss)
        check_number("frames_at_once", frames_at_once, lowest=1)
        model, teacher = unwrapped(model), None if teacher is None else unwrapped(teacher)
        check_number("temperature", temperature, above=True)
        check_number("alpha", alpha)
        check_number("beta", beta)
        check_scale(distances)
        _check_network(model, "teacher" if teacher is None else "student")
        if teacher is not None:
            _check_network(teacher, "teacher")
            sets = getattr(datamanager.train_loader, "dataset", None)
            check_view_counts(getattr(sets, "num_views", max(1, num_student_views)), num_student_views)
        if loss is None:
            on_gpu = device(use_gpu).type == "cuda"
            loss = ReidLoss(datamanager.num_train_pids, weight_t=1.0, margin=None, label_smooth=False, use_gpu=on_gpu)
        super().__init__(datamanager, model, optimizer, scheduler, loss, use_gpu, **options)
        self.num_student_views = num_student_views
        self.temperature, self.alpha, self.beta, self.distances = temperature, alpha, beta, distances
        self.evaluation = Evaluation(protocols=tuple(protocols), query_in_gallery=query_in_gallery, no_camera=no_camera)
        self.frames_at_once = frames_at_once
        self.protocols: dict[str, ProtocolNumbers] = {}
        self.teacher: nn.Module | None = None
        self.same_classes = False
        if teacher is not None:
            self.teacher = frozen_teacher(teacher).to(self.device).to(memory_format=self.memory_format)
            self.same_classes = _compare_classes(teacher, model)

    # Training

    @property
    def images_of_item(self) -> int:
        """Views of a set that the trained network sees."""
        sets = getattr(self.train_loader, "dataset", None)
        return self.num_student_views if self.teacher is not None else getattr(sets, "num_views", 1)

    def networks(self) -> list[nn.Module]:
        """Student and teacher, whose norms use batch statistics too."""
        return [*super().networks(), *([self.teacher] if self.teacher is not None else [])]

    def prepare(self, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sets `[batch, views, 3, height, width]` and labels `[batch]`; images become sets of one."""
        sets = data["img"] if data["img"].dim() == 5 else data["img"].unsqueeze(1)
        images, pids = super().prepare({**data, "img": sets.flatten(0, 1)})
        return images.unflatten(0, sets.shape[:2]), pids

    def compute_losses(self, images: Tensor, pids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The terms of a batch of sets; those of distillation are logged as `loss_kd` and `loss_dp`."""
        if self.teacher is None:
            return super().compute_losses(images, pids)
        views = student_views(images, self.num_student_views)
        if not (self.alpha or self.beta):  # nothing is learnt from the teacher, so it need not look
            return self.loss(*whole_batch((_parsed(self.outputs_of(views)), pids)))
        with torch.no_grad():
            goal = _parsed(self.outputs_of(images, self.teacher))
        outputs = _parsed(self.outputs_of(views))
        goal, outputs, pids = whole_batch((goal, outputs, pids))
        loss, summary = self.loss(outputs, pids)
        preservation = distance_preservation_loss(outputs.features[0], goal.features[0], self.distances)
        loss, summary = loss + self.beta * preservation, summary | {"loss_dp": preservation.item()}
        if self.same_classes:
            distillation = kd_loss(outputs.logits[0], goal.logits[0], self.temperature)
            loss, summary = loss + self.alpha * distillation, summary | {"loss_kd": distillation.item()}
        return loss, summary

    # Evaluation

    def test(
        self, visrank: bool = False, rerank: bool = False, ranks: Sequence[int] = REPORTED_RANKS, **ignored: Any
    ) -> float:
        """Evaluates the protocols on every target; the random state is restored.

        Args:
            visrank: not available here.
            rerank: by k-reciprocal re-ranking as well; its numbers have the prefix `reranked_`.
            ranks: places of the CMC curve that are kept.
            **ignored: torchreid's settings of its own evaluation, such as a distance; the protocols' is cosine.

        Returns:
            Rank-1 of the first protocol on the last target, as a fraction.

        Raises:
            ConfigError: pictures of ranked lists were requested.
            DataError: empty queries or gallery, or no query with a match.
        """
        if visrank:
            raise ConfigError("engine 'vkd' draws no ranked lists; set visrank to False (test.visrank)")
        self.set_model_mode("eval")
        first, random = self.evaluation["protocols"][0], random_state(self.device)
        for target, loaders in self.test_loader.items():
            query, gallery = (
                extract_side(self.extract_features, loaders[side], self.frames_at_once, f"{side} of '{target}'")
                for side in ("query", "gallery")
            )
            results = evaluate_protocols(query, gallery, rerank=rerank, ranks=ranks, **self.evaluation)
            self.protocols[target] = results
            self.results[target] = _headline(results[first])
            logger.info("'%s' after epoch %d:\n%s", target, self.epoch + 1, protocol_table(results))
            self._write_results(target, results)
        set_random_state(random, self.device)
        self.note_evaluation()
        return self.results[target]["rank1"]

    def _write_results(self, target: str, results: ProtocolNumbers) -> None:
        if self.writer is None:
            return
        for protocol, values in results.items():
            for name, value in values.items():
                self.writer.add_scalar(f"Test/{target}/{protocol}/{name}", value, self.epoch)


register_engine("vkd", VKDEngine)


def frozen_teacher(teacher: nn.Module) -> nn.Module:
    """A frozen copy that returns class scores and embeddings.

    Its norms use batch statistics, as in the authors' code: the student's do so in training, and a teacher with running
    statistics would differ from it in more than its views. They track nothing.
    """
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    teacher.training = True  # the root alone, so that it returns class scores
    for module in teacher.modules():
        if isinstance(module, _NORMS):
            module.training = True
            module.track_running_stats = False
    return teacher


def _parsed(outputs: Any) -> Outputs:
    return parse_outputs(outputs, training=True, loss="triplet")


def _headline(results: dict[str, float]) -> dict[str, float]:
    """Numbers of one protocol in the shape of every engine's results."""
    renamed = {name.replace(f"mAP_{INTERPOLATED}", "mAP"): value for name, value in results.items()}
    return {name: value for name, value in renamed.items() if not name.endswith(TRAPEZOID)}


def _compare_classes(teacher: nn.Module, student: nn.Module) -> bool:
    counts = class_count(teacher, "teacher"), class_count(student, "student")
    if counts[0] != counts[1]:
        logger.warning(
            "the teacher has %d classes, the student %d: the distillation of class scores (L_KD) is left out, "
            "that of distances (L_DP) stays",
            *counts,
        )
    return counts[0] == counts[1]


def _check_network(model: nn.Module, who: str) -> None:
    if not isinstance(model, FrameAverage):
        raise ConfigError(
            f"the {who} of engine 'vkd' is a {type(model).__name__}, a network of single images; build one of sets: "
            "torchreid.models.build_model('vkd_<backbone>', ...), or oskt_torchreid.SetModel around a backbone"
        )
    class_count(model, who)
    loss = getattr(model, "loss", None)
    if loss != "triplet":
        raise ConfigError(
            f"the {who} of engine 'vkd' was built with loss {loss!r} and gives no embeddings in training; build it "
            "with loss='triplet' (loss.name triplet)"
        )
