"""`segbench bench-model`: a denoiser step at full size with random weights, by variant."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.speed.compiling import compile_denoiser
from experiments.speed.full_sizes import SpeedModel, build, inputs, post_activation
from experiments.speed.latency import STEP_WARMUPS
from experiments.speed.machine_state import machine_state
from experiments.speed.session import Session, failed, in_random_order
from experiments.speed.timing import Timer
from segquant.core.layer_pass import replace_module
from segquant.core.plain_linears import linear_layers
from segquant.kernels import (
    ActivationCode,
    Device,
    KernelLinear,
    Steps,
    choose,
    pack_dense,
    weight_bytes,
)
from segquant.kernels.fuse import fuse_activations

CODE = ActivationCode
SMALLEST_FEATURES = 16  # below it a Linear is left alone
_GRAPH_TOLERANCE = 1e-3  # relative: atomics may sum in another order
Ends = dict[str, tuple[float, float, int]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a model's Linears are coded; `after` is for those that read an activation."""

    name: str
    what: str
    code: ActivationCode | None = None
    after: ActivationCode | None = None
    steps: Steps = Steps.static
    fused: bool = False  # activations inside the kernels beside them


VARIANTS = (
    Variant(name="bf16", what="nothing quantized"),
    Variant(name="int8", what="symmetric static int8", code=CODE.symmetric, after=CODE.symmetric),
    Variant(
        name="int8, zero point",
        what="static int8, a zero point after activations (folded into the bias)",
        code=CODE.symmetric,
        after=CODE.zero_point,
    ),
    Variant(
        name="int8, dual",
        what="static int8, DualScale after activations",
        code=CODE.symmetric,
        after=CODE.dual,
    ),
    Variant(
        name="int8, fused",
        what="as int8, SiLU and GELU inside the kernels beside them",
        code=CODE.symmetric,
        after=CODE.symmetric,
        fused=True,
    ),
    Variant(
        name="int8, dual, fused",
        what="as int8, dual, SiLU and GELU inside the kernels beside them",
        code=CODE.symmetric,
        after=CODE.dual,
        fused=True,
    ),
    Variant(
        name="int8 by token",
        what="symmetric int8, steps by token",
        code=CODE.symmetric,
        after=CODE.symmetric,
        steps=Steps.token,
    ),
    Variant(name="fp8", what="static e4m3", code=CODE.fp8, after=CODE.fp8),
)


def bench(session: Session) -> dict[str, Any]:
    """All measurements as JSON."""
    begun = time.perf_counter()
    result = session.begin("segbench bench-model") | {"rows": []}
    for number, model in enumerate(session.models):
        left = session.budget_seconds - (time.perf_counter() - begun)
        # What one model leaves of its share goes to those that follow.
        share = left / (len(session.models) - number)
        timer = Timer(device=session.device, budget_seconds=share)
        result["rows"] += _bench_model(model, timer, small=session.small, compiled=session.compiled)
    result["machine_after"] = machine_state(session.device)
    result["seconds"] = time.perf_counter() - begun
    return result


def _bench_model(
    model: SpeedModel, timer: Timer, *, small: bool, compiled: bool
) -> list[dict[str, Any]]:
    where = str(timer.device)
    denoiser = build(model, small=small, device=where)
    step = inputs(denoiser, model, small=small, device=where)
    ends, reference = _look(denoiser, step)
    dense_bytes = _dense_bytes(denoiser)
    rows: list[dict[str, Any]] = []
    modes = ("compiled", "eager") if compiled else ("eager",)
    for mode in modes:
        for variant in in_random_order(VARIANTS):
            row: dict[str, Any] = {
                "model": model.name,
                "variant": variant.name,
                "mode": mode,
                "what": variant.what,
            }
            if timer.left <= 0:
                rows.append(row | {"status": "not measured", "reason": "out of time"})
                continue
            try:
                measured = _measure(denoiser, step, variant, mode, ends, reference, timer)
            except Exception as raised:  # one variant's failure is a row of its own
                rows.append(row | failed(raised))
                continue
            for more in measured:
                ratio = more.pop("linear_bytes") / dense_bytes
                rows.append(row | more | {"linear_bytes_ratio": ratio})
    best = [r["seconds"] for r in rows if r["variant"] == "bf16" and r["status"] == "ok"]
    for row in rows:
        if row["status"] == "ok":
            row["ratio_to_bf16"] = min(best) / row["seconds"] if best else None
    return rows


def _dense_bytes(model: nn.Module) -> int:
    """Of the weights of its Linears in 16 bit."""
    return sum(2 * linear.weight.numel() for linear in linear_layers(model).values())


