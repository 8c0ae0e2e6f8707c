"""What a job does on its node. The objects here are pickled by the launcher and called there."""

from __future__ import annotations

import logging
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.run_cell import (
    find_record,
    make_images,
    record_failure,
    record_path,
    run_cell,
)
from experiments.config.run_config import RunConfig
from experiments.store.folders import Store
from experiments.store.sources import PACKAGES, source_digest
from experiments.verbs.report_files import log_cell
from segquant.core.method_interface import StatisticsNeeds

log = logging.getLogger(__name__)


def code_version() -> str:
    """The hash of the code that a job will run."""
    return source_digest(*PACKAGES)


class CellsFailed(RuntimeError):  # noqa: N818 - what happened; the job fails with it
    """Some cells of a job failed: they are in the records, and the job is FAILED to Slurm."""


@dataclass(kw_only=True)
class SharedWork:
    """The reference images or the calibration, which many cells wait for."""

    config: RunConfig
    needs: StatisticsNeeds
    stage: str  # reference or calibration
    code: str = field(default_factory=code_version)

    def __call__(self) -> str:
        bench = _bench(self.config, self.needs, code=self.code)
        if self.stage == "calibration":
            if self.needs.replay:
                bench.calibration_inputs()
            return bench.calibration()[0].hash
        bench.true_images()
        reference = bench.reference()
        bench.trajectory()
        return reference.hash


@dataclass(kw_only=True)
class CellWork:
    """Cells of one model, one after the other; what fails is recorded and the rest goes on."""

    cells: list[RunConfig]
    needs: StatisticsNeeds
    part: str  # all, images or metrics
    run_ids: list[str]
    code: str = field(default_factory=code_version)
    failed: dict[str, str] = field(default_factory=dict)  # run id -> reason; kept by a checkpoint

    def __call__(self) -> list[str]:
        bench = _bench(self.cells[0], self.needs, code=self.code, samples=self.part != "metrics")
        for cell, run_id in zip(self.cells, self.run_ids, strict=True):
            label = f"{cell.model.name} {cell.method_name} {cell.bits.name}"
            if run_id in self.failed:
                continue
            found = record_path(bench, cell).parent.name
            if found != run_id:
                raise RuntimeError(
                    f"{label}: here its run id is {found}, it was submitted as {run_id}: the node "
                    "differs in its models, packages or GPU from the machine that submitted"
                )
            reason = self._run(bench, cell)
            log.warning("%s: %s", label, reason or "done")
            if reason:
                self.failed[run_id] = f"{label}: {reason}"
        if self.failed:
            raise CellsFailed(
                f"{len(self.failed)} of {len(self.cells)} cells failed: "
                + "; ".join(self.failed.values())
            )
        return self.run_ids

    def _run(self, bench: Bench, cell: RunConfig) -> str:
        """The reason why the cell failed, or an empty string."""
        if find_record(bench, cell) is not None:
            return ""
        try:
            if self.part == "images":
                make_images(bench, cell)
                return ""
            record = run_cell(bench, cell)
        except Exception as error:  # a full disk, a folder that went away: the next may do better
            log.exception("%s %s", cell.method_name, cell.bits.name)
            return _note_failure(bench, cell, error)
        log_cell(cell, record, bench)
        return record.reason if record.status == "failed" else ""


def _note_failure(bench: Bench, cell: RunConfig, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    try:
        record_failure(bench, cell, reason, trace=traceback.format_exc())
    except OSError as second:  # no room for it: the job's state tells
        log.warning("no record could be written: %s", second)
    return reason


def _bench(config: RunConfig, needs: StatisticsNeeds, *, code: str, samples: bool = True) -> Bench:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("submitit").propagate = False  # it prints by itself
    if code != code_version():
        raise RuntimeError(
            "the project's code changed after this job was submitted; give the same command again "
            "to submit what the code now asks for"
        )
    progress = Progress(cells=1, prompts=0)
    store = Store(Path(config.out))
    return Bench(config=config, store=store, progress=progress, needs=needs, samples=samples)
