"""A folder of ONNX files that makes images without torch: every network, tokenizers, the steps."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.deployment.generate import CONSTANTS, SAMPLER, Pipeline
from experiments.deployment.pipeline_folder import CALL
from experiments.deployment.recorded_sampler import Recording, record_run, stand_in, standing_in
from experiments.deployment.traced_parts import DecoderNetwork, TextNetwork
from experiments.errors import UserError
from experiments.sampling.pipelines import get_denoiser
from segquant.deploy.agreement import nudge, relative_difference
from segquant.deploy.onnx_export import (
    OnnxFile,
    export_denoiser,
    export_network,
    flat_arguments,
    refused_layers,
)
from segquant.deploy.onnx_running import feed_of, open_session
from segquant.graph import capture_example_inputs

log = logging.getLogger(__name__)

GENERATE, DENOISER = "generate.py", "denoiser"
FILE = "model.onnx"
_PROMPT = "a red circle"
_LEAST_PSNR = 50.0  # dB between two ways to make one image, where nothing in it is chaotic


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    said: OnnxFile  # of the denoiser
    megabytes: float
    agreement: Agreement
    generates: bool  # with generate.py


def load_folder(folder: Path, *, dtype: torch.dtype | None) -> Any:
    """A pipeline of diffusers, quantized ones too.

    Args:
        dtype: None leaves a quantized denoiser in its own; the rest is then float32.

    Raises:
        UserError: it is none.
    """
    import diffusers

    import segquant.diffusers  # noqa: F401 - makes the format known

    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder}: no model_index.json there; give a pipeline's folder")
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: diffusers cannot load it ({first})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measured_call(folder: Path) -> dict[str, Any]:
    """The arguments that the pipeline of a folder was measured with; none of another folder."""
    path = folder / CALL
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return known


def export_folder(
    pipeline: Any,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    denoiser_only: bool = False,
    seed: int = 0,
) -> Exported:
    """Writes the folder, whole or not at all; the pipeline is used up.

    Args:
        settings: arguments of the pipeline's call, but for prompts; the files are for them alone.

    Raises:
        UserError: a layer, a part or the sampler is none that can be written.
    """
    denoiser = get_denoiser(pipeline)
    refused = refused_layers(denoiser)
    if refused:
        name, reason = next(iter(refused.items()))
        raise UserError(f"{len(refused)} layers are not for ONNX: {name}: {reason}")
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    fresh.mkdir(parents=True)
    try:
        calls = denoiser_calls(pipeline, settings)
        recording = None
        if not denoiser_only:
            recording = _recorded(pipeline, settings, seed=seed)
            _write_parts(pipeline, fresh, recording, settings)
        log.info("exporting the denoiser")
        own, nudged = _told(denoiser, calls[0])
        said = export_denoiser(denoiser, calls, _place(fresh, DENOISER))
        session = open_session(fresh / DENOISER / FILE)
        found = session.run(feed_of(said, calls[0]))
        agreement = Agreement(difference=relative_difference(found, own), nudged=nudged)
        if recording is not None:
            _compare_runs(fresh, recording)
        if folder.is_dir():
            folder.rmdir()
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(
        folder=folder,
        said=said,
        megabytes=size / 1e6,
        agreement=agreement,
        generates=not denoiser_only,
    )


def _place(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name / FILE


def denoiser_calls(
    pipeline: Any, settings: Mapping[str, Any], *, counts: Sequence[int] = (1, 2)
) -> list[dict[str, Any]]:
    """The denoiser's arguments in a first step, with so many prompts each."""

    def call(count: int) -> dict[str, Any]:
        return capture_example_inputs(
            get_denoiser(pipeline),
            lambda: pipeline(
                [_PROMPT] * count,
                output_type="latent",
                generator=[torch.Generator().manual_seed(at) for at in range(count)],
                **settings,
            ),
        )

    return [call(count) for count in counts]


def _recorded(pipeline: Any, settings: Mapping[str, Any], *, seed: int) -> Recording:
    """A run from noise of the sample's own shape."""
    with torch.no_grad():
        shape = _latents_shape(pipeline, settings)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

        def run(latents: Tensor) -> Any:
            made = pipeline(_PROMPT, latents=latents.clone(), output_type="np", **settings)
            return made.images[0]

        return record_run(pipeline, run, noise=noise)


