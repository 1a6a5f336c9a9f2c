"""A run of OSKT: teacher -> refine -> expand -> fine-tune -> evaluate, each stage made once and kept in files."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..config import digest, get
from ..files import save_checkpoint, sha256
from ..host.compat import seed_everything
from ..host.distributed import process_count
from ..host.weights import load_weights
from ..oskt.amounts import HALF
from ..oskt.chain import WeightChain
from ..oskt.expand import expand_to_plan
from ..oskt.recalibration import recalibrate
from ..oskt.relabelling import relabel
from ..oskt.students import save_student
from ..report import Results, Row, write_results
from .baselines import FILE_METHOD, STUDENT_NAME, finetuned, run_baseline, run_file
from .ladder import log_ladder, refine_rung
from .plan import RunPlan, StudentPlan, make_plan
from .processes import Workers, logged
from .refinement import clustering_choices, refine
from .report import counted_epochs, write_report
from .stages import Facts, Stage
from .training import Trainer, first_target, network_size, schedule

logger = logging.getLogger(__name__)

CHAIN_NAME, TEACHER_NAME = "chain.safetensors", "teacher.pth"
EXPANDED_NAME = "expanded.pth"


def processes_of(config: Any) -> int:
    """How many networks are trained at a time; one, which all share, where several processes make the run."""
    return config.oskt.processes if process_count() == 1 else 1


class OSKTRun:
    """One run of the method.

    Args:
        config: whole tree.
        trainer: trains and evaluates on the configuration's data.
        plan: what will be made; already checked.
        folder: where everything is kept.
        keeps_results: whether rows are written and logged; not so where another process does.
    """

    def __init__(self, config: Any, trainer: Trainer, plan: RunPlan, folder: Path, keeps_results: bool = True) -> None:
        self.config = config
        self.trainer = trainer
        self.plan = plan
        self.folder = folder
        self.keeps_results = keeps_results
        self.image_size = (3, config.data.height, config.data.width)
        self.rows: list[Row] = []
        self.facts: Facts = {
            "engine": "oskt",
            "backbone": config.model.name,
            "data": list(config.data.targets),
            "seed": config.train.seed,
        }

    def complete(self) -> Results:
        """All stages in order, then the report; a report of what there is so far is written after every stage."""
        processes = processes_of(self.config)
        teacher_key = self.make_teacher()
        controls = self.controls(teacher_key)
        beside = processes > 1
        students = self._students_apart(processes, teacher_key, controls) if beside else self.students(teacher_key)
        for complete_network in (*students, *controls):  # what other processes have made is there already
            complete_network()
        results = Results(tuple(self.rows), self.facts)
        write_report(self.folder, results, self.config)
        return results

    def _students_apart(self, processes: int, teacher_key: str, controls: Sequence[object]) -> list[Callable[[], None]]:
        """``students``, after processes of their own have completed them, and the controls beside the refinement."""
        with Workers(_complete_network, processes, "students and controls") as workers:
            longest_first = reversed(range(len(controls)))
            workers.add([(self.config, self.folder, "controls", number) for number in longest_first])
            students = self.students(teacher_key)
            channels = [sum(student.widths.values()) for student in self.plan.students]
            widest_first = sorted(range(len(students)), key=channels.__getitem__, reverse=True)
            workers.add([(self.config, self.folder, "students", number) for number in widest_first], ahead=True)
        return students

    def make_teacher(self) -> str:
        """Makes the teacher, or takes the given one, unless a given chain needs none; its digest."""
        return self._teacher() if self.plan.chain is None else self._given_teacher()

    def controls(self, teacher_key: str) -> list[Callable[[], None]]:
        """One call per control; they need the teacher alone, and none needs another."""
        names, passes = self.plan.controls, (False, True)
        return [partial(self._control, name, teacher_key, equal) for equal in passes for name in names]

    def students(self, teacher_key: str) -> list[Callable[[], None]]:
        """Makes the chains; what is left is one call per student, and none needs another."""
        if self.plan.chain is None:
            chain, chain_key = self._refine(teacher_key)
        else:
            chain = self.plan.chain
            chain_key = digest("chain", sha256(self.config.oskt.chain), self.trainer.data_key)
        ladder = [(chain, chain_key)]
        for widths in self.plan.rungs:
            ladder.append(self._refine_rung(widths, *ladder[-1]))
        log_ladder([rung for rung, _ in ladder])
        return [self._completion(student, teacher_key, ladder) for student in self.plan.students]

    def _completion(
        self, student: StudentPlan, teacher_key: str, ladder: list[tuple[WeightChain, str]]
    ) -> Callable[[], None]:
        """The call that makes a student."""
        if student.method == FILE_METHOD:
            return partial(self._file_student, student)
        if student.method:
            return partial(self._baseline_student, student, teacher_key)
        return partial(self._student, student, *ladder[student.rung])

    # ---- stages --------------------------------------------------------------------------------------------------

    def _teacher(self) -> str:
        """Trains the teacher, or takes the given one; the plan's network holds its weights afterwards."""
        config, teacher = self.config, self.plan.teacher
        given = sha256(config.oskt.teacher) if config.oskt.teacher else ""
        key = digest("teacher", self.trainer.data_key, given or config.train)
        stage = Stage(self.folder / "teacher", key, (TEACHER_NAME,))

        def work(continued: bool) -> Facts:
            if given:
                facts = self.trainer.evaluate(teacher)
            else:
                facts = first_target(self.trainer.train(teacher, config.train, stage.folder, continued))
            save_checkpoint(stage.folder / TEACHER_NAME, {"state_dict": teacher.state_dict()})
            return facts

        facts = stage.complete(work)
        load_weights(teacher, stage.folder / TEACHER_NAME)
        teacher.cpu()
        epochs = 0 if given else config.train.max_epoch
        self._row("teacher", "teacher", teacher, {"after": facts, "finetune_seconds": facts["seconds"]}, epochs)
        return key

    def _given_teacher(self) -> str:
        """Beside a given chain, the teacher that baselines are made of, if one is given; it is not evaluated here."""
        path = self.config.oskt.teacher
        return digest("teacher", self.trainer.data_key, sha256(path)) if path else ""

    def _refine(self, teacher_key: str) -> tuple[WeightChain, str]:
        """Clusters the teacher and refines the chain, together with a copy of the teacher."""
        node, oskt = get(self.config, "oskt.refine"), self.config.oskt
        choices = clustering_choices(oskt)
        key = digest("refine", teacher_key, oskt.width, choices, node)
        stage = Stage(self.folder / "refine", key, (f"../{CHAIN_NAME}",))
        path = self.folder / CHAIN_NAME

        def work(continued: bool) -> Facts:
            teacher = copy.deepcopy(self.plan.teacher)
            widths, graph, seed = self.plan.chain_widths, self.plan.graph, self.config.train.seed
            chain = WeightChain.from_teacher(teacher, widths, graph=graph, seed=seed, **choices)
            return refine(self.trainer, chain, teacher, node, stage.folder, continued, path)

        facts = stage.complete(work)
        self.facts["refine"] = facts
        return WeightChain.load(path, model=self.plan.teacher), key

    def _refine_rung(self, widths: dict[str, int], above: WeightChain, above_key: str) -> tuple[WeightChain, str]:
        """The next chain of a ladder."""
        rungs = self.facts.setdefault("rungs", [])
        number = len(rungs) + 2
        chain, key, facts = refine_rung(self.trainer, self.config, self.folder, number, widths, above, above_key)
        rungs.append(facts)
        return chain, key

    def _student(self, student: StudentPlan, chain: WeightChain, chain_key: str) -> None:
        """Expands a student, evaluates it untrained, fine-tunes it and evaluates it again."""
        node = get(self.config, "oskt.finetune")
        distance, batches = self.config.oskt.distance, self.config.oskt.recalibrate
        statistics = self.config.oskt.statistics
        key = digest("student", chain_key, student.widths, distance, batches, statistics, node, self.config.oskt.curves)
        stage = Stage(self.folder / "students" / student.name, key, (EXPANDED_NAME, STUDENT_NAME))
        seed_everything(self.config.train.seed)
        start = time.perf_counter()
        network = expand_to_plan(chain, student.widths, distance=distance, statistics=statistics)
        making = {"expand_seconds": time.perf_counter() - start}
        network = relabel(network, chain.graph.heads, self.trainer.num_classes)

        def work(continued: bool) -> Facts:
            if batches:
                recalibrate(network, self.trainer.datamanager(node.batch_size).train_loader, batches)
            save_student(network, stage.folder / EXPANDED_NAME)
            before = self.trainer.evaluate(network)
            facts = finetuned(self.trainer, network, node, stage.folder, continued)
            save_student(network.cpu().eval(), stage.folder / STUDENT_NAME, half=student.name.endswith(HALF))
            return {"before": before, **making, **facts}

        self._row(student.name, "student", network, stage.complete(work), node.max_epoch)

    def _control(self, name: str, teacher_key: str, equal_passes: bool) -> None:
        """A baseline at the chain's widths, given the students' epochs, or as many as refinement and they together."""
        oskt = self.config.oskt
        changes = {"lr": oskt.control_lr[name]}
        if equal_passes:  # the students' way, low resolution where refinement had it
            for key in ("max_epoch", "half_resolution_epochs"):
                changes[key] = oskt.refine[key] + oskt.finetune[key]
        node = schedule(self.config, "oskt.finetune", **changes)
        title = f"{name}, {counted_epochs(node.max_epoch)}" if equal_passes else name
        folder = self.folder / "controls" / (f"{name}-equal-passes" if equal_passes else name)
        self._baseline(title, name, self.plan.chain_widths, node, folder, teacher_key, not equal_passes)

    def _baseline_student(self, student: StudentPlan, teacher_key: str) -> None:
        """A baseline of any width that ``oskt.students`` asks for, given the students' epochs."""
        node = schedule(self.config, "oskt.finetune", lr=self.config.oskt.control_lr[student.method])
        folder = self.folder / "students" / student.name.replace(":", "-")
        self._baseline(student.name, student.method, student.widths, node, folder, teacher_key)

    def _file_student(self, student: StudentPlan) -> None:
        """A student of an earlier run, given the students' epochs on this run's data."""
        path = Path(student.name.partition("=")[2])
        node = get(self.config, "oskt.finetune")
        folder = self.folder / "students" / student.name.replace("/", "-")
        network, facts = run_file(self.trainer, path, node, folder)
        self._row(student.name, "control", network, facts, node.max_epoch)

    def _baseline(
        self,
        title: str,
        method: str,
        widths: dict[str, int],
        node: Any,
        folder: Path,
        teacher_key: str,
        evaluate_before: bool = True,
    ) -> None:
        plan = self.plan
        network, facts = run_baseline(
            self.trainer, method, plan.teacher, plan.graph, widths, node, folder, teacher_key, evaluate_before
        )
        self._row(title, "control", network, facts, node.max_epoch)

    # ---- parts of stages -----------------------------------------------------------------------------------------

    def _row(self, name: str, kind: str, network: nn.Module, facts: Facts, epochs: int) -> None:
        """Adds a network's numbers to the results.

        Args:
            name: how the run calls it.
            kind: of ``report.results.KINDS``.
            network: to be counted.
            facts: ``after``, ``finetune_seconds``, and where there are any ``before``, ``curve``, ``expand_seconds``.
            epochs: behind ``after``.
        """
        params, flops = network_size(network, self.plan.graph.heads, self.image_size)
        before, after = facts.get("before", {}), facts["after"]
        row = Row(
            name=name,
            kind=kind,
            params=params,
            flops=flops,
            map_before=before.get("mAP"),
            rank1_before=before.get("rank1"),
            map_after=after.get("mAP"),
            rank1_after=after.get("rank1"),
            epochs=epochs,
            seconds=facts["finetune_seconds"],
            curve=facts.get("curve", ()),
            expand_seconds=facts.get("expand_seconds"),
        )
        self.rows.append(row)
        if not self.keeps_results:
            return
        write_results(self.folder / "results.json", self.rows, self.facts)
        shown = " -> ".join(f"{100 * value:.1f}" for value in (row.map_before, row.map_after) if value is not None)
        logger.info("%s: mAP %s (%d parameters)", name, shown, params)


_BEGUN: dict[Path, tuple[OSKTRun, str]] = {}
"""Of a process that completes networks of a run: the run, by its folder, and its teacher's digest, made once."""
_LEFT: dict[tuple[Path, str], list[Callable[[], None]]] = {}
"""And the calls that are left of it, by its folder and what they make."""


def _complete_network(config: Any, folder: Path, kind: str, number: int) -> None:
    """One student or control of a run whose teacher, and for students chain, are made, in a process of its own."""
    with logged(folder / "log.txt"):
        if folder not in _BEGUN:
            trainer = Trainer(config)
            plan = make_plan(config, trainer.num_classes)
            part = OSKTRun(config, trainer, plan, folder, keeps_results=False)
            _BEGUN[folder] = part, part.make_teacher()
        if (folder, kind) not in _LEFT:
            part, teacher_key = _BEGUN[folder]
            _LEFT[folder, kind] = part.students(teacher_key) if kind == "students" else part.controls(teacher_key)
        _LEFT[folder, kind][number]()
