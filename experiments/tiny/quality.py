"""Are the tiny models good enough for damage to show? `python -m experiments.tiny.quality`.

On held-out prompts: the evaluator's CLIP score of each model's images against that of the true
images, and `fid_shapes_dataset` against that of the same model with untrained denoiser weights.
Writes `experiments/results/tiny_quality.json` and `.md`; about ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.clip_evaluator import Evaluator, load_evaluator
from evaluation.datasets import shapes
from evaluation.datasets.interface import Prompt
from evaluation.distances import frechet_distance
from evaluation.extractors import evaluator_extractor, picture_features
from evaluation.images import FolderPicture, load_images, write_png
from evaluation.metrics.clip_score import clip_scores
from evaluation.report.markdown import pipe_table
from experiments.config.compose import build, compose_config
from experiments.config.run_config import ModelConfig
from experiments.sampling.pipelines import get_denoiser, load_pipeline
from experiments.sampling.sample import generate_images
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from experiments.tiny.train import MODELS

log = logging.getLogger(__name__)

NAMES = ("tiny_mmdit", "tiny_flux", "tiny_unet")
COUNT = 512
_DATA_SEED = 1  # other prompts of the evaluation split than those of the demo
_BATCH = 32


def _score(
    folder: Path, prompts: list[Prompt], evaluator: Evaluator
) -> tuple[float, NDArray[np.float64]]:
    """Mean CLIP score, and the evaluator's features (N, D)."""
    ids = [prompt.id for prompt in prompts]
    images = load_images(folder, ids)
    scores = [
        clip_scores(evaluator, images[rows], [prompts[int(i)].shown for i in rows])
        for rows in torch.arange(len(ids)).split(_BATCH)
    ]
    pictures = [FolderPicture(path=folder / f"{name}.png") for name in ids]
    features = picture_features(pictures, extractor=evaluator_extractor(evaluator))
    return float(torch.cat(scores).mean()), features


def _untrained(pipeline: Any, *, seed: int) -> None:
    """Draws the denoiser's weights anew, as its class does."""
    denoiser = get_denoiser(pipeline)
    torch.manual_seed(seed)
    fresh = type(denoiser).from_config(denoiser.config)  # type: ignore[attr-defined]
    denoiser.load_state_dict(fresh.state_dict())


def measure(
    name: str, prompts: list[Prompt], *, true: NDArray[np.float64], evaluator: Evaluator
) -> dict[str, float]:
    """CLIP score and FID of one model, trained and untrained, against the features of `true`."""
    config: ModelConfig = build(compose_config([f"model={name}"]), method_name="").model
    config.batch_size = _BATCH
    result: dict[str, float] = {"steps": config.num_inference_steps, "n": len(prompts)}
    for kind in ("trained", "untrained"):
        pipeline = load_pipeline(config, device=torch.device("cpu"))
        if kind == "untrained":
            _untrained(pipeline, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            generate_images(
                pipeline, prompts, Path(folder), config=config, seed=0, progress=lambda _: None
            )
            score, features = _score(Path(folder), prompts, evaluator)
        result[f"clip_score_{kind}"] = score
        result[f"fid_shapes_dataset_{kind}"] = frechet_distance(features, true).value
        log.info("%s %s: %s", name, kind, result)
    return result


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as committed."""
    true = results["true_images"]["clip_score"]
    head = ["model", "CLIP score", "of the true images'", "fid_shapes_dataset", "untrained"]
    body = []
    for name in (name for name in NAMES if name in results):
        row = results[name]
        fid, worst = row["fid_shapes_dataset_trained"], row["fid_shapes_dataset_untrained"]
        score = row["clip_score_trained"]
        shown = [f"{score:.2f}", f"{score / true:.1%}", f"{fid:.3f}", f"{worst:.2f}"]
        body.append([name, *shown, f"{fid / worst:.4f}"])
    lines = [
        f"Tiny models on {COUNT} held-out prompts, by the tiny evaluator "
        "(`python -m experiments.tiny.quality`). CLIP score of the true images: "
        f"{true:.2f}.",
        "",
        pipe_table([*head, "ratio"], body, numeric=[False, *(True for _ in head)]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tiny.quality")
    parser.add_argument("models", nargs="*", default=[n for n in NAMES if (MODELS / n).is_dir()])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    evaluator = load_evaluator(MODELS / "evaluator")
    samples = shapes.take("evaluation", arguments.count, seed=_DATA_SEED)
    prompts = [Prompt(id=sample.id, text=sample.prompt) for sample in samples]
    with tempfile.TemporaryDirectory() as folder:
        for sample in samples:
            image = shapes.render(sample.scene, key=sample.id)
            write_png(Path(folder) / f"{sample.id}.png", image)
        score, true = _score(Path(folder), prompts, evaluator)
    results: dict[str, dict[str, float]] = {"true_images": {"clip_score": score, "n": len(prompts)}}
    for name in arguments.models:
        results[name] = measure(name, prompts, true=true, evaluator=evaluator)
    write_text(arguments.out / "tiny_quality.json", json.dumps(results, indent=1) + "\n")
    write_text(arguments.out / "tiny_quality.md", table(results))


if __name__ == "__main__":
    main()
