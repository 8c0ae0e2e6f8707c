"""Words that settings take, where they are more than one yaml's."""

from __future__ import annotations

from segquant.kernels.auto import INTEGER_CODES
from segquant.kernels.recode import AUTO

EXECUTIONS = ("simulated", "kernel", "auto")
METHODS_OWN = "method"  # the activation code that a method itself has
ACTIVATION_CODES = (METHODS_OWN, AUTO, *(code.name for code in INTEGER_CODES))
