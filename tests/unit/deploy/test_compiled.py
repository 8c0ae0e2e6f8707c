"""A quantized denoiser as one graph: compiled, and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import segquant.diffusers as deployed
from tests.unit.deploy.quantized_models import of_steps, output, quantized


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> None:
    torch._dynamo.reset()
    counters.clear()


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("name", ["flux", "unet"])
def test_compiled_it_is_one_graph_that_serves_all_steps(name: str) -> None:
    """Without Inductor, whose own fusing moves last bits: what is asked for is the graph."""
    model, batches = quantized(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for batch in batches:
        assert torch.equal(output(compiled, batch), output(model, batch))
    assert _graphs() == 1


def test_scales_of_steps_are_in_the_graph() -> None:
    model, batches = of_steps(4)
    made: Any = deployed.as_diffusers(model)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager", dynamic=False)
    wanted = [output(made, batch) for batch in batches]
    assert not torch.equal(wanted[0], wanted[1])
    found, graphs = [], []
    for batch in batches:
        found.append(output(compiled, batch))
        graphs.append(_graphs())
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert graphs[1] == graphs[-1] <= 2  # the step is first what an eager call left


@pytest.mark.parametrize("name", ["sd3", "flux", "unet"])
def test_exported_it_gives_the_same(name: str) -> None:
    model, batches = quantized(name)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=batches[0], strict=False)
        found = program.module()(**batches[1])[0]
    assert torch.equal(found, output(model, batches[1]))
