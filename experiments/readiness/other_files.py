"""What a sweep reads beside its models: the data set's files, the metrics' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.clip_evaluator import evaluator_key
from evaluation.datasets.loading import check_pictures_of
from experiments.readiness.check_lines import Finding, State, found
from experiments.store.digests import file_digest

if TYPE_CHECKING:
    from evaluation.outside_files import OutsideFile
    from experiments.cell.surroundings import Surroundings
    from experiments.cell.sweep import Sweep


def outside_files_of(sweep: Sweep) -> list[OutsideFile]:
    """The files of metrics and data sets that nobody may pass on, each once.

    Raises:
        UserError: a metric or an evaluator that is not there.
    """
    files: list[OutsideFile] = []
    for group in sweep.groups():
        around = group[0].around
        for metric in around.metrics:
            files += metric.outside_files(around.metric_settings)
        files += _of_the_data_set(around)
    return list(dict.fromkeys(files))


def data_findings(sweep: Sweep) -> list[Finding]:
    """Whether each data set gives its prompts and pictures."""
    findings = [line for group in sweep.groups() for line in _data(group[0].around)]
    return list(dict.fromkeys(findings))


def metric_findings(sweep: Sweep) -> list[Finding]:
    """Whether metrics have their weights; without some, a run goes on and records say so."""
    findings = [line for group in sweep.groups() for line in _metrics(group[0].around)]
    return list(dict.fromkeys(findings))


def _data(around: Surroundings) -> list[Finding]:
    findings = [
        Finding(group="data", what=file.describe(), state=State.missing)
        for file in _of_the_data_set(around)
        if not file.is_there()
    ]
    dataset = found("data", lambda: around.dataset, findings)
    if dataset is None:
        return findings
    found("data", lambda: check_pictures_of(dataset), findings)
    counts = f"{len(dataset.evaluation)} prompts, {len(dataset.calibration)} to calibrate with"
    return [*findings, Finding(group="data", what=f"{dataset.name}: {counts}")]


def _metrics(around: Surroundings) -> list[Finding]:
    findings: list[Finding] = []
    folder = found("metrics", lambda: around.evaluator_folder, findings)
    if folder is not None:
        found("metrics", lambda: evaluator_key(folder, file_key=file_digest), findings)
    metrics = found("metrics", lambda: around.metrics, findings)
    if metrics is None or findings:
        return findings
    findings.append(Finding(group="metrics", what=", ".join(metric.name for metric in metrics)))
    for file in (f for metric in metrics for f in metric.outside_files(around.metric_settings)):
        state = State.ok if file.is_there() else State.without
        findings.append(Finding(group="metrics", what=file.describe(), state=state))
    return findings


def _of_the_data_set(around: Surroundings) -> list[OutsideFile]:
    """What a data set says of its own distribution's files, where it says anything."""
    listed = getattr(around.config.dataset, "outside_files", None)
    return [] if listed is None else list(listed())