def _latents_shape(pipeline: Any, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Of one image's latents, as the pipeline's own `latents` argument takes them."""
    short = {**settings, "num_inference_steps": 1}
    with standing_in(pipeline, []):
        latents = pipeline(_PROMPT, output_type="latent", **short).images
    return (1, *latents.shape[1:])


def _write_parts(
    pipeline: Any, folder: Path, recording: Recording, settings: Mapping[str, Any]
) -> None:
    log.info("exporting the text encoders and the VAE")
    texts, constants, tokenizers = _write_texts(pipeline, folder, recording, settings)
    assert recording.image is not None
    height, width = recording.image.shape[:2]
    decoder = DecoderNetwork(pipeline, height=height, width=width)
    latents = {"latents": recording.latents}
    export_network(decoder, [latents], _place(folder, "vae_decoder"), said=_named("image"))
    np.savez(folder / CONSTANTS, **constants)
    sampler = {
        "networks": ["text_encoder", DENOISER, "vae_decoder"],
        "tokenizers": tokenizers,
        "latents": list(recording.noise.shape[1:]),
        "first": recording.first,
        "sample": recording.sample,
        "timestep": recording.timestep,
        "timesteps": list(recording.call[recording.timestep].shape),
        "guided": recording.guided,
        "guidance_scale": recording.guidance_scale,
        **texts,
        "steps": [asdict(step) for step in recording.steps],
    }
    (folder / SAMPLER).write_text(json.dumps(sampler, indent=1))
    shutil.copy(Path(__file__).with_name(GENERATE), folder / GENERATE)


def _named(*outputs: str) -> OnnxFile:
    return OnnxFile(inputs={}, types={}, outputs=list(outputs))


def _write_texts(
    pipeline: Any, folder: Path, recording: Recording, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The text encoders' file; which of the denoiser's inputs come from it, and the rest."""
    network = TextNetwork(pipeline, settings)
    with torch.no_grad():
        said, asked = network.encoded(_PROMPT, {})
    ids = {name: _write_tokenizer(pipeline, name, folder, asked[name]) for name in asked}
    keys = [f"text_{at}" for at in range(len(said))]
    export_network(network, [ids], _place(folder, "text_encoder"), said=_named(*keys))
    texts: dict[str, str] = {}
    constants: dict[str, Any] = {}
    zero = False
    for name, value in flat_arguments(recording.call).items():
        if not isinstance(value, Tensor) or name in (recording.sample, recording.timestep):
            continue
        half = value[value.shape[0] // 2 :] if recording.guided else value
        key = next((k for k, v in zip(keys, said, strict=True) if _equal(v, half)), None)
        if key is None or value.dim() < 2:
            constants[name] = value.numpy()
            continue
        texts[name] = key
        if recording.guided:
            zero = not bool(value[: value.shape[0] // 2].any())
    return {"texts": texts, "blank_is_zero": zero}, constants, list(ids)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)


def _write_tokenizer(pipeline: Any, name: str, folder: Path, asked: Mapping[str, Any]) -> Tensor:
    """A tokenizer's file that pads and cuts as the pipeline asks; the ids of the prompt.

    Raises:
        UserError: it has no such file, or its file gives other ids.
    """
    from tokenizers import Tokenizer

    real = getattr(pipeline, name)
    wanted = real(_PROMPT, **asked).input_ids
    if not getattr(real, "is_fast", False):
        raise UserError(f"{name}: {type(real).__name__} has no tokenizer.json; use --denoiser-only")
    made = Tokenizer.from_str(real.backend_tokenizer.to_str())
    length = wanted.shape[-1]
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=real.pad_token_id, pad_token=real.pad_token)
    if made.encode(_PROMPT).ids != wanted[0].tolist():
        raise UserError(f"{name}: its tokenizer.json gives other ids; use --denoiser-only")
    (folder / name).mkdir(exist_ok=True)
    made.save(str(folder / name / "tokenizer.json"))
    ids: Tensor = wanted
    return ids


class _StandIn:
    """In the denoiser's place in generate.py, as it was when the sampler was recorded."""

    def __init__(self, real: Any, sample: str) -> None:
        self._real, self._sample = real, sample

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def run(self, names: Any, feed: Mapping[str, Any]) -> list[Any]:
        given = {name: torch.from_numpy(value) for name, value in feed.items()}
        sample = given.pop(self._sample)
        return [stand_in(sample, list(given.values())).numpy()]


def _compare_runs(folder: Path, recording: Recording) -> None:
    """generate.py's image against the pipeline's, with another function for a denoiser.

    Raises:
        UserError: it is another image.
    """
    pipeline = Pipeline(folder)
    pipeline.networks[DENOISER] = _StandIn(pipeline.networks[DENOISER], recording.sample)
    made = pipeline(_PROMPT, noise=recording.noise.numpy())
    assert recording.image is not None
    error = float(((made - recording.image.numpy()) ** 2).mean())
    psnr = float("inf") if error == 0 else -10 * float(np.log10(error))
    if psnr < _LEAST_PSNR:
        raise UserError(
            f"generate.py would make other images than the pipeline ({psnr:.0f} dB, with a simple "
            "function for a denoiser): it does something between its networks that is not known "
            "here; use --denoiser-only"
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a file's outputs are from the denoiser's in torch, relative."""

    difference: float
    nudged: float  # what the denoiser's own do when its inputs are moved by a millionth


def _told(denoiser: nn.Module, call: Mapping[str, Any]) -> tuple[Tensor, float]:
    """The denoiser's output, and how far it moves with its input."""
    nudged = nudge(call, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own, moved = (denoiser(**given)[0].float() for given in (call, nudged))
    return own, relative_difference(moved, own)
