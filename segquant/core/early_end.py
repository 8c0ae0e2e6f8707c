"""Forwards that end where nothing more is asked of them: before a stage's last Linear runs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


class _Enough(Exception):  # noqa: N818 - no error
    """Every layer has been called as often as a forward calls it."""


def is_steady(*, once: Mapping[str, int], calls: Mapping[str, int]) -> bool:
    """Whether every forward calls the same Linears equally often, as far as totals tell.

    Args:
        once: how often one forward calls each Linear.
        calls: how often many forwards did.
    """
    if not once.keys() >= calls.keys():
        return False
    return len({total / once[name] for name, total in calls.items()}) == 1


@contextmanager
def ending_after(
    denoiser: nn.Module, layers: Iterable[str], *, once: Mapping[str, int]
) -> Iterator[None]:
    """Within the block a forward ends, with None, when it is about to have called the layers.

    Hooks onto the layers' inputs that were there before are still run.

    Args:
        once: how often every forward calls each of the layers.
    """
    left: Counter[str] = Counter()

    def see(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            left[name] -= 1
            if not any(left.values()):
                raise _Enough

        return called

    wanted = {name: once[name] for name in layers}
    whole, own = denoiser.forward, "forward" in vars(denoiser)

    @functools.wraps(whole)
    def begun(*args: Any, **kwargs: Any) -> Any:
        left.clear()
        left.update(wanted)
        try:
            return whole(*args, **kwargs)
        except _Enough:
            return None

    handles = [denoiser.get_submodule(n).register_forward_pre_hook(see(n)) for n in wanted]
    denoiser.forward = begun
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if own:
            denoiser.forward = whole
        else:
            del denoiser.forward
