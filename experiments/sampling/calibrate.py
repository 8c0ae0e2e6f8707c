"""One pass of the unquantized model over the calibration prompts: what every method learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.sampling.sample import batches, sample
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import DEFAULT_SAMPLE_ROWS, PARTS, StatisticsRecorder
from segquant.core.memory import plan_statistics, record_in_passes
from segquant.core.merge_calls import merge_calls
from segquant.core.merge_statistics import merge_statistics
from segquant.core.merge_steps import merge_steps, save_seen
from segquant.core.method_interface import StatisticsNeeds
from segquant.core.plain_linears import linear_layers
from segquant.core.recorded_calls import DEFAULT_CAPTURE_BYTES, INDEX, CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder, load_steps, save_steps
from segquant.graph import capture_calls, run_calls

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import RunConfig


def capture_bytes(needs: StatisticsNeeds) -> int:
    """As many for a cell alone as in a sweep; a method takes the first calls under its own cap."""
    return max(DEFAULT_CAPTURE_BYTES, needs.capture_bytes) if needs.capture_bytes else 0


def recorded_rows(needs: StatisticsNeeds) -> int:
    """As many for a cell alone as in most sweeps; a method takes the first of them."""
    return max(DEFAULT_SAMPLE_ROWS, needs.rows)


def calibration_batch_size(config: RunConfig, *, prompts: int) -> int:
    """Small enough for as many parts as the statistics tell apart."""
    return min(config.model.batch_size, -(-prompts // PARTS))


def load_calibration(folder: Path) -> Calibration:
    """What `CalibrationPass.run` left in a folder."""
    calibration = Calibration.load(folder / "statistics")
    if (folder / "steps").is_dir():
        calibration.steps = load_steps(folder / "steps")
    if (folder / "calls").is_dir():
        calibration.captured = CapturedCalls.load(folder / "calls")
    return calibration


def merge_calibration(
    shards: Sequence[Path], folder: Path, *, needs: StatisticsNeeds, layers: Sequence[str]
) -> None:
    """Puts together what `CalibrationPass.run` left of shards, in the order of their batches.

    Args:
        layers: all Linears of the denoiser, as the shards' notes have them.
    """

    def parts(name: str) -> list[Path]:
        return [shard / name for shard in shards]

    rows, cap = recorded_rows(needs), capture_bytes(needs)
    merge_statistics(parts("statistics"), folder / "statistics", rows=rows, order=layers)
    if needs.steps:
        merge_steps(parts("steps"), folder / "steps", order=layers)
    if cap:
        merge_calls(parts("calls"), folder / "calls", cap_bytes=cap)


@dataclass(kw_only=True)
class CalibrationPass:
    """The pass over the prompts, or as many as the statistics' memory asks for."""

    pipeline: Any
    denoiser: nn.Module  # the pipeline's own, unquantized
    prompts: Sequence[Prompt]
    config: RunConfig
    needs: StatisticsNeeds
    progress: Callable[[int], None]  # prompts done
    note: Callable[[str], None]

    def run(self, folder: Path, *, some: range | None = None) -> dict[str, Any]:
        """Writes `statistics`, and `steps` and `calls` where they are needed; says what it cost.

        Args:
            some: numbers of batches, for a shard that `merge_calibration` puts to the others.
        """
        size = calibration_batch_size(self.config, prompts=len(self.prompts))
        first, *_ = parts = batches(self.prompts, size)
        inputs = capture_calls(self.denoiser, lambda: self._sample(first))
        plan = plan_statistics(
            self.denoiser,
            forward=lambda denoiser: run_calls(denoiser, inputs),
            gram=self.needs.gram,
            rows=recorded_rows(self.needs),
            budget_bytes=self._budget_bytes(),
        )
        self.note(plan.describe())

        def one_pass(recorder: StatisticsRecorder) -> None:
            done = 0
            with self._more_recorders(folder, shard=some is not None) as steps:
                for number in range(len(parts)) if some is None else some:
                    recorder.part = number * PARTS // len(parts)
                    recorder.batch = number
                    if steps is not None:
                        steps.batch = number
                    self._sample(parts[number])
                    done += len(parts[number])
                    self.progress(done)

        forwards = record_in_passes(
            self.denoiser,
            folder / "statistics",
            plan=plan,
            run=one_pass,
            gram=self.needs.gram,
            rows=recorded_rows(self.needs),
            seed=self.config.seed,
        )
        # One more forward of each denoiser has shown what the plan needs.
        notes = {"forwards": forwards + len(inputs), "plan": plan.describe()}
        return notes if some is None else {**notes, "layers": list(linear_layers(self.denoiser))}

    def _sample(self, batch: Sequence[Prompt]) -> None:
        model, seed = self.config.model, self.config.seed
        sample(self.pipeline, batch, config=model, seed=seed, output_type="latent")

    def _budget_bytes(self) -> int | None:
        limit = self.config.statistics_gigabytes
        return None if limit is None else int(limit * 1e9)

    @contextmanager
    def _more_recorders(self, folder: Path, *, shard: bool) -> Iterator[StepRecorder | None]:
        """What some methods ask for beyond statistics, in the first pass that has not left it."""
        with ExitStack() as stack:
            steps = None
            if self.needs.steps and not (folder / "steps").exists():
                steps = stack.enter_context(StepRecorder(self.denoiser, seed=self.config.seed))
            cap = capture_bytes(self.needs)
            if cap and not (folder / "calls" / INDEX).exists():
                calls = CallRecorder(self.denoiser, folder / "calls", cap_bytes=cap)
                stack.enter_context(calls)
            yield steps
        if steps is not None and shard:
            save_seen(steps.seen(), folder / "steps")
        elif steps is not None:
            save_steps(steps.statistics(), folder / "steps")
