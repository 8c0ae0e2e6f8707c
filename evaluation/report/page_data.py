"""What the report page holds beside its table: plain data, gathered by whoever knows the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One Linear of one row: its own relative error on the calibration's sampled rows."""

    name: str
    error: float | None
    shape: str  # in -> out
    output_segments: str  # "" for one
    input_segments: str
    dual_scale: str  # which input segments have two scales; "" for none
    smoothing: str = ""

    @property
    def kind(self) -> str:
        """One of `chart_specs.LAYER_KINDS`."""
        if self.dual_scale:
            return "DualScale"
        if self.output_segments and self.input_segments:
            return "both"
        if self.output_segments:
            return "output segments"
        return "input segments" if self.input_segments else "plain"


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """What a Linear's inputs were in the calibration, before any smoothing."""

    negative_share: float  # of the sampled values
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Shares, in percent, of equal bins from `low` to `high`."""

    layer: str
    low: float
    high: float
    shares: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """The mean error of one sampling step over prompts, in percent, and its interval."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A row's image of a prompt; `image` and `difference` are data URIs."""

    prompt_id: str
    image: str
    difference: str
    gain: int  # that the difference is brightened by
    scores: Mapping[str, str]  # title -> as a table prints it
    rank: float  # the larger, the farther from the reference


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The unquantized model's image of a prompt, for all rows of one group."""

    prompt: str
    image: str


@dataclass(kw_only=True)
class RowExtras:
    """What one row has beside its record; what the store lacks is empty."""

    command: str = ""
    layers: Sequence[LayerPoint] = ()
    inputs: str = ""  # a key of `PageData.inputs`
    steps: Sequence[StepPoint] = ()
    codes: Sequence[Histogram] = ()
    pictures: Sequence[Picture] = ()
    references: str = ""  # a key of `PageData.references`


@dataclass(kw_only=True)
class PageData:
    """A page. `rows` stand as the table's rows do."""

    title: str
    command: str  # that makes the page
    table: Table
    rows: Sequence[RowExtras]
    inputs: Mapping[str, Mapping[str, InputRange]] = field(default_factory=dict)
    activations: Mapping[str, Sequence[Histogram]] = field(default_factory=dict)  # as `inputs`
    references: Mapping[str, Mapping[str, Reference]] = field(default_factory=dict)
    ordered_by: str = ""  # what makes a prompt the worst
    left_out: Sequence[str] = ()  # what the page does not show, and how to have it


def plain_values(value: Any) -> Any:
    """JSON's types with infinities and NaN as the words that JavaScript's `Number` reads."""
    if isinstance(value, float):
        if value != value:
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        return value
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value
