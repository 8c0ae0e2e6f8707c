"""Denoisers of diffusers as users have them: with weights, in any mode, at any size."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.zoo import example_inputs
from experiments.zoo.inspection import inspect_call, render_table, summarize
from segquant.graph import LayerGraph, LayerInfo, analyze, capture_example_inputs
from tests.unit.graph.small import SMALL, flux, sd3, sdxl, state


def stripped(graph: LayerGraph) -> list[LayerInfo]:
    """Without the words, whose operation names depend on the front end and on sizes."""
    return [
        replace(
            layer,
            paths=(),
            input_segments=tuple(replace(part, producer="") for part in layer.input_segments),
        )
        for layer in graph.values()
    ]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_front_ends_sizes_batch_and_weights_agree(name: str) -> None:
    denoiser = SMALL[name]()
    inputs = example_inputs(denoiser)
    expected = stripped(analyze(denoiser, inputs))
    assert stripped(analyze(denoiser, inputs, frontend="export")) == expected
    assert stripped(analyze(denoiser, inputs, frontend="observe")) == expected
    larger = example_inputs(denoiser, batch=3, scale=2)
    assert stripped(analyze(denoiser, larger)) == expected
    half = SMALL[name]().to(torch.bfloat16)
    assert stripped(analyze(half, example_inputs(half))) == expected


@pytest.mark.parametrize("frontend", ["record", "export"])
def test_module_is_left_as_it_was(frontend: str) -> None:
    denoiser = sd3().train()
    denoiser.get_submodule("transformer_blocks.1").eval()
    before = state(denoiser)
    graph = analyze(denoiser, example_inputs(denoiser), frontend=frontend)
    assert state(denoiser) == before
    assert stripped(graph) == stripped(analyze(denoiser.eval(), example_inputs(denoiser)))


def test_sd3_with_dual_attention() -> None:
    graph = analyze(sd3(), example_inputs(sd3()))
    assert graph["transformer_blocks.0.norm1.linear"].output_segments == (32,) * 9
    assert graph["transformer_blocks.1.norm1.linear"].output_segments == (32,) * 6
    assert graph["transformer_blocks.0.norm1_context.linear"].output_segments == (32,) * 6
    assert graph["transformer_blocks.1.norm1_context.linear"].output_segments == (32,) * 2
    assert graph["transformer_blocks.0.attn.to_out.0"].head_segments == (8,) * 4
    assert graph["transformer_blocks.0.attn.to_out.0"].input_segments[0].size == 32
    assert graph["transformer_blocks.0.ff.net.2"].input_segments[0].one_sided
    shared = {graph[f"transformer_blocks.0.attn.to_{x}"].shared_input for x in "qkv"}
    assert shared == {"transformer_blocks.0.attn.to_q"}
    first = graph["transformer_blocks.0.norm1.linear"].paths[0]
    assert first.startswith("transformer_blocks.0.norm1.linear -> chunk(9, dim=1)")


def test_flux_single_block() -> None:
    graph = analyze(flux(), example_inputs(flux()))
    layer = graph["single_transformer_blocks.0.proj_out"]
    attention, gelu = layer.input_segments
    assert (attention.size, gelu.size) == (32, 128)
    assert (attention.one_sided, gelu.one_sided) == (False, True)
    assert gelu.producer == "single_transformer_blocks.0.act_mlp(gelu)"
    assert layer.head_segments == (16, 16, 128)
    assert graph["single_transformer_blocks.0.norm.linear"].output_segments == (32,) * 3


def test_sdxl_geglu_and_skips() -> None:
    graph = analyze(sdxl(), example_inputs(sdxl()))
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    assert graph[f"{block}.ff.net.0.proj"].output_segments == (256, 256)
    (product,) = graph[f"{block}.ff.net.2"].input_segments
    assert not product.one_sided
    assert product.producer == f"{block}.ff.net.0(gated gelu)"
    skip = graph["up_blocks.0.resnets.0.conv1"]
    assert skip.kind == "conv2d"
    assert [part.size for part in skip.input_segments] == [64, 64]
    assert all(part.one_sided for part in skip.input_segments)
    shortcut = graph["up_blocks.0.resnets.0.conv_shortcut"]
    assert [part.size for part in shortcut.input_segments] == [64, 64]
    assert not any(part.one_sided for part in shortcut.input_segments)


def test_json_round_trip_and_table() -> None:
    graph = analyze(flux(), example_inputs(flux()))
    again = LayerGraph.from_json(graph.to_json())
    assert list(again.values()) == list(graph.values())
    table = render_table(graph)
    assert "32+128" in table
    assert f"linear: {summarize(graph)['linear']}" in table
    with pytest.raises(ValueError, match="schema_version 99"):
        LayerGraph.from_json('{"schema_version": 99}')


def test_inputs_are_captured_from_one_real_call() -> None:
    denoiser = flux()
    inputs = example_inputs(denoiser)
    before = state(denoiser)
    graph = inspect_call(denoiser, lambda: denoiser(inputs["hidden_states"], **_rest(inputs)))
    assert state(denoiser) == before
    assert stripped(graph) == stripped(analyze(denoiser, inputs))
    with pytest.raises(ValueError, match="never called the FluxTransformer2DModel"):
        capture_example_inputs(denoiser, lambda: None)


def _rest(inputs: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in inputs.items() if key != "hidden_states"}


class _Tied(nn.Module):
    """Two linears with one weight, one called twice, one module under two names, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.alias = self.first
        self.unused = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, dim=-1)
        gated = nn.functional.silu(self.alias(x.exp()))
        return self.second(gated) * torch.cat([a * b, b], dim=-1)


@pytest.mark.parametrize("frontend", ["record", "export"])
def test_tied_shared_and_unused_layers(frontend: str) -> None:
    module = _Tied()
    before = state(module)
    graph = analyze(module, {"x": torch.zeros(2, 3, 8)}, frontend=frontend)
    assert state(module) == before
    assert list(graph) == ["first", "second", "unused"]
    assert graph["first"].calls == 2
    assert graph["first"].output_segments == (4, 4)
    assert graph["second"].output_segments == (4, 4)
    assert not graph["first"].input_segments[0].one_sided
    assert graph["second"].input_segments[0].one_sided
    assert graph["unused"].calls == 0
    assert graph["unused"].input_segments[0].producer == "never called"
