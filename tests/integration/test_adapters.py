"""PEFT adapters: fused before anything else, in the key, and of plain layers afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from safetensors.torch import load_file, save_file

from experiments.config.compose import build_cell
from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.sampling.adapters import adapter_file, check_adapter
from experiments.sampling.assembled import assemble, load_part
from experiments.sampling.pipelines import get_denoiser
from segquant.diffusers import SegQuantConfig
from tests.conftest import Answer

Segbench = Callable[..., Answer]
LAYERS = {
    "tiny_unet": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    "tiny_mmdit": ("transformer", "transformer_blocks.0.attn.to_q"),
    "tiny_flux": ("transformer", "transformer_blocks.0.attn.to_q"),
}
SCALE = 0.5


def _model(folder: Path, lora: Path | None = None, scale: float = 1.0) -> ModelConfig:
    model = build_cell(["model=folder", f"model.path={folder}"], method_name="x").model
    model.lora, model.lora_scale = None if lora is None else str(lora), scale
    return model


def _adapter(folder: Path, path: Path, *, name: str, rank: int = 2) -> dict[str, torch.Tensor]:
    """A pair of matrices for one layer, as PEFT saves them."""
    part, layer = LAYERS[name]
    out, inner = load_part(_model(folder), part).get_submodule(layer).weight.shape
    made = torch.Generator().manual_seed(0)
    pair = {
        f"{part}.{layer}.lora_A.weight": torch.randn(rank, inner, generator=made),
        f"{part}.{layer}.lora_B.weight": torch.randn(out, rank, generator=made),
    }
    save_file(pair, path)
    return pair


@pytest.mark.parametrize("name", LAYERS)
def test_a_fused_adapter_is_a_sum_in_plain_layers(zoo: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft")
    part, layer = LAYERS[name]
    a, b = _adapter(zoo / name, tmp_path / "a.safetensors", name=name).values()
    fused = _model(zoo / name, tmp_path / "a.safetensors", SCALE)
    before, after = load_part(_model(zoo / name), part), get_denoiser(assemble(fused))
    own, new = before.state_dict(), after.state_dict()
    assert own.keys() == new.keys()
    changed = [key for key in own if not torch.equal(own[key], new[key])]
    assert changed == [f"{layer}.weight"]
    torch.testing.assert_close(new[changed[0]], own[changed[0]] + SCALE * b @ a)
    kinds = [(n, type(m)) for n, m in before.named_modules()]
    assert [(n, type(m)) for n, m in after.named_modules()] == kinds
    again = load_part(fused, part).state_dict()
    assert all(torch.equal(new[key], again[key]) for key in new)


def test_a_run_says_which_adapter_and_its_contents_are_in_the_key(
    segbench: Segbench, small: Any, zoo: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    name, path = "tiny_unet", tmp_path / "a.safetensors"
    pair = _adapter(zoo / name, path, name=name)
    given = ["run", *small(name, f"out={tmp_path / 'out'}", "method=rtn", "--json")]
    (plain,) = segbench(*given).records
    answer = segbench(*given, f"model.lora={path}", "model.lora_scale=0.5")
    assert answer.status == 0, answer.err
    (record,) = answer.records
    said = record["protocol"]["lora"]
    assert (said["scale"], said["path"]) == (0.5, str(path))
    moved = tmp_path / "moved.safetensors"
    shutil.copy(path, moved)
    (same,) = segbench(*given, f"model.lora={moved}", "model.lora_scale=0.5").records
    save_file({key: 2 * tensor for key, tensor in pair.items()}, path)
    (other,) = segbench(*given, f"model.lora={path}", "model.lora_scale=0.5").records
    assert same["run_id"] == record["run_id"]
    assert len({plain["run_id"], record["run_id"], other["run_id"]}) == 3
    layers = [layer["name"] for layer in record["layers_quantized"]]
    assert layers == [layer["name"] for layer in plain["layers_quantized"]]


def test_another_models_adapter_is_refused(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "a.safetensors"
    pair = _adapter(zoo / "tiny_flux", path, name="tiny_flux")
    save_file({key.replace("to_q", "no_such"): value for key, value in pair.items()}, path)
    with pytest.raises(UserError, match=r"model.lora=.* another model's adapter"):
        assemble(_model(zoo / "tiny_flux", path))


def test_what_is_no_adapter_is_refused_beforehand(
    segbench: Segbench, small: Any, zoo: Path, tmp_path: Path
) -> None:
    def refused(*words: str) -> str:
        answer = segbench("run", *small("tiny_unet", "method=rtn", "--dry-run"), *words)
        assert answer.status == 2, answer.err
        return answer.err

    assert "no such file" in refused("model.lora=/no/such.safetensors")
    weights = zoo / "tiny_unet" / "unet" / "diffusion_pytorch_model.safetensors"
    assert "low-rank pair" in refused(f"model.lora={weights}")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert "cannot be read" in refused(f"model.lora={tmp_path / 'x.safetensors'}")
    assert "without model.lora" in refused("model.lora_scale=0.5")


def test_without_peft_the_extra_is_named(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    _adapter(zoo / "tiny_unet", path, name="tiny_unet")
    model = _model(zoo / "tiny_unet", path)
    assert adapter_file(model) == path
    assert len(load_file(path)) == 2
    monkeypatch.setitem(sys.modules, "peft", None)
    import diffusers

    with pytest.raises(UserError, match=r"pip install 'segquant-bench\[lora\]'"):
        check_adapter(model, diffusers.StableDiffusionXLPipeline)
    with pytest.raises(UserError, match="PixArtSigmaPipeline takes no adapter"):
        check_adapter(model, diffusers.PixArtSigmaPipeline)


def test_an_adapter_on_a_quantized_pipeline_and_one_that_does_not_fit(zoo: Path) -> None:
    """Unfused it changes the images, unloaded it is gone; what fails to load changes nothing."""
    pytest.importorskip("peft")
    mapping = {"unet": SegQuantConfig(weights=8, activations=8)}
    pipeline = DiffusionPipeline.from_pretrained(
        zoo / "tiny_unet",
        torch_dtype=torch.float32,
        quantization_config=PipelineQuantizationConfig(quant_mapping=mapping),
    )
    pipeline.set_progress_bar_config(disable=True)
    part, layer = LAYERS["tiny_unet"]
    shape = load_part(_model(zoo / "tiny_unet"), part).get_submodule(layer).weight.shape

    def adapter(inner: int) -> dict[str, torch.Tensor]:
        made = torch.Generator().manual_seed(0)
        return {
            f"{part}.{layer}.lora_A.weight": torch.randn(2, inner, generator=made),
            f"{part}.{layer}.lora_B.weight": torch.randn(shape[0], 2, generator=made),
        }

    def images() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        asked = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
        found: torch.Tensor = pipeline("a red circle", generator=generator, **asked).images
        return found

    own = images()
    with pytest.raises(RuntimeError, match="size mismatch"):
        pipeline.load_lora_weights(adapter(shape[1] + 1))
    assert torch.equal(images(), own)
    pipeline.load_lora_weights(adapter(shape[1]))
    assert not torch.equal(images(), own)
    with pytest.raises(ValueError, match="cannot be written: keep the adapter unfused"):
        pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert torch.equal(images(), own)
