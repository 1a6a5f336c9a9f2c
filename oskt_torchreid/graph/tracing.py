"""One forward pass of the real network, with a channel id carried beside every element of every activation.

The pass runs under a ``TorchDispatchMode`` inside ``torch.inference_mode()``, where composite operators (convolution,
linear, batch norm, ...) arrive whole. Data movement acts on the shadow of an activation as it acts on the data; layers
issue fresh channels; sums and products unite the channels that meet. What each operator does is written in ``rules``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import GraphError
from .calls import Call, rule_for
from .failures import check_input_size, forward_error
from .frames import Frames
from .recording import Recording
from .shadows import compact


class Tracer(Recording, TorchDispatchMode):
    """Applies the rule of every operator while a network runs.

    Attributes:
        frames: follows the calls of modules.
    """

    def __init__(self, model: nn.Module) -> None:
        Recording.__init__(self, model)
        TorchDispatchMode.__init__(self)
        self.frames = Frames(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # spares the import of torch's compiler, which takes longer than any trace

    def _follow(self, call: Call) -> None:
        """Applies the rule of a call that meets channels; one that says nothing of any output would lose them."""
        tracked = any(id(tensor) in self._shadows for tensor in call.tensors)
        before = len(self._alive)
        rule_for(call, self.module)(self, call)
        said = {id(tensor) for tensor in self._alive[before:]}
        results = [output for output in call.outputs if output.is_floating_point()]
        if tracked and results and said.isdisjoint(map(id, results)) and not any(map(self.adrift, call.tensors)):
            raise GraphError(
                f"the rule of operator '{call.operator}' in module '{self.module}' marks no output: its channels would "
                "be lost; let it call recording.mark(call.output, ...)"
            )

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        call = Call(function, args, kwargs, output)
        names = [self._names.get(id(tensor)) for tensor in call.tensors]
        self.touched.update(name for name in names if name)
        self.count_reads(call.tensors)
        if any(name or id(tensor) in self._shadows for name, tensor in zip(names, call.tensors, strict=True)):
            self._follow(call)
        lost = next(filter(None, map(self.adrift, call.tensors)), None)
        for result in call.outputs if lost else ():
            if id(result) not in self._shadows:
                self.set_adrift(result, lost)
        return output


@contextlib.contextmanager
def tracing_mode(model: nn.Module, training: bool = True) -> Iterator[None]:
    """The root in training, so that classifiers run, all else in evaluation, so that norms stay still; restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    model.training = training
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def run(model: nn.Module, input_size: tuple[int, ...], tracer: Tracer | None = None, training: bool = True) -> Tracer:
    """Traces one forward pass over an image of noise. The model is left as it was.

    Args:
        model: any module that maps an image batch ``[1, channels, height, width]`` to a tensor, or nested ones.
        input_size: ``(channels, height, width)``.
        tracer: a new tracer of this model; ``None`` for a plain one.
        training: whether the root is in training, so that classifiers run.

    Raises:
        GraphError: an operator without a rule, channels that cannot be followed, or a forward pass that fails.
    """
    tracer = tracer or Tracer(model)
    check_input_size(input_size)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *input_size, generator=generator).to(like.device, like.dtype)
    with tracing_mode(model, training):
        outputs = _traced(model, tracer, image)
    tracer.results = list(_tensors(outputs))
    for output in tracer.results:
        shadow = tracer.shadow(output)
        if shadow is not None:
            tracer.outputs.append(torch.unique(compact(shadow)).numpy())
    if not tracer.outputs:
        raise GraphError("no output of the network depends on a convolution or linear layer: there is nothing to trace")
    return tracer


def _traced(model: nn.Module, tracer: Tracer, image: Tensor) -> Any:
    try:
        with tracer.frames.watching(model), torch.inference_mode(), tracer:
            return model(image)
    except GraphError:
        raise
    except Exception as error:  # of a network's own code
        raise forward_error(model, image, tracer.module, error) from error


def _tensors(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