def _look(denoiser: nn.Module, step: dict[str, Any]) -> tuple[Ends, Tensor]:
    """Every Linear's least and largest input and its rows, and the step's output."""
    ends: Ends = {}
    handles = []
    for name, linear in linear_layers(denoiser).items():

        def see(module: nn.Linear, args: tuple[Any, ...], name: str = name) -> None:
            x = args[0]
            low, high = x.float().amin(), x.float().amax()
            ends[name] = (float(low), float(high), x.numel() // module.in_features)

        handles.append(linear.register_forward_pre_hook(see))
    with torch.no_grad():
        output = denoiser(**step)[0].float()
    for handle in handles:
        handle.remove()
    return ends, output


def _measure(
    denoiser: nn.Module,
    step: dict[str, Any],
    variant: Variant,
    mode: str,
    ends: Ends,
    reference: Tensor,
    timer: Timer,
) -> list[dict[str, Any]]:
    """The variant as asked for and, on CUDA, the same replayed from a CUDA graph."""
    torch._dynamo.reset()
    model = _shell(denoiser)
    dense = _dense_bytes(model)
    reasons = quantize(model, variant, ends, timer.device) if variant.code is not None else set()
    if reasons:
        return [{"status": "simulated", "reason": "; ".join(sorted(reasons)), "linear_bytes": 0}]
    if variant.fused:
        fuse_activations(model)
    held = dense if variant.code is None else weight_bytes(model) + _dense_bytes(model)
    if mode == "compiled":
        compile_denoiser(model)

    def call() -> Tensor:
        with torch.no_grad():
            output: Tensor = model(**step)[0]
        return output

    if timer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(timer.device)
    begun = time.perf_counter()
    output = call()
    timer.synchronize()
    first_seconds = time.perf_counter() - begun
    error = float((output.float() - reference).norm() / reference.norm())
    if error != error:
        return [{"status": "wrong", "reason": "the output holds NaN", "linear_bytes": held}]
    shared = {"relative_error": error, "linear_bytes": held}
    if mode == "compiled":
        shared["compile_seconds"] = first_seconds  # of the first call, which compiles
    taken = {
        "status": "ok",
        **asdict(timer.measure(call, warmups=STEP_WARMUPS)),
        **_peaks(timer.device),
    }
    if timer.device.type != "cuda":
        return [taken | shared]
    return [taken | shared, {"mode": f"{mode}, CUDA graph", **_graphed(call, timer), **shared}]


def _graphed(call: Callable[[], Tensor], timer: Timer) -> dict[str, Any]:
    """A step without the host's part: captured once, its launches replayed."""
    try:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        eager = call().float()
        with torch.cuda.graph(graph):
            output = call()
        taken = timer.measure(graph.replay, warmups=STEP_WARMUPS)
    except Exception as raised:  # capture is refused: a row that says why
        return failed(raised)
    if not torch.equal(output.float(), eager):
        off = float((output.float() - eager).norm() / eager.norm())
        if off > _GRAPH_TOLERANCE:
            return {"status": "wrong", "reason": f"off by {off:.2g} from the call it replays"}
    return {"status": "ok", **asdict(taken), **_peaks(timer.device)}


def _shell(denoiser: nn.Module) -> nn.Module:
    """Modules of its own, on the same parameters: nothing of 16 bit is copied."""
    memo: dict[int, Any] = {id(p): p for p in denoiser.parameters()}
    memo |= {id(b): b for b in denoiser.buffers()}
    return copy.deepcopy(denoiser, memo)


def quantize(model: nn.Module, variant: Variant, ends: Ends, device: torch.device) -> set[str]:
    """Puts KernelLinears in place; returns why layers would be simulated (then not timed)."""
    assert variant.code is not None
    assert variant.after is not None
    reasons: set[str] = set()
    for name, linear in linear_layers(model).items():
        if name not in ends or min(linear.in_features, linear.out_features) < SMALLEST_FEATURES:
            continue
        low, high, rows = ends[name]
        code = variant.after if post_activation(name) else variant.code
        packed = pack_dense(
            linear.weight, code=code, low=low, high=high, steps=variant.steps, bias=linear.bias
        )
        choice = choose(packed, rows=rows, device=Device.of(device))
        if choice.way.execution == "simulated":
            reasons.add(choice.reason)
            break
        replace_module(model, old=linear, new=KernelLinear(packed))
    return reasons


def _peaks(device: torch.device) -> dict[str, int | None]:
    on_gpu = device.type == "cuda"
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device) if on_gpu else None,
    }
