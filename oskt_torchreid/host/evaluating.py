"""Evaluation as an engine does it: torchreid's protocol, ranked in bounded memory, with numbers of every target."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

from .compat import logger, quiet, torchreid
from .distributed import features_by_shares
from .evaluation import Rankings, evaluate_target, target_features
from .interfaces import EngineData
from .progress import batch_bar
from .random_state import random_state, set_random_state
from .ranked_lists import RankedLists
from .ranking import Labels
from .resumable import ResumableEngine

_TEST = inspect.signature(torchreid.engine.Engine.test)


class EvaluatingEngine(ResumableEngine):
    """A resumable engine that evaluates.

    Attributes:
        results: numbers of the last evaluation by target.
        memory_format: of images.
    """

    def __init__(self, datamanager: EngineData, use_gpu: bool = True) -> None:
        super().__init__(datamanager, use_gpu)
        self.memory_format = torch.contiguous_format
        self.results: dict[str, dict[str, float]] = {}
        self._test_bar: tqdm | None = None  # set while an evaluation runs
        self._rankings: list[Rankings] = []  # of the last evaluation, one per target

    def extract_features(self, input: Tensor) -> Tensor:
        """Features [batch, channels] of images [batch, 3, height, width]."""
        self.check_termination()

        def embed(images: Tensor) -> Tensor:
            return self.model(images.to(self.device).contiguous(memory_format=self.memory_format))

        features = features_by_shares(embed, input)
        if self._test_bar is not None:
            self._test_bar.update()
        return features

    def test(self, *args: Any, **kwargs: Any) -> float:
        """Evaluates on every target as torchreid does, and keeps the numbers in `results[target]`.

        With `rerank`, there are re-ranked numbers besides the plain ones (`reranked_mAP`). The random state is
        restored, so that a run does not depend on when it is evaluated.

        Returns:
            Rank-1 of the last target, as a fraction; re-ranked with `rerank`.
        """
        settings = _TEST.bind(self, *args, **kwargs)
        settings.apply_defaults()
        random = random_state(self.device)
        batches = sum(len(loader) for parts in self.test_loader.values() for loader in parts.values())
        self._rankings = []
        with quiet(), batch_bar(batches, "evaluation", leave=False) as self._test_bar:
            try:
                rank1 = super().test(*args, **kwargs)
            finally:
                self._test_bar = None
        set_random_state(random, self.device)
        for target, rankings in zip(self.test_loader, self._rankings, strict=True):
            self.results[target] = rankings.numbers(settings.arguments["ranks"])
        self.note_evaluation()
        return float(rank1)

    @property
    def lists(self) -> RankedLists | None:
        """The first places of some queries of the first target, in the last evaluation."""
        return self._rankings[0].lists if self._rankings else None

    def note_evaluation(self) -> None:
        """Adds the first target's numbers to the curve of the run, if one is running."""
        if self._run_folder is not None:
            first = next(iter(self.results.values()))
            self.curve.append({"epoch": self.epoch + 1, "mAP": first["mAP"], "rank1": first["rank1"]})

    def sum_up(self) -> None:
        """A table of the last evaluation, in %."""
        rows = [(target, *(f"{100 * value:.1f}" for value in own.values())) for target, own in self.results.items()]
        if rows:
            headers = ("in %", *next(iter(self.results.values())))
            logger.info("after epoch %d:\n%s", self.epoch + 1, tabulate(rows, headers, disable_numparse=True))

    def features(self) -> tuple[Tensor, Tensor, Labels]:
        """Features of the first target's queries and gallery in evaluation, on the CPU, and their labels."""
        parts = next(iter(self.test_loader.values()))
        self.set_model_mode("eval")
        return target_features(self, parts["query"], parts["gallery"])

    def _evaluate(
        self, dataset_name: str = "", query_loader: Any = None, gallery_loader: Any = None, **settings: Any
    ) -> tuple[float, float]:
        """Called by torchreid's `test` for every target; returns rank-1 and mAP as fractions."""
        rankings = evaluate_target(self, dataset_name, query_loader, gallery_loader, **settings)
        self._rankings.append(rankings)
        reported = rankings.reranked or rankings.plain
        return float(reported.cmc[0]), float(reported.mean_ap)

    def evaluate(self, **kwargs: Any) -> dict[str, float]:
        """Numbers of the first target as fractions: mAP, rank1, rank5, rank10, rank20; `results` has all targets'.

        Args:
            **kwargs: of `test`: dist_metric, normalize_feature, ...
        """
        self.test(**kwargs)
        return dict(self.results[next(iter(self.test_loader))])
