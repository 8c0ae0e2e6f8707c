"""Products of quantized layers: activation codes, Triton kernels, and the exact CPU reference.

Importing this loads no Triton: kernels are compiled when a GPU first needs them.
"""

from segquant.kernels.choice import Choice, Device, Way, choose
from segquant.kernels.codes import ActivationCode, CodeSteps, code_steps
from segquant.kernels.door import quantized_linear
from segquant.kernels.encode import CodePlan, Producer, Steps, encode
from segquant.kernels.modules import (
    Execution,
    KernelLinear,
    explain,
    summarize,
    use_kernels,
    weight_bytes,
)
from segquant.kernels.packed import PackedLinear, pack_dense, pack_linear, why_not

__all__ = [
    "ActivationCode",
    "Choice",
    "CodePlan",
    "CodeSteps",
    "Device",
    "Execution",
    "KernelLinear",
    "PackedLinear",
    "Producer",
    "Steps",
    "Way",
    "choose",
    "code_steps",
    "encode",
    "explain",
    "pack_dense",
    "pack_linear",
    "quantized_linear",
    "summarize",
    "use_kernels",
    "weight_bytes",
    "why_not",
]
