"""Re-identification losses: torchreid's label-smoothed cross-entropy and hard triplet; center loss and distillation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import Config
from ..errors import CheckpointError, ConfigError, TrainingError
from ..networks import Outputs
from .compat import torchreid
from .distributed import agree


class CenterLoss(nn.Module):
    """Mean squared distance of features to the learnt center of their identity (Wen et al., ECCV 2016).

    The centers have their own plain SGD, whatever optimiser trains the network and whatever weight the loss has: call
    `step` after every backward pass. They are created when the first batch shows the feature's length.

    Args:
        num_classes: training identities.
        weight: weight of the loss in the sum that is differentiated.
        lr: learning rate of the centers.
    """

    def __init__(self, num_classes: int, weight: float, lr: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = weight
        self.lr = lr
        self.centers: nn.Parameter | nn.UninitializedParameter = nn.UninitializedParameter()

    def forward(self, features: Tensor, pids: Tensor) -> Tensor:
        """Scalar, not yet weighted, of features [batch, channels] and labels [batch]."""
        if isinstance(self.centers, nn.UninitializedParameter):
            self.centers = nn.Parameter(torch.randn(self.num_classes, features.shape[1], device=features.device))
            agree(self)
        return (features - self.centers[pids]).pow(2).sum(dim=1).mean()

    @torch.no_grad()
    def step(self) -> None:
        """Moves the centers along their gradient, freed of the loss's weight, and clears it."""
        if self.centers.grad is not None:
            self.centers.sub_(self.lr / self.weight * self.centers.grad)
            self.centers.grad = None

    def fits(self, learned: Any) -> bool:
        """Whether this is the state of a loss for the same number of identities: its centers, or nothing yet."""
        if not isinstance(learned, dict) or not learned.keys() <= {"centers"}:
            return False
        return all(torch.is_tensor(each) and each.shape[:-1] == (self.num_classes,) for each in learned.values())


