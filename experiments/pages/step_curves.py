"""Error over sampling steps, from a cell's stage of teacher-forced errors."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np

from evaluation.report.page_data import StepPoint
from evaluation.statistics import metric_from_values

if TYPE_CHECKING:
    from experiments.cell.cell import Cell

_PERCENT = 100.0
_RESAMPLES = 200  # of a band to look at; the table's intervals have their own


def step_points(cell: Cell) -> list[StepPoint]:
    """The mean over prompts of each step, with its interval; empty where it is not in the store."""
    errors = cell.step_errors
    finished = None if errors is None else errors.find()
    if errors is None or finished is None or any(map(finished.differs, finished.files)):
        return []
    try:
        by_prompt = errors.by_prompt(finished)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError):
        return []
    points = []
    for values in np.array(list(by_prompt.values())).T:
        if not np.isfinite(values).all():
            return []
        metric = metric_from_values(
            values, higher_is_better=False, against="reference", seed=cell.config.seed,
            resamples=_RESAMPLES,
        )  # fmt: skip
        low, high = metric.interval or (None, None)
        assert metric.value is not None
        points.append(
            StepPoint(
                mean=_PERCENT * metric.value,
                low=None if low is None else _PERCENT * low,
                high=None if high is None else _PERCENT * high,
            )
        )
    return points
