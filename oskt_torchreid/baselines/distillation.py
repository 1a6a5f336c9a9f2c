"""KD++ (Wang et al., arXiv 2305.17007): a narrow network trained by a frozen teacher's logits and class means.

    L = L_reid + w_kl * ramp * L_kl + w_nd * L_nd

`L_kl` is the usual distillation of softened class scores. `L_nd`, norm and direction, asks of the feature `s`
that the classifier reads to be long along the direction `e_c` of the teacher's mean feature of its class, as long as
the teacher's own feature `t`:

    L_nd = mean over images of  1 - s . e_c / max(|s|, |t|)

A student's feature is narrower than its teacher's, so a linear layer lengthens it. It is trained along and left behind.

A student of a chain can be held to its teacher's gallery besides, by `w_c * L_c`: `L_c = mean over images of
1 - cos(lifted s, t)`, of the feature lifted to the teacher's places (`deploy/lifting.py`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..batches import batches_of
from ..errors import CheckpointError, ConfigError
from ..graph.tracer import tracing_mode
from ..host.data import unaugmented_loader
from ..host.distributed import whole_batch
from ..host.engine import TransferEngine
from ..host.losses import kd_loss
from ..host.models import unwrapped
from ..host.optimization import add_to_optimizer
from ..networks import parse_outputs, watched

TEMPERATURE = 4.0
RAMP_SHARE = 1 / 12  # of the iterations, in which the weight of L_kl grows from 0; the authors' 20 epochs of 240


def norm_direction_loss(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """`mean over images of 1 - s . e_c / max(|s|, |t|)`; 0 where `s` lies along `e_c` and is as long as `t`.

    Args:
        student: features `s`, `[batch, channels]`.
        teacher: features `t`, `[batch, channels]`.
        directions: `e_c` of each image's class, unit vectors `[batch, channels]`.

    Example with 4 channels: `s = (3, 4, 0, 0)`, `t = (0, 0, 0, 10)`, `e = (1, 0, 0, 0)` give `1 - 3 / 10`; with
    `t = (0, 0, 0, 2)` it is `1 - 3 / 5`.
    """
    lengths = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp(min=1e-12)
    return (1 - (student * directions).sum(dim=1) / lengths).mean()


def compatible_loss(lifted: Tensor, teacher: Tensor) -> Tensor:
    """`mean over images of 1 - cos(lifted s, t)`: 0 where queries and gallery are alike, whoever makes them.

    Args:
        lifted: features of the student in the teacher's places, `[batch, channels]`.
        teacher: features `t`, `[batch, channels]`.

    Example with 4 channels: `s = (3, 4)`, lifted by `0 1 0 1` to `(3, 4, 3, 4)`, and `t = (3, 4, 0, 0)` give
    `1 - 25 / (sqrt(50) * 5)`.
    """
    return (1 - functional.cosine_similarity(lifted, teacher)).mean()


class Reading(NamedTuple):
    """Input and output of one classifier, in 32 bits: `features [batch, channels]` in, `logits` out."""

    features: Tensor
    logits: Tensor


@contextlib.contextmanager
def read_classifiers(model: nn.Module, heads: frozenset[str]) -> Iterator[dict[str, Reading]]:
    """Gives a dictionary that fills as classifiers run inside the block: by the names of their weights, in their order.

    Args:
        model: any network; its outputs do not change.
        heads: names of the classifiers' weights.
    """
    readings: dict[str, Reading] = {}

    def leave(head: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        readings[head] = Reading(args[0].float(), output.float())

    classifiers = ((name, model.get_submodule(name.rpartition(".")[0])) for name in sorted(heads))
    with watched(classifiers, leave=leave):
        yield readings


class DistilledStudent(nn.Module):
    """A student and, per classifier, the linear layer that makes its feature as long as the teacher's.

    In training `forward` gives the student's output; in evaluation its feature.

    Args:
        student: the network that is trained, and kept.
        lengths: `(student's, teacher's)` feature length per classifier.
    """

    def __init__(self, student: nn.Module, lengths: list[tuple[int, int]]) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(
            nn.Identity() if own == whole else nn.Linear(own, whole, bias=False) for own, whole in lengths
        )

    @property
    def loss(self) -> str:
        """The loss that the student was built for."""
        return getattr(self.student, "loss", "softmax")

    def forward(self, images: Tensor) -> Any:
        """Maps images `[batch, 3, height, width]`."""
        return self.student(images)


class DistillationEngine(TransferEngine):
    """Trains a student under a frozen teacher by `L_reid + w_kl * ramp * L_kl + w_nd * L_nd + w_c * L_c`.

    Evaluation and checkpoints concern the student; the teacher is copied and not changed.

    Args:
        datamanager: torchreid data manager; the teacher's class means are taken over its training images, once, when
            the first batch comes.
        model: the student; it is trained.
        optimizer: over the student's parameters; the projections' are added to its first group.
        scheduler: `None` keeps the learning rate.
        teacher: a network with the same classifiers; trained on the same identities, unless it only gives features
            (`weight_kl` and `weight_nd` 0).
        heads: names of the classifiers' weights (`ChannelGraph.heads`).
        weight_kl: weight of the divergence of class scores.
        weight_nd: weight of the norm and direction loss.
        weight_compatible: weight of what holds lifted features to the teacher's.
        lifting: entry of the student's feature that stands for each of the teacher's; needed for that weight.
        temperature: of the class scores.
        **options: of `TransferEngine`.

    Raises:
        ConfigError: a negative weight, a teacher of other classes, or several classifiers, or no lifting, where
            features are held to the teacher's.
    """

    model: DistilledStudent

    def __init__(
        self,
        datamanager: Any,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        *,
        teacher: nn.Module,
        heads: frozenset[str],
        weight_kl: float = 1.0,
        weight_nd: float = 1.0,
        weight_compatible: float = 0.0,
        lifting: Sequence[int] = (),
        temperature: float = TEMPERATURE,
        **options: Any,
    ) -> None:
        if min(weight_kl, weight_nd, weight_compatible) < 0 or temperature <= 0:
            raise ConfigError(
                f"distillation has weights {weight_kl}, {weight_nd} and {weight_compatible} at temperature "
                f"{temperature}; allowed: weights of at least 0, a temperature above 0"
            )
        model, teacher = unwrapped(model), unwrapped(teacher)
        weights = teacher.state_dict(), model.state_dict()
        for name in sorted(heads) if weight_kl or weight_nd else ():
            _check_classes(name, *[state[name] for state in weights])
        lengths = [(weights[1][name].shape[1], weights[0][name].shape[1]) for name in sorted(heads)]
        distilled = DistilledStudent(model, lengths)
        if optimizer is not None:
            add_to_optimizer(optimizer, distilled.projections)
        super().__init__(datamanager, distilled, optimizer, scheduler, **options)
        if weight_compatible and (len(heads) != 1 or len(lifting) != lengths[0][1]):
            raise ConfigError(
                f"features of {len(heads)} classifier(s) of {[whole for _, whole in lengths]} entries cannot be held "
                f"to a teacher's by a lifting of {len(lifting)}; set weight_compatible to 0"
            )
        self.weight_kl, self.weight_nd, self.temperature = weight_kl, weight_nd, temperature
        self.weight_compatible, self._lifting = weight_compatible, torch.tensor(lifting).to(self.device)
        self.teacher = copy.deepcopy(teacher).to(self.device).to(memory_format=self.memory_format)
        self.heads = heads
        self._directions: list[Tensor] = []

    def compute_losses(self, images: Tensor, pids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The terms of a batch."""
        if self.weight_nd and not self._directions:
            self._directions = [functional.normalize(means, dim=1) for means in self.class_means()]
        with read_classifiers(self.model.student, self.heads) as readings:
            outputs = parse_outputs(self.outputs_of(images), True, self.model.loss)
        students, teachers = [readings[name] for name in sorted(self.heads)], self._teachers_readings(images)
        outputs, students, teachers, pids = whole_batch((outputs, students, teachers, pids))
        loss, summary = self.loss(outputs, pids)
        terms = self._terms(students, teachers, pids)
        weights = {"loss_kl": self.weight_kl * min(1.0, self.progress / RAMP_SHARE), "loss_nd": self.weight_nd}
        weights["loss_c"] = self.weight_compatible
        for name, term in terms.items():
            loss = loss + weights[name] * term
        return loss, summary | {name: term.item() for name, term in terms.items()}

    def _terms(self, students: list[Reading], teachers: list[Reading], pids: Tensor) -> dict[str, Tensor]:
        """The terms of the teacher that have a weight, by name."""
        terms = {}
        if self.weight_kl:
            pairs = zip(students, teachers, strict=True)
            terms["loss_kl"] = self._mean(kd_loss(s.logits, t.logits, self.temperature) for s, t in pairs)
        if self.weight_nd:
            parts = zip(students, teachers, self.model.projections, self._directions, strict=True)
            terms["loss_nd"] = self._mean(
                norm_direction_loss(project(s.features), t.features, means[pids]) for s, t, project, means in parts
            )
        if self.weight_compatible:
            ((student,), (teacher,)) = students, teachers
            terms["loss_c"] = compatible_loss(student.features[:, self._lifting], teacher.features)
        return terms

    def method_state(self) -> dict[str, Any]:
        """The teacher's class means, which are taken once."""
        return {"directions": list(self._directions)}

    def load_method_state(self, state: dict[str, Any], source: str) -> None:
        """Continues with the class means of a checkpoint."""
        directions = state.get("directions", [])
        classes = self.datamanager.num_train_pids
        fits = isinstance(directions, list) and len(directions) in (0, len(self.heads))
        if not fits or not all(torch.is_tensor(means) and means.shape[:1] == (classes,) for means in directions):
            raise CheckpointError(
                f"{source} is a checkpoint of another run: its teacher's class means are not of {classes} identities. "
                "Nothing was loaded"
            )
        self._directions = [means.to(self.device) for means in directions]

    @torch.no_grad()
    def class_means(self) -> list[Tensor]:
        """The teacher's mean feature of each training identity per classifier, `[identities, channels]`.

        Images are seen as they are in evaluation, without augmentation.

        Raises:
            ConfigError: an identity without images.
        """
        count = self.datamanager.num_train_pids
        sums: list[Tensor] = []
        seen = torch.zeros(count, device=self.device)
        for batch in batches_of(unaugmented_loader(self.datamanager)):
            images, pids = self.parse_data_for_train(batch)
            images = images.to(self.device).contiguous(memory_format=self.memory_format)
            pids = pids.to(self.device)
            readings = self._teachers_readings(images)
            sums = sums or [reading.features.new_zeros(count, reading.features.shape[1]) for reading in readings]
            for total, reading in zip(sums, readings, strict=True):
                total.index_add_(0, pids, reading.features)
            seen += torch.bincount(pids, minlength=count)
        if not sums or (seen == 0).any():
            raise ConfigError(f"{int((seen == 0).sum())} of {count} training identities have no images")
        return [total / seen[:, None] for total in sums]

    @torch.no_grad()
    def _teachers_readings(self, images: Tensor) -> list[Reading]:
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision)
        with precision, tracing_mode(self.teacher), read_classifiers(self.teacher, self.heads) as readings:
            self.teacher(images)  # its classifiers run, its norms use running statistics
        return [readings[name] for name in sorted(self.heads)]

    @staticmethod
    def _mean(terms: Any) -> Tensor:
        return torch.stack(list(terms)).mean()


def _check_classes(name: str, teacher: Tensor, student: Tensor) -> None:
    if len(teacher) != len(student):
        raise ConfigError(
            f"classifier '{name}' of the student has {len(student)} classes, its teacher's {len(teacher)}; distil from "
            "a teacher of the same identities"
        )
