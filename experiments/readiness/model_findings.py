"""A sweep's models: their files, the access to what is not here, and whether they can be run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from experiments.errors import UserError
from experiments.readiness.cached_files import INCOMPLETE, SPARE_BYTES
from experiments.readiness.check_lines import Finding, State, found, size
from experiments.readiness.hub_listing import has_token, page
from experiments.readiness.repositories import Source, no_folder, sources_of
from experiments.readiness.weights_there import PartState, describe_parts, states_of
from experiments.sampling.hub_cache import cache_root, repository_name
from experiments.sampling.model_check import check_model, misfits
from experiments.sampling.model_shapes import check_kept
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.cell.surroundings import Surroundings
    from experiments.cell.sweep import Sweep
    from experiments.config.run_config import ModelConfig


def weight_findings(sweep: Sweep, *, command: str) -> list[Finding]:
    """Part by part what is here; of what is not here, what it takes to have it.

    Args:
        command: brings what is missing.
    """
    findings: list[Finding] = []
    for source in sources_of(cell.config.model for cell in sweep.cells):
        findings += _of_source(source, command=command)
    return list(dict.fromkeys([*findings, *_loras(sweep)]))


def _of_source(source: Source, *, command: str) -> list[Finding]:
    findings: list[Finding] = []
    states: list[PartState] | None = None
    folder = source.folder()
    if folder is None:
        findings.append(_not_here(source, command=command))
    elif folder.is_dir():
        where = command if source.on_hub else "copy the whole model there"
        states = found("weights", lambda: states_of(source, folder), findings)
        findings += describe_parts(states or (), command=where)
    here = folder is not None and not any(item.state == State.missing for item in findings)
    if here and states:
        total = size(sum(state.size for state in states))
        findings.append(Finding(group="weights", what=f"{source.what}: {total}, {folder}"))
    elif source.on_hub:
        findings += _access(source)
    if source.on_hub and source.revision is None:
        why = f": {source.unpinned}" if source.unpinned else ""
        what = f"{source.what}: no commit of {source.path} is pinned{why}"
        findings.append(Finding(group="weights", what=what, state=State.note))
    return [*findings, *_licence(source, here=here)]


def bytes_to_come(sweep: Sweep) -> int | None:
    """Of weights that are not here, as their yaml has it; None where it does not say."""
    total = 0
    for source in sources_of(cell.config.model for cell in sweep.cells):
        folder = source.folder()
        here = 0
        if folder is not None:
            if not source.on_hub:
                continue
            states = states_of(source, folder)
            if all(state.whole for state in states):
                continue
            here = sum(state.size for state in states)
        if source.weights_bytes is None:
            return None
        total += max(0, source.weights_bytes - here)
    return total


def room_findings(sweep: Sweep) -> list[Finding]:
    """Whether the hub's cache has room for the weights that are not here."""
    try:
        needed = bytes_to_come(sweep)
    except UserError:
        return []  # which the weights' own lines say
    root = next(
        p for p in (cache_root().absolute(), *cache_root().absolute().parents) if p.is_dir()
    )
    free = shutil.disk_usage(root).free
    if needed == 0:
        return []
    if needed is None:
        what = f"{root}: {size(free)} free; how much is to come, segbench fetch --list says"
        return [Finding(group="disk", what=what, state=State.unknown)]
    what = f"{root}: {size(needed)} of weights to come, {size(free)} free"
    if free < needed + SPARE_BYTES:
        more = "free some, or name another folder with HF_HUB_CACHE=..."
        return [Finding(group="disk", what=what, state=State.missing, command=more)]
    return [Finding(group="disk", what=what)]


def run_findings(sweep: Sweep) -> list[Finding]:
    """Whether models whose files are here can be run as they are asked for."""
    findings: list[Finding] = []
    denoisers: dict[str, nn.Module | None] = {}
    for group in sweep.groups():
        around = group[0].around
        model = around.config.model
        if not _is_whole(around):
            continue
        prompts = _prompts(around)
        key = repr((model, prompts[0].names if prompts else ()))
        if key not in denoisers:
            denoisers[key] = _checked(model, prompts, findings)
        fitting = [cell.config for cell in group if cell.fits_layers]
        for error in misfits(fitting, denoisers[key]):
            alone = len(fitting) < sum(cell.fits_layers for cell in sweep.cells)
            state = State.without if alone or len(fitting) > 1 else State.missing
            findings.append(Finding(group="model", what=str(error), state=state))
    if denoisers:
        configs = [cell.config for cell in sweep.cells]
        found("model", lambda: check_kept(configs, list(denoisers.values())), findings)
    return list(dict.fromkeys(findings))


def _checked(
    model: ModelConfig, prompts: Sequence[Prompt], findings: list[Finding]
) -> nn.Module | None:
    before = len(findings)
    denoiser = found("model", lambda: check_model(model, prompts=prompts), findings)
    if len(findings) == before:
        findings.append(Finding(group="model", what=f"{model.name}: can be run"))
    return denoiser


def _is_whole(around: Surroundings) -> bool:
    """Whether every part is here; what lacks has a line of its own."""
    for source in sources_of([around.config.model]):
        folder = source.folder()
        if folder is None:
            return False
        try:
            states = states_of(source, folder) if folder.is_dir() else []
        except UserError:
            return False
        if not all(state.whole for state in states):
            return False
    return True


def _prompts(around: Surroundings) -> Sequence[Prompt]:
    try:
        return (*around.dataset.evaluation, *around.dataset.calibration)
    except ValueError:  # said of the data set
        return ()


def _not_here(source: Source, *, command: str) -> Finding:
    if not source.on_hub:
        return Finding(group="weights", what=str(no_folder(source)), state=State.missing)
    known = "" if source.weights_bytes is None else f", {size(source.weights_bytes)}"
    at = "" if source.revision is None else f" at {source.revision}"
    begun = _begun(source)
    came = f"; {size(begun)} of it have come" if begun else ""
    return Finding(
        group="weights",
        what=f"{source.what}: {source.path}{at} is not here{known}{came}",
        state=State.missing,
        command=command,
    )


def _begun(source: Source) -> int:
    """Bytes of files on their way, which a fetch goes on with."""
    blobs = cache_root() / repository_name(source.path) / "blobs"
    return sum(path.stat().st_size for path in blobs.glob(f"*{INCOMPLETE}"))


def _access(source: Source) -> list[Finding]:
    """The token that a gated model needs, where its files are not here yet."""
    if not source.gated:
        return []
    if has_token():
        return [Finding(group="token", what=f"{source.path} is gated; a token is here")]
    return [
        Finding(
            group="token",
            what=f"{source.path} is gated, and no token is here",
            state=State.missing,
            command="hf auth login, or HF_TOKEN=...",
        )
    ]


def _licence(source: Source, *, here: bool) -> list[Finding]:
    if source.licence is None and not source.gated:
        return []
    what = f"{source.what}: {source.licence or 'its own'}"
    if source.gated and not here:
        what += f"; it must be agreed to at {page(source.path)}"
    return [Finding(group="licence", what=what, state=State.note)]


def _loras(sweep: Sweep) -> list[Finding]:
    findings = []
    for given in dict.fromkeys(cell.config.model.lora for cell in sweep.cells):
        if given is None:
            continue
        path = resolve_path(given)
        there = path.is_file()
        what = f"adapter {path}: {'there' if there else 'no such file'}"
        state = State.ok if there else State.missing
        findings.append(Finding(group="weights", what=what, state=state))
    return findings
