"""Puts the trained parts into diffusers' own folders, each with a card and a sample grid."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from evaluation.datasets.shapes import take
from evaluation.report.markdown import pipe_table
from experiments.tiny import denoisers, text

log = logging.getLogger(__name__)

# how a card's samples are drawn; conf/model/tiny_*.yaml says the same and a test compares them
CALLS: dict[str, dict[str, Any]] = {
    "tiny_mmdit": {
        "num_inference_steps": 12,
        "guidance_scale": 2.0,
        "max_sequence_length": text.MAX_TOKENS,
    },
    "tiny_flux": {
        "num_inference_steps": 12,
        "guidance_scale": 1.0,
        "max_sequence_length": text.MAX_TOKENS,
    },
    "tiny_unet": {"num_inference_steps": 20, "guidance_scale": 2.0},
}
_GRID = (4, 8)


def _shared(root: Path) -> dict[str, Any]:
    half = torch.float16
    clip = CLIPTextModelWithProjection.from_pretrained(root / "text" / "clip", dtype=half)
    return {
        "vae": AutoencoderKL.from_pretrained(root / "vae" / "model", torch_dtype=half),
        "clip": clip,
        "plain": text.without_projection(clip).half(),
        "t5": T5EncoderModel.from_pretrained(root / "text" / "t5", dtype=half),
        "clip_tokenizer": text.build_clip_tokenizer(),
        "t5_tokenizer": text.build_t5_tokenizer(),
    }


def build_pipeline(name: str, parts: dict[str, Any], denoiser: Any) -> DiffusionPipeline:
    """The pipeline of one of the three tiny models around a denoiser."""
    tokenizer = parts["clip_tokenizer"]
    if name == "tiny_mmdit":
        return StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=denoisers.flow_scheduler(),
            vae=parts["vae"],
            text_encoder=parts["clip"],
            tokenizer=tokenizer,
            text_encoder_2=parts["clip"],
            tokenizer_2=tokenizer,
            text_encoder_3=parts["t5"],
            tokenizer_3=parts["t5_tokenizer"],
        )
    if name == "tiny_flux":
        return FluxPipeline(
            scheduler=denoisers.flow_scheduler(),
            vae=parts["vae"],
            text_encoder=parts["plain"],
            tokenizer=tokenizer,
            text_encoder_2=parts["t5"],
            tokenizer_2=parts["t5_tokenizer"],
            transformer=denoiser,
        )
    return StableDiffusionXLPipeline(
        vae=parts["vae"],
        text_encoder=parts["plain"],
        text_encoder_2=parts["clip"],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser,
        scheduler=denoisers.euler_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


_DENOISERS: dict[str, type[ModelMixin]] = {
    "tiny_mmdit": SD3Transformer2DModel,
    "tiny_flux": FluxTransformer2DModel,
    "tiny_unet": UNet2DConditionModel,
}


def sample_grid(folder: Path, *, call: dict[str, Any]) -> Image.Image:
    """Images of the first evaluation prompts, loaded as any user would load the folder."""
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows, columns = _GRID
    samples = take("evaluation", rows * columns)
    generators = [torch.Generator().manual_seed(index) for index in range(len(samples))]
    images = pipeline(
        [sample.prompt for sample in samples],
        height=64,
        width=64,
        generator=generators,
        output_type="np",
        **call,
    ).images
    grid = np.concatenate(
        [np.concatenate(list(images[r * columns : (r + 1) * columns]), axis=1) for r in range(rows)]
    )
    return Image.fromarray((grid * 255).round().astype(np.uint8))


def _card(root: Path, name: str, *, parameters: int, call: dict[str, Any]) -> str:
    rows = []
    for stage in ("vae", "text", name):
        record = json.loads((root / stage / "done.json").read_text())
        shown = [str(record[key]) for key in ("steps", "batch_size", "learning_rate")]
        losses = [f"{record['losses'][at]:.4f}" for at in (0, -1)]
        rows.append([stage, *shown, f"{record['seconds']:.0f}", *losses])
    head = ["part", "steps", "batch", "learning rate", "seconds", "first loss", "final loss"]
    settings = ", ".join(f"`{key}={value}`" for key, value in call.items())
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A {parameters / 1e6:.1f}-million-parameter denoiser in diffusers' own format, "
            "trained from nothing on `shapes` (procedural scenes of one to three objects, 64x64).",
            "Weights are stored in float16 and computed with in float32.",
            "",
            pipe_table(head, rows, numeric=[False, *(True for _ in head[1:])]),
            "",
            "Seconds are wall-clock on two shared CPU cores. Made by "
            "`python -m experiments.tiny.train`.",
            f"Sampled with {settings}; prompts of the evaluation split, seeds 0 to 31:",
            "",
            "![samples](samples.png)",
            "",
        ]
    )


def assemble(root: Path, *, target: Path) -> None:
    """Writes every trained model found under `root` to `target`; leaves out what is not trained."""
    parts = _shared(root)
    if (root / "evaluator" / "done.json").exists():
        shutil.copytree(root / "evaluator" / "model", target / "evaluator", dirs_exist_ok=True)
    for name, kind in _DENOISERS.items():
        if not (root / name / "done.json").exists():
            log.warning("%s is not trained yet: left out", name)
            continue
        denoiser = kind.from_pretrained(root / name / "model", torch_dtype=torch.float16)
        shutil.rmtree(target / name, ignore_errors=True)
        build_pipeline(name, parts, denoiser).save_pretrained(target / name)
        sample_grid(target / name, call=CALLS[name]).save(target / name / "samples.png")
        parameters = sum(p.numel() for p in denoiser.parameters())
        card = _card(root, name, parameters=parameters, call=CALLS[name])
        (target / name / "README.md").write_text(card)
        log.info("wrote %s", target / name)
