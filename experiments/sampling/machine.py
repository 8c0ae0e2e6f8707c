"""The machine that a result depends on: its GPU."""

from __future__ import annotations

import torch

from experiments.config.run_config import RunConfig
from experiments.errors import UserError


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        UserError: a device that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r}; use auto, cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index is not None):
        raise UserError(f"device={device!r}; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}, but torch sees no CUDA device; use device=cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device!r}; torch sees {torch.cuda.device_count()} CUDA devices")
    return chosen


def device_of(config: RunConfig) -> torch.device:
    """The device that was asked for.

    Raises:
        UserError: this machine's GPU is not the one that the request names.
    """
    device = resolve_device(config.device)
    expected = config.cluster.gpu_name
    if device.type == "cuda" and expected not in (None, torch.cuda.get_device_name(device)):
        raise UserError(
            f"this machine's GPU is {torch.cuda.get_device_name(device)}, the request is for "
            f"cluster.gpu_name={expected}; name it, or keep to one kind of node with "
            "cluster.jobs.constraint"
        )
    return device


def planned_gpu(config: RunConfig) -> str:
    """The GPU that jobs will have: results depend on it, so it is known before they run.

    Raises:
        UserError: it is not named and this machine has none to go by.
    """
    if config.cluster.gpu_name is not None:
        return config.cluster.gpu_name
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    raise UserError(
        "the jobs ask for GPUs and this machine has none: say what torch calls theirs with "
        "cluster.gpu_name='...' (srun --gpus=1 python -c 'import torch; "
        "print(torch.cuda.get_device_name())' prints it), or give device=cpu"
    )
