"""A run of OSKT: teacher -> refine -> expand -> fine-tune -> evaluate, each stage made once and kept in files."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ...baselines import baseline
from ...chain.chain import WeightChain
from ...config import Config, digest, get
from ...files import sha256
from ...host.data import dataset_class
from ...host.distributed import broadcast
from ...host.models import builder_of
from ...report import Results, Row, write_results
from ..compute import epoch_images
from ..page import environment, finish_page, keep_ranked
from ..processes import Workers, check_known, logged, processes_of
from ..stages import Facts, Stage, require_any
from ..trainer import LISTS, Trainer, network_size, schedule
from .baselines import STUDENT_NAME, run_baseline, run_file
from .ladder import log_ladder, refine_rung, rung_name
from .plan import RunPlan, StudentPlan
from .refinement import CLUSTERING_KEYS, clustering_choices, evaluated_refinement, measured_contributions, refine
from .report import counted_epochs, row_of, write_report
from .students import StudentOfChain
from .teachers import make_teacher

logger = logging.getLogger(__name__)

CHAIN_NAME = "chain.safetensors"


def check_processes(config: Config, plan: RunPlan) -> None:
    """Raises `ConfigError` if further processes of a run would not know its networks, data sets or methods."""
    check_known("oskt.processes", processes_of(config.oskt), config.imports, _find_names, (config, plan))


def _find_names(config: Config, plan: RunPlan) -> None:
    """Raises `ConfigError` unless this process knows every name that the run needs."""
    for name in (*config.data.sources, *config.data.targets):
        dataset_class(name, config.data.type)
    builder_of(config.model.name)
    for name in (*plan.controls, *(student.spec.method for student in plan.students if student.spec.of_baseline)):
        baseline(name)


class OSKTRun:
    """One run of the method.

    Args:
        config: whole tree.
        trainer: trains and evaluates on the configuration's data.
        plan: the networks to make; already checked.
        folder: where everything is kept.
        keeps_results: whether rows are written and logged; False if another process does that.
    """

    def __init__(
        self, config: Config, trainer: Trainer, plan: RunPlan, folder: Path, keeps_results: bool = True
    ) -> None:
        self.config = config
        self.trainer = trainer
        self.plan = plan
        self.folder = folder
        self.keeps_results = keeps_results
        self.evaluates_only = config.test.evaluate
        self.has_teacher = True  # until it turns out otherwise
        self.image_size = (3, config.data.height, config.data.width)
        self.rows: list[Row] = []
        self.lists: dict[str, Any] = {}  # what networks found, by their names
        self.about: dict[str, Any] = {
            "engine": "oskt",
            "backbone": config.model.name,
            "data": list(config.data.targets),
            "seed": config.train.seed,
            "epoch_images": epoch_images(trainer, get(config, "oskt.finetune")),
            "students": {student.name: _about(student) for student in plan.students if student.spec.of_chain},
            "environment": environment(),
        }

    def complete(self) -> Results:
        """All stages in order, then the report; an interim report is written after every stage."""
        processes = 1 if self.evaluates_only else processes_of(self.config.oskt)
        teacher_key = self.make_teacher()
        controls = self.controls(teacher_key)
        parallel = processes > 1
        students = self._students_apart(processes, teacher_key, controls) if parallel else self.students(teacher_key)
        for complete_network in (*students, *controls):  # networks made by other processes exist already
            complete_network()
        if self.evaluates_only:
            require_any(bool(self.rows), self.folder, "name a trained network as oskt.teacher or oskt.chain, or train")
        results = Results(tuple(self.rows), self.about)
        write_report(self.folder, results, self.config)
        keep_ranked(self.folder, self.trainer, self.lists)
        finish_page(self.folder, self.config)
        return results

    def _students_apart(self, processes: int, teacher_key: str, controls: Sequence[object]) -> list[Callable[[], None]]:
        """`students`, after other processes have completed them, and the controls during the refinement."""
        with Workers(_complete_network, processes, "students and controls", self.config.imports) as workers:
            longest_first = reversed(range(len(controls)))
            job = (self.config, self.plan, self.folder, teacher_key)
            workers.add([(*job, "controls", number) for number in longest_first])
            students = self.students(teacher_key)
            channels = [sum(student.widths.values()) for student in self.plan.students]
            widest_first = sorted(range(len(students)), key=channels.__getitem__, reverse=True)
            workers.add([(*job, "students", number) for number in widest_first], ahead=True)
        return students

    def make_teacher(self) -> str:
        """Makes the teacher, or takes the given one, unless a given chain needs none; returns its digest."""
        if self.plan.chain is None:
            return self._teacher()
        path = self.config.oskt.teacher
        if path and self.evaluates_only:
            self._teacher()
        return sha256(path) if path else ""

    def controls(self, teacher_key: str) -> list[Callable[[], None]]:
        """One call per control; they only need the teacher and are independent of each other."""
        names, passes = self.plan.controls, (False, True)
        return [partial(self._control, name, teacher_key, equal) for equal in passes for name in names]

    def students(self, teacher_key: str) -> list[Callable[[], None]]:
        """Makes the chains; returns one call per student, independent of each other."""
        if self.plan.chain is None:
            chain, chain_key = self._refine(teacher_key)
        else:
            chain, chain_key = self.plan.chain, sha256(self.config.oskt.chain)
        ladder = [(chain, chain_key)]
        for widths in self.plan.rungs:
            ladder.append(self._refine_rung(widths, *ladder[-1]))
        log_ladder([rung for rung, _ in ladder if rung is not None])
        return [self._completion(student, teacher_key, ladder) for student in self.plan.students]

    def _completion(
        self, student: StudentPlan, teacher_key: str, ladder: list[tuple[WeightChain | None, str]]
    ) -> Callable[[], None]:
        """The call that makes one student."""
        if student.spec.is_file:
            return partial(self._file_student, student)
        if student.spec.of_baseline:
            return partial(self._baseline_student, student, teacher_key)
        return partial(self._student, student, *ladder[student.rung])

    def _complete(
        self, stage: Stage, work: Callable[[bool], Facts], evaluate: Callable[[Facts], Facts] | None
    ) -> Facts | None:
        """A stage's facts; if nothing is trained, those of existing files, or `None` without them."""
        if self.evaluates_only:
            return stage.evaluated(evaluate or (lambda facts: facts))
        return stage.complete(work, evaluate)

    # ---- stages --------------------------------------------------------------------------------------------------

    def _teacher(self) -> str:
        """Trains the teacher, or takes the given one; the plan's network holds its weights afterwards."""
        config, teacher = self.config, self.plan.teacher
        facts, key = make_teacher(config, self.trainer, teacher, self.folder / "teacher")
        self.has_teacher = facts is not None
        if facts is not None:
            epochs = 0 if config.oskt.teacher else config.train.max_epoch - config.train.start_epoch
            self._row("teacher", "teacher", teacher, {"after": facts, "finetune_seconds": facts["seconds"]}, epochs)
        return key

    def _refine(self, teacher_key: str) -> tuple[WeightChain | None, str]:
        """Clusters the teacher and refines the chain, together with a copy of the teacher."""
        node, oskt, plan = get(self.config, "oskt.refine"), self.config.oskt, self.plan
        choices = clustering_choices(oskt, self.config.train.seed)
        made = {"the chain's widths (oskt.width, oskt.ladder)": digest(plan.chain_widths), "the teacher": teacher_key}
        recipe = self.trainer.recipe("oskt.refine", *CLUSTERING_KEYS, **made)
        stage = self.trainer.stage(self.folder / "refine", recipe, f"../{CHAIN_NAME}")
        path = self.folder / CHAIN_NAME

        def work(continued: bool) -> Facts:
            teacher = copy.deepcopy(plan.teacher)
            measured = measured_contributions(self.trainer, teacher, plan.graph, node)
            chain = WeightChain.from_teacher(
                teacher, plan.chain_widths, graph=plan.graph, contributions=measured, **choices
            )
            return refine(self.trainer, chain, teacher, node, stage.folder, continued, path)

        def evaluate(facts: Facts) -> Facts:
            return evaluated_refinement(self.trainer, plan.teacher, node, stage.folder, facts)

        facts = self._complete(stage, work, None if self.evaluates_only else evaluate)
        if facts is None:
            return None, ""
        self.about["refine"] = facts
        return WeightChain.load(path, model=plan.teacher), broadcast(lambda: sha256(path))

    def _refine_rung(
        self, widths: dict[str, int], above: WeightChain | None, above_key: str
    ) -> tuple[WeightChain | None, str]:
        """The next chain of a ladder."""
        rungs = self.about.setdefault("rungs", [])
        number = len(rungs) + 2
        if self.evaluates_only or above is None:
            path = self.folder / rung_name(number)
            rungs.append({})
            if not path.is_file():
                return None, ""
            return WeightChain.load(path, model=self.plan.teacher), sha256(path)
        chain, key, facts = refine_rung(self.trainer, self.config, self.folder, number, widths, above, above_key)
        rungs.append(facts)
        return chain, key

    def _student(self, student: StudentPlan, chain: WeightChain | None, chain_key: str) -> None:
        """Expands a student, evaluates it untrained, fine-tunes it and evaluates it again."""
        made = StudentOfChain(self.config, self.trainer, student, self.folder, chain_key)
        if chain is None:
            facts = made.stage.evaluated(made.evaluated)
            if facts is None:
                logger.info("%s: there is neither the student nor a chain, so it is not evaluated", student.name)
            else:
                self._row(student.name, "student", made.saved(), facts, made.epochs)
            return
        network, making = made.expanded(chain)
        facts, epochs = self._complete(made.stage, made.work(network, making), made.evaluated), made.epochs
        if facts is None:
            facts, epochs = {"before": self.trainer.evaluate(network, made.stage.folder), "finetune_seconds": None}, 0
        self._row(student.name, "student", network, facts, epochs)

    def _control(self, name: str, teacher_key: str, equal_passes: bool) -> None:
        """A baseline at the chain's widths, trained for the students' epochs, or for those and the refinement's."""
        oskt = self.config.oskt
        changes = {"lr": oskt.control_lr[name]}
        if equal_passes:  # the students' schedule, at low resolution where refinement used it
            for key in ("max_epoch", "half_resolution_epochs"):
                changes[key] = oskt.refine[key] + oskt.finetune[key]
        node = schedule(self.config, "oskt.finetune", **changes)
        title = f"{name}, {counted_epochs(node.max_epoch)}" if equal_passes else name
        folder = self.folder / "controls" / (f"{name}-equal-passes" if equal_passes else name)
        self._baseline(title, name, self.plan.chain_widths, node, folder, teacher_key, not equal_passes)

    def _baseline_student(self, student: StudentPlan, teacher_key: str) -> None:
        """A baseline of any width in `oskt.students`, trained for the students' epochs."""
        node = schedule(self.config, "oskt.finetune", lr=self.config.oskt.control_lr[student.spec.method])
        folder = self.folder / "students" / student.spec.folder
        self._baseline(student.name, student.spec.method, student.widths, node, folder, teacher_key)

    def _file_student(self, student: StudentPlan) -> None:
        """A student of an earlier run, trained for the students' epochs on this run's data."""
        node = get(self.config, "oskt.finetune")
        folder = self.folder / "students" / student.spec.folder
        network, facts = run_file(self.trainer, Path(student.spec.value), node, folder)
        self._control_row(student.name, network, facts, node.max_epoch)

    def _baseline(
        self,
        title: str,
        method: str,
        widths: dict[str, int],
        node: Config,
        folder: Path,
        teacher_key: str,
        evaluate_before: bool = True,
    ) -> None:
        plan = self.plan
        network, facts = run_baseline(
            *(self.trainer, method, plan.teacher, plan.graph, widths, node, folder, teacher_key),
            evaluate_before and self.has_teacher,
        )
        self._control_row(title, network, facts, node.max_epoch)

    def _control_row(self, title: str, network: nn.Module, facts: Facts | None, epochs: int) -> None:
        if facts is None:
            logger.info("%s: it is not there, so it is not evaluated", title)
        else:
            self._row(title, "control", network, facts, epochs)

    # ---- parts of stages -----------------------------------------------------------------------------------------

    def _row(self, name: str, kind: str, network: nn.Module, facts: Facts, epochs: int) -> None:
        """Adds a network's numbers to the results.

        Args:
            name: its name in the run.
            kind: of `report.results.ROW_KINDS`.
            network: whose costs are counted.
            facts: `after`, `finetune_seconds`, and what `row_of` takes besides.
            epochs: before `after` was measured.
        """
        size = network_size(network, self.plan.graph.heads, self.image_size)
        row = row_of(name, kind, size, facts, epochs)
        self.rows.append(row)
        if lists := (facts.get("after") or facts.get("before") or {}).get(LISTS):
            self.lists[name] = lists
        if not self.keeps_results:
            return
        write_results(self.folder / "results.json", self.rows, self.about)
        shown = " -> ".join(f"{100 * value:.1f}" for value in (row.map_before, row.map_after) if value is not None)
        logger.info("%s: mAP %s (%d parameters)", name, shown, row.params)


def _about(student: StudentPlan) -> dict[str, Any]:
    """What the page needs to know of a student."""
    return {"file": f"students/{student.spec.folder}/{STUDENT_NAME}", "widths": student.widths}


def _complete_network(config: Config, plan: RunPlan, folder: Path, teacher_key: str, kind: str, number: int) -> None:
    """One student or control of a run whose teacher (and for students, chain) exist, in a separate process."""
    with logged(folder / "log.txt"):
        run = OSKTRun(config, Trainer(config), plan, folder, keeps_results=False)
        networks = run.students(teacher_key) if kind == "students" else run.controls(teacher_key)
        networks[number]()
