"""What a sweep needs of this machine: packages, devices, an output folder with room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.errors import UserError
from experiments.readiness.check_lines import Finding, State, found, size
from experiments.readiness.stage_costs import StageCost
from segquant.core.method_interface import OfThisMachine

if TYPE_CHECKING:
    from experiments.cell.cell import Cell
    from experiments.cell.surroundings import Surroundings
    from experiments.cell.sweep import Sweep

_SPARE = 0.95  # of a device's memory: its driver and its kernels take some


def method_findings(sweep: Sweep) -> list[Finding]:
    """Which rows will not be made: a library that is not installed, bits that a method lacks."""
    findings: list[Finding] = []
    any_row = any(cell.refused is None for cell in sweep.cells)
    for cell in sweep.cells:
        reason = cell.unsupported
        if reason is None:
            continue
        elsewhere = isinstance(reason, OfThisMachine)
        row = f"{cell.config.method_name} {cell.config.bits.name}"
        if cell.refused is None:
            what, state = f"{row}: not on this machine: {reason}", State.note
        else:
            what = f"{row}: a skipped row: {reason}"
            state = State.without if any_row else State.missing
        group = "packages" if elsewhere else "rows"
        findings.append(Finding(group=group, what=what, state=state))
    return list(dict.fromkeys(findings))


def device_findings(sweep: Sweep) -> list[Finding]:
    """What runs on what."""
    findings: list[Finding] = []
    for group in sweep.groups():
        around = group[0].around
        name = found("devices", partial(_device, around), findings)
        if name is None:
            continue
        rows: dict[str, list[str]] = {}
        for cell in group:
            rows.setdefault(_execution(cell), []).append(" ".join(cell.names[1:]))
        for execution, labels in rows.items():
            model = around.config.model
            listed = ", ".join(dict.fromkeys(labels))
            what = f"{model.name} on {name}, {model.dtype}, {execution}: {listed}"
            findings.append(Finding(group="devices", what=what))
    return list(dict.fromkeys(findings))


def memory_findings(around: Surroundings, costs: Sequence[StageCost]) -> list[Finding]:
    """Whether the largest stage can fit: what it takes at least, beside what there is."""
    findings = []
    kinds = (
        ("device", [cost.device_bytes for cost in costs], _device_memory(around)),
        ("host", [cost.host_bytes for cost in costs], _host_memory(around)),
    )
    for kind, needs, there in kinds:
        known = [need for need in needs if need is not None]
        if not known or not any(known):
            if len(known) < len(needs):
                what = f"{around.config.model.name}: of the {kind} not known"
                findings.append(Finding(group="memory", what=what, state=State.unknown))
            continue
        cost = costs[needs.index(max(known))]
        what = (
            f"{around.config.model.name}, {cost.stage}: at least {size(max(known))} of the {kind}"
        )
        if there is None:
            findings.append(Finding(group="memory", what=what, state=State.note))
        elif max(known) > there * _SPARE:
            findings.append(
                Finding(
                    group="memory",
                    what=f"{what}, which has {size(there)}",
                    state=State.missing,
                    command="model.offload=model or blocks, statistics_gigabytes=N, or a larger "
                    "machine",
                )
            )
        else:
            findings.append(Finding(group="memory", what=f"{what}, which has {size(there)}"))
    return findings


def disk_findings(sweep: Sweep, needed_bytes: int) -> list[Finding]:
    """Whether `out` can be written and has room for what will be made; makes nothing."""
    root = sweep.store.root
    above = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = f"out={root}: cannot write there"
        more = "a folder that can be written: out=/some/folder"
        return [Finding(group="disk", what=what, state=State.missing, command=more)]
    free = shutil.disk_usage(above).free
    what = f"out={root}: about {size(needed_bytes)} will be made, {size(free)} free"
    if free < needed_bytes:
        more = "free some, or out=/some/folder"
        return [Finding(group="disk", what=what, state=State.missing, command=more)]
    return [Finding(group="disk", what=what)]


def _device(around: Surroundings) -> str:
    name = around.device_name
    count = around.num_threads
    return f"{name} with {count} thread{'s' * (count > 1)}" if name == "cpu" else name


def _execution(cell: Cell) -> str:
    if not cell.quantizes:
        return "unquantized"
    if type(cell.config.method).__module__.startswith("baselines.peers."):
        return "by its library"
    return {"auto": "kernels where there are any"}.get(cell.config.execution, cell.config.execution)


def _device_memory(around: Surroundings) -> int | None:
    """Of the GPU; None of a CPU, whose memory is the host's, and of a GPU elsewhere."""
    try:
        if not around.makes or around.device.type != "cuda":
            return None
    except UserError:  # a device that is not there has a line of its own
        return None
    return int(torch.cuda.get_device_properties(around.device).total_memory)


def _host_memory(around: Surroundings) -> int | None:
    """Of this machine, or what its jobs ask for."""
    jobs = around.config.cluster.jobs
    if jobs is not None and jobs.executor != "local":
        return int(jobs.memory_gb * 1e9)
    for path in (Path("/sys/fs/cgroup/memory.max"),):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            return min(int(text), _installed_memory())
    return _installed_memory()


def _installed_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
