"""What a job does on its node. The objects here are pickled by the launcher and called there."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import calibration_of
from experiments.cell.cell import Cell
from experiments.cell.mirror import run_mirrored
from experiments.cell.progress import Progress
from experiments.cell.run_cell import make_images, record_failure
from experiments.cell.sweep import gather_cells
from experiments.cluster.sharded_stages import before_images, build_shard
from experiments.config.run_config import RunConfig
from experiments.store.folders import Store
from experiments.store.sources import project_digest
from segquant.core.method_interface import StatisticsNeeds

log = logging.getLogger(__name__)


class CellsFailed(RuntimeError):  # noqa: N818 - what happened; the job fails with it
    """Some cells of a job failed: they are in the records, and the job is FAILED to Slurm."""


@dataclass(kw_only=True)
class SharedWork:
    """The reference images or the calibration, which many cells wait for, or a shard of them."""

    config: RunConfig
    needs: StatisticsNeeds
    stage: str  # reference or calibration
    shard: int | None = None  # its number; None: all that is not there
    code: str = field(default_factory=project_digest)

    def __call__(self) -> str:
        (cell,) = _cells([self.config], self.needs, code=self.code)
        if self.shard is not None:
            build_shard(cell, self.stage, self.shard)
            return f"shard {self.shard}"
        if self.stage == "calibration":
            if self.needs.replay:
                CalibrationInputs(around=cell.around).build()
            return calibration_of(cell.around).build().hash
        for stage in (cell.true_images, cell.trajectory):
            if stage is not None:
                stage.build()
        return cell.reference.build().hash


@dataclass(kw_only=True)
class CellWork:
    """Cells of one model, one after the other; what fails is recorded and the rest goes on."""

    cells: list[RunConfig]
    needs: StatisticsNeeds
    part: str  # all, images or metrics; quantize: what shards of images need; shard: one of these
    run_ids: list[str]
    shard: int | None = None  # its number
    code: str = field(default_factory=project_digest)
    failed: dict[str, str] = field(default_factory=dict)  # run id -> reason; kept by a checkpoint

    def __call__(self) -> list[str]:
        cells = _cells(self.cells, self.needs, code=self.code, makes=self.part != "metrics")
        for cell, run_id in zip(cells, self.run_ids, strict=True):
            if run_id in self.failed:
                continue
            if cell.run_id != run_id:
                raise RuntimeError(
                    f"{cell.label}: here its run id is {cell.run_id}, it was submitted as "
                    f"{run_id}: the node differs in its models, packages or GPU from the machine "
                    "that submitted"
                )
            reason = self._run(cell)
            log.warning("%s: %s", cell.label, reason or "done")
            if reason:
                self.failed[run_id] = f"{cell.label}: {reason}"
        if self.failed:
            raise CellsFailed(
                f"{len(self.failed)} of {len(self.cells)} cells failed: "
                + "; ".join(self.failed.values())
            )
        return self.run_ids

    def _run(self, cell: Cell) -> str:
        """The reason why the cell failed, or an empty string."""
        if cell.record() is not None:
            return ""
        try:
            if self.part not in ("all", "metrics"):
                self._make(cell)
                return ""
            record, _ = run_mirrored(cell)
        except Exception as error:  # a full disk, a folder that went away: the next may do better
            log.exception("%s", cell.label)
            return _note_failure(cell, error)
        return record.reason if record.status == "failed" else ""

    def _make(self, cell: Cell) -> None:
        """What makes no record."""
        if self.part == "images":
            make_images(cell)
        elif self.part == "quantize":
            for stage in before_images(cell):
                stage.build()
        else:
            assert self.shard is not None
            build_shard(cell, "images", self.shard)


def _note_failure(cell: Cell, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    try:
        record_failure(cell, reason, trace=traceback.format_exc())
    except OSError as second:  # no room for it: the job's state tells
        log.warning("no record could be written: %s", second)
    return reason


def _cells(
    configs: Sequence[RunConfig], needs: StatisticsNeeds, *, code: str, makes: bool = True
) -> tuple[Cell, ...]:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("submitit").propagate = False  # it prints by itself
    if code != project_digest():
        raise RuntimeError(
            "the project's code changed after this job was submitted; give the same command again "
            "to submit what the code now asks for"
        )
    store = Store(Path(configs[0].out))
    progress = Progress(cells=1, prompts=0)
    return gather_cells(configs, store=store, progress=progress, needs=needs, makes=makes)
