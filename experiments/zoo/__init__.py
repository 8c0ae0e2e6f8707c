"""Architectures at their full published size, built without weights, and inputs to run them on."""

from experiments.zoo.architectures import build, cast, from_config, load_config, names
from experiments.zoo.inputs import example_inputs

__all__ = ["build", "cast", "example_inputs", "from_config", "load_config", "names"]
