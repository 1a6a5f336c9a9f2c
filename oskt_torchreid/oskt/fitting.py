"""Whether the tensors of a student's file fit each other: one image is sent through the network that they make."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import CheckpointError


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
