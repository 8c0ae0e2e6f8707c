"""Forwards and hours of every stage of a sweep that is still to be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import CalibrationStatistics, calibration_of
from experiments.cell.encoded_texts import EncodedTexts, encoded_texts
from experiments.cluster.estimate import seconds_per_prompt
from experiments.readiness.check_lines import Finding, State, size
from experiments.readiness.stage_costs import SHARED_STAGES, StageCost, stage_gigabytes
from experiments.sampling.calibrate import calibration_batch_size
from experiments.store.manifest import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    from experiments.cell.cell import Cell
    from experiments.cell.stage import Stage
    from experiments.cell.surroundings import Surroundings
    from experiments.readiness.measured_steps import MeasuredSteps

_SECONDS_PER_HOUR = 3600


@dataclass(kw_only=True)
class StageWork:
    """One kind of stage of one model: how many of them, what is to be done, what it takes."""

    model: str
    stage: str
    count: int = 0
    there: int = 0
    forwards: int = 0  # calls of the denoiser, of those that are not there
    seconds: float | None = 0.0  # of those that are not there; None: not known
    device_bytes: int | None = 0
    host_bytes: int | None = 0
    disk_bytes: int | None = 0  # of those that are not there

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / _SECONDS_PER_HOUR

    def add(self, cost: StageCost, *, there: bool, forwards: int, seconds: float | None) -> None:
        self.count += 1
        self.device_bytes = _largest(self.device_bytes, cost.device_bytes)
        self.host_bytes = _largest(self.host_bytes, cost.host_bytes)
        if there:
            self.there += 1
            return
        self.forwards += forwards
        self.seconds = _plus(self.seconds, seconds)
        self.disk_bytes = _plus(self.disk_bytes, cost.disk_bytes)

    def finding(self) -> Finding:
        todo = self.count - self.there
        if not todo:
            return Finding(group="stages", what=f"{self.model}, {self.stage}: there")
        hours = "hours unknown" if self.hours is None else f"{self.hours:.3g} hours"
        sizes = (
            ("device", self.device_bytes),
            ("host", self.host_bytes),
            ("disk", self.disk_bytes),
        )
        listed = ", ".join(f"{k} {'unknown' if v is None else size(v)}" for k, v in sizes)
        what = f"{self.model}, {self.stage}: {todo} of {self.count} to make, "
        what += f"{self.forwards} forwards, {hours}; {listed}"
        state = State.unknown if todo and self.hours is None else State.note
        return Finding(group="stages", what=what, state=state)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hours": self.hours}


def work_of(group: Sequence[Cell], *, measured: MeasuredSteps | None) -> list[StageWork]:
    """What the cells of one model and data set still take, a kind of stage after the other."""
    first = group[0]
    each = measured.seconds_per_image if measured else _known_seconds(first.around)
    calls = measured.calls_per_step if measured else 1
    works: dict[str, StageWork] = {}
    for cell in group:
        if cell.refused is not None:
            continue
        for cost in stage_gigabytes(cell):
            if cost.stage in works and cost.stage in SHARED_STAGES:
                continue
            work = works.setdefault(
                cost.stage, StageWork(model=cell.config.model.name, stage=cost.stage)
            )
            prompts, batch = _prompts(cell, cost.stage)
            steps = cell.config.model.num_inference_steps * calls
            forwards = -(-prompts // batch) * steps + (cost.stage == "calibration")
            seconds = None if each is None else prompts * each
            if cost.stage == "quantized":
                seconds = _quantizing_seconds(cell)
            elif cost.stage == "calibration":
                seconds = _calibration_seconds(cell, forwards=forwards, measured=measured)
            elif cost.stage == "embeddings":
                seconds = 0.0  # of texts: in what an image takes
            work.add(
                cost,
                there=_is_there(cell, cost.stage),
                forwards=forwards if prompts else 0,
                seconds=seconds,
            )
    return [works[name] for name in sorted(works, key=_place)]


def _place(stage: str) -> int:
    order = (*SHARED_STAGES, "quantized", "images")
    return order.index(stage) if stage in order else len(order)


def _prompts(cell: Cell, stage: str) -> tuple[int, int]:
    """How many prompts a stage samples, and how many in one call."""
    dataset, batch = cell.config.dataset, cell.config.model.batch_size
    if stage == "calibration":
        size = calibration_batch_size(cell.config, prompts=dataset.calibration_prompts)
        return dataset.calibration_prompts, size
    traced = min(cell.config.metrics.teacher_forced_prompts, dataset.evaluation_prompts)
    numbers = {
        "reference": (dataset.evaluation_prompts, batch),
        "trajectory": (traced, batch),
        "inputs": (dataset.calibration_prompts, batch),
        # each cell's own step errors run the denoiser on the trajectory once more
        "images": (dataset.evaluation_prompts + traced, cell.batch_size),
    }
    return numbers.get(stage, (0, batch))


def _is_there(cell: Cell, stage: str) -> bool:
    """Whether the store has it; weights are read for its name only where it may have."""
    kinds = {
        "embeddings": EncodedTexts.kind,
        "reference": "images",
        "inputs": CalibrationInputs.kind,
    }
    kind = kinds.get(stage, stage)
    if not (cell.around.store.root / "stages" / kind).is_dir():
        return False
    stages: dict[str, Callable[[], Stage | None]] = {
        "embeddings": lambda: encoded_texts(cell.around, cell.around.dataset.evaluation),
        "reference": lambda: cell.reference,
        "trajectory": lambda: cell.trajectory,
        "calibration": lambda: calibration_of(cell.around),
        "inputs": lambda: CalibrationInputs(around=cell.around),
        "quantized": lambda: cell.quantized,
        "images": lambda: cell.images,
    }
    try:
        made = stages[stage]()
        return made is not None and made.find() is not None
    except (ValueError, OSError):  # weights or prompts are missing, which is a line of its own
        return False


def _known_seconds(around: Surroundings) -> float | None:
    if not (around.store.root / "stages" / "images").is_dir():
        return None
    try:
        return seconds_per_prompt(around)
    except (ValueError, OSError):
        return None


def _calibration_seconds(
    cell: Cell, *, forwards: int, measured: MeasuredSteps | None
) -> float | None:
    """Taking statistics takes longer than sampling: by what a forward of another one took."""
    if measured is not None:
        return measured.seconds_per_calibration_prompt * cell.config.dataset.calibration_prompts
    stage = CalibrationStatistics(around=cell.around, needs=cell.around.needs)
    alike = _manifests(stage, ("sampler", "denoisers", "keep"))
    each = [manifest.seconds / manifest.notes["forwards"] for manifest in alike]
    return max(each) * forwards if each else None


def _quantizing_seconds(cell: Cell) -> float | None:
    """What this method took on this calibration at other bits: the longest."""
    if cell.quantized is None:
        return None
    alike = _manifests(cell.quantized, ("calibration", "method"))
    return max((manifest.seconds for manifest in alike), default=None)


def _manifests(stage: Stage, alike: Sequence[str]) -> list[Manifest]:
    """Of finished stages of the same kind whose keys have these fields in common with it."""
    folder = stage.around.store.root / "stages" / stage.kind
    if not folder.is_dir():
        return []
    try:
        wanted = stage.fields()
    except (ValueError, OSError):
        return []
    read = (read_manifest(path.parent) for path in folder.glob(f"*/{MANIFEST}"))
    return [
        manifest
        for manifest in read
        if manifest is not None and all(manifest.key.get(n) == wanted[n] for n in alike)
    ]


def _largest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)


def _plus(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b
