"""auto-round (Intel), as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.peers.library import no_such_bits, not_installed, quantize_with
from segquant.core import (
    Bits,
    Calibration,
    Granularity,
    NumberFormat,
    QuantizationReport,
    RangeRule,
    StatisticsNeeds,
    TensorScheme,
)

# its data types, of formats that are one whichever width says how many bits
_TYPES = {
    NumberFormat.integer: "int",
    NumberFormat.mxfp4: "mx_fp",
    NumberFormat.mxfp8: "mx_fp",
}
_GRADIENT_SCALE = 1000  # the library's own, of no matter to a sign


@dataclass(kw_only=True)
class AutoRound:
    """auto-round's SignRound, each Linear by itself: its quantizers, wrapper and optimizer.

    `WrapperLinear` (rounding and ranges as parameters, quantized inputs), `SignSGD` and a linear
    decay to nothing, the least loss of a minibatch kept; the library's number formats (integers
    on the full range of -2^(b-1) to 2^(b-1) - 1). Learned on the calibration's sampled rows of the
    layer, to the output that the unquantized layer gives. Its layers multiply floats.
    Source: the library (auto-round 0.16), its defaults: 200 iterations, steps of 1 / iterations, 8
    of its samples a minibatch: here 8 of the 128 parts that a layer's rows are cut into.

    Left out: whole blocks as the thing that is learned, which takes the library's own loading of a
    language model or a pipeline; the loop around its parts is thus this project's. NVFP4, which
    takes a static scale of the input.
    Cost: no forward; `iterations` passes, forward and backward, of each Linear over a minibatch.
    """

    iterations: int = 200  # 0, from Python alone: to nearest, with its quantizers
    learn_range: bool = True
    seed: int = 0  # of the minibatches
    sample_rows: int = 1024

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}; give 0 for none, usually 200")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if not all(_has(scheme) for scheme in (bits.weight, bits.activation)) or (
            not bits.weight.quantized or bits.mixed_budget is not None
        ):
            allowed = "w8a16_int, w8a8_int8_token, w4a4_int, w4a4_int_group32 or w4a4_mxfp4"
            return no_such_bits("auto-round", bits, allowed=allowed)
        return not_installed("auto_round", extra="auto-round")

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_with(
            partial(self._replace, calibration=calibration),
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits),
            elements=["auto-round's own quantizers, wrapper and optimizer"],
            left_out=["whole blocks as what is learned: each Linear by itself"],
            simulated=True,
        )

    def _replace(
        self,
        denoiser: nn.Module,
        chosen: dict[str, nn.Linear],
        *,
        bits: Bits,
        calibration: Calibration,
    ) -> None:
        for name, linear in chosen.items():
            rows_TI = calibration.statistics[name].sample_TI
            made = self._made(linear, rows_TI.to(linear.weight), bits=bits)
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, made)

    def _made(self, linear: nn.Linear, rows_TI: Tensor, *, bits: Bits) -> nn.Module:
        """The library's layer in the place of a Linear."""
        from auto_round.wrapper import WrapperLinear

        said = _said_of(bits.weight, "") | _said_of(bits.activation, "act_")
        for key, value in (said | {"scale_dtype": torch.float32, "act_dynamic": True}).items():
            setattr(linear, key, value)
        with torch.no_grad():
            wanted_TO = linear(rows_TI)
        wrapped = WrapperLinear(
            linear,
            enable_minmax_tuning=self.learn_range and self.iterations > 0,
            enable_round_tuning=self.iterations > 0,
            enable_torch_compile=False,
            device=linear.weight.device,
        )
        best = self._learned(wrapped, rows_TI, wanted_TO) if self.iterations else {}
        with torch.no_grad():
            made: nn.Module = wrapped.unwrapper(best)
        if made is linear:  # inputs in 16 bit
            linear.__class__ = _RoundedLinear
        return made.requires_grad_(False)

    def _learned(self, wrapped: Any, rows_TI: Tensor, wanted_TO: Tensor) -> dict[str, Tensor]:
        """The parameters at the least loss of a minibatch."""
        from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD

        parts = list(torch.arange(len(rows_TI)).tensor_split(min(len(rows_TI), 128)))
        generator = torch.Generator().manual_seed(self.seed)
        rate = 1 / self.iterations
        optimizer = SignSGD(list(wrapped.params.values()), lr=rate, weight_decay=0)
        decay = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.iterations
        )
        best: dict[str, Tensor] = {}
        least = float("inf")
        for _ in range(self.iterations):
            drawn = torch.randperm(len(parts), generator=generator)[:8]
            rows = torch.cat([parts[int(part)] for part in drawn])
            with torch.enable_grad():
                loss = nn.functional.mse_loss(wrapped(rows_TI[rows]), wanted_TO[rows])
                (loss * _GRADIENT_SCALE).backward()  # type: ignore[no-untyped-call]
            if (said := float(loss.detach())) < least:
                least = said
                best = {key: value.detach().clone() for key, value in wrapped.params.items()}
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
        return best


class _RoundedLinear(nn.Linear):
    """A Linear whose weight the library has put on its grid."""


def _has(scheme: TensorScheme) -> bool:
    """Whether the library has such numbers, chosen from the input itself where it is one."""
    if not scheme.quantized:
        return True
    rows = (Granularity.per_channel, Granularity.per_token, Granularity.per_group)
    return (
        scheme.number_format in _TYPES
        and scheme.granularity in rows
        and scheme.symmetric
        and scheme.range_rule is RangeRule.amax
    )


def _said_of(scheme: TensorScheme, prefix: str) -> dict[str, Any]:
    """A scheme in the library's words, attributes of a Linear."""
    said = {
        "bits": scheme.num_bits,
        "group_size": scheme.group_size if scheme.group_size is not None else -1,
        "sym": True,
        "data_type": _TYPES[scheme.number_format],
    }
    return {f"{prefix}{key}": value for key, value in said.items()}
