"""How the sampling step is told: the denoiser's argument that a pipeline passes it by."""

from __future__ import annotations

from collections.abc import Iterable

# In the order in which they are looked for; what else holds the word comes after these.
_NAMES = ("timestep", "timesteps", "t")


def timestep_name(given: Iterable[str]) -> str | None:
    """The one of a call's arguments that tells the step; None where none does."""
    names = list(given)
    known = [name for name in _NAMES if name in names]
    return next(iter(known + [name for name in names if "timestep" in name]), None)
