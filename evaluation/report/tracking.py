"""Weights & Biases, a mirror of the records: the only file that knows it.

Nothing is read back from it, and whatever it raises costs no result.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.records import write_text_atomically
from evaluation.report.tracked_run import COST, STEP, FilesOf, Findings, PromptRow, TrackedRun

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60
_FINISH_SECONDS = 120  # of waiting for uploads; what is not sent by then stays on disk for sync
_RETRIES = 8  # with pauses up to a minute; W&B's own number keeps a process alive for hours
_SAMPLE_SECONDS = 5.0  # between two looks at processor, memory and GPU
_LARGEST_GAIN = 128
MODES = ("offline", "online", "disabled")
_DIRECTORIES = {
    "WANDB_DIR": "",
    "WANDB_CACHE_DIR": "cache",
    "WANDB_CONFIG_DIR": "config",
    "WANDB_DATA_DIR": "data",
    "WANDB_ARTIFACT_DIR": "artifacts",
}


@dataclass(kw_only=True)
class TrackingSettings:
    """Where runs go. `offline` writes below the run's folder; `online` needs an account."""

    mode: str = "offline"
    project: str = "segquant"
    entity: str | None = None
    max_images: int = 16

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}; allowed are {', '.join(MODES)}")
        if self.max_images < 0:
            raise ValueError(f"max_images={self.max_images}; give 0 or more")


