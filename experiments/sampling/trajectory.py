"""The denoiser's own calls on disk: what the unquantized one was given and said, step by step.

Another denoiser is run on them again (teacher forcing): its error has no chaos of a free trajectory
in it, and a method may run a half-quantized denoiser on what the calibration saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.sampling.pipelines import get_denoiser
from experiments.sampling.sample import batches, sample
from segquant.core.argument_trees import Tree, flatten_tree, unflatten_tree
from segquant.core.files import link_or_copy
from segquant.core.predictions import said_by
from segquant.core.several import PART, called_parts, named_arguments, part_of_call

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig
    from segquant.core.calibration import Replay

Said = tuple[torch.Tensor, ...]  # one prediction, or the residuals of a ControlNet


@contextmanager
def observed(denoiser: nn.Module, see: Callable[[dict[str, Any], Said], None]) -> Iterator[None]:
    """Calls `see(arguments, said)` at every call of the denoiser, or of each of several."""

    def hook(
        name: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        see(named_arguments(part, args, kwargs, part=name), said_by(part, out))

    handles = [
        part.register_forward_hook(partial(hook, name), with_kwargs=True)
        for name, part in called_parts(denoiser).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Calls:
    """The calls of one batch: argument trees, and their tensors under names, equal ones once."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    trees: list[Tree] = field(default_factory=list)
    _known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, arguments: dict[str, Any], said: Said) -> None:
        self.trees.append(flatten_tree(arguments, self._keep, tuples=False))
        for number, output in enumerate(said):
            name = _output(len(self.trees) - 1, number)
            self.tensors[name] = output.detach().cpu().clone().contiguous()

    def _keep(self, tensor: torch.Tensor, path: str) -> str:
        """The tensor's name; what comes again under a path is kept once."""
        kept = tensor.detach().cpu().clone().contiguous()
        content = hashlib.sha256(kept.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
        key = (path, kept.shape, kept.dtype, content)
        name = self._known.setdefault(key, f"in{len(self.trees):04d}.{path}")
        self.tensors.setdefault(name, kept)
        return name


def _output(call: int, number: int) -> str:
    return f"out{call:04d}" + (f".{number}" if number else "")


def record_trajectory(
    pipeline: Any,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    config: ModelConfig,
    seed: int,
    shared_noise: bool = False,
    limit_bytes: int | None = None,
    some: range | None = None,
) -> dict[str, Any]:
    """What the unquantized denoiser was given and said at every step, batch by batch.

    Args:
        some: numbers of batches, for a shard that `merge_trajectories` puts to the others.

    Returns:
        Per batch the prompts' number and the calls' argument trees, for `recorded_calls`.

    Raises:
        ValueError: it takes more than `limit_bytes`, looked at after every batch; what was written
            is removed.
    """
    described = []
    written = done = 0
    every = batches(prompts, config.batch_size)
    for index in range(len(every)) if some is None else some:
        batch, calls = every[index], _Calls()
        with observed(get_denoiser(pipeline, config.denoisers), calls.add):
            sample(
                pipeline,
                batch,
                config=config,
                seed=seed,
                shared_noise=shared_noise,
                output_type="latent",
            )
        path = folder / _file(index)
        save_file(calls.tensors, path)
        written += path.stat().st_size
        done += len(batch)
        if limit_bytes is not None:
            _check_size(folder, written, limit_bytes, prompts=f"{done} of {len(prompts)}")
        described.append({"prompts": len(batch), "calls": calls.trees})
    return {"batches": described}


def merge_trajectories(
    shards: Sequence[tuple[Path, dict[str, Any]]], folder: Path, *, limit_bytes: int | None = None
) -> dict[str, Any]:
    """Puts together what `record_trajectory` left of shards, in the order of their batches.

    Args:
        shards: the folder and the notes of each.

    Raises:
        ValueError: all take more than `limit_bytes`; what was written is removed.
    """
    described: list[dict[str, Any]] = []
    written = 0
    for shard, notes in shards:
        for path in sorted(shard.glob(_file("*"))):
            link_or_copy(path, folder / path.name)
            written += path.stat().st_size
        described += notes["batches"]
    if limit_bytes is not None:
        count = sum(batch["prompts"] for batch in described)
        _check_size(folder, written, limit_bytes, prompts=f"{count}")
    return {"batches": described}


def _file(batch: int | str) -> str:
    return f"batch{batch if isinstance(batch, str) else f'{batch:04d}'}.safetensors"


def _check_size(folder: Path, written: int, limit_bytes: int, *, prompts: str) -> None:
    if written <= limit_bytes:
        return
    for stale in folder.glob(_file("*")):
        stale.unlink()
    raise ValueError(
        f"the denoiser's inputs of {prompts} prompts take {written / 1e9:.3g} GB on disk, above "
        f"replay_gigabytes={limit_bytes / 1e9:g}; raise replay_gigabytes, lower "
        "dataset.calibration_prompts, or choose a method that keeps no inputs "
        "(method.sequential=none)"
    )


def replay_errors(
    denoiser: nn.Module,
    folder: Path,
    notes: dict[str, Any],
    *,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Relative squared error of the denoiser on the reference's own trajectory.

    Of several denoisers every call is one, in the order of the calls.

    Args:
        device: where the denoiser runs; None is where it lies.

    Returns:
        float64 (N, T): per prompt and call ||q - r||^2 / ||r||^2, 0 where both are zero; what a
        call says of a prompt beyond one tensor (guidance, residuals) is summed.
    """
    return torch.cat(
        [
            torch.stack([_per_prompt(*said, prompts) for said in calls], dim=1)
            for prompts, calls in said_beside(denoiser, folder, notes, device=device)
        ]
    )


def said_beside(
    denoiser: nn.Module,
    folder: Path,
    notes: dict[str, Any],
    *,
    device: torch.device | None = None,
) -> Iterator[tuple[int, Iterator[tuple[Said, Said]]]]:
    """Batch by batch the number of prompts, and of each call what this denoiser and the one that
    was recorded say to the same inputs.

    Args:
        device: where the denoiser runs; None is where it lies.
    """

    def both(calls: Iterator[Call]) -> Iterator[tuple[Said, Said]]:
        for arguments, said in calls:
            with torch.no_grad():
                outputs = denoiser(**arguments)
            yield said_by(part_of_call(denoiser, arguments), outputs), said

    for described, calls in recorded_calls(folder, notes, device=device or device_of(denoiser)):
        yield described["prompts"], both(calls)


def by_prompt(output: torch.Tensor, prompts: int) -> torch.Tensor:
    """[N, F]: all of a call's output that is of each prompt, guidance among it."""
    return output.unflatten(0, (-1, prompts)).transpose(0, 1).flatten(1)


def device_of(denoiser: nn.Module) -> torch.device:
    return next(iter(denoiser.state_dict().values())).device


Call = tuple[dict[str, Any], Said]


def recorded_calls(
    folder: Path, notes: dict[str, Any], *, device: torch.device
) -> Iterator[tuple[dict[str, Any], Iterator[Call]]]:
    """Batch by batch of a recorded trajectory: its description, and what each call got and said."""

    def calls(trees: list[Any], tensors: dict[str, torch.Tensor]) -> Iterator[Call]:
        for number, tree in enumerate(trees):
            arguments = unflatten_tree(tree, lambda name: tensors[name].to(device))
            names = takewhile(tensors.__contains__, (_output(number, n) for n in count()))
            yield arguments, tuple(tensors[name] for name in names)

    for index, described in enumerate(notes["batches"]):
        tensors = load_file(folder / _file(index))
        yield described, calls(described["calls"], tensors)


def _per_prompt(outputs: Said, references: Said, prompts: int) -> torch.Tensor:
    def energy(x: torch.Tensor) -> torch.Tensor:
        return by_prompt(x, prompts).square().sum(dim=1)

    noise = power = torch.zeros(prompts, dtype=torch.float64)
    for output, reference in zip(outputs, references, strict=True):
        exact = reference.double()
        noise = noise + energy(output.detach().cpu().double() - exact)
        power = power + energy(exact)
    return torch.where(noise == 0, torch.zeros_like(noise), noise / power)


def replay_of(folder: Path, notes: dict[str, Any]) -> Replay:
    """Runs a denoiser on what `record_trajectory` kept of the unquantized one (teacher forcing)."""

    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        device = device_of(denoiser)
        every = (
            arguments
            for _, recorded in recorded_calls(folder, notes, device=device)
            for arguments, _ in recorded
        )
        left = dict.fromkeys(called_parts(denoiser), calls)
        with torch.no_grad():
            for arguments in every:
                part = arguments.get(PART, "")
                if (more := left[part]) is not None:
                    if not more:
                        continue
                    left[part] = more - 1
                denoiser(**arguments)
                if not any(more is None or more for more in left.values()):
                    return

    return replay


def count_calls(notes: dict[str, Any]) -> int:
    return sum(len(described["calls"]) for described in notes["batches"])
