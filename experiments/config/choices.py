"""Words that settings take, where they are more than one yaml's."""

from __future__ import annotations

from segquant.kernels.auto import INTEGER_CODES
from segquant.kernels.recode import AUTO

KERNELS = ("kernel", "auto")  # products of codes by this project's own kernels
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # execution -> the package that runs it
EXECUTIONS = ("simulated", *KERNELS, *RUNTIMES)
METHODS_OWN = "method"  # the activation code that a method itself has
ACTIVATION_CODES = (METHODS_OWN, AUTO, *(code.name for code in INTEGER_CODES))
