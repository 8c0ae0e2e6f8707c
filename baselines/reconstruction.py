"""Block reconstruction: rounding and activation steps learned on the outputs of blocks.

Blocks are done in the order in which they run. A block is given what the quantized model makes of
the stored calls up to it, and is to say what the unquantized block says there:

    min over V of ||f(X; W) - f(X~; W_q(V))||^2 + lambda sum 1 - |2 h(V) - 1|^beta,

by Adam, beta falling from 20 to 2 after a warm-up; then every bit is decided. Steps of static
activations are learned after that, or at the same time (`joint`). Linears outside of any block are
done one by one on the calibration's sampled rows. A minibatch is one stored call, so it holds one
sampling step's samples, where the papers mix steps within a minibatch.
Source: BRECQ (Li et al. 2021, arXiv 2102.05426) with AdaRound (arXiv 2004.10568) inside.

What a block is given and says lies on disk in a temporary folder, under the size cap.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from baselines.budget import Budget, iterations
from baselines.soft import SoftLinear, annealed_beta, rounding_loss
from segquant.core import Calibration, QuantizationReport, QuantLinear
from segquant.core.correction import channel_dim
from segquant.core.layer import relative_error
from segquant.core.layer_pass import replace_module
from segquant.core.recorded_calls import Call, CapturedCalls, restore_tree, store_tree
from segquant.core.several import called_parts

logger = logging.getLogger(__name__)

QUICK_ITERATIONS, PAPER_ITERATIONS = 60, 20_000
QUICK_STEP_ITERATIONS, PAPER_STEP_ITERATIONS = 15, 5_000
QUICK_RATE, PAPER_RATE = 5e-2, 1e-3  # of V: what is not reached in few steps is reached in longer
QUICK_STEP_RATE, PAPER_STEP_RATE = 4e-3, 4e-4  # of the logarithm of activation steps


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How blocks are reconstructed."""

    budget: Budget
    calls: int  # stored calls that are drawn
    own_iterations: int | None = None  # instead of the budget's; of steps a quarter
    regularization: float = 0.01  # lambda
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    joint: bool = False  # rounding and activation steps at the same time
    learn_steps: bool = True
    capture_bytes: int
    seed: int = 0

    @property
    def iterations(self) -> int:
        if self.own_iterations is not None:
            return self.own_iterations
        return iterations(self.budget, quick=QUICK_ITERATIONS, paper=PAPER_ITERATIONS)

    @property
    def step_iterations(self) -> int:
        if self.own_iterations is not None:
            return max(1, self.own_iterations // 4)
        return iterations(self.budget, quick=QUICK_STEP_ITERATIONS, paper=PAPER_STEP_ITERATIONS)

    @property
    def rate(self) -> float:
        return PAPER_RATE if self.budget is Budget.paper else QUICK_RATE

    @property
    def step_rate(self) -> float:
        return PAPER_STEP_RATE if self.budget is Budget.paper else QUICK_STEP_RATE


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What a block was given and was to say, in one call: files in a folder."""

    folder: Path
    arguments: Any
    target: Any

    def load(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
        given = restore_tree(self.arguments, self.folder, device=device)
        target = restore_tree(self.target, self.folder, device=device)
        return given["args"], given["kwargs"], tensors_of(target)


@dataclass
class _Work:
    """The reconstruction of one denoiser."""

    quantized: nn.Module
    unquantized: nn.Module
    calibration: Calibration
    settings: Reconstruction
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.settings.seed)


def reconstruct(
    quantized: nn.Module,
    *,
    unquantized: nn.Module,
    calibration: Calibration,
    calls: Sequence[Call],
    settings: Reconstruction,
    report: QuantizationReport,
) -> int:
    """Learns the rounding of every QuantLinear in place, and says so in the report.

    Args:
        quantized: rounded to nearest already.
        unquantized: the same denoiser before that.
        calls: the stored calls to learn on, drawn by the method.

    Returns:
        How many blocks there are.
    """
    captured = calibration.captured
    if captured is None or not calls:
        raise ValueError(
            "block reconstruction needs stored calls of the denoiser and the calibration has none; "
            "calibrate with capture_bytes above 0 (at least one call's size)"
        )
    work = _Work(quantized, unquantized, calibration, settings)
    first: dict[str, Call] = {}
    for call in calls:
        first.setdefault(call.part, call)
    blocks = {
        block: part
        for part, call in first.items()
        for block in ordered_blocks(unquantized, captured=captured, call=call)
    }
    inside = {f"{b}.{n}" for b in blocks for n, _ in _quants(quantized.get_submodule(b))}
    for name, quant in _quants(quantized):
        if name not in inside:
            _reconstruct_layer(work, name, quant)
    used = [
        _reconstruct_block(
            work, block, captured=captured, calls=[call for call in calls if call.part == part]
        )
        for block, part in blocks.items()
    ]
    _amend(report, work)
    logger.info("%d blocks reconstructed on %s calls", len(blocks), sorted(set(used)))
    report.left_out += [
        f"blocks of {part}: none of its calls was kept, its layers are done one by one"
        for part in called_parts(unquantized)
        if part not in first
    ]
    report.left_out += [
        f"of {settings.iterations} iterations on V, {settings.rate:g} is the learning rate",
    ]
    return len(blocks)


def ordered_blocks(denoiser: nn.Module, *, captured: CapturedCalls, call: Call) -> list[str]:
    """The innermost modules named a Block with two Linears or more, in the order they run."""
    names = [
        name
        for name, module in denoiser.named_modules()
        if "Block" in type(module).__name__ and _count_linears(module) >= 2
    ]
    inner = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
    order: list[str] = []
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: order.append(name)
        )
        for name in inner
    ]
    try:
        device = next(denoiser.parameters()).device
        with torch.no_grad():
            denoiser(**captured.arguments(call, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _count_linears(module: nn.Module) -> int:
    return sum(type(child) is nn.Linear for child in module.modules())


def _quants(module: nn.Module) -> list[tuple[str, QuantLinear]]:
    return [(n, m) for n, m in module.named_modules() if isinstance(m, QuantLinear)]


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a block's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


class _Seen(Exception):  # noqa: N818 (it is no error)
    """Stops a call once the block has been reached."""


def _samples(
    work: _Work, block: str, folder: Path, *, captured: CapturedCalls, calls: Sequence[Call]
) -> list[_Sample]:
    """Inputs under the quantized model and outputs of the unquantized one, call by call."""
    device = next(work.unquantized.parameters()).device
    stored: dict[str, int] = {}
    samples: list[_Sample] = []
    for call in calls:
        arguments = captured.arguments(call, device=device)
        given: dict[str, Any] = {}
        said: list[Any] = []
        _run_to(work.quantized, block, arguments, before=given)
        _run_to(work.unquantized, block, arguments, after=said)
        tensors: dict[str, Tensor] = {}
        sample = _Sample(
            folder=folder,
            arguments=store_tree(given, tensors),
            target=store_tree(tensors_of(said[0]), tensors),
        )
        fresh = {name: tensor for name, tensor in tensors.items() if name not in stored}
        size = sum(tensor.nbytes for tensor in fresh.values())
        if sum(stored.values()) + size > work.settings.capture_bytes and samples:
            break
        for name, tensor in fresh.items():
            save_file({"tensor": tensor}, folder / f"{name}.safetensors")
            stored[name] = tensor.nbytes
        samples.append(sample)
    return samples


def _run_to(
    denoiser: nn.Module,
    block: str,
    arguments: dict[str, Any],
    *,
    before: dict[str, Any] | None = None,
    after: list[Any] | None = None,
) -> None:
    module = denoiser.get_submodule(block)

    def stop_before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert before is not None
        before.update(args=args, kwargs=kwargs)
        raise _Seen

    def stop_after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert after is not None
        after.append(output)
        raise _Seen

    handle = (
        module.register_forward_hook(stop_after)
        if before is None
        else module.register_forward_pre_hook(stop_before, with_kwargs=True)
    )
    try:
        with torch.no_grad():
            denoiser(**arguments)
    except _Seen:
        pass
    finally:
        handle.remove()


def _reconstruct_block(
    work: _Work, block: str, *, captured: CapturedCalls, calls: Sequence[Call]
) -> int:
    """Returns how many calls fitted under the cap."""
    module = work.quantized.get_submodule(block)
    device = next(work.unquantized.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        samples = _samples(work, block, Path(folder), captured=captured, calls=calls)
        soft = [
            _soften(work, f"{block}.{name}", quant, inside=module, child=name)
            for name, quant in _quants(module)
        ]

        def loss() -> Tensor:
            number = int(torch.randint(len(samples), (), generator=work.generator))
            args, kwargs, target = samples[number].load(device)
            return output_loss(tensors_of(module(*args, **kwargs)), target)

        learn(soft, loss=loss, settings=work.settings)
    for rounding in soft:
        replace_module(module, old=rounding, new=rounding.hardened())
    return len(samples)


def _reconstruct_layer(work: _Work, name: str, quant: QuantLinear) -> None:
    linear = work.unquantized.get_submodule(name)
    seen = work.calibration.statistics.get(name)
    assert isinstance(linear, nn.Linear)
    assert seen is not None
    soft = _soften(work, name, quant, inside=work.quantized, child=name)
    x_TI = seen.sample_TI.to(linear.weight)
    with torch.no_grad():
        target = [linear(x_TI)]
    learn([soft], loss=lambda: output_loss([soft(x_TI)], target), settings=work.settings)
    replace_module(work.quantized, old=soft, new=soft.hardened())


def _soften(
    work: _Work, name: str, quant: QuantLinear, *, inside: nn.Module, child: str
) -> SoftLinear:
    linear = work.unquantized.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    w_OI, transform = linear.weight.detach().float(), quant.transform
    soft = SoftLinear(quant, w_OI if transform is None else transform.of_weight(w_OI))
    replace_module(inside, old=inside.get_submodule(child), new=soft)
    return soft


def output_loss(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Squared errors summed over channels, a mean over all else."""
    parts = [
        (output.float() - other.float()).square().sum(channel_dim(output)).mean()
        for output, other in zip(outputs, target, strict=True)
    ]
    return torch.stack(parts).sum()


def learn(
    soft: Sequence[SoftLinear], *, loss: Callable[[], Tensor], settings: Reconstruction
) -> None:
    """Both phases, or one if they are joint."""
    bits = [rounding.v_OI for rounding in soft]
    steps = (
        [rounding.theta for rounding in soft if rounding.theta is not None]
        if settings.learn_steps
        else []
    )
    groups = [{"params": bits, "lr": settings.rate}]
    if settings.joint and steps:
        groups.append({"params": steps, "lr": settings.step_rate})
    for rounding in soft:
        rounding.quantize_input = settings.joint
    optimizer = torch.optim.Adam(groups)
    for number in range(settings.iterations):
        beta = annealed_beta(
            number / settings.iterations,
            warm_up=settings.warm_up,
            start=settings.beta_start,
            end=settings.beta_end,
        )
        with torch.enable_grad():
            total = loss()
            if beta is not None:
                regular = torch.stack([rounding_loss(v, beta=beta) for v in bits]).sum()
                total = total + settings.regularization * regular
        _descend(optimizer, total)
    for rounding in soft:
        rounding.quantize_input = True
        rounding.decide()
    if settings.joint or not steps:
        return
    optimizer = torch.optim.Adam([{"params": steps, "lr": settings.step_rate}])
    for _ in range(settings.step_iterations):
        with torch.enable_grad():
            total = loss()
        _descend(optimizer, total)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step on the optimizer's own parameters; no other tensor's gradient is touched."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(
        own, torch.autograd.grad(loss, own, allow_unused=True), strict=True
    ):
        parameter.grad = gradient
    optimizer.step()


def _amend(report: QuantizationReport, work: _Work) -> None:
    """Every layer's entry: how it was rounded and what its error is now."""
    quants = dict(_quants(work.quantized))
    for entry in report.layers_quantized:
        name = entry["name"]
        linear = work.unquantized.get_submodule(name)
        seen = work.calibration.statistics[name]
        assert isinstance(linear, nn.Linear)
        entry["rounding"] = "adaround"
        entry["relative_error"] = relative_error(
            linear, quants[name], seen.sample_TI, with_bias=True
        )
