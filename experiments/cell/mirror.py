"""A cell's record and some of its images to Weights & Biases: a mirror, never read back."""

from __future__ import annotations

from evaluation.records import Record
from evaluation.report.tracking import ImageRow, TrackingSettings, log_record
from experiments.cell.cell import Cell
from experiments.config.describe import describe_config


def log_cell(cell: Cell, record: Record) -> str:
    """Mirrors a cell; the reason if that failed, else an empty string."""
    config, rows = cell.config, list[ImageRow]()
    if record.status == "ok":
        rows = [
            ImageRow(
                prompt_id=prompt.id,
                prompt=prompt.shown,
                reference=cell.reference.folder / f"{prompt.id}.png",
                image=cell.images.folder / f"{prompt.id}.png",
            )
            for prompt in cell.around.dataset.evaluation[: config.logger.images]
        ]
    settings = TrackingSettings(
        mode=config.logger.mode,
        project=config.logger.project,
        entity=config.logger.entity,
        max_images=config.logger.images,
    )
    return log_record(
        record,
        settings=settings,
        config=describe_config(config),
        image_paths=rows,
        group=config.group,
        run_dir=cell.folder,
    )
