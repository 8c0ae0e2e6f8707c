"""What every training of a tiny model shares: seeds, schedule, moving average, resumable loop."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 500
_WARMUP_STEPS = 100
_GRADIENT_NORM = 1.0


@dataclass(kw_only=True)
class TrainingLog:
    """What a card prints of one training."""

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean over each hundred steps


def schedule(step: int, *, total: int, warmup: int = _WARMUP_STEPS) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def exact_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy of the module's state."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


class Averaged:
    """Exponential moving average of a module's weights (bias-free: warm start by 1/step)."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.state = exact_state(module)

    @torch.no_grad()
    def update(self, module: nn.Module, *, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1.0 - decay)
            else:
                self.state[key].copy_(value)


def train(
    module: nn.Module,
    *,
    loss: Callable[[int, torch.Generator], torch.Tensor],
    parameters: Iterable[nn.Parameter] | None = None,
    name: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    work: Path,
    weight_decay: float = 0.01,
    decay: float = 0.999,
) -> TrainingLog:
    """Runs the loop, from `work` on if it was cut; the averaged weights end up in `module`.

    Args:
        module: what is trained; all state that the loss changes lies in it.
        loss: (step, generator seeded from seed and step) -> scalar; draws its own batch.
        parameters: what the optimizer sees; all parameters of `module` by default.
        work: a folder of this training's own, for its checkpoint and log.
    """
    work.mkdir(parents=True, exist_ok=True)
    chosen = list(module.parameters() if parameters is None else parameters)
    optimizer = torch.optim.AdamW(
        chosen, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
    )
    average = Averaged(module, decay=decay)
    record = TrainingLog(name=name, steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    first = _resume(work, module=module, optimizer=optimizer, average=average, record=record)
    window: list[float] = []
    module.train()
    started, before = time.perf_counter(), record.seconds
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, total=steps)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        value = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(chosen, _GRADIENT_NORM)
        optimizer.step()
        average.update(module, step=step)
        window.append(float(value.detach()))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            record.losses.append(sum(window) / len(window))
            window.clear()
            record.seconds = before + time.perf_counter() - started
            log.info(
                "%s step %d/%d loss %.4f (%.0f s)",
                name,
                step + 1,
                steps,
                record.losses[-1],
                record.seconds,
            )
        if (step + 1) % _CHECKPOINT_EVERY == 0 or step + 1 == steps:
            _save(
                work, step + 1, module=module, optimizer=optimizer, average=average, record=record
            )
    module.load_state_dict(average.state)
    module.eval()
    return record


def _save(
    work: Path,
    step: int,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Averaged,
    record: TrainingLog,
) -> None:
    target = work / "checkpoint.pt"
    state = {
        "step": step,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
        "record": asdict(record),
    }
    torch.save(state, target.with_suffix(".tmp"))
    os.replace(target.with_suffix(".tmp"), target)
    (work / "log.json").write_text(json.dumps(asdict(record), indent=1) + "\n")


def _resume(
    work: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Averaged,
    record: TrainingLog,
) -> int:
    target = work / "checkpoint.pt"
    if not target.exists():
        return 0
    state = torch.load(target, weights_only=True)
    if state["record"]["steps"] != record.steps:
        raise ValueError(
            f"{target} was begun for {state['record']['steps']} steps, not {record.steps}; "
            "remove it to begin again"
        )
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    average.state = state["average"]
    record.seconds = state["record"]["seconds"]
    record.losses = list(state["record"]["losses"])
    return int(state["step"])
