"""Trains the tiny models from nothing: `python -m experiments.tiny.train [STAGE ...]`.

Stages: vae, text, evaluator, data, tiny_mmdit, tiny_flux, tiny_unet, assemble. Each keeps its
checkpoint under the work folder and goes on from there if it was cut; a finished one is skipped.
Seeds are fixed. About three hours on two CPU cores; the result is committed beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from evaluation.datasets.shapes import take
from experiments.store.paths import TINY_MODELS
from experiments.tiny import denoisers, evaluator, text, vae
from experiments.tiny.training import TrainingLog

log = logging.getLogger(__name__)

MODELS = TINY_MODELS
_VAE = {"steps": 3000, "batch_size": 8, "seed": 1}
_TEXT = {"steps": 1500, "batch_size": 128, "seed": 2}
_EVALUATOR = {"steps": 1500, "batch_size": 96, "seed": 3}
_DENOISER_SEEDS = {"tiny_mmdit": 11, "tiny_flux": 12, "tiny_unet": 13}
_AUTOENCODER_SAMPLES = 20_000
_EVALUATOR_SAMPLES, _EVALUATOR_DATA_SEED = 20_000, 7
_DENOISER_SAMPLES = 30_000


def _done(work: Path) -> bool:
    return (work / "done.json").exists()


def _finish(work: Path, record: TrainingLog) -> None:
    (work / "done.json").write_text(json.dumps(asdict(record), indent=1) + "\n")


def train_vae_stage(root: Path) -> None:
    samples = take("train", _AUTOENCODER_SAMPLES)
    model, record = vae.train_vae(samples, work=root / "vae", **_VAE)
    model.half().save_pretrained(root / "vae" / "model")
    _finish(root / "vae", record)


def train_text_stage(root: Path) -> None:
    samples = take("train", _AUTOENCODER_SAMPLES)
    clip, t5, record = text.train_text(samples, work=root / "text", **_TEXT)
    clip.half().save_pretrained(root / "text" / "clip")
    t5.half().save_pretrained(root / "text" / "t5")
    _finish(root / "text", record)


def train_evaluator_stage(root: Path) -> None:
    samples = take("train", _EVALUATOR_SAMPLES, seed=_EVALUATOR_DATA_SEED)
    clip, record = evaluator.train_evaluator(samples, work=root / "evaluator", **_EVALUATOR)
    evaluator.save_evaluator(clip, root / "evaluator" / "model")
    _finish(root / "evaluator", record)


def load_parts(
    root: Path,
) -> tuple[AutoencoderKL, CLIPTextModelWithProjection, T5EncoderModel]:
    """The trained autoencoder and text encoders as the pipelines will load them, in float32."""
    return (
        AutoencoderKL.from_pretrained(root / "vae" / "model", torch_dtype=torch.float32).eval(),
        CLIPTextModelWithProjection.from_pretrained(
            root / "text" / "clip", dtype=torch.float32
        ).eval(),
        T5EncoderModel.from_pretrained(root / "text" / "t5", dtype=torch.float32).eval(),
    )


@torch.no_grad()
def data_stage(root: Path) -> None:
    """Latents and text states of the training samples, computed once for the three denoisers."""
    autoencoder, clip, t5 = load_parts(root)
    samples = take("train", _DENOISER_SAMPLES)
    prompts = [*(sample.prompt for sample in samples), ""]
    clip_ids = text.tokenize(text.build_clip_tokenizer(), prompts)
    t5_ids = text.tokenize(text.build_t5_tokenizer(), prompts)
    parts: dict[str, list[torch.Tensor]] = {"clip": [], "projected": [], "plain": [], "t5": []}
    for rows in torch.arange(len(prompts)).split(500):
        out = clip(clip_ids[rows], output_hidden_states=True)
        end = (clip_ids[rows] == clip.config.eos_token_id).int().argmax(dim=-1)
        parts["clip"].append(out.hidden_states[-2].half())
        parts["projected"].append(out.text_embeds.half())
        parts["plain"].append(out.last_hidden_state[torch.arange(len(end)), end].half())
        parts["t5"].append(t5(t5_ids[rows])[0].half())
    tensors = {key: torch.cat(value) for key, value in parts.items()}
    tensors["latents"] = vae.encode(autoencoder, samples).contiguous()
    (root / "data").mkdir(parents=True, exist_ok=True)
    temporary = root / "data" / "data.tmp"
    save_file(tensors, temporary)
    os.replace(temporary, root / "data" / "data.safetensors")
    record = TrainingLog(name="data", steps=0, batch_size=0, learning_rate=0.0)
    _finish(root / "data", record)


def denoiser_stage(name: str) -> Callable[[Path], None]:
    def stage(root: Path) -> None:
        data = denoisers.TrainingData(**load_file(root / "data" / "data.safetensors"))
        model, record = denoisers.train_denoiser(
            name, data, seed=_DENOISER_SEEDS[name], work=root / name
        )
        model.half().save_pretrained(root / name / "model")  # type: ignore[operator]
        _finish(root / name, record)

    return stage


def assemble_stage(root: Path) -> None:
    from experiments.tiny.assemble import assemble

    assemble(root, target=MODELS)


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": train_vae_stage,
    "text": train_text_stage,
    "evaluator": train_evaluator_stage,
    "data": data_stage,
    **{name: denoiser_stage(name) for name in denoisers.RECIPES},
    "assemble": assemble_stage,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny.train", description=__doc__)
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    unknown = [stage for stage in arguments.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; choose from {', '.join(STAGES)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    for name in arguments.stages:
        if name != "assemble" and _done(arguments.work / name):
            log.info("%s: already trained", name)
            continue
        STAGES[name](arguments.work)


if __name__ == "__main__":
    main()