class OpenRun:
    """A run while it is open. Nothing that W&B does raises here; `reason` says what went wrong."""

    def __init__(
        self, run: Any | None, *, settings: TrackingSettings, folder: Path, reason: str = ""
    ) -> None:
        self._run, self._settings, self.reason = run, settings, reason
        self._sent = folder / "wandb" / f"sent-{settings.mode}-{settings.project}.json"
        self._told = False

    def tell(self, findings: Findings, *, config: dict[str, Any] | None = None) -> None:
        """Everything that there is to say of it."""
        if self._run is None:
            return
        try:
            self._run.config.update(_plain(config or {}), allow_val_change=True)
            _define(self._run, findings)
            _log_history(self._run, findings, self._sent)
            _log_rest(self._run, findings, max_images=self._settings.max_images)
            self._told = True
        except Exception as error:
            self.reason = _reason(error)

    @property
    def entity(self) -> str | None:
        """Whose it is, as the server says; None where there is no run, or offline."""
        online = self._settings.mode == "online"
        return str(self._run.entity) if online and self._run is not None else None

    def finish(self) -> None:
        """Of a run that was told nothing, W&B says that it failed."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if self._told else 1)
        except Exception as error:
            self.reason = self.reason or _reason(error)


@contextmanager
def tracked(
    run: TrackedRun, *, settings: TrackingSettings, folder: Path | str, system: bool = False
) -> Iterator[OpenRun]:
    """A run that is open during the block, and resumed if its id is known to the server.

    An offline run's file is whole at the latest when this process ends: W&B writes it in the
    background. The same id offline again is one more piece of the same run: it holds what the
    earlier ones lack, as W&B's command puts pieces after one another.

    Args:
        system: whether W&B looks at processor, memory and GPU meanwhile.
    """
    if settings.mode == "disabled":
        yield OpenRun(None, settings=settings, folder=Path(folder))
        return
    folder = Path(folder).absolute()
    opened = _open(run, settings=settings, folder=folder, system=system)
    try:
        yield opened
    finally:
        with suppress(OSError), _directories_below(folder):
            opened.finish()
        if opened.reason:
            logger.warning("%s; the record on disk is complete without it", opened.reason)


def _open(run: TrackedRun, *, settings: TrackingSettings, folder: Path, system: bool) -> OpenRun:
    try:
        with _directories_below(folder):
            opened = _init(run, settings, folder, system=system)
            return OpenRun(opened, settings=settings, folder=folder)
    except Exception as error:
        return OpenRun(None, settings=settings, folder=folder, reason=_reason(error))


def _reason(error: Exception) -> str:
    return f"W&B failed: {type(error).__name__}: {error}"


def _init(run: TrackedRun, settings: TrackingSettings, folder: Path, *, system: bool) -> Any:
    import wandb

    online = settings.mode == "online"
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        id=run.id,
        resume="allow" if online else None,  # offline nobody knows what there is
        mode="online" if online else "offline",
        group=run.group,
        job_type=run.job_type,
        name=run.name,
        tags=list(run.tags),
        config=_plain(run.config),
        dir=str(folder),
        settings=_quiet_settings(wandb, system=system),
        reinit="create_new",
    )


def _plain(value: Any) -> Any:
    """JSON's types; what is no number for JSON is a word."""
    return json.loads(json.dumps(_finite(value), default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _quiet_settings(wandb: Any, *, system: bool) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_stats=not system,
        x_stats_sampling_interval=_SAMPLE_SECONDS,
        x_disable_meta=True,
        init_timeout=_TIMEOUT_SECONDS,
        login_timeout=_TIMEOUT_SECONDS,
        x_graphql_retry_max=_RETRIES,
        x_file_stream_retry_max=_RETRIES,
        x_file_transfer_retry_max=_RETRIES,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
    )


def _log_history(run: Any, findings: Findings, sent_path: Path) -> None:
    """Rows that were not sent from this folder before, numbered from where those end.

    Rows that only the server knows of (the folder is another) W&B leaves out by their number.
    """
    values = {
        name: value
        for name, value in findings.summary.items()
        if not isinstance(value, str) and not name.startswith(f"{COST}/")
    }
    sent: list[str] = []
    with suppress(OSError, ValueError):
        sent = json.loads(sent_path.read_text(encoding="utf-8"))
    for row in filter(None, [*findings.curve, values]):
        mark = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
        if mark not in sent:
            run.log(row, step=len(sent))
            sent.append(mark)
    write_text_atomically(sent_path, json.dumps(sent) + "\n")


def _log_rest(run: Any, findings: Findings, *, max_images: int) -> None:
    """What has one value, the latest."""
    import wandb

    for name, value in findings.summary.items():
        run.summary[name] = value
    if findings.prompts[:max_images]:
        run.summary["prompts"] = _prompt_table(wandb, findings.prompts[:max_images])
    for name, path in findings.tables.items():
        run.summary[name] = _csv_table(wandb, path)
    for name, path in findings.pictures.items():
        run.summary[name] = wandb.Image(str(path))
    if findings.artifact is not None:
        run.log_artifact(_artifact(wandb, findings.artifact))


def _define(run: Any, findings: Findings) -> None:
    """Curves go over denoising steps; of a metric the best value is the least or the largest."""
    run.define_metric(STEP, hidden=True)
    for name in {key for row in findings.curve for key in row} - {STEP}:
        run.define_metric(name, step_metric=STEP, summary="none")
    for name, higher in sorted(findings.directions.items()):
        run.define_metric(name, summary="max" if higher else "min")


def _prompt_table(wandb: Any, rows: Sequence[PromptRow]) -> Any:
    scores = sorted({name for row in rows for name in row.scores})
    columns = ["prompt_id", "prompt", "reference", "image", "difference", *scores]
    table = wandb.Table(columns=columns)
    for row in rows:
        difference, gain = brightened_difference(row.image, row.reference)
        table.add_data(
            row.prompt_id,
            row.prompt,
            wandb.Image(str(row.reference), caption=row.prompt),
            wandb.Image(str(row.image), caption=row.prompt),
            wandb.Image(difference, caption=f"|image - reference| x {gain}"),
            *(_number(row.scores.get(name)) for name in scores),
        )
    return table


def brightened_difference(image: Path, reference: Path) -> tuple[Image.Image, int]:
    """|image - reference| times the largest power of two that cuts off nothing, up to 128."""
    with Image.open(image) as one, Image.open(reference) as other:
        first, second = (np.asarray(x.convert("RGB"), dtype=np.int16) for x in (one, other))
    difference = np.abs(first - second)
    largest = int(difference.max())
    gain = _LARGEST_GAIN if largest == 0 else 2 ** int(math.log2(255 / largest))
    gain = min(gain, _LARGEST_GAIN)
    return Image.fromarray((difference * gain).astype(np.uint8)), gain


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _csv_table(wandb: Any, path: Path) -> Any:
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    columns = [_column([row[number] for row in rows]) for number in range(len(head))]
    return wandb.Table(columns=head, data=[list(row) for row in zip(*columns, strict=True)])


def _column(texts: Sequence[str]) -> list[Any]:
    """Numbers where all that is there are numbers, so that the column sorts."""
    try:
        return [_number(float(text)) if text else None for text in texts]
    except ValueError:
        return list(texts)


def _artifact(wandb: Any, files: FilesOf) -> Any:
    artifact = wandb.Artifact(name=files.name, type=files.type, metadata=_plain(files.metadata))
    for name, path in files.files.items():
        artifact.add_file(str(path), name=name)
    return artifact


@contextmanager
def _directories_below(run_dir: Path) -> Iterator[None]:
    """Keep everything that W&B writes below `run_dir` while the block runs."""
    before = {name: os.environ.get(name) for name in (*_DIRECTORIES, "WANDB_SILENT")}
    try:
        for name, folder in _DIRECTORIES.items():
            path = run_dir / "wandb" / folder if folder else run_dir
            path.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(path)
        os.environ["WANDB_SILENT"] = "true"
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
