"""Progress bars with ETA, silent without a terminal: of a training run, with losses and rate, and of an evaluation."""

from collections.abc import Iterator
from typing import Any, Protocol

from tqdm.auto import tqdm

from ..batches import batches_of
from .distributed import is_rank_zero


def batch_bar(total: int, title: str = "", leave: bool = True) -> tqdm:
    """A bar of batches, with ETA, in the first process; none if stderr is not a terminal (`disable=None`)."""
    silent = None if is_rank_zero() else True
    return tqdm(total=total, desc=title or None, leave=leave, disable=silent, unit="batch", dynamic_ncols=True)


class NoWriter:
    """Replaces TensorBoard's writer in processes that write nothing."""

    def add_scalar(self, *_: Any) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Closes nothing."""


class Progressing(Protocol):
    """The part of a training engine that its progress bar needs."""

    epoch: int
    start_epoch: int
    max_epoch: int
    last_summary: dict[str, float]

    def get_current_lr(self) -> float:
        """The learning rate."""

    def skip_done(self, batches: Iterator[Any]) -> int:
        """Draws the batches again that an interrupted epoch has seen, and returns their number."""

    def batch_done(self) -> None:
        """Called after every batch."""


class ProgressLoader:
    """A data loader that moves its engine's progress bar; everything else is the wrapped loader's.

    Args:
        loader: data loader to iterate.
        engine: what trains on the batches.
    """

    def __init__(self, loader: Any, engine: Progressing) -> None:
        self.loader = loader
        self.engine = engine
        self._bar: tqdm | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet while the object is copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        engine = self.engine
        if self._bar is None:
            self._bar = batch_bar(max(1, engine.max_epoch - engine.start_epoch) * len(self.loader))
        self._bar.set_description(f"epoch {engine.epoch + 1}/{max(engine.max_epoch, engine.epoch + 1)}")
        batches = batches_of(self.loader)
        self._bar.update(engine.skip_done(batches))
        for data in batches:
            yield data
            terms = {name: f"{value:.3g}" for name, value in engine.last_summary.items()}
            self._bar.set_postfix(terms | {"lr": f"{engine.get_current_lr():.2g}"}, refresh=False)
            self._bar.update()
            engine.batch_done()
        if engine.epoch + 1 >= engine.max_epoch:
            self.close()

    def close(self) -> None:
        """Ends the bar; the next iteration opens another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
