"""`analyze`: a denoiser and an example of its inputs in, what its graph says of each layer out."""

import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.graph.exported import export_trace
from segquant.graph.findings import blank, layers_of, report
from segquant.graph.flow import Flow
from segquant.graph.recorder import Recorder, record, run
from segquant.graph.rules import rule
from segquant.graph.trace import Trace
from segquant.graph.types import GraphError, LayerGraph

logger = logging.getLogger(__name__)

FRONTENDS = ("auto", "record", "export", "observe")
ON_ERROR = ("raise", "unsegmented")


def analyze(
    denoiser: nn.Module,
    example_inputs: Mapping[str, Any],
    *,
    frontend: str = "auto",
    on_error: str = "raise",
) -> LayerGraph:
    """Reads the static graph of a denoiser: the segments and the polarity of every layer.

    The module is taken as it is, with real weights, on the meta device or fake, in train mode or
    not, and is left as it was. No weight is read but by the front end "observe".

    Args:
        denoiser: Any module; its `nn.Linear` and `nn.Conv2d` children are reported.
        example_inputs: Keyword arguments of its forward. Small ones do: segments do not depend on
            resolution, batch or sequence length. Integers and masks need real contents.
        frontend: "record" runs the forward once on fake weights; "export" reads
            `torch.export.export(strict=False)`; "observe" runs it for real, for a control flow
            that depends on weights or shapes that depend on a mask's contents; "auto" tries
            them in turn (the last with real weights only) and `LayerGraph.fallback` says so.
        on_error: "unsegmented" returns every layer without findings where the graph cannot be
            read, with the message in `LayerGraph.error`.

    Raises:
        GraphError: The graph cannot be read; it names the operation and the source line.
    """
    if frontend not in FRONTENDS:
        raise ValueError(f"frontend={frontend!r} is not one of {', '.join(FRONTENDS)}")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r} is not one of {', '.join(ON_ERROR)}")
    try:
        with _evaluating(denoiser):
            trace = _trace(denoiser, example_inputs, frontend=frontend)
    except GraphError as error:
        if on_error == "raise":
            raise
        logger.warning("no segments: %s", error)
        layers = layers_of(denoiser)
        blanks = {name: blank(name, layer, reason="unknown") for name, layer in layers.items()}
        return LayerGraph(blanks, error=str(error))
    return _read(denoiser, trace)


def _trace(denoiser: nn.Module, inputs: Mapping[str, Any], *, frontend: str) -> Trace:
    if frontend == "export":
        return _guarded("export", "", lambda: export_trace(denoiser, inputs))
    recorder = record(denoiser, fake=frontend != "observe")
    try:
        return _recorded(recorder, denoiser, inputs)
    except GraphError as failure:
        if frontend != "auto":
            raise
        logger.info("recording failed, trying torch.export: %s", failure)
        try:
            return _guarded("export", "", lambda: export_trace(denoiser, inputs))
        except GraphError as second:
            return _run_for_real(denoiser, inputs, failures=(failure, second))


def _run_for_real(
    denoiser: nn.Module, inputs: Mapping[str, Any], *, failures: tuple[GraphError, GraphError]
) -> Trace:
    """What depends on numbers, such as a boolean mask that indexes, needs them."""
    why = "\n".join(map(str, failures))
    if any(tensor.is_meta for tensor in denoiser.state_dict().values()):
        raise GraphError(f"{why}\nThe denoiser has no weights, so it cannot be run.") from failures[
            1
        ]
    trace = _recorded(record(denoiser, fake=False), denoiser, inputs)
    trace.fallback = str(failures[0])
    logger.warning("the graph is read by running the denoiser: %s", trace.fallback)
    return trace


def _recorded(recorder: Recorder, denoiser: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    try:
        return run(recorder, denoiser, inputs)
    except Exception as error:
        raise _explained(recorder.trace.frontend, recorder.current, error) from error


def _guarded(frontend: str, operation: str, call: Callable[[], Trace]) -> Trace:
    try:
        return call()
    except Exception as error:
        raise _explained(frontend, operation, error) from error


def _explained(frontend: str, operation: str, error: Exception) -> GraphError:
    library = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((library, here, "<"))]
    frame = own[-1] if own else frames[-1]
    message = str(error).strip().splitlines()
    return GraphError(
        f'frontend "{frontend}" stopped at {frame.filename}:{frame.lineno} ({frame.line})'
        f"{f', last operation {operation}' if operation else ''}: "
        f"{type(error).__name__}: {message[0] if message else ''}. "
        'Use on_error="unsegmented" to go on without segments.'
    )


def _read(denoiser: nn.Module, trace: Trace) -> LayerGraph:
    layers = layers_of(denoiser)
    first = {id(layer): name for name, layer in layers.items()}
    names = {
        name: first[id(child)]
        for name, child in denoiser.named_modules(remove_duplicate=False)
        if id(child) in first
    }
    owners = {id(layer.weight): name for name, layer in reversed(layers.items())}
    weights = {
        name: owners[id(parameter)]
        for name, parameter in denoiser.named_parameters(remove_duplicate=False)
        if id(parameter) in owners
    }
    flow = Flow(trace, layers=names, weights=weights)
    flow.run(rule)
    graph = report(
        flow,
        layers,
        frontend=trace.frontend,
        latents=next(iter(inspect.signature(denoiser.forward).parameters), ""),
    )
    graph.fallback = trace.fallback
    return graph


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = {child: child.training for child in module.modules()}
    try:
        for child in training:
            child.training = False
        yield
    finally:
        for child, was in training.items():
            child.training = was
