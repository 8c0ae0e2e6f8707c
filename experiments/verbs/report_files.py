"""What a sweep leaves to look at: the table in three formats and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.records import Record
from evaluation.report.figures import contact_sheet
from evaluation.report.render import FORMATS, to_markdown
from evaluation.report.tables import make_table
from evaluation.report.tracking import ImageRow, TrackingSettings, log_record
from experiments.cell.bench import Bench
from experiments.cell.protocol_fields import plain
from experiments.cell.run_cell import image_folder
from experiments.config.naming import names
from experiments.config.request import Request
from experiments.config.run_config import RunConfig
from experiments.store.folders import write_text

_SHEET_PROMPTS = 8
_SHEET_ROWS = 24  # of one contact sheet
_REFERENCE = ("reference (fp)", "")  # label and bits of a sheet's first row


@dataclass(frozen=True)
class Report:
    """Files written and the table to print."""

    markdown: str
    files: tuple[Path, ...]


def write_report(
    request: Request, records: Sequence[Record], benches: dict[int, Bench], *, folder: Path
) -> Report:
    """Writes `table.md`, `table.csv`, `table.tex` and one contact sheet a model to `folder`.

    `records` may lack cells that were asked for: they get a row that says so.
    """
    expected = [names(cell) for cell in request.cells]
    table = make_table(records, expected=expected, title=request.name)
    files = []
    for suffix, render in FORMATS.items():
        path = folder / f"table.{suffix}"
        write_text(path, render(table))
        files.append(path)
    files += _contact_sheets(request, records, benches, folder=folder)
    return Report(markdown=to_markdown(table), files=tuple(files))


def _contact_sheets(
    request: Request, records: Sequence[Record], benches: dict[int, Bench], *, folder: Path
) -> list[Path]:
    done = {(r.model, r.method_label, r.bits_label, r.dataset) for r in records if r.status == "ok"}
    rows: dict[str, dict[tuple[str, str], Path]] = {}
    first: dict[str, Bench] = {}
    for index, cell in enumerate(request.cells):
        bench, model = benches[index], cell.model.name
        key = (*names(cell), cell.dataset.name)
        images = image_folder(bench, cell) if key in done else None
        reference = bench.store.folder("images", bench.images_key("float"))
        if images is None or not reference.is_dir():
            continue
        first.setdefault(model, bench)
        rows.setdefault(model, {_REFERENCE: reference})
        if images != reference:
            _, method, bits = names(cell)
            rows[model][f"{method} {bits}", bits] = images
    written = []
    for model, shown in rows.items():
        prompts = first[model].dataset.evaluation[:_SHEET_PROMPTS]
        for suffix, part in _sheets(shown).items():
            path = folder / f"contact_sheet_{model}{suffix}.png"
            contact_sheet(
                {label: folder for (label, _), folder in part.items()},
                [prompt.id for prompt in prompts],
                {prompt.id: prompt.text for prompt in prompts},
                _REFERENCE[0],
                path,
                groups=dict(part.keys()),
            )
            written.append(path)
    return written


def _sheets(shown: dict[tuple[str, str], Path]) -> dict[str, dict[tuple[str, str], Path]]:
    """One sheet by file suffix, or one for each bit-width where one would be too long."""
    if len(shown) <= _SHEET_ROWS:
        return {"": shown}
    widths = dict.fromkeys(bits for _, bits in shown if bits)
    return {
        f"_{bits.replace(' ', '_')}": {
            key: path for key, path in shown.items() if key == _REFERENCE or key[1] == bits
        }
        for bits in widths
    }


def log_cell(config: RunConfig, record: Record, bench: Bench) -> str:
    """Mirrors a cell to W&B; the reason if that failed, else an empty string."""
    if record.status != "ok":
        rows: list[ImageRow] = []
    else:
        images = image_folder(bench, config)
        reference = bench.store.folder("images", bench.images_key("float"))
        rows = [
            ImageRow(
                prompt_id=prompt.id,
                prompt=prompt.text,
                reference=reference / f"{prompt.id}.png",
                image=images / f"{prompt.id}.png",
            )
            for prompt in bench.dataset.evaluation[: config.logger.images]
        ]
    settings = TrackingSettings(
        mode=config.logger.mode,
        project=config.logger.project,
        entity=config.logger.entity,
        max_images=config.logger.images,
    )
    described = plain(asdict(config))
    assert isinstance(described, dict)
    return log_record(
        record,
        settings=settings,
        config=described,
        image_paths=rows,
        group=config.group,
        run_dir=bench.store.root / "cells" / record.run_id,
    )
