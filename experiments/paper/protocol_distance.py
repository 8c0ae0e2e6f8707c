"""How far a published protocol is from ours: which fields agree, differ, or are unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.config.run_config import RunConfig
from experiments.paper.published_numbers import UNKNOWN

_OF_DISTANCES = ("fid_against", "fid_implementation")
_DISTANCES = ("fid", "kid")
_CLEAN_FID = "inception"  # our extractor of that name is clean-fid's, with its resizing


@dataclass(frozen=True, kw_only=True)
class ProtocolDistance:
    """Fields by name; of those that differ, what the paper has and what we have."""

    agree: tuple[str, ...]
    differ: Mapping[str, tuple[Any, Any]]
    unknown: tuple[str, ...]

    @property
    def short(self) -> str:
        return f"{len(self.agree)} agree, {len(self.differ)} differ, {len(self.unknown)} unknown"

    @property
    def full(self) -> str:
        """Every field by name."""
        differing = [
            f"{name} {ours} (paper: {theirs})" for name, (theirs, ours) in self.differ.items()
        ]
        parts = [
            f"agree: {', '.join(self.agree) or 'none'}",
            f"differ: {', '.join(differing) or 'none'}",
            f"unknown: {', '.join(self.unknown) or 'none'}",
        ]
        return "; ".join(parts)


def protocol_of(config: RunConfig) -> dict[str, Any]:
    """What a cell's config says of the fields that published tables have."""
    model, dataset = config.model, config.dataset
    size = None if model.height is None else f"{model.width}x{model.height}"
    return {
        "model": model.name,
        "dataset": dataset.name,
        "images": dataset.evaluation_prompts,
        "prompts": getattr(dataset, "selection", UNKNOWN),
        "steps": model.num_inference_steps,
        "guidance": model.guidance_scale,
        "resolution": size,
        "dtype": model.dtype,
        "scheduler": model.scheduler.get("class", "set otherwise")
        if model.scheduler
        else "default",
        "noise": config.latents,
        "image_format": config.image,
        "calibration_images": dataset.calibration_prompts,
    }


def protocol_distance(
    config: RunConfig, published: Mapping[str, Any], *, model: str | None = None, metric: str = ""
) -> ProtocolDistance:
    """Of one row, or with `metric` of one number of it.

    Args:
        published: the row's protocol.
        model: the published row's.
        metric: the name in the record of what is beside the paper's number.
    """
    ours = protocol_of(config)
    theirs = {**({} if model is None else {"model": model}), **published}
    for name in _OF_DISTANCES:
        if not metric.startswith(_DISTANCES):
            theirs.pop(name, None)
    if metric.startswith(_DISTANCES):
        ours["fid_against"] = "reference" if "_reference" in metric else "dataset"
        ours["fid_implementation"] = "clean-fid" if f"_{_CLEAN_FID}_" in metric else metric
    agree, differ, unknown = [], {}, []
    for name, value in theirs.items():
        mine = ours.get(name, UNKNOWN)
        if UNKNOWN in (value, mine) or mine is None:
            unknown.append(name)
        elif _same(value, mine):
            agree.append(name)
        else:
            differ[name] = (value, mine)
    return ProtocolDistance(agree=tuple(agree), differ=differ, unknown=tuple(unknown))


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, int | float) and isinstance(ours, int | float):
        return float(theirs) == float(ours)
    return str(theirs) == str(ours)
