"""One cell, from config to record, in stages that no other cell repeats.

config -> reference images and trajectory -> calibration -> quantized denoiser -> images -> metrics
-> record.json. Each stage lies in the store under the hash of what it depends on.
"""

from __future__ import annotations

import logging
import traceback

from evaluation.per_image import write_per_image
from evaluation.records import Record
from evaluation.resources import describe_environment, utc_now
from experiments.cell.cell import SCORES, Cell
from experiments.cell.denoiser import LoadedDenoiser
from experiments.cell.metric_stage import read_scores, read_values
from experiments.cell.protocol_fields import describe, fill_costs, fill_report
from experiments.config.naming import changed_settings
from experiments.errors import UserError
from experiments.store.digests import file_digest
from experiments.store.entries import set_aside
from experiments.store.paths import ROOT
from segquant.core.calibration import Calibration
from segquant.core.method_interface import QuantizationReport
from slurm.context import describe_job

log = logging.getLogger(__name__)


def run_cell(cell: Cell) -> Record:
    """Does what is not done yet and writes the record; a failure is a record too.

    Of a finished cell whose metrics are of other code, the metrics alone are made again.

    Raises:
        UserError: the request was wrong (that is no failure of the cell).
    """
    known = cell.record()
    if known is not None:
        return known
    started = utc_now()
    cell.around.store.ensure(cell.folder)
    try:
        record = _evaluated(cell) or _measured(cell)
    except UserError:
        raise
    except Exception as error:  # one cell's failure is its own: recorded, never passed on
        log.error("%s failed", cell.label, exc_info=log.isEnabledFor(logging.INFO))
        return record_failure(
            cell, f"{type(error).__name__}: {error}", trace=traceback.format_exc()
        )
    record.environment = {**describe_environment(repository=ROOT), **describe_job()}
    record.times_utc = {"started": started, "finished": utc_now()}
    cell.write_record(record)
    return record


def record_failure(cell: Cell, reason: str, *, trace: str = "") -> Record:
    """Writes the record of a cell that failed, or that could not speak for itself.

    Where the cell has finished before, and only a metric fails now, its record stays as it is and
    the failure is told beside it.
    """
    record = _blank(cell, status="failed")
    record.reason = reason
    record.traceback = trace
    record.environment = {**describe_environment(repository=ROOT), **describe_job()}
    record.times_utc = {"finished": utc_now()}
    known = cell.read_record()
    if known is None or known.status != "ok":
        cell.write_record(record)
    else:
        cell.write_failure(record)
    return record


def make_images(cell: Cell) -> None:
    """Everything of a cell that its device decides: what is left are metrics of files."""
    cell.reference.build()
    if cell.quantized is not None:
        cell.quantized.build()
    cell.images.build()
    if cell.step_errors is not None:
        cell.step_errors.build()


def _blank(cell: Cell, *, status: str) -> Record:
    config = cell.config
    return Record(
        run_id=cell.run_id,
        status=status,
        model=config.model.name,
        method=config.method_name,
        bits=config.bits.name,
        settings=changed_settings(config),
        dataset=config.dataset.name,
        seed=config.seed,
        protocol=describe(cell),
    )


def _evaluated(cell: Cell) -> Record | None:
    """The record that is there with metrics of today's code; None if there is no such record."""
    record = cell.read_record()
    if record is None or record.status != "ok":
        return None
    record.metrics = {}
    _fill_metrics(cell, record)
    return record


def _measured(cell: Cell) -> Record:
    if cell.unsupported is not None:
        record = _blank(cell, status="skipped")
        record.reason = cell.unsupported
        return record
    make_images(cell)
    record = _blank(cell, status="ok")
    denoiser = cell.around.loaded(cell.denoiser)
    record.execution = denoiser.execution
    fill_costs(record, cell)
    unquantized = cell.around.model.weights
    fill_report(record, _report(cell, denoiser), kernels=denoiser.kernels, unquantized=unquantized)
    _fill_metrics(cell, record)
    return record


def _report(cell: Cell, denoiser: LoadedDenoiser) -> QuantizationReport:
    if denoiser.report is not None:
        return denoiser.report
    method, bits = cell.config.method, cell.config.bits  # fp and the noise floor change nothing
    nothing = Calibration(statistics={}, forwards=0)
    return method.quantize(cell.around.model.denoiser, calibration=nothing, bits=bits)


def _fill_metrics(cell: Cell, record: Record) -> None:
    """Measures what is not measured yet, in one pass; writes the scores image by image."""
    stages = cell.metrics
    for stage in stages:
        if stage.find() is None:
            stage.together.missing.append(stage.metric)
    scores: dict[str, dict[str, float]] = {}
    for stage in stages:
        finished = stage.build()
        record.metrics |= read_values(finished)
        scores |= {column: dict(values) for column, values in read_scores(finished).items()}
    record.stages = cell.stage_hashes()
    ids = [prompt.id for prompt in cell.around.dataset.evaluation]
    if cell.scores_path.is_dir():
        set_aside(cell.scores_path)
    write_per_image(cell.scores_path, ids=ids, scores=scores)
    record.files = {SCORES: file_digest(cell.scores_path)}
