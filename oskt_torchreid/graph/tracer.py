"""One forward pass of the real network, with a channel id for every element of every activation.

The pass runs under a `TorchDispatchMode` inside `torch.inference_mode()`, where composite operators (convolution,
linear, batch norm, ...) are not decomposed. Data movement acts on the shadow of an activation as it acts on the data;
layers create new channels; sums and products unite the channels at the same position. What each operator does is
written in `rules`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import GraphError
from ..networks import DEFAULT_INPUT_SIZE, is_image_size, wrapper_attribute
from .calls import Call, Frames, find_rule, nested_tensors, rule_for
from .keeping import Keeping, Kept, NoRemedyError, line_of, users_line, ways_out
from .makers import makers_of, note_reads
from .randomness import own_random_state
from .recording import Recording
from .shadows import compact

logger = logging.getLogger(__name__)


class Tracer(Recording, TorchDispatchMode):
    """Applies the rule of every operator while a network runs.

    Args:
        model: the network that will run.
        keeping: what stays whole; `None`: what has no rule.

    Attributes:
        frames: follows the calls of modules.
    """

    def __init__(self, model: nn.Module, keeping: Keeping | None = None) -> None:
        Recording.__init__(self, model, keeping)
        TorchDispatchMode.__init__(self)
        self.frames = Frames(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids the import of torch's compiler, which takes longer than any trace

    def _follow(self, call: Call) -> bool:
        """Applies the rule of a call that receives channels, or keeps them whole; returns whether it has followed them.

        Raises:
            GraphError: there is no rule, or it gives up, and nothing may be kept that was not asked for; or a rule that
                is at fault itself.
        """
        if self.keeping.inside is not None:
            self.keep_whole(self.keeping.inside, call.tensors, call.outputs)
            return False
        before = self.lengths_now()
        try:
            self._apply_rule(call)
        except NoRemedyError:
            raise
        except GraphError as error:
            if self.keeping.strict:
                remedies = ways_out(self.owner, call.operator, find_rule(call.operator) is not None)
                raise GraphError(f"{error} ({users_line()}); {remedies}") from error
            logger.debug("kept whole: %s", error)
            self.take_back(before)
            self.keep_whole(self.keeping.part(self.owner, call.operator), call.tensors, call.outputs)
            return False
        return True

    def _apply_rule(self, call: Call) -> None:
        """Applies the rule of a call. One that marks no output would lose channels: an error."""
        tracked = any(id(tensor) in self._shadows for tensor in call.tensors)
        given = self._giver_of(call)
        if tracked and given and any(self.giver(t) and not t.is_floating_point() for t in call.tensors):
            raise GraphError(
                f"operator '{call.operator}' in module '{self.module}' takes channels at positions that are computed"
            )
        rule, before = rule_for(call, self.module), len(self._alive)
        try:
            rule(self, call)
            makers = makers_of(self, call)
            note_reads(self, call, makers)
        except GraphError:
            raise
        except Exception as error:  # a call that the rule was not written for
            what = f"the rule of operator '{call.operator}' in module '{self.module}'"
            raise GraphError(f"{what} fails ({type(error).__name__}: {error})") from error
        self.makers.update((id(output), makers) for output in call.outputs if id(output) in self._shadows)
        if given and not tracked and self.keeping.has(given):
            self._keep_untied(given, call)
        said = {id(tensor) for tensor in self._alive[before:]}
        results = [output for output in call.outputs if output.is_floating_point()]
        if tracked and results and said.isdisjoint(map(id, results)) and not any(map(self.giver, call.tensors)):
            raise NoRemedyError(
                f"the rule of operator '{call.operator}' in module '{self.module}' marks no output: its channels would "
                "be lost; let it call recording.mark(call.output, ...)"
            )

    def _keep_untied(self, part: Kept, call: Call) -> None:
        """Parameters that are combined with what a part gives keep their shapes, but for those of layers."""
        layers = {name for name, _, _ in self.ties}
        names = [self.name_of(tensor) for tensor in call.tensors]
        own = [tensor for tensor, name in zip(call.tensors, names, strict=True) if name and name not in layers]
        if own:
            self.keep_whole(part, own)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        call = Call(function, args, kwargs, output)
        self._count_factor(call)
        names = [self._names.get(id(tensor)) for tensor in call.tensors]
        self.touched.update(name for name in names if name)
        self.count_reads(call.tensors)
        if function._schema.is_mutable:
            for tensor in call.outputs:
                self.overwritten(tensor)
        if any(name or id(tensor) in self._shadows for name, tensor in zip(names, call.tensors, strict=True)):
            self._follow(call)
        part = self._giver_of(call)
        if part is not None:
            for result in call.outputs:
                if id(result) not in self._shadows:
                    self.keeping.give(result, part)
        return output

    def _giver_of(self, call: Call) -> Kept | None:
        """The part that stays whole which gives a call one of its tensors."""
        return self.keeping.givers(tensor for tensor in call.tensors if id(tensor) not in self._shadows)

    def _count_factor(self, call: Call) -> None:
        """Notes the number that a tensor is multiplied with or divided by."""
        if call.operator.removesuffix("_") not in ("mul", "div"):
            return
        number = call.args[1]
        if torch.is_tensor(number) and number.dim() == 0 and not number.is_meta and self.name_of(number) is None:
            number = number.item()
        if isinstance(number, (int, float)) and number:
            self.note_number(float(number if call.operator.startswith("mul") else 1 / number))


_EVALUATED = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@contextlib.contextmanager
def tracing_mode(model: nn.Module, training: bool = True) -> Iterator[None]:
    """Every module in training mode, so that classifiers run wherever they are; restored afterwards.

    torch's norms and dropouts stay in evaluation mode: they keep their statistics, and use them. So do modules without
    tensors and children, such as those that drop whole branches: what they do in training is a matter of chance.

    Args:
        model: its modules change their modes inside this block.
        training: `False` for evaluation mode of every module.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        plain = not (module._parameters or module._buffers or module._modules)
        module.training = training and (module is model or not (plain or isinstance(module, _EVALUATED)))
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def run(model: nn.Module, input_size: tuple[int, ...], tracer: Tracer | None = None, training: bool = True) -> Tracer:
    """Traces one forward pass over an image of noise. The model is not changed, nor what is drawn next at random.

    Args:
        model: any module that maps an image batch `[1, channels, height, width]` to a tensor, or nested ones.
        input_size: `(channels, height, width)`.
        tracer: a tracer of this model; channels that it knows are united with those of this pass. `None`: a new one.
        training: whether modules are in training mode, so that classifiers run.

    Raises:
        GraphError: an operator without a rule, channels that cannot be followed, or a forward pass that fails.
    """
    tracer = tracer or Tracer(model)
    check_input_size(input_size)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *input_size, generator=generator).to(like.device, like.dtype)
    tracer.training = training
    with tracing_mode(model, training), own_random_state(model):
        outputs = _traced(model, tracer, image)
    tracer.results = list(nested_tensors(outputs))
    for output in tracer.results:
        shadow = tracer.shadow(output)
        if shadow is not None:
            tracer.outputs.append(torch.unique(compact(shadow)).numpy())
            tracer.note_scores(output)
    if not tracer.outputs and not any(map(tracer.giver, tracer.results)):
        raise GraphError("no output of the network depends on a convolution or linear layer: there is nothing to trace")
    return tracer


