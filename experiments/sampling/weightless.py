"""Networks of a pipeline without their weights: of the true class, for whatever only looks at them.

A pipeline asks its parts for their config, type and device, and looks into their layers; one whose
forward is not to run needs no memory for that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def weightless(
    kind: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    forward: Callable[..., Any],
) -> nn.Module:
    """A network of a class and a folder's config, all of it on the meta device.

    Args:
        dtype, device: what it says that it is of and on; moving it changes nothing.
        forward: what a call of it does instead.
    """
    with torch.device("meta"):
        if hasattr(kind, "config_class") and kind.config_class is not None:
            made: nn.Module = kind(kind.config_class.from_pretrained(str(folder)))
        else:
            made = kind.from_config(kind.load_config(str(folder), local_files_only=True))
    made.__class__ = _outlined(kind, dtype=dtype, device=device)
    made.forward = forward
    return made.eval()


def _outlined(kind: type, *, dtype: torch.dtype, device: torch.device) -> type:
    def stay(self: nn.Module, *_: Any, **__: Any) -> nn.Module:
        return self

    return type(
        kind.__name__,
        (kind,),
        {
            "dtype": property(lambda self: dtype),
            "device": property(lambda self: device),
            "to": stay,
            "_apply": stay,
            "__module__": kind.__module__,
        },
    )
