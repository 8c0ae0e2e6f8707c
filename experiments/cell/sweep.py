"""A sweep: its cells, what they share, and the way through them in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from baselines.fp import FullPrecision
from baselines.noise_floor import NoiseFloor
from evaluation.datasets.loading import check_pictures_of
from evaluation.records import Record
from experiments.cell.cell import Cell
from experiments.cell.progress import Progress
from experiments.cell.run_cell import run_cell
from experiments.cell.surroundings import Surroundings
from experiments.config.catalogue import bits_of
from experiments.config.choices import METHODS_OWN
from experiments.config.request import Request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError, told_to_the_user
from experiments.sampling.model_check import check_model, check_prompts, misfits
from experiments.sampling.model_shapes import check_kept
from experiments.store.folders import Store
from segquant.core.method_interface import OfThisMachine, StatisticsNeeds
from segquant.core.over_fit import REMEDY

_BYTES_PER_PIXEL = 4  # an upper bound of a PNG, for the check of the disk
_SPARE_BYTES = 200_000_000  # checkpoints and statistics of the tiny models


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is there and what is to do."""

    states: tuple[str, ...]  # per cell: done, skip or run
    prompts: int  # still to be sampled, calibration included


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for, as cells in their order; cells of one model share their surroundings."""

    name: str
    cells: tuple[Cell, ...]
    store: Store
    progress: Progress

    @property
    def config(self) -> RunConfig:
        """Of the first cell: what all share (out, cluster, logger)."""
        return self.cells[0].config

    @property
    def folder(self) -> Path:
        """Where its reports lie."""
        return self.store.root / "reports" / self.name

    @property
    def on_slurm(self) -> bool:
        jobs = self.config.cluster.jobs
        return jobs is not None and jobs.executor == "slurm"

    def groups(self) -> list[list[Cell]]:
        """The cells by what they share, in order."""
        groups: dict[int, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(id(cell.around), []).append(cell)
        return list(groups.values())

    def records(self) -> list[Record]:
        """Those that are there, of failures too; their metrics may be of other code."""
        read = (cell.read_record() for cell in self.cells)
        return [record for record in read if record is not None]

    def check(self) -> None:
        """Everything that can be known to be wrong before the first second is spent.

        Raises:
            UserError: a folder that is no pipeline or lacks weights, a device that is not there,
                an output folder that cannot be written or lacks room.
        """
        if all(cell.refused is not None for cell in self.cells):
            cell = self.cells[0]
            if cell.config.method.unsupported(cell.config.bits) is None:
                raise UserError(f"method={cell.config.method_name}: {cell.refused}")
            allowed = bits_of(cell.config.method)
            raise UserError(
                f"method={cell.config.method_name} does not do bits={cell.config.bits.name}: "
                f"{cell.refused} "
                f"({'it does ' + ', '.join(allowed) if allowed else 'here it does none'})"
            )
        pixels = 0
        denoisers: dict[str, nn.Module | None] = {}  # once a model: seeds and draws share it
        wrong: list[UserError] = []
        for group in self.groups():
            around = group[0].around
            _ = around.device, around.dataset
            model = around.config.model
            prompts = (*around.dataset.evaluation, *around.dataset.calibration)
            key = repr((model, prompts[0].names))
            if key not in denoisers:
                denoisers[key] = check_model(model, prompts=prompts)
            check_prompts(model, prompts)
            fitting = [cell.config for cell in group if cell.fits_layers]
            wrong += misfits(fitting, denoisers[key])
            with told_to_the_user():
                check_pictures_of(around.dataset)
            _ = around.evaluator_folder, around.metrics
        if wrong and len(wrong) == sum(cell.fits_layers for cell in self.cells):
            raise wrong[0]  # of some cells alone it is their own: their records say it
        check_kept([cell.config for cell in self.cells], list(denoisers.values()))
        for cell in self.cells:
            side = (cell.config.model.height or 1024) * (cell.config.model.width or 1024)
            pixels += cell.config.dataset.evaluation_prompts * side
        self.store.prepare(needed_bytes=pixels * _BYTES_PER_PIXEL + _SPARE_BYTES)
        for group in self.groups():  # keeps checksums of files in the store: nothing before does
            _ = group[0].around.evaluator_key

    def warnings(self) -> list[str]:
        """What is known beforehand to end badly, though it is allowed; a line each."""
        too_few: dict[tuple[str, int, int], dict[str, None]] = {}
        for cell in self.cells:
            enough = cell.config.method.needs().prompts
            given = cell.config.dataset.calibration_prompts
            if (
                given < enough
                and cell.unsupported is None
                and cell.config.bits.activation.calibrated
            ):
                key = (cell.names[0], given, enough)
                too_few.setdefault(key, {})[" ".join(cell.names[1:])] = None
        return [
            f"warning: {model}, {', '.join(rows)}: the search for alpha is judged on the very rows "
            f"that ranges come from; with {given} calibration prompts (enough: {enough}) it "
            f"over-fits and may be worse than rtn; set {REMEDY}, or dataset.calibration_prompts="
            f"{enough}"
            for (model, given, enough), rows in too_few.items()
        ]

    def plan(self) -> Plan:
        """Looks into the store; runs nothing and loads no weights."""
        states: list[str] = []
        prompts: dict[Path, int] = {}
        for cell in self.cells:
            if cell.record() is not None:
                states.append("done")
            elif cell.refused is not None:
                states.append("skip")
            else:
                states.append("run")
                prompts |= {stage.folder: count for stage, count in cell.pending()}
        return Plan(states=tuple(states), prompts=sum(prompts.values()))

    def run(
        self,
        *,
        finished: Callable[[Cell, Record, bool], None],
        run: Callable[[Cell], Record] = run_cell,
    ) -> list[Record]:
        """Runs every cell in this process; a failed one does not stop the rest.

        Args:
            finished: told of every cell, its record and whether it was made now.
            run: what runs a cell that is not done.
        """
        records = []
        for number, cell in enumerate(self.cells):
            self.progress.cell(cell.label)
            known = cell.record()
            record = known or run(cell)
            records.append(record)
            finished(cell, record, known is None)
            following = self.cells[number + 1].around if number + 1 < len(self.cells) else None
            if following is not cell.around:
                cell.around.release()
        return records


def open_sweep(request: Request, *, progress: Progress | None = None) -> Sweep:
    """The cells of a request; nothing is checked or looked at yet."""
    _check_alike(request.cells)
    configs = list({repr(config): config for config in map(_settled, request.cells)}.values())
    store = Store(Path(request.cells[0].out))
    shown = progress or Progress(cells=len(configs), prompts=0)
    return Sweep(
        name=request.name,
        cells=gather_cells(configs, store=store, progress=shown),
        store=store,
        progress=shown,
    )


def _settled(config: RunConfig) -> RunConfig:
    """What quantizes nothing has one execution, whatever a sweep asks for: it is one row."""
    if not isinstance(config.method, NoiseFloor | FullPrecision):
        return config
    return dataclasses.replace(
        config, execution="simulated", activation_code=METHODS_OWN, fuse_activations=False
    )


def _check_alike(configs: Sequence[RunConfig]) -> None:
    """What a sweep has once."""
    for name in ("out", "cluster", "statistics_gigabytes", "replay_gigabytes"):
        values = {repr(getattr(config, name)) for config in configs}
        if len(values) > 1:
            raise UserError(f"{name} has {len(values)} values; a sweep has one, run one for each")


def gather_cells(
    configs: Sequence[RunConfig],
    *,
    store: Store,
    progress: Progress,
    needs: StatisticsNeeds | None = None,
    makes: bool | None = None,
) -> tuple[Cell, ...]:
    """Cells that share what they can.

    Args:
        needs: of the calibration; None is the union of what these cells need.
        makes: whether stages are made here; None: unless the cluster's jobs make them elsewhere.
    """
    alike: dict[str, list[RunConfig]] = {}
    keys = [repr(_shared(config)) for config in configs]
    for key, config in zip(keys, configs, strict=True):
        alike.setdefault(key, []).append(config)
    around = {}
    for key, group in alike.items():
        jobs = group[0].cluster.jobs
        here = jobs is None or jobs.executor == "local"
        around[key] = Surroundings(
            config=group[0],
            store=store,
            progress=progress,
            needs=union_of_needs(group, elsewhere=not here) if needs is None else needs,
            makes=here if makes is None else makes,
        )
    pairs = zip(keys, configs, strict=True)
    return tuple(Cell(config=config, around=around[key]) for key, config in pairs)


def _shared(config: RunConfig) -> tuple[object, ...]:
    """What the cells of one model have in common."""
    sampling = (config.seed, config.device, config.num_threads, config.latents, config.image)
    return (config.model, config.dataset, config.metrics, *sampling)


def union_of_needs(configs: Sequence[RunConfig], *, elsewhere: bool = False) -> StatisticsNeeds:
    """What one calibration must record to serve every cell.

    Args:
        elsewhere: other machines make the cells, which may have what this one lacks.
    """
    needs = StatisticsNeeds(rows=1)
    for config in configs:
        reason = config.method.unsupported(config.bits)
        if reason is None or (elsewhere and isinstance(reason, OfThisMachine)):
            needs = needs.union(config.method.needs())
    return needs


def absolute(config: RunConfig) -> RunConfig:
    """A job may start in another folder."""
    return dataclasses.replace(config, out=str(Path(config.out).absolute()))
