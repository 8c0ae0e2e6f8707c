"""Noise of a prompt: the initial one, and what a scheduler draws at its steps by itself."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MOST_COPIES = 4  # of a prompt in a batch: guidance samples it twice, or thrice
_PLAIN: dict[Any, Callable[..., torch.Tensor]] = {
    torch.randn: torch.randn,
    torch.rand: torch.rand,
    torch.randn_like: torch.randn,
    torch.rand_like: torch.rand,
}


def noise_seed(prompt_id: str, *, seed: int, purpose: str = "noise") -> int:
    """The seed of a prompt's noise: a hash of the run's seed and the prompt's id."""
    raw = hashlib.sha256(f"{purpose}|{seed}|{prompt_id}".encode()).digest()
    return int.from_bytes(raw[:8], "little") >> 1  # torch takes 63 bits


@contextmanager
def own_noise(pipeline: Any, keys: Sequence[str], *, seed: int) -> Iterator[None]:
    """Within the block, draws that are given no generator depend on seed and prompts alone.

    A flow scheduler with stochastic_sampling=true draws like its sample at every step: each prompt
    gets its own noise there, whatever the batch. Any other such draw comes from the global
    generator, seeded for the batch; its state is put back afterwards.
    """
    generators = [
        torch.Generator().manual_seed(noise_seed(key, seed=seed, purpose="step")) for key in keys
    ]
    scheduler = pipeline.scheduler
    genuine, instead = scheduler.step, vars(scheduler).get("step")

    @functools.wraps(genuine)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        with _PerPrompt(generators):
            return genuine(*args, **kwargs)

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(noise_seed("|".join(keys), seed=seed, purpose="batch"))
        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step  # the class's own again, or what stood in its place
            if instead is not None:
                scheduler.step = instead


class _PerPrompt(TorchFunctionMode):
    """Draws of a tensor with an entry a prompt, or several, come from the prompts' generators."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _PLAIN or given.get("generator") is not None:
            return func(*args, **given)
        first: Any = args[0] if args else given.get("input", given.get("size"))
        like = first if isinstance(first, torch.Tensor) else None
        shape = tuple(
            first.shape if like is not None else args if isinstance(first, int) else first
        )
        times, rest = divmod(shape[0], len(self.generators)) if shape else (0, 1)
        if rest or not 0 < times <= _MOST_COPIES:
            return func(*args, **given)
        dtype, device = given.get("dtype"), given.get("device")
        if like is not None:
            dtype, device = dtype or like.dtype, device or like.device
        # with guidance a sample may hold all prompts twice, one after the other
        drawn = [
            [_PLAIN[func](shape[1:], generator=generator, dtype=dtype) for _ in range(times)]
            for generator in self.generators
        ]
        return torch.stack([each[n] for n in range(times) for each in drawn]).to(device=device)
