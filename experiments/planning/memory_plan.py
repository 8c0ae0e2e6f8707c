"""What every stage of a run takes: on the device, on the host, on disk.

From the denoiser's shapes, one forward on the meta device and the statistics' own plan. Where the
denoiser runs on the CPU, device and host are one memory: `StageMemory.total_bytes`. What Python and
its libraries take by themselves is not in it. `segbench rehearse` measures what a plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from segquant.core.memory import MemoryPlan
from segquant.core.method_interface import StatisticsNeeds
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import BITS_OF_BYTE, Bits

FLOAT32 = 4
CODE = 1  # bytes of a code of up to 8 bits; two of up to 4 share one
BESIDE_CODES = 1.02  # scales, smoothing vectors and factors beside codes
# In float32, of a layer's weight: itself, smoothed, residual, quantized, its error.
_DENSE_COPIES = 5
_GRAM_COPIES = 8  # of a Gram matrix in float32: in float64 itself, damped, its inverse, a factor
_INPUT_COPIES = 3  # of a simulated layer's input in float32: itself, smoothed, on its grid
_DERIVED_COPIES = (
    2  # of its weight in float32, when it is derived from codes: them scaled, in order
)


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """A stage's peak; `parts` says what it is made of."""

    stage: str
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of both memories."""
        return self.device_bytes + self.host_bytes


@dataclass(frozen=True, kw_only=True)
class DenoiserSizes:
    """Bytes of a denoiser, whatever its weights are."""

    weights: int  # all tensors, in the type that it runs in
    linears: int  # of these, Linears that may be quantized
    elements: int  # weights of those Linears
    largest: int  # weights of the largest of them
    widest: int  # input features of the widest
    longest_input: int  # elements of the largest input that one reads in a forward
    blocks: int  # bytes of the largest block of layers
    outside: int  # bytes of what lies in no block

    @classmethod
    def of(cls, denoiser: nn.Module, *, longest_input: int) -> DenoiserSizes:
        """Of a denoiser on any device, the meta device among them."""
        linears = linear_layers(denoiser).values()
        weights = _bytes(denoiser)
        blocks = [
            _bytes(block)
            for part in denoiser.children()
            if isinstance(part, nn.ModuleList)
            for block in part
        ]
        return cls(
            weights=weights,
            linears=sum(linear.weight.nbytes for linear in linears),
            elements=sum(linear.weight.numel() for linear in linears),
            largest=max((linear.weight.numel() for linear in linears), default=0),
            widest=max((linear.in_features for linear in linears), default=0),
            longest_input=longest_input,
            blocks=max(blocks, default=weights),
            outside=weights - sum(blocks),
        )

    def codes(self, bits: Bits) -> int:
        """Bytes of the quantized denoiser: codes of Linears, and the rest as it is."""
        width = CODE / 2 if bits.weight.num_bits <= BITS_OF_BYTE // 2 else CODE
        if not bits.weight.quantized:
            width = 2 * CODE
        return int(self.elements * width * BESIDE_CODES) + self.weights - self.linears


def plan_stages(
    sizes: DenoiserSizes,
    *,
    bits: Bits,
    needs: StatisticsNeeds,
    statistics: MemoryPlan,
    forward_bytes: int,
    on_cpu: bool,
    offload: str = "none",
    others: Mapping[str, int] | None = None,
    embeddings: bool = False,
) -> list[StageMemory]:
    """The peak of every stage.

    Args:
        needs: of the method: whether it reads Gram matrices.
        forward_bytes: tensors that live at once in a forward (see `forward_memory`).
        on_cpu: the denoiser runs on the CPU: its files stay mapped, and there is one memory.
        offload: none, model or blocks, as `model.offload` has it.
        others: bytes of the pipeline's other parts, by name.
        embeddings: whether texts are encoded beforehand, in a stage of their own.
    """
    beside = dict(others or {})
    encoders = sum(size for name, size in beside.items() if name.startswith("text_encoder"))
    rest = sum(beside.values()) - encoders
    present, waiting = sizes.weights, 0
    if offload == "blocks" and not on_cpu:
        present = sizes.blocks + sizes.outside
        waiting = sizes.weights
    elif offload == "model" and not on_cpu:
        waiting = sizes.weights
    together = 0 if offload != "none" else rest + (0 if embeddings else encoders)
    codes, working = sizes.codes(bits), _working(sizes, gram=needs.gram)
    simulated = _INPUT_COPIES * sizes.longest_input + _DERIVED_COPIES * sizes.largest
    stages = []
    if embeddings and encoders:
        largest = max(size for name, size in beside.items() if name.startswith("text_encoder"))
        stages.append(
            _stage(
                "embeddings", device={"text encoders": encoders if offload == "none" else largest}
            )
        )
    stages += [
        _stage(
            "reference",
            device={"weights": present, "forward": forward_bytes, "other parts": together},
            host={"weights that wait": waiting},
        ),
        _stage(
            "calibration",
            device={
                "weights": present,
                "forward": forward_bytes,
                "statistics": statistics.device_bytes,
                "other parts": together,
            },
            host={
                "rows": statistics.sample_bytes,
                "Gram matrices": 0 if on_cpu else statistics.gram_bytes,  # on their way to the disk
                "weights that wait": waiting,
            },
            disk={"statistics": statistics.disk_bytes},
        ),
        _quantization(sizes, codes=codes, working=working, on_cpu=on_cpu, offload=offload),
        _stage(
            "images",
            device={
                "weights": present,
                "forward": forward_bytes + FLOAT32 * simulated,
                "other parts": together,
            },
            host={"weights that wait": waiting},
        ),
    ]
    return stages


def _quantization(
    sizes: DenoiserSizes, *, codes: int, working: int, on_cpu: bool, offload: str
) -> StageMemory:
    disk = {"checkpoint": codes}
    if on_cpu:  # files of weights stay mapped until the last tensor of each is let go of
        kept = sizes.weights - sizes.linears  # of both, in memory once
        held = {"weights": sizes.weights, "codes": codes - kept, "one layer": working}
        return _stage("quantization", host=held, disk=disk)
    if offload != "none":  # the denoiser waits on the host, a layer at a time is on the device
        host = {"weights": sizes.weights}
        return _stage("quantization", device={"one layer": working}, host=host, disk=disk)
    most = max(sizes.weights, codes)
    return _stage(
        "quantization",
        device={"weights": most, "one layer": working},
        host={"checkpoint": codes},
        disk=disk,
    )


def _working(sizes: DenoiserSizes, *, gram: bool) -> int:
    """For one layer: copies of its weight, and of its Gram matrix where one is read."""
    square = sizes.widest**2 if gram else 0
    return FLOAT32 * (_DENSE_COPIES * sizes.largest + _GRAM_COPIES * square)


def _stage(name: str, **where: dict[str, int]) -> StageMemory:
    parts = {part: size for kind in where.values() for part, size in kind.items() if size}
    sums: dict[str, Any] = {f"{kind}_bytes": sum(held.values()) for kind, held in where.items()}
    return StageMemory(stage=name, parts=parts, **sums)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
