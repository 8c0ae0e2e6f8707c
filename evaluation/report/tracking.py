"""Weights & Biases, a mirror of the records: the only file that knows it.

Nothing is read back from it, and whatever it raises costs no result.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.records import Record, write_record

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60
# with them the command says nothing of a run that it cannot push
_QUIETENING = ("WANDB_SERVICE", "WANDB_SILENT", "WANDB_QUIET")
_ERROR_LINES = 4  # of W&B's output that an error may take
_SYNC_SECONDS = 600
_PUSHED = "*.wandb.synced"  # the mark that W&B's command leaves beside a run
DIRECTIONS = "higher_is_better"  # their key in the run's config
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


@dataclass(kw_only=True)
class ImageRow:
    """One row of the images' table."""

    prompt_id: str
    prompt: str
    reference: Path
    image: Path


def log_record(
    record: Record,
    *,
    settings: TrackingSettings,
    config: Mapping[str, Any],
    image_paths: Sequence[ImageRow] = (),
    group: str,
    run_dir: Path | str,
) -> str:
    """Log one cell: config, metrics, a table of images, `record.json` as an artifact.

    An offline run's file is whole at the latest when this process ends: W&B writes it in the
    background.

    Returns:
        "" when it was logged or tracking is disabled, otherwise the reason why it was not. Nothing
        that W&B does raises.
    """
    if settings.mode == "disabled":
        return ""
    run_dir = Path(run_dir).absolute()
    try:
        with _directories_below(run_dir):
            _log(
                record,
                settings=settings,
                config=config,
                image_paths=image_paths[: settings.max_images],
                group=group,
                run_dir=run_dir,
            )
    except Exception as error:
        reason = f"W&B failed: {type(error).__name__}: {error}"
        logger.warning("%s; the record on disk is complete without it", reason)
        return reason
    return ""


@dataclass(frozen=True)
class Pushed:
    """An offline run that was pushed, or the reason why it was not."""

    folder: Path
    error: str


def sync_runs(root: Path) -> list[Pushed]:
    """Push every offline run below `root` that was not pushed yet, oldest first.

    The command of W&B itself does it, one run a call, so that a bad one stops no other. It leaves
    `<run>.wandb.synced` behind: a second call pushes only what is new.
    """
    runs = sorted(root.rglob("offline-run-*"), key=lambda folder: folder.name)
    waiting = [run for run in runs if run.is_dir() and not any(run.glob(_PUSHED))]
    return [Pushed(folder, _push(folder)) for folder in waiting]


def _push(folder: Path) -> str:
    """An empty string, or why the run was not pushed.

    W&B's command answers 0 whatever became of the run; what counts is the mark that it leaves.
    """
    if not any(folder.glob("*.wandb")):
        return "holds no .wandb file"
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SYNC_SECONDS,
            check=False,
            env={name: value for name, value in os.environ.items() if name not in _QUIETENING},
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_SYNC_SECONDS} s"
    lines = [line for text in (done.stderr, done.stdout) for line in text.strip().splitlines()]
    said = [line.removeprefix("wandb:").strip() for line in lines]
    error = next((number for number, line in enumerate(said) if "ERROR" in line), None)
    if error is not None:  # W&B breaks its lines where it likes
        return " ".join(said[error : error + _ERROR_LINES])
    if done.returncode == 0 and any(folder.glob(_PUSHED)):
        return ""
    return said[-1] if said else f"exit status {done.returncode}"


def flat_metrics(record: Record) -> dict[str, float]:
    """`name`, `name/low` and `name/high` for each metric that has a value, and the run's costs."""
    flat: dict[str, float] = {}
    for name, metric in record.metrics.items():
        if metric.value is None:
            continue
        flat[name] = metric.value
        if metric.interval is not None:
            flat[f"{name}/low"], flat[f"{name}/high"] = metric.interval
    flat |= {f"seconds/{name}": value for name, value in record.seconds.items()}
    for name in (
        "effective_bits_per_weight",
        "extra_macs_fraction",
        "weight_bytes",
        "peak_memory_bytes",
    ):
        value = getattr(record, name)
        if value is not None:
            flat[name] = value
    return flat


def directions(record: Record) -> dict[str, bool]:
    """Which metrics are better when higher. In the run's config: `define_metric` takes no goal."""
    return {
        name: metric.higher_is_better
        for name, metric in record.metrics.items()
        if metric.higher_is_better is not None
    }


def _log(
    record: Record,
    *,
    settings: TrackingSettings,
    config: Mapping[str, Any],
    image_paths: Sequence[ImageRow],
    group: str,
    run_dir: Path,
) -> None:
    import wandb

    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode="online" if settings.mode == "online" else "offline",
        group=group,
        job_type=record.method,
        name=f"{record.model} {record.method} {record.bits} seed{record.seed}",
        tags=[record.model, record.method, record.bits, record.status],
        config=json.loads(json.dumps({**config, DIRECTIONS: directions(record)}, default=str)),
        dir=str(run_dir),
        settings=_quiet_settings(wandb),
        reinit="create_new",
    )
    exit_code = 1
    try:
        for name, value in flat_metrics(record).items():
            run.summary[name] = value
        run.summary["status"] = record.status
        run.summary["reason"] = record.reason
        run.log({name: v for name, v in flat_metrics(record).items() if math.isfinite(v)})
        if image_paths:
            run.log({"images": _image_table(wandb, image_paths)})
        run.log_artifact(_artifact(wandb, record=record, run_dir=run_dir))
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def _quiet_settings(wandb: Any) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        init_timeout=_TIMEOUT_SECONDS,
        login_timeout=_TIMEOUT_SECONDS,
    )


def _image_table(wandb: Any, rows: Sequence[ImageRow]) -> Any:
    table = wandb.Table(columns=["prompt_id", "prompt", "reference", "image"])
    for row in rows:
        table.add_data(
            row.prompt_id,
            row.prompt,
            wandb.Image(str(row.reference)),
            wandb.Image(str(row.image)),
        )
    return table


def _artifact(wandb: Any, *, record: Record, run_dir: Path) -> Any:
    path = run_dir / "wandb" / f"record-{record.run_id}.json"
    write_record(path, record)
    artifact = wandb.Artifact(
        name=f"record-{record.run_id}",
        type="record",
        metadata={"keys": {k: asdict(record)[k] for k in ("model", "method", "bits", "dataset")}},
    )
    artifact.add_file(str(path), name="record.json")
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
