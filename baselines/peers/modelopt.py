"""NVIDIA Model Optimizer, as a row of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import Enum
from glob import escape
from typing import Any

import torch
from torch import nn

from baselines.peers.library import (
    is_fp8_static,
    is_int8_channel_static,
    is_int8_weight_only,
    is_nvfp4,
    no_such_bits,
    not_installed,
    on_cpu,
    quantize_with,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds
from segquant.core.method_interface import OfThisMachine
from segquant.core.recorded_calls import CapturedCalls

MEGABYTE = 2**20
SVDQUANT_RANK = 32  # NVFP4_SVDQUANT_DEFAULT_CFG's own


class Algorithm(Enum):
    """The library's algorithms that it publishes whole configs of."""

    max = "max"
    smoothquant = "smoothquant"
    svdquant = "svdquant"


@dataclass(frozen=True, kw_only=True)
class _Published:
    """A config of the library, by name, and the bits that it is."""

    config: str
    bits_name: str
    covers: Callable[[Bits], bool]


_PUBLISHED = {
    Algorithm.max: [
        _Published(
            config="INT8_DEFAULT_CFG", bits_name="w8a8_int8_channel", covers=is_int8_channel_static
        ),
        _Published(
            config="INT8_WEIGHT_ONLY_CFG", bits_name="w8a16_int", covers=is_int8_weight_only
        ),
        _Published(config="FP8_DEFAULT_CFG", bits_name="w8a8_fp8", covers=is_fp8_static),
        _Published(config="NVFP4_DEFAULT_CFG", bits_name="w4a4_nvfp4", covers=is_nvfp4),
    ],
    Algorithm.smoothquant: [
        _Published(
            config="INT8_SMOOTHQUANT_CFG",
            bits_name="w8a8_int8_channel",
            covers=is_int8_channel_static,
        )
    ],
    Algorithm.svdquant: [
        _Published(config="NVFP4_SVDQUANT_DEFAULT_CFG", bits_name="w4a4_nvfp4", covers=is_nvfp4)
    ],
}