def _traced(model: nn.Module, tracer: Tracer, image: Tensor) -> Any:
    try:
        with tracer.frames.watching(model), torch.inference_mode(), attention_in_parts(), tracer:
            return model(image)
    except GraphError:
        raise
    except Exception as error:  # raised by a network's own code
        raise forward_error(model, image, tracer.module, error) from error


@contextlib.contextmanager
def attention_in_parts() -> Iterator[None]:
    """torch's attention modules compute what they do step by step, instead of by one operator of everything."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Words in messages of torch, and of networks' own checks, about shapes that do not fit.
_OF_SHAPES = re.compile(
    r"shape|size|dimension|channels|elements|height|width|resolution|out of range|match", re.IGNORECASE
)
_RAISED_FOR_SHAPES = (RuntimeError, ValueError, AssertionError, IndexError)


def check_model(model: nn.Module) -> None:
    """Raises `GraphError` for what can never be traced: no module, compiled parts, layers without weights."""
    if not isinstance(model, nn.Module):
        raise GraphError(f"a torch.nn.Module is traced, got {type(model).__name__!r}; give a network")
    for name, module in model.named_modules():
        what = f"module '{name}'" if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise GraphError(
                f"{what} is compiled by TorchScript, whose code cannot be followed; give the network it was made of"
            )
        wrapper = wrapper_attribute(module)
        if wrapper and not (isinstance(module, nn.DataParallel) and len(module.device_ids) < 2):
            raise GraphError(
                f"{what} is wrapped in {type(module).__name__}, whose copies run the original; put the network inside, "
                f"its .{wrapper}, in its place"
            )
    lazy = [name for name, tensor in model.state_dict(keep_vars=True).items() if is_lazy(tensor)]
    if lazy:
        raise GraphError(f"'{lazy[0]}' has no shape yet; run the network once on an image before it is traced")


def check_input_size(input_size: tuple[int, ...]) -> None:
    """Raises `GraphError` unless a size is `(channels, height, width)`."""
    if not is_image_size(input_size):
        raise GraphError(
            f"input_size is {input_size!r}; give (channels, height, width), each 1 or more, such as "
            f"{DEFAULT_INPUT_SIZE}"
        )


def forward_error(forward: Callable[[Tensor], Any], image: Tensor, module: str, error: Exception) -> GraphError:
    """The error for a forward pass that failed, with a message that fits its cause.

    Args:
        forward: runs the network in the same way without a trace.
        image: its input, `[1, channels, height, width]`.
        module: name of the module whose code failed.
        error: what it raised.
    """
    what = (
        f"the network fails on one image of {tuple(image.shape[1:])} in module '{module}' "
        f"({type(error).__name__}: {error}; {line_of(error.__traceback__)})"
    )
    if _runs(forward, image):
        return GraphError(
            f"{what} while it is traced, and runs otherwise: what this module does cannot be followed; write it with "
            "operators of torch on tensors"
        )
    if isinstance(error, _RAISED_FOR_SHAPES) and _OF_SHAPES.search(str(error)):
        return GraphError(f"{what}; give the input_size that it is made for, as (channels, height, width)")
    return GraphError(
        f"{what}; this is an error of the network's own code: it fails on such an image without a trace too"
    )


def _runs(forward: Callable[[Tensor], Any], image: Tensor) -> bool:
    try:
        with torch.no_grad():
            forward(image)
    except Exception:  # code of others; the user is shown what it raised while it was traced
        return False
    return True
