"""Small models, inputs, graphs and bits that these tests share."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.schemes import Bits, Granularity, TensorScheme


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(rows: int, features: int, *, seed: int, spread: float = 0.0) -> Tensor:
    """Rows whose features mix few causes; `spread` is the log-normal spread of their scales."""
    g = generator(seed)
    mixing = torch.randn(features, features, generator=g) / features**0.5
    causes = torch.randn(rows, features, generator=g) * torch.logspace(0, -1.5, features)
    x = causes @ mixing
    return x / x.std() * torch.exp(spread * torch.randn(features, generator=g))


def scheme(bits: int, granularity: Granularity, **more: Any) -> TensorScheme:
    return TensorScheme(num_bits=bits, granularity=granularity, **more)


TENSOR, CHANNEL = Granularity.per_tensor, Granularity.per_channel
TOKEN, GROUP = Granularity.per_token, Granularity.per_group


def bits(
    weight: int = 8,
    activation: int = 8,
    *,
    fine: bool = False,
    keep: Sequence[str] = (),
    symmetric: bool = True,
) -> Bits:
    """Per-tensor static, or (fine) per-channel weights and per-token dynamic activations."""
    return Bits(
        name="test",
        weight=scheme(weight, CHANNEL if fine else TENSOR, symmetric=symmetric),
        activation=scheme(activation, TOKEN, dynamic=True, symmetric=symmetric)
        if fine and activation < 16
        else scheme(activation, TENSOR, symmetric=symmetric),
        keep=list(keep),
    )


class One(nn.Module):
    """A denoiser that is one Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def one(in_features: int, out_features: int, *, seed: int = 0, bias: bool = True) -> One:
    torch.manual_seed(seed)
    return One(nn.Linear(in_features, out_features, bias=bias))


def calibrate(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    gram: bool = True,
    rows: int = 256,
    graph: Any = None,
) -> Calibration:
    with torch.no_grad(), StatisticsRecorder(model, gram=gram, sample_rows=rows) as recorder:
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    return Calibration(statistics=recorder.statistics(), forwards=recorder.forwards, graph=graph)


def seen(x_TI: Tensor, *, gram: bool = True, rows: int = 4096) -> LayerStatistics:
    model = one(x_TI.shape[-1], 1)
    return calibrate(model, [x_TI], gram=gram, rows=rows).statistics["linear"]


def info(
    out_features: int,
    in_features: int,
    *,
    output: Sequence[int] = (),
    inputs: Sequence[tuple[int, bool]] = (),
    heads: Sequence[int] = (),
) -> SimpleNamespace:
    """What a graph says of a layer."""
    parts = inputs or [(in_features, False)]
    return SimpleNamespace(
        output_segments=tuple(output) or (out_features,),
        input_segments=tuple(SimpleNamespace(size=s, one_sided=o) for s, o in parts),
        head_segments=tuple(heads) or (in_features,),
    )


def power_ratio(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).double().square().sum() / exact.double().square().sum())
