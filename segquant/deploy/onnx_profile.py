"""What a runtime made of a file's products: of integers or of floats, as it says itself."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant.deploy.onnx_running import Feed, open_session

_INTEGER = (
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "MatMulInteger",
    "QGemm",
    "DynamicQuantizeMatMul",
)
_FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits")
_OPENVINO_PRODUCTS = ("FullyConnected", "MatMul")
_MICROSECONDS = 1e6


@dataclass(frozen=True, kw_only=True)
class Products:
    """Executed in one call."""

    integer: int
    floating: int  # attention's among them
    seconds: dict[str, float]  # by operator, longest first


def profiled_products(path: Path, feed: Feed, *, runtime: str = "onnxruntime") -> Products:
    """From one call after another, on one thread.

    Raises:
        ValueError: the file is of another program.
    """
    if runtime == "openvino":
        return _of_openvino(path, feed)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, num_threads=1, profile=Path(folder) / "profile")
        session.run(feed)
        session.run(feed)
        events = json.loads(Path(session.native.end_profiling()).read_text())
    runs = 2
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            name = event["args"]["op_name"]
            counts[name] += 1
            seconds[name] += event["dur"] / _MICROSECONDS / runs
    return Products(
        integer=sum(counts[name] for name in _INTEGER) // runs,
        floating=sum(counts[name] for name in _FLOAT) // runs,
        seconds=dict(seconds.most_common()),
    )


def _of_openvino(path: Path, feed: Feed) -> Products:
    session = open_session(path, runtime="openvino", num_threads=1, profile=path)
    request: Any = session.native.create_infer_request()
    given = {name: value.numpy() for name, value in feed.items()}
    request.infer(given)
    request.infer(given)
    seconds: Counter[str] = Counter()
    products: Counter[bool] = Counter()
    for entry in request.profiling_info:
        if str(entry.status).endswith("EXECUTED"):
            seconds[entry.node_type] += entry.real_time.total_seconds()
            if entry.node_type in _OPENVINO_PRODUCTS:
                products[entry.exec_type.lower().endswith(("i8", "u8"))] += 1
    return Products(
        integer=products[True], floating=products[False], seconds=dict(seconds.most_common())
    )
