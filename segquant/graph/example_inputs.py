"""Example inputs of a module taken from one real call of whatever runs it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from segquant.core.several import Denoisers, called_parts

Calls = Mapping[str, Mapping[str, Any]]  # by the name of the denoiser: its inputs


class NeverCalledError(ValueError):
    """What was to be captured did not happen."""


class _Captured(Exception):  # noqa: N818 (it is no error)
    """Stops the call once the inputs are known."""


def capture_example_inputs(module: nn.Module, call: Callable[[], Any]) -> dict[str, Any]:
    """The keyword arguments with which `call` first calls `module`.

    `call` runs whatever uses the module, for instance `lambda: pipe("a cat")`, and is stopped
    before the module's forward runs.

    Raises:
        NeverCalledError: `call` returned without calling the module.
        ValueError: the module's forward has no names for its inputs.
    """
    captured: dict[str, Any] = {}

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(module.forward).parameters)
        if len(args) > len(names):
            raise ValueError(
                f"{type(module).__name__}.forward takes *args, so its inputs have no names; "
                "wrap it in a module whose forward names them"
            )
        captured.update(zip(names, args, strict=False))
        captured.update(kwargs)
        raise _Captured

    handle = module.register_forward_pre_hook(take, with_kwargs=True)
    try:
        call()
    except _Captured:
        return captured
    finally:
        handle.remove()
    raise NeverCalledError(
        f"the call given never called the {type(module).__name__}; "
        "it must run the module itself, not a copy or a compiled version of it"
    )


def capture_calls(denoiser: nn.Module, call: Callable[[], Any]) -> dict[str, dict[str, Any]]:
    """The inputs of the first call of each denoiser, by its name; empty for the only one.

    `call` is run once for each. One of several that it does not call is left out.

    Raises:
        ValueError: `call` returned without calling the only one.
    """
    calls: dict[str, dict[str, Any]] = {}
    for name, part in called_parts(denoiser).items():
        try:
            calls[name] = capture_example_inputs(part, call)
        except NeverCalledError:
            if not isinstance(denoiser, Denoisers):
                raise
    return calls


def run_calls(denoiser: nn.Module, calls: Calls) -> None:
    """Runs each denoiser on the inputs that were captured of it."""
    parts = called_parts(denoiser)
    for name, inputs in calls.items():
        parts[name](**inputs)
