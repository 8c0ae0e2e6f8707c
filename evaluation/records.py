"""What one cell of a benchmark leaves behind: `record.json`, one to one with a dataclass."""

from __future__ import annotations

import hashlib
import json
import math
import os
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
STATUSES = ("ok", "skipped", "failed")
EXECUTIONS = (
    *("float", "simulated", "kernel", "library", "library_simulated"),
    *("onnxruntime", "openvino"),  # which run an exported file
)
MACHINE_UNITS = ("s", "bytes")  # metrics in these units differ between two runs of one cell
_VOLATILE_FIELDS = (
    *("seconds", "peak_memory_bytes", "quantize_peak_memory_bytes"),
    *("environment", "times_utc", "traceback"),
)
_OWN = "sha256"  # in the file: of all the rest
_NON_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class MetricUnavailable(Exception):  # noqa: N818 - not an error: a reason to skip
    """A metric cannot be computed here; `reason` says why and what would make it possible."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(kw_only=True)
class Metric:
    """One number with what it was measured on and how far it may be trusted.

    `value` is None when the metric was skipped; `note` then holds the reason. `interval` is
    [low, high]; `interval_kind` says what it is: "bootstrap95" (percentile interval) or "sd"
    (value minus and plus one standard deviation, no confidence level claimed).
    """

    value: float | None
    higher_is_better: bool | None
    n: int
    against: str
    standard_error: float | None = None
    interval: list[float] | None = None
    interval_kind: str = ""
    note: str = ""
    unit: str = ""


@dataclass(kw_only=True)
class Record:
    """Everything that is known about one cell: (model, method, bits, dataset, seed)."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: str
    reason: str = ""
    traceback: str = ""
    model: str
    method: str
    bits: str
    dataset: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)  # those that are not conf/'s own
    stages: dict[str, str] = field(default_factory=dict)  # what made it: name -> hash of its key
    files: dict[str, str] = field(default_factory=dict)  # beside it: name -> sha256
    metrics: dict[str, Metric] = field(default_factory=dict)
    layers_quantized: list[dict[str, Any]] = field(default_factory=list)
    layers_kept: list[dict[str, Any]] = field(default_factory=list)  # each {name, reason}
    execution: str = "float"
    execution_by_layer_class: dict[str, str] = field(default_factory=dict)
    effective_bits_per_weight: float | None = None
    extra_macs_fraction: float | None = None
    calibration_forwards: int = 0
    search_candidates: int = 0
    method_elements: dict[str, list[str]] = field(
        default_factory=lambda: {"included": [], "left_out": []}
    )
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    quantize_peak_memory_bytes: int | None = None  # of the process that quantized, meanwhile
    weight_bytes: int | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    times_utc: dict[str, str] = field(default_factory=dict)

    @property
    def method_label(self) -> str:
        """The method's key and its settings that are not conf/'s own."""
        return label(self.method, self.settings, group="method")

    @property
    def bits_label(self) -> str:
        """The same of the bits."""
        return label(self.bits, self.settings, group="bits")


_CODE = "activation_code"


def label(key: str, settings: Mapping[str, Any], *, group: str) -> str:
    """`smoothquant alpha=0.7` from the key and settings by dotted name.

    The code of inputs that kernels are told to use stands with the method's own settings.
    """
    start = f"{group}."
    changed = [
        f"{name.removeprefix(start)}={_short(value)}"
        for name, value in settings.items()
        if name.startswith(start) or (name == _CODE and group == "method")
    ]
    return " ".join([key, *changed])


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)


def write_record(path: Path | str, record: Record) -> None:
    """Write atomically: a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    _check_choices(record, where=str(path))
    try:
        text = _sealed(_encode(asdict(record)))
    except TypeError as error:
        raise ValueError(
            f"{path}: the record holds a value that JSON cannot ({error}); "
            "use str, int, float, bool, None, lists and dicts with str keys"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text)


def _sealed(content: Any) -> str:
    """The file's text: the content and its checksum."""
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, _OWN: own}, indent=2, sort_keys=True, allow_nan=False) + "\n"