class ReidLoss(nn.Module):
    """`weight_x * cross-entropy + weight_t * triplet + center_weight * center`, averaged over a model's branches.

    Args:
        num_classes: training identities.
        weight_x: weight of the cross-entropy; 0 leaves it out.
        weight_t: weight of the triplet loss; 0 leaves it out.
        margin: distance margin of the triplet loss; None: soft margin.
        label_smooth: smooth the labels by 0.1.
        soft_margin: log(1 + exp(d_positive - d_negative)) instead of the margin.
        normalize_triplet: measure triplets between L2-normalised features.
        use_gpu: whether logits live on the GPU.
        center_weight: weight of the center loss; 0 leaves it out.
        center_lr: learning rate of its centers.

    Raises:
        ConfigError: a negative weight, or no weight above 0.
    """

    def __init__(
        self,
        num_classes: int,
        weight_x: float = 1.0,
        weight_t: float = 0.0,
        margin: float | None = 0.3,
        label_smooth: bool = True,
        soft_margin: bool = False,
        normalize_triplet: bool = False,
        use_gpu: bool = False,
        center_weight: float = 0.0,
        center_lr: float = 0.5,
    ) -> None:
        super().__init__()
        if min(weight_x, weight_t, center_weight) < 0 or max(weight_x, weight_t) == 0:
            raise ConfigError(
                f"loss weights are weight_x={weight_x}, weight_t={weight_t}, center_weight={center_weight}; allowed: "
                "none below 0, and weight_x or weight_t above 0"
            )
        self.num_classes = num_classes
        self.weight_x = weight_x
        self.weight_t = weight_t
        self.normalize_triplet = normalize_triplet
        self.cross_entropy = torchreid.losses.CrossEntropyLoss(
            num_classes=num_classes, use_gpu=use_gpu, label_smooth=label_smooth
        )
        soft = soft_margin or margin is None
        self.triplet = soft_margin_triplet_loss if soft else torchreid.losses.TripletLoss(margin=margin)
        self.center = CenterLoss(num_classes, center_weight, center_lr) if center_weight > 0 else None

    def forward(self, outputs: Outputs, pids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss of a batch.

        Args:
            outputs: logits [batch, classes] and features [batch, channels] per branch.
            pids: identity labels [batch].

        Returns:
            (scalar loss, its terms and the accuracy in % as plain numbers for the log).

        Raises:
            ConfigError: a weighted term has no outputs to work on, or a model of fewer classes.
            TrainingError: a triplet batch with fewer than two identities.
        """
        total, summary = torch.zeros((), device=pids.device), {}
        if self.weight_t > 0:
            loss_t = self._triplet_term(outputs.features, pids)
            total = total + self.weight_t * loss_t
            summary["loss_t"] = loss_t.item()
        if self.weight_x > 0:
            _require(outputs.logits, "cross-entropy (weight_x)", "logits")
            self._check_classes(outputs.logits)
            loss_x = torchreid.losses.DeepSupervision(self.cross_entropy, outputs.logits, pids)
            total = total + self.weight_x * loss_x
            summary["loss_x"] = loss_x.item()
            summary["acc"] = torchreid.metrics.accuracy(outputs.logits[0], pids)[0].item()
        if self.center is not None:
            _check_center_term(outputs.features)
            loss_c = self.center(outputs.features[0], pids)
            total = total + self.center.weight * loss_c
            summary["loss_c"] = loss_c.item()
        return total, summary

    def step(self) -> None:
        """After a backward pass: updates what the loss itself learns (centers)."""
        if self.center is not None:
            self.center.step()

    def learned(self) -> dict[str, Tensor]:
        """What the loss itself has learnt so far: `centers` [identities, channels], if there are any yet."""
        if self.center is None or isinstance(self.center.centers, nn.UninitializedParameter):
            return {}
        return {"centers": self.center.centers.detach()}

    def check_learned(self, learned: Any, source: str) -> None:
        """Raises CheckpointError unless `load_learned` can take these."""
        fits = learned == {} if self.center is None else self.center.fits(learned)
        if not fits:
            raise CheckpointError(
                f"{source} is a checkpoint of another run: what its loss has learnt does not fit this loss (center "
                "loss and training identities must be the same). Nothing was loaded"
            )

    def load_learned(self, learned: dict[str, Tensor], device: torch.device) -> None:
        """Continues from a result of `learned`."""
        if self.center is not None and "centers" in learned:
            self.center.centers = nn.Parameter(learned["centers"].to(device))

    def _check_classes(self, logits: tuple[Tensor, ...]) -> None:
        known = min(scores.shape[1] for scores in logits)
        if known < self.num_classes:
            raise ConfigError(
                f"the model tells {known} identities apart, and the training data have {self.num_classes}; build it "
                f"with num_classes={self.num_classes} (num_train_pids of the data manager)"
            )

    def _triplet_term(self, features: tuple[Tensor, ...], pids: Tensor) -> Tensor:
        _require(features, "triplet loss (weight_t)", "features (build it with loss='triplet')")
        if pids.unique().numel() < 2:
            raise TrainingError(
                f"a triplet batch of {pids.numel()} images shows one identity only, so there are no negatives; use "
                "sampler.train_sampler RandomIdentitySampler with more than sampler.num_instances images per batch"
            )
        if self.normalize_triplet:
            features = tuple(functional.normalize(feature, dim=1) for feature in features)
        return torchreid.losses.DeepSupervision(self.triplet, features, pids)


def loss_from_config(config: Config, num_classes: int, use_gpu: bool) -> ReidLoss:
    """The loss that `loss.name` and its nodes configure; softmax leaves the triplet term out."""
    triplet = config.loss.triplet
    is_triplet = config.loss.name == "triplet"
    return ReidLoss(
        num_classes,
        weight_x=triplet.weight_x if is_triplet else 1.0,
        weight_t=triplet.weight_t if is_triplet else 0.0,
        margin=triplet.margin,
        label_smooth=config.loss.softmax.label_smooth,
        soft_margin=triplet.soft_margin,
        normalize_triplet=triplet.normalize,
        use_gpu=use_gpu,
        center_weight=config.loss.center.weight,
        center_lr=config.loss.center.lr,
    )


def soft_margin_triplet_loss(features: Tensor, pids: Tensor) -> Tensor:
    """Batch-hard triplet loss `mean(log(1 + exp(d_positive - d_negative)))` with Euclidean distances.

    Args:
        features: [batch, channels].
        pids: identity labels [batch], at least two different ones.

    Returns:
        Scalar; d_positive is an image's largest distance to its identity, d_negative its smallest to another.
    """
    squared = features.pow(2).sum(dim=1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.t()
    distances = distances.clamp(min=1e-12).sqrt()  # the root has no gradient at 0
    same = pids[:, None] == pids[None, :]
    positive = distances.masked_fill(~same, float("-inf")).amax(dim=1)
    negative = distances.masked_fill(same, float("inf")).amin(dim=1)
    return functional.softplus(positive - negative).mean()


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 10.0) -> Tensor:
    """`tau^2 * mean over rows of KL(softmax(t / tau) || softmax(s / tau))` (Hinton et al., 2015; VKD: `L_KD`).

    Args:
        student_logits: class scores `s`, `[batch, classes]`.
        teacher_logits: class scores `t`, the same shape; they get no gradient.
        temperature: `tau`, above 0.

    Returns:
        Scalar.

    Raises:
        ConfigError: two different shapes, or a temperature that is not above 0.

    Example: `s = (0, 0)`, `t = (0, tau * log 3)` give `tau^2 * (1/4 log(1/2) + 3/4 log(3/2))`.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ConfigError(
            f"kd_loss compares class scores of the same classes, [batch, classes] each; got "
            f"{tuple(student_logits.shape)} of the student and {tuple(teacher_logits.shape)} of the teacher"
        )
    if not temperature > 0:
        raise ConfigError(f"the temperature of kd_loss is {temperature}; allowed: above 0")
    scores = functional.log_softmax(student_logits / temperature, dim=1)
    goal = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * functional.kl_div(scores, goal, reduction="batchmean", log_target=True)


def _check_center_term(features: tuple[Tensor, ...]) -> None:
    _require(features, "center loss (loss.center.weight)", "features (build it with loss='triplet')")
    if len(features) > 1:
        raise ConfigError(f"the center loss is for models of one branch, got {len(features)}; set its weight to 0")


def _require(branches: tuple[Tensor, ...], term: str, what: str) -> None:
    if not branches:
        raise ConfigError(f"the {term} needs {what}, and the model gave none; change the model's loss or the weight")
