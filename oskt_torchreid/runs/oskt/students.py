"""A student of a run's chain: expanded, evaluated untrained, fine-tuned, and evaluated again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ...chain.chain import WeightChain
from ...chain.expansion import expand_to_plan
from ...chain.recalibration import recalibrate
from ...chain.relabelling import relabel
from ...chain.student_file import save_student
from ...chain.student_reading import load_student
from ...config import Config, get
from ...config.nodes.oskt import DISTILLATION_KEYS
from ...deploy.lifting import lifted
from ...host.compat import seed_everything
from ..stages import Facts
from ..trainer import Trainer
from .baselines import STUDENT_NAME, Distillation, finetuned
from .plan import StudentPlan

EXPANDED_NAME = "expanded.pth"
EXPANSION_KEYS = tuple(
    f"oskt.{key}" for key in ("distance", "statistics", "vectors_over", "recalibrate", "attention", "feature", "curves")
)


class StudentOfChain:
    """One student of a run: its plan, its folder and its stage.

    Args:
        config: whole tree.
        trainer: of the run.
        plan: of the student.
        folder: of the run.
        chain_key: digest of the chain's file; empty if there is none.
    """

    def __init__(self, config: Config, trainer: Trainer, plan: StudentPlan, folder: Path, chain_key: str) -> None:
        self._config, self._trainer, self._plan = config, trainer, plan
        self._node = get(config, "oskt.finetune")
        self._distils = config.oskt.distillation.of_chain
        self._compatible = self._node.compatible
        self._distillation: Distillation | None = None
        keys = (*EXPANSION_KEYS, "oskt.distillation.of_chain", *(DISTILLATION_KEYS if self._distils else ()))
        recipe = trainer.recipe("oskt.finetune", *keys, widths=plan.widths, **{"the chain": chain_key})
        self.stage = trainer.stage(folder / "students" / plan.spec.folder, recipe, EXPANDED_NAME, STUDENT_NAME)

    @property
    def epochs(self) -> int:
        """Epochs of its fine-tuning."""
        return self._node.max_epoch

    def expanded(self, chain: WeightChain) -> tuple[nn.Module, Facts]:
        """The student expanded from the chain, with a classifier for this run's identities, and the time that took."""
        oskt = self._config.oskt
        seed_everything(self._config.train.seed)
        start = time.perf_counter()
        over = None if oskt.vectors_over == "chain" else oskt.vectors_over
        if over is None and oskt.recalibrate and chain.statistics:
            over = "slots"  # what images correct may differ from channel to channel
        how = {"distance": oskt.distance, "statistics": oskt.statistics, "vectors_over": over}
        network = expand_to_plan(chain, self._plan.widths, **how)
        making = {"expand_seconds": time.perf_counter() - start}
        if self._distils or self._compatible:
            widest = expand_to_plan(chain, chain.graph.sizes)
            self._distillation = Distillation(oskt.distillation, widest, chain.graph, self._distils, self._compatible)
        return relabel(network, chain.graph.heads, self._trainer.num_classes), making

    def work(self, network: nn.Module, making: Facts) -> Callable[[bool], Facts]:
        """The work of the stage: the network is trained in place.

        Args:
            network: as it was expanded.
            making: facts of its expansion.
        """
        trainer, folder, batches = self._trainer, self.stage.folder, self._config.oskt.recalibrate

        def work(continued: bool) -> Facts:
            if batches:
                recalibrate(network, trainer.datamanager(self._node.batch_size).train_loader, batches)
            save_student(self._shown(network), folder / EXPANDED_NAME)
            before = trainer.evaluate(self._shown(network))
            facts = finetuned(trainer, network, self._node, folder, continued, self._distillation)
            shown = self._shown(network.cpu().eval())
            if shown is not network:
                facts["after"] = trainer.evaluate(shown, folder)
            save_student(shown.cpu(), folder / STUDENT_NAME, half=self._plan.spec.is_half)
            return {"before": before, **making, **facts}

        return work

    def _shown(self, network: nn.Module) -> nn.Module:
        """The student as it is evaluated and saved: its features lifted, if that is asked for."""
        return lifted(network) if self._config.oskt.feature == "teacher" else network

    def evaluated(self, facts: Facts) -> Facts:
        """The facts of the existing student, measured again."""
        before = self._trainer.evaluate(load_student(self.stage.folder / EXPANDED_NAME))
        after = self._trainer.evaluate(self.saved(), self.stage.folder)
        return {"finetune_seconds": None, **facts, "before": before, "after": after, "curve": []}

    def saved(self) -> nn.Module:
        """The existing student."""
        return load_student(self.stage.folder / STUDENT_NAME)
