"""What a student's file holds, and how many bytes it has as a function of the shapes of the student's tensors.

A checkpoint is an archive that compresses nothing: one record that describes the tensors, one record of numbers for
each of them, and a directory. Every record starts at a multiple of 64 bytes. One student is written to memory, and any
other one's file differs from it in the lengths of these records alone.

Example: a record of 100 bytes, followed by 16 of checksum and by 50 before the next one starts, takes 192 bytes, the
next multiple of 64; one of 126 bytes does so as well, and one of 127 takes 256.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .chain import WeightChain
from .expansion import StudentRecord, expand_to_plan

ALIGNMENT = 64
CHECKSUM = 16  # bytes after every record
HEADER = 34  # bytes before every record, and its name
INDEX_BYTES = 8
ALLOWANCE = 512  # bytes that describing one more tensor takes at most


def file_content(student: nn.Module, half: bool = False) -> dict:
    """What ``save_student`` writes: ``{"state_dict": ..., "oskt": ...}``.

    Args:
        student: made by ``expand``.
        half: floating-point tensors in half precision; they are widened again when they are loaded.

    Raises:
        CheckpointError: a network that ``expand`` did not make, or values beyond the range of half precision.
    """
    record = getattr(student, "student_record", None)
    if not isinstance(record, StudentRecord):
        raise CheckpointError(f"this {type(student).__name__} was not made by expand; save it with torch.save instead")
    return {"state_dict": file_state(student, half), "oskt": record.to_dict()}


def file_state(network: nn.Module, half: bool = False) -> dict[str, Tensor]:
    """The state dict of a network as it is written.

    Raises:
        CheckpointError: values beyond the range of half precision.
    """
    state = network.state_dict()
    if half:
        for name, tensor in state.items():
            state[name] = _halved(name, tensor) if tensor.is_floating_point() else tensor
    return state


def _halved(name: str, tensor: Tensor) -> Tensor:
    result = tensor.half()
    if torch.isfinite(tensor).all() and not torch.isfinite(result).all():
        raise CheckpointError(
            f"'{name}' has values up to {tensor.abs().max():.3g}, beyond the 65504 of half precision; save this "
            "student in full precision"
        )
    return result


class FileSize:
    """File sizes from shapes.

    Args:
        chain: only read.
        example: widths of the student that is made and written to memory.
        names: tensors whose shapes will be given, in order. Those that the example's file has not (orders of channels
            that are as they were) may be in another's: sizes are then upper bounds, else exact. With the teacher's
            widths as example, sizes are meant for the like of it, and exact.
        half: floating-point tensors in half precision.
    """

    def __init__(self, chain: WeightChain, example: Mapping[str, int], names: Sequence[str], half: bool) -> None:
        content = file_content(expand_to_plan(chain, example), half)
        state = content["state_dict"]
        stream = io.BytesIO()
        torch.save(content, stream)
        records = zipfile.ZipFile(stream).infolist()
        order = {name: number for number, name in enumerate(state)}
        follower = {record.filename.rpartition("/data/")[2]: after for record, after in pairwise(records)}
        self._present = np.array([name in state for name in names])
        self._possible = ~self._present & (example != chain.graph.sizes)
        tensors = [state[name] for name in names if name in state]
        self._itemsize = np.array([tensor.element_size() for tensor in tensors])
        self._dimensions = np.array([tensor.dim() for tensor in tensors])
        present = [name for name in names if name in state]
        # Of one classifier, the length of its feature is written down too.
        self._head = [present.index(name) for name in chain.graph.heads] if len(chain.graph.heads) == 1 else []
        after = [follower[str(order[name])] for name in present]
        self._extra = np.array([CHECKSUM + HEADER + len(record.filename) for record in after])
        self._description = records[0].file_size + CHECKSUM + HEADER + len(records[1].filename)
        shapes = _padded(tensors)[None]
        self._description -= int(self._digits(shapes)[0])
        self._rest = stream.getbuffer().nbytes - int(self._variable(shapes)[0])

    def of(self, shapes: np.ndarray) -> np.ndarray:
        """Bytes of each file, shape ``[plans]``, from shapes filled up with ones, ``[plans, names, dimensions]``."""
        possible = shapes[:, self._possible].prod(2) * INDEX_BYTES + ALLOWANCE
        return self._rest + self._variable(shapes[:, self._present]) + possible.sum(1)

    def _variable(self, shapes: np.ndarray) -> np.ndarray:
        numbers = _aligned(shapes.prod(2) * self._itemsize + self._extra).sum(1)
        return _aligned(self._description + self._digits(shapes)) + numbers

    def _digits(self, shapes: np.ndarray) -> np.ndarray:
        """Bytes that the description spends on lengths and strides, [plans]."""
        strides = np.flip(np.cumprod(np.flip(shapes, 2), 2), 2) // shapes
        real = np.arange(shapes.shape[2]) < self._dimensions[:, None]
        written = np.concatenate([np.where(real, shapes, 0), np.where(real, strides, 0)], 2)
        written = np.concatenate([written, shapes.prod(2, keepdims=True)], 2)
        return _bytes_of(written).sum((1, 2)) + _bytes_of(shapes[:, self._head, 1]).sum(1)


def _padded(tensors: Sequence[Tensor]) -> np.ndarray:
    """Shapes filled up with ones, ``[tensors, dimensions]``."""
    dimensions = max(tensor.dim() for tensor in tensors)
    return np.array([[*tensor.shape, *[1] * (dimensions - tensor.dim())] for tensor in tensors], np.int64)


def _bytes_of(numbers: np.ndarray) -> np.ndarray:
    """Bytes that a pickle spends on whole numbers: 2 up to 255, 3 up to 65,535, 5 beyond."""
    return 2 + (numbers > 255) + 2 * (numbers > 65535)


def _aligned(length: np.ndarray) -> np.ndarray:
    return -(-length // ALIGNMENT) * ALIGNMENT
