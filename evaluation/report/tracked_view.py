"""A saved view of a sweep's runs in W&B, by the optional package wandb-workspaces; online alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluation.records import write_text_atomically
from evaluation.report.tracked_run import CURVE, STEP

PACKAGE = "wandb_workspaces"
MISSING = "no saved view: wandb-workspaces is not installed (pip install 'segquant-bench[views]')"


def save_view(group: str, *, entity: str, project: str, metrics: Sequence[str], kept: Path) -> str:
    """Bars of every metric, the curves, and the prompts, of the runs of one group.

    Args:
        metrics: keys such as `fidelity/psnr`; what stands before the bar is a section.
        kept: a file that holds which view it is, so that the same one is written over.

    Returns:
        Why it was not saved; an empty string where it was. Nothing is raised.
    """
    if find_spec(PACKAGE) is None:
        return MISSING
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # it prints where the view lies
    try:
        _save(group, entity=entity, project=project, metrics=metrics, kept=kept)
    except Exception as error:
        return f"no saved view: {type(error).__name__}: {error}"
    finally:
        logging.disable(before)
    return ""


def _save(group: str, *, entity: str, project: str, metrics: Sequence[str], kept: Path) -> None:
    reports: Any = import_module(f"{PACKAGE}.reports.v2")
    workspaces: Any = import_module(f"{PACKAGE}.workspaces")
    by_section = groupby(sorted(metrics), key=lambda key: key.partition("/")[0])
    panels: dict[str, list[Any]] = {
        name: [reports.BarPlot(title=key, metrics=[key]) for key in keys]
        for name, keys in by_section
    }
    errors = [f"{CURVE}/step_error_percent", f"{CURVE}/step_error_percent_worst"]
    panels[CURVE] = [reports.LinePlot(title="step error", x=STEP, y=errors)]
    panels["prompts"] = [reports.WeavePanelSummaryTable(table_name="prompts")]
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"sweep {group}",
        sections=[
            workspaces.Section(name=name, panels=some, is_open=True)
            for name, some in panels.items()
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=[
                workspaces.Metric("Group") == group,
                workspaces.Metric("JobType") == "metrics",
            ]
        ),
    )
    with suppress(OSError, ValueError):
        view._internal_name, view._internal_id = json.loads(kept.read_text(encoding="utf-8"))
    view.save()
    write_text_atomically(kept, json.dumps([view._internal_name, view._internal_id]) + "\n")
