"""Prompts and true images: the procedural `shapes`, or a user's own file."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from evaluation.images import write_png
from experiments.config.run_config import DatasetConfig
from experiments.errors import UserError
from experiments.tiny import shapes

SPLITS = ("evaluation", "calibration")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and the id that names its images and seeds its noise."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The prompts of a run."""

    name: str
    evaluation: tuple[Prompt, ...]
    calibration: tuple[Prompt, ...]
    config: DatasetConfig

    @property
    def has_images(self) -> bool:
        return self.config.kind == "shapes" or self.config.images is not None


def prompts_hash(prompts: tuple[Prompt, ...]) -> str:
    """Identifies a list of prompts: ids, texts and order."""
    text = json.dumps([[prompt.id, prompt.text] for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def noise_seed(prompt_id: str, *, seed: int) -> int:
    """The seed of a prompt's initial noise: a hash of the run's seed and the prompt's id."""
    raw = hashlib.sha256(f"noise|{seed}|{prompt_id}".encode()).digest()
    return int.from_bytes(raw[:8], "little") >> 1  # torch takes 63 bits


def load_dataset(config: DatasetConfig) -> Dataset:
    """The first prompts of each split, as many as the config asks for.

    With a `calibration_seed`, a file's calibration prompts are drawn by it, not the first ones.

    Raises:
        UserError: the file is missing or malformed, or a prompt is in both splits.
    """
    counts = {"evaluation": config.evaluation_prompts, "calibration": config.calibration_prompts}
    if config.kind == "shapes":
        seeds = {"evaluation": config.seed, "calibration": _calibration_seed(config)}
        splits = {
            split: tuple(
                Prompt(id=sample.id, text=sample.prompt)
                for sample in shapes.take(split, count, seed=seeds[split])
            )
            for split, count in counts.items()
        }
    else:
        splits = _read(config, counts)
    shared = {p.text for p in splits["evaluation"]} & {p.text for p in splits["calibration"]}
    if shared:
        raise UserError(
            f"dataset {config.name}: {len(shared)} prompts are in both splits, for example "
            f"{sorted(shared)[0]!r}; calibrate on other prompts than those you evaluate on"
        )
    return Dataset(
        name=config.name,
        evaluation=splits["evaluation"],
        calibration=splits["calibration"],
        config=config,
    )


def _calibration_seed(config: DatasetConfig) -> int:
    return config.seed if config.calibration_seed is None else config.calibration_seed


def _read(config: DatasetConfig, counts: dict[str, int]) -> dict[str, tuple[Prompt, ...]]:
    path = Path(config.path or "")
    if not path.is_file():
        raise UserError(f"dataset.path={config.path}: no such file; give a JSON-lines file")
    found: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = Prompt(id=str(row["id"]), text=str(row["prompt"]))
            split = str(row.get("split", "evaluation"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: cannot read this line ({error!r}); each is "
                '{"id": "...", "prompt": "...", "split": "evaluation" or "calibration"}'
            ) from error
        if split not in SPLITS or prompt.id in seen or "/" in prompt.id:
            raise UserError(
                f"{path}:{number}: id {prompt.id!r}, split {split!r}; ids are unique and without "
                f"'/', splits are {' or '.join(SPLITS)}"
            )
        seen.add(prompt.id)
        found[split].append(prompt)
    few = {split: len(found[split]) for split, count in counts.items() if len(found[split]) < count}
    if few:
        said = ", ".join(f"{n} {split} prompts of {counts[split]}" for split, n in few.items())
        keys = " and ".join(f"dataset.{split}_prompts" for split in few)
        raise UserError(f"{path} has {said} asked for; add prompts or set {keys}")
    if config.calibration_seed is not None:
        random.Random(config.calibration_seed).shuffle(found["calibration"])
    return {split: tuple(found[split][: counts[split]]) for split in SPLITS}


def write_true_images(dataset: Dataset, folder: Path) -> None:
    """The true images of the evaluation prompts as `<id>.png`."""
    if dataset.config.kind == "shapes":
        count, seed = dataset.config.evaluation_prompts, dataset.config.seed
        for sample in shapes.take("evaluation", count, seed=seed):
            write_png(folder / f"{sample.id}.png", shapes.render(sample.scene, key=sample.id))
        return
    from PIL import Image

    source = Path(dataset.config.images or "")
    for prompt in dataset.evaluation:
        path = source / f"{prompt.id}.png"
        if not path.is_file():
            raise UserError(f"dataset.images={source}: {path.name} is missing")
        with Image.open(path) as image:
            write_png(folder / path.name, image.convert("RGB"))
