"""One gallery for students of every width: their features in the places of the teacher's.

A student's feature has one entry per slot, and a slot stands for channels of the teacher. *Lifted*, a feature has the
teacher's length: its entry `i` is that of the slot which stands for entry `i` of the teacher's feature. Features of all
widths of one chain, and the refined teacher's, can then be compared entry by entry. Where rows are equal inside of
every cluster, a lifted feature is the teacher's own; elsewhere the mean of a slot stands in for its members, as
everywhere in the method. Lifting is one gather, and computes nothing: features that were stored as they are can be
lifted later (`gallery.lift`). It is not folded into the layer that makes the feature, which is exact too, but would
make this layer as wide as the teacher's.

Example: of 4 channels, a student of width 3 has the slots `(0, 2)`, `(1)` and `(3)`. Its feature `[a, b, c]` is lifted
to `[a, b, a, c]`: the *lifting* is `[0, 1, 0, 2]`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FeatureError
from ..networks import parse_outputs, unwrapped, watched
from .classifiers import evaluated_classifiers

FEATURES = ("own", "teacher")


class Lifted(nn.Module):
    """A student whose features have, in evaluation, the length and places of its teacher's; made by `lifted`.

    In training mode it returns what the student does.

    Args:
        student: made by `expand`; kept, not copied.
        classifier: name of the module whose scores evaluation returns; what it is given is the feature.
    """

    lifting: Tensor

    def __init__(self, student: nn.Module, classifier: str = "") -> None:
        super().__init__()
        record = vars(student)["student_record"]
        self.student, self.classifier = student, classifier
        self.register_buffer("lifting", torch.tensor(record.lifting), persistent=False)
        self.student_record = replace(record, feature="teacher")
        self.train(student.training)

    def forward(self, images: Tensor) -> Any:
        """Maps images `[batch, channels, height, width]` to features `[batch, teacher's length]`."""
        if self.training:
            return self.student(images)
        return self._features(images).index_select(1, self.lifting)

    def _features(self, images: Tensor) -> Tensor:
        if not self.classifier:
            return parse_outputs(self.student(images), training=False).features[0]
        given: list[Tensor] = []
        layer = [(self.classifier, self.student.get_submodule(self.classifier))]
        with watched(layer, lambda name, module, args, named: given.append(args[0])):
            self.student(images)
        return given[-1]


def lifted(student: nn.Module) -> Lifted:
    """A student whose features have the length and places of its teacher's, so that one gallery serves all widths.

    Args:
        student: made by `expand`, trained since or not; kept, not copied, and not changed.

    Raises:
        FeatureError: see `lifting_of_student`.
    """
    student = bare(unwrapped(student))
    lifting_of_student(student)
    classifiers = evaluated_classifiers(student, vars(student)["student_record"].input_size)
    return Lifted(student, *classifiers[:1])


def bare(student: nn.Module) -> nn.Module:
    """The student inside of a `Lifted`; any other network as it is."""
    return student.student if isinstance(student, Lifted) else student


def lifting_of_student(student: nn.Module) -> tuple[int, ...]:
    """The entry of a student's feature that stands for each of its teacher's.

    Raises:
        FeatureError: a network that was not expanded from a chain, one of several features, or one whose features
            were scaled to other distances, which lifted features have anyway.
    """
    record, name = getattr(student, "student_record", None), type(student).__name__
    if record is None or not record.chain:
        raise FeatureError(f"this {name} was not expanded from a chain: its features cannot be lifted to a teacher's")
    if not record.lifting:
        raise FeatureError(
            f"this {name} returns several features, or one whose parts are divided by their lengths one by one, or "
            "that is not made of channels: it cannot be lifted; join them, or normalise all at once, in a module "
            "around the teacher, and make the chain of that"
        )
    if record.distance != "none":
        raise FeatureError(
            f"the features of this {name} were scaled to the distances of the {record.distance}, which lifted features "
            "have as they are; expand it with distance='none'"
        )
    return record.lifting