@dataclass(kw_only=True)
class ModelOpt:
    """Model Optimizer's int8, fp8 and nvfp4: by largest values, smoothed, or with a branch.

    Through `mtq.quantize` with the config that the library publishes for these bits: its quantizers
    and algorithm, on the same Linears as every other row (by name, so that its own list of layers
    to leave alone, which is for language models, does not hold). `max` has int8 per channel with
    static inputs per tensor, int8 weights alone, fp8 and nvfp4; `smoothquant` int8, with the
    library's own `alpha` of 1; `svdquant` nvfp4 with AWQ's smoothing and one SVD of rank 32.
    Scales come from the calibration's stored calls, under `capture_megabytes`; the report says how
    many of all these were.
    Source: the library (nvidia-modelopt 0.47); it simulates: codes are multiplied as floats. nvfp4
    is simulated in its CUDA kernels alone: it needs a GPU, and no GPU has run these rows yet.
    Left out: configs of one's own (svdquant at int4, say), MX formats, AutoQuantize.
    Cost: a forward for each stored call; with `svdquant` three.
    """

    algorithm: Algorithm = Algorithm.max
    alpha: float = 1.0  # of smoothquant: factors are max|x|^alpha / max|w|^(1 - alpha)
    capture_megabytes: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; give one in [0, 1]")
        if self.capture_megabytes < 1:
            raise ValueError(f"capture_megabytes={self.capture_megabytes}; give at least 1")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(capture_bytes=self.capture_megabytes * MEGABYTE)

    def unsupported(self, bits: Bits) -> str | None:
        if self._published(bits) is None:
            allowed = [published.bits_name for published in _PUBLISHED[self.algorithm]]
            return no_such_bits(
                f"Model Optimizer with algorithm={self.algorithm.name}",
                bits,
                allowed=" or ".join(allowed),
            )
        absent = not_installed("modelopt", extra="modelopt")
        if absent is None and is_nvfp4(bits) and not torch.cuda.is_available():
            return _needs_gpu(bits)
        return absent

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        unsupported = self.unsupported(bits)
        if unsupported is None and is_nvfp4(bits) and on_cpu(denoiser):
            unsupported = _needs_gpu(bits)
        loop = self._loop(calibration) if bits.activation.quantized and not unsupported else None

        def replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
            published = self._published(bits)
            assert published is not None
            _replace(
                denoiser, chosen, config=published.config, loop=loop, algorithm=self._algorithm()
            )

        report = quantize_with(
            replace,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=unsupported,
            elements=[
                f"Model Optimizer's own modules and defaults, algorithm {self.algorithm.name}",
                *([] if loop is None else [loop.describe()]),
            ],
            left_out=["products of codes: the library simulates them"],
            simulated=True,
            smoothed=self.algorithm is not Algorithm.max,
            rank=SVDQUANT_RANK if self.algorithm is Algorithm.svdquant else 0,
        )
        report.replay_forwards = 0 if loop is None else loop.forwards
        return report

    def _algorithm(self) -> dict[str, Any] | None:
        """The settings of the config's algorithm that are not the library's; None for none."""
        if self.algorithm is not Algorithm.smoothquant:
            return None
        return {"method": "smoothquant", "alpha": self.alpha}

    def _published(self, bits: Bits) -> _Published | None:
        return next(
            (published for published in _PUBLISHED[self.algorithm] if published.covers(bits)), None
        )

    def _loop(self, calibration: Calibration) -> _StoredCalls:
        captured = calibration.captured
        if captured is not None:
            captured = captured.within(self.capture_megabytes * MEGABYTE)
        if captured is None or not captured.calls:
            raise ValueError(
                "Model Optimizer calibrates on the denoiser's stored calls and there are none; "
                "calibrate with capture_bytes above 0 (at least one call's size)"
            )
        seen = next(iter(calibration.statistics.values()))
        return _StoredCalls(captured=captured, total=seen.calls)


@dataclass(kw_only=True)
class _StoredCalls:
    """The library's forward loop, counted."""

    captured: CapturedCalls
    total: int  # calls of the whole calibration
    forwards: int = 0

    def __call__(self, denoiser: nn.Module) -> None:
        device = next(denoiser.parameters()).device
        with torch.no_grad():
            for call in self.captured.calls:
                denoiser(**self.captured.arguments(call, device=device))
                self.forwards += 1

    def describe(self) -> str:
        return f"calibrated on {len(self.captured.calls)} of the calibration's {self.total} calls"


def _needs_gpu(bits: Bits) -> str:
    return OfThisMachine(
        f"Model Optimizer simulates {bits.weight.number_format.name} in CUDA kernels alone and the "
        f"denoiser is on a CPU ({bits.name}); run on a GPU"
    )


def _replace(
    denoiser: nn.Module,
    chosen: dict[str, nn.Linear],
    *,
    config: str,
    loop: _StoredCalls | None,
    algorithm: dict[str, Any] | None,
) -> None:
    if not chosen:
        return
    import modelopt.torch.quantization as mtq

    restricted = _restricted(getattr(mtq, config), chosen)
    if algorithm is not None:
        restricted["algorithm"] = algorithm
    with redirect_stdout(sys.stderr):  # stdout is for what a verb prints
        mtq.quantize(denoiser, restricted, forward_loop=loop)


def _restricted(published: Any, layers: dict[str, nn.Linear]) -> dict[str, Any]:
    """A published config on these layers alone."""
    quantizers: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for entry in published["quant_cfg"]:
        pattern, cfg = entry["quantizer_name"], entry.get("cfg")
        if cfg is not None:
            names = [f"{escape(layer)}.{pattern.removeprefix('*')}" for layer in layers]
            quantizers += [{"quantizer_name": name, "cfg": cfg} for name in names]
    return {"quant_cfg": quantizers, "algorithm": published["algorithm"]}
