"""The layers that see the sampling step and no tokens, in denoisers that name them otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from experiments.zoo import example_inputs
from segquant.graph import analyze
from tests.unit.graph.small import SMALL

Case = tuple[nn.Module, dict[str, Any]]


def z_image() -> Case:
    made = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=32, axes_dims=[8, 12, 12], axes_lens=[512, 64, 64],
    )  # fmt: skip
    x, text = torch.randn(16, 1, 4, 4), torch.randn(6, 32)
    return made, {"x": [x, x.clone()], "t": torch.rand(2), "cap_feats": [text, text.clone()]}


def flux2() -> Case:
    made = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return made, {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, 6, 24),
        "timestep": torch.rand(2),
        "img_ids": torch.zeros(16, 4),
        "txt_ids": torch.zeros(6, 4),
        "guidance": torch.rand(2),
    }


def chroma() -> Case:
    made = diffusers.ChromaTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    return made, {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 6, 24),
        "timestep": torch.rand(2),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
        "attention_mask": torch.ones(2, 22, dtype=torch.bool),
    }


def hidream() -> Case:
    made = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, caption_channels=[24, 24],
        text_emb_dim=20, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(4, 6, 6), max_resolution=(16, 16), llama_layers=[0, 1],
    )  # fmt: skip
    return made, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timesteps": torch.tensor([500, 500]),
        "encoder_hidden_states_t5": torch.randn(2, 6, 24),
        "encoder_hidden_states_llama3": torch.randn(2, 2, 6, 24),
        "pooled_embeds": torch.randn(2, 20),
    }


def of_the_zoo(made: nn.Module) -> Case:
    return made, example_inputs(made)


def wan() -> Case:
    return of_the_zoo(
        diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=24, freq_dim=16, ffn_dim=32, num_layers=1,
        )
    )  # fmt: skip


def qwen() -> Case:
    return of_the_zoo(
        diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip


def small(name: str) -> Callable[[], Case]:
    return lambda: of_the_zoo(SMALL[name]())


# Per denoiser its modulation; and some of what only embeds the step.
DENOISERS: dict[str, tuple[Callable[[], Case], set[str], set[str]]] = {
    "z_image": (
        z_image,
        {
            "noise_refiner.0.adaLN_modulation.0",
            "layers.0.adaLN_modulation.0",
            "all_final_layer.2-1.adaLN_modulation.1",
        },
        {"t_embedder.mlp.0", "t_embedder.mlp.2"},
    ),
    "flux2": (
        flux2,
        {
            "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.linear",
            "single_stream_modulation.linear",
            "norm_out.linear",
        },
        {"time_guidance_embed.timestep_embedder.linear_2"},
    ),
    "qwen": (
        qwen,
        {
            "transformer_blocks.0.img_mod.1",
            "transformer_blocks.0.txt_mod.1",
            "norm_out.linear",
        },
        {"time_text_embed.timestep_embedder.linear_1"},
    ),
    "wan": (
        wan,
        {"condition_embedder.time_proj", "condition_embedder.time_embedder.linear_2"},
        {"condition_embedder.time_embedder.linear_1"},
    ),
    "chroma": (
        chroma,
        {"distilled_guidance_layer.out_proj"},
        {"distilled_guidance_layer.in_proj"},
    ),
    "hidream": (
        hidream,
        {
            "double_stream_blocks.0.block.adaLN_modulation.1",
            "single_stream_blocks.0.block.adaLN_modulation.1",
            "final_layer.adaLN_modulation.1",
        },
        {"t_embedder.timestep_embedder.linear_2"},
    ),
    "sd3": (
        small("sd3"),
        {f"transformer_blocks.{n}.norm1{x}.linear" for n in (0, 1) for x in ("", "_context")}
        | {"norm_out.linear"},
        {"time_text_embed.timestep_embedder.linear_2"},
    ),
    "sdxl": (
        small("sdxl"),
        {"down_blocks.0.resnets.0.time_emb_proj", "up_blocks.1.resnets.1.time_emb_proj"},
        {"time_embedding.linear_1", "time_embedding.linear_2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DENOISERS)
def test_modulation_and_embedding_are_found_whatever_they_are_called(name: str) -> None:
    make, modulation, embedding = DENOISERS[name]
    denoiser, inputs = make()
    graph = analyze(denoiser.eval(), inputs)
    found = {kind: {n for n, one in graph.items() if one.conditioning == kind} for kind in KINDS}
    assert modulation <= found["modulation"]
    if name != "sdxl":
        assert found["modulation"] == modulation
    assert embedding <= found["embedding"]
    # Nothing that reads tokens, of image or text, is taken for one of them.
    conditioned = found["modulation"] | found["embedding"]
    assert not [n for n in conditioned if any(word in n for word in ("attn", "to_q", "ff", "feed"))]


KINDS = ("modulation", "embedding")


class Odd(nn.Module):
    """Every name is another; the step scales tokens, a mask and a pooled vector come along."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, z: Tensor, text: Tensor, t: Tensor, pooled: Tensor) -> Tensor:
        step = torch.sin(t[:, None] * torch.arange(8))
        buffer = torch.zeros(z.shape[0], 8)
        buffer[:, :4] = pooled[:, :4]
        shift = self.b(torch.nn.functional.silu(self.a(step) + buffer))
        changed = self.c(text * shift.type_as(text)[:, None])  # reads text: no modulation
        return self.d(z + shift[:, None].expand_as(z)) + changed.mean(1, keepdim=True)


@pytest.mark.parametrize("frontend", ["record", "export", "observe"])
def test_dependence_goes_through_views_casts_and_writes(frontend: str) -> None:
    z, text, t, pooled = torch.rand(2, 5, 8), torch.rand(2, 3, 8), torch.rand(2), torch.rand(2, 8)
    inputs = {"z": z, "text": text, "t": t, "pooled": pooled}
    graph = analyze(Odd(), inputs, frontend=frontend)
    found = {name: layer.conditioning for name, layer in graph.items()}
    assert found == {"a": "embedding", "b": "modulation", "c": "", "d": ""}
