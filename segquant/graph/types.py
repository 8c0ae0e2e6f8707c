"""What the static graph says of each layer of a denoiser."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, isinf
from typing import Any

SCHEMA_VERSION = 3


class GraphError(ValueError):
    """The graph of a denoiser could not be read; the message names the operation and the line."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """An interval of a layer's input features with one producer.

    `low` and `high` are proven bounds of the values in every call, infinite where there is none.
    """

    size: int
    low: float
    high: float
    producer: str

    @property
    def one_sided(self) -> bool:
        """Exactly one end is bounded, as after SiLU or GELU."""
        return isinf(self.low) != isinf(self.high)


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """The findings for one `nn.Linear` or `nn.Conv2d`; for a convolution, features are channels.

    `output_segments`, `head_segments` and the sizes of `input_segments` each cover the whole axis.
    `shared_input` names the first layer that reads the very same tensor (itself if it is alone).
    `conditioning` is not empty where the input depends on the timestep and on no tokens:
    "modulation" if the output is shift, scale, gate or addend of tokens, else "embedding".
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    calls: int
    output_segments: tuple[int, ...]
    input_segments: tuple[Segment, ...]
    head_segments: tuple[int, ...]
    shared_input: str
    paths: tuple[str, ...]
    conditioning: str = ""


@dataclass(frozen=True, kw_only=True)
class FoldPart:
    """A place that takes a part of a scale: where the value v is, it becomes (v + c) / s - c.

    `kind` "rows": rows `start` to `start + size` of the linear `name` (weights and bias);
    "vector": the same elements of the parameter `name`. They belong to the features of the folded
    layers' input from `feature` on. `offset` is c.
    """

    kind: str
    name: str
    start: int
    size: int
    feature: int
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Linears that read one tensor, and where a scale of its features can be taken into exactly."""

    layers: tuple[str, ...]
    parts: tuple[FoldPart, ...]


class LayerGraph(Mapping[str, LayerInfo]):
    """Layers by name, in the order of `named_modules()`.

    `unknown_ops` counts the operations that could not be followed. What they read counts as read
    whole and what they return has no known origin, so they hide findings but never make one up.
    `folds` lists the groups of linears whose input can take a scale per feature from parameters
    before it; `fold_obstacles` says of every other linear that was called why not.
    `fallback` says why the forward was run for real (`frontend` "observe"); empty if it was not.
    `error` is empty unless the analysis was given up (`analyze(..., on_error="unsegmented")`).
    """

    def __init__(
        self,
        layers: Mapping[str, LayerInfo],
        *,
        unknown_ops: Mapping[str, int] | None = None,
        folds: tuple[Fold, ...] = (),
        fold_obstacles: Mapping[str, str] | None = None,
        frontend: str = "",
        fallback: str = "",
        error: str = "",
    ) -> None:
        self._layers = dict(layers)
        self.folds = folds
        self.fold_obstacles = dict(fold_obstacles or {})
        self.unknown_ops = dict(unknown_ops or {})
        self.frontend = frontend
        self.fallback = fallback
        self.error = error

    def __getitem__(self, name: str) -> LayerInfo:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"LayerGraph({len(self)} layers, unknown_ops={self.unknown_ops})"

    def to_json(self) -> str:
        layers = [asdict(layer) for layer in self.values()]
        for layer in layers:
            for segment in layer["input_segments"]:
                segment["low"] = _to_number(segment["low"])
                segment["high"] = _to_number(segment["high"])
        content = {
            "schema_version": SCHEMA_VERSION,
            "frontend": self.frontend,
            "fallback": self.fallback,
            "error": self.error,
            "unknown_ops": self.unknown_ops,
            "folds": [asdict(fold) for fold in self.folds],
            "fold_obstacles": self.fold_obstacles,
            "layers": layers,
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LayerGraph":
        content = json.loads(text)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"layer graph has schema_version {version}, this code reads {SCHEMA_VERSION}; "
                "analyse the denoiser again"
            )
        return cls(
            {layer["name"]: _layer_from_dict(layer) for layer in content["layers"]},
            unknown_ops=content["unknown_ops"],
            folds=tuple(_fold_from_dict(fold) for fold in content["folds"]),
            fold_obstacles=content["fold_obstacles"],
            frontend=content["frontend"],
            fallback=content["fallback"],
            error=content["error"],
        )


def _to_number(bound: float) -> float | None:
    return None if isinf(bound) else bound


def _fold_from_dict(fold: dict[str, Any]) -> Fold:
    parts = tuple(FoldPart(**part) for part in fold["parts"])
    return Fold(layers=tuple(fold["layers"]), parts=parts)


def _layer_from_dict(layer: dict[str, Any]) -> LayerInfo:
    segments = tuple(
        Segment(
            size=entry["size"],
            low=-inf if entry["low"] is None else entry["low"],
            high=inf if entry["high"] is None else entry["high"],
            producer=entry["producer"],
        )
        for entry in layer["input_segments"]
    )
    tuples = {key: tuple(layer[key]) for key in ("output_segments", "head_segments", "paths")}
    return LayerInfo(**{**layer, **tuples, "input_segments": segments})
