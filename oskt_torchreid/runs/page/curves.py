"""Losses and accuracies over time, from the TensorBoard files of a run's stages."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

POINTS = 100  # of a line, at most
Lines = dict[str, list[tuple[float, float]]]


def curves_below(folder: Path) -> tuple[Lines, Lines]:
    """`(losses, accuracies)` by stage: `(% of the schedule, % of the first loss)`, and `(epoch, mAP in %)`.

    The losses of a stage are summed, and related to their start, so that stages of other losses can be compared.
    Controls, stages without files, and evaluations that were made only once, are left out.
    """
    losses: Lines = {}
    accuracies: Lines = {}
    for events in sorted(folder.rglob("events.out.tfevents.*")):
        stage = events.parent.relative_to(folder).as_posix()
        if "kept-" in stage or stage.startswith("controls"):
            continue
        scalars = _scalars(events)
        parts = [values for tag, values in scalars.items() if tag.startswith("Train/loss")]
        if parts and (length := min(map(len, parts))):
            total = np.sum([[value for _, value in part[:length]] for part in parts], axis=0)
            shown = np.unique(np.linspace(0, length - 1, min(POINTS, length)).astype(int))
            losses[stage or "network"] = [
                (100 * (place + 1) / length, 100 * float(total[place] / (total[0] or 1))) for place in shown
            ]
        tested = next((values for tag, values in scalars.items() if tag.endswith("/mAP") and len(values) > 1), [])
        if tested:
            accuracies[stage or "network"] = [(step + 1, 100 * value) for step, value in tested]
    return losses, accuracies


def _scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    found = EventAccumulator(str(path), size_guidance={"scalars": 0})
    try:
        found.Reload()
    except Exception as error:  # of a file that was cut when a process was killed
        logger.info("'%s' is passed over: %s", path, error)
        return {}
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