def encode_record(record: Record) -> dict[str, Any]:
    """The record as what `json.dumps` takes; infinities and NaN as the strings of the file."""
    encoded = _encode(asdict(record))
    assert isinstance(encoded, dict)
    return encoded


def encode_metric(metric: Metric) -> dict[str, Any]:
    """As `record.json` has it."""
    encoded = _encode(asdict(metric))
    assert isinstance(encoded, dict)
    return encoded


def decode_metric(value: Any, *, where: str) -> Metric:
    """What `encode_metric` gave.

    Raises:
        ValueError: it is no metric; names `where`.
    """
    metric = _decode(value, hint=Metric, where=where)
    assert isinstance(metric, Metric)
    return metric


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path` under a name of this process, flush it, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Path | str) -> Record:
    """Read strictly.

    Raises:
        ValueError: no standard JSON, another schema version, an unknown or missing key, a value of
            the wrong type, or not what was written; the message names the file and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a record in standard JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a record is a JSON object, not {type(data).__name__}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version is {version!r}, this code reads {SCHEMA_VERSION}; "
            "run the cell again, or read it with the version that wrote it"
        )
    data.pop(_OWN, None)
    record = _decode(data, hint=Record, where=str(path))
    assert isinstance(record, Record)
    _check_choices(record, where=str(path))
    if text != _sealed(data):  # a float's last digit may be another and its value the same
        raise ValueError(f"{path}: not what was written, by its own checksum")
    return record


def stable_view(record: Record) -> dict[str, Any]:
    """The part of a record that two runs of one cell share bit for bit.

    Times, memory, the environment, tracebacks and metrics measured in seconds or bytes of the
    machine are left out. NaN and infinities are strings, so that views compare with `==`.
    """
    view = asdict(record)
    for name in _VOLATILE_FIELDS:
        del view[name]
    view["metrics"] = {
        name: metric
        for name, metric in view["metrics"].items()
        if metric["unit"] not in MACHINE_UNITS
    }
    encoded = _encode(view)
    assert isinstance(encoded, dict)
    return encoded


def _check_choices(record: Record, *, where: str) -> None:
    for name, allowed in (("status", STATUSES), ("execution", EXECUTIONS)):
        value = getattr(record, name)
        if value not in allowed:
            raise ValueError(f"{where}: {name}={value!r} is not one of {', '.join(allowed)}")
    if record.status != "ok" and not record.reason:
        raise ValueError(f"{where}: status={record.status!r} needs a reason")


def _refuse_constant(name: str) -> float:
    raise ValueError(f'bare {name} is not JSON; it is stored as the string "{name}"')


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a record's dict keys are str, not {key!r}")
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any, *, hint: Any, where: str) -> Any:
    """Turn JSON back into what `hint` says; "Infinity" is a float only where a float may be."""
    if hint is Any:
        if isinstance(value, dict):
            return {key: _decode(item, hint=Any, where=where) for key, item in value.items()}
        if isinstance(value, list):
            return [_decode(item, hint=Any, where=where) for item in value]
        return _NON_FINITE.get(value, value) if isinstance(value, str) else value
    if isinstance(hint, type) and is_dataclass(hint):
        return _decode_dataclass(value, cls=hint, where=where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _decode(value, hint=arguments[0], where=where)
    if origin is dict and isinstance(value, dict):
        return {k: _decode(v, hint=arguments[1], where=f"{where}: {k}") for k, v in value.items()}
    if origin is list and isinstance(value, list):
        return [_decode(item, hint=arguments[0], where=where) for item in value]
    if hint is float and isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: {value!r} is not of type {hint}")


def _decode_dataclass(value: Any, *, cls: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    unknown, missing = sorted(set(value) - set(names)), sorted(set(names) - set(value))
    if unknown or missing:
        parts = [f"unknown key {name!r}" for name in unknown]
        parts += [f"missing key {name!r}" for name in missing]
        raise ValueError(f"{where}: {cls.__name__}: {', '.join(parts)}")
    return cls(
        **{name: _decode(value[name], hint=hints[name], where=f"{where}: {name}") for name in names}
    )
