"""Whether the tensors of a student's file make its network: names and kinds, then one image is sent through it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import CheckpointError


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, target: str) -> None:
    """Raises ``CheckpointError`` unless tensors have the names, kinds of numbers and dimensions of a network.

    Args:
        state: of a file.
        expected: of the network, in any widths.
        source: where they come from, for the message.
        target: what they are to make, for the message.
    """
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not make a student of {target}: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}"
        )
    for name, tensor in state.items():
        if _kind(tensor) != _kind(expected[name]):
            raise CheckpointError(
                f"tensor '{name}' of {source} has {tensor.dim()} dimensions of {tensor.dtype} ({tensor.layout}), it "
                f"must have {expected[name].dim()} of {expected[name].dtype} (torch.strided). Nothing was loaded; give "
                "a file that save_student wrote"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"tensor '{name}' of {source} has values that are NaN or infinite: the training that made it diverged, "
                "or the file is damaged. Nothing was loaded"
            )


def _kind(tensor: Tensor) -> tuple:
    """What does not depend on widths, nor on the precision of a file."""
    numbers = (tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool)
    return tensor.dim(), tensor.layout, *numbers


def check_tensors_fit(student: nn.Module, input_size: tuple[int, ...], source: str) -> None:
    """Raises ``CheckpointError``, naming the first module at which the tensors do not fit, and its tensors' shapes.

    Names of tensors say nothing of their shapes, and any widths are legal, so that only running the network tells. Only
    the network as a whole is in training, as in tracing: that computes class scores, and changes no statistics.

    Args:
        student: in evaluation mode, and so it stays.
        input_size: ``(channels, height, width)`` of an image that it runs on.
        source: where the tensors come from, for the message.
    """
    entered: list[nn.Module] = []
    hook = register_module_forward_pre_hook(lambda module, _: entered.append(module))
    student.training = True
    try:
        with torch.inference_mode():
            student(torch.zeros(1, *input_size))
    except Exception as error:  # a user's network may raise anything
        raise CheckpointError(_message(student, entered, source, error)) from error
    finally:
        student.training = False
        hook.remove()


def _message(student: nn.Module, entered: list[nn.Module], source: str, error: Exception) -> str:
    names = {id(module): name for name, module in student.named_modules()}
    module = entered[-1] if entered else student
    name = names.get(id(module), "")
    shapes = [f"'{name}.{key}' {tuple(tensor.shape)}".replace("'.", "'") for key, tensor in module.state_dict().items()]
    what = ", ".join(shapes[:4]) if shapes else f"what module '{name}' is given"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"tensors of '{source}' do not fit each other: {what} ({reason}). Nothing was loaded; give a file that "
        "save_student wrote"
    )
