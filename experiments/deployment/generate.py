"""Prompts to images from this folder's ONNX files; needs numpy, onnxruntime, tokenizers and pillow.

python generate.py "large red circle top left" --seed 0 --to image.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

SAMPLER = "sampler.json"
CONSTANTS = "constants.npz"


class Pipeline:
    """The networks of a folder and the sampler's steps, as they were recorded."""

    def __init__(self, folder: str | Path, *, num_threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.sampler: dict[str, Any] = json.loads((self.folder / SAMPLER).read_text())
        self.constants = dict(np.load(self.folder / CONSTANTS))
        self._threads = num_threads
        self.networks: dict[str, Any] = {
            name: self._open(name) for name in self.sampler["networks"]
        }
        self.tokenizers = {
            name: Tokenizer.from_file(str(self.folder / name / "tokenizer.json"))
            for name in self.sampler["tokenizers"]
        }

    def _open(self, name: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads:
            options.intra_op_num_threads = self._threads
        path = str(self.folder / name / "model.onnx")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, prompt: str) -> dict[str, Any]:
        """What the text encoders say of one prompt, by name."""
        ids = {
            name: np.array([tokenizer.encode(prompt).ids], np.int64)
            for name, tokenizer in self.tokenizers.items()
        }
        network = self.networks["text_encoder"]
        names = [output.name for output in network.get_outputs()]
        return dict(zip(names, network.run(names, ids), strict=True))

    def noise(self, seed: int) -> Any:
        """What sampling starts from."""
        shape = (1, *self.sampler["latents"])
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        noise: Any = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """An image (H, W, 3) in [0, 1]."""
        texts = self._texts(prompt, negative_prompt)
        x = self.sampler["first"] * (self.noise(seed) if noise is None else noise)
        steps = self.sampler["steps"]
        for done, step in enumerate(steps):
            x = step["keep"] * x + step["move"] * self._denoised(x, step, texts)
            if progress is not None:
                progress(done + 1, len(steps))
        image = self.networks["vae_decoder"].run(None, {"latents": x.astype(np.float32)})[0]
        return np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)

    def _texts(self, prompt: str, negative_prompt: str) -> dict[str, Any]:
        """The denoiser's inputs that come from texts: without and with the prompt, if guided."""
        said = self.encode(prompt)
        if not self.sampler["guided"]:
            return {name: said[key] for name, key in self.sampler["texts"].items()}
        blank = {key: np.zeros_like(value) for key, value in said.items()}
        other = blank if self.sampler["blank_is_zero"] else self.encode(negative_prompt)
        return {
            name: np.concatenate([other[key], said[key]])
            for name, key in self.sampler["texts"].items()
        }

    def _denoised(self, x: Any, step: Mapping[str, Any], texts: Mapping[str, Any]) -> Any:
        rows = 2 if self.sampler["guided"] else 1
        given: dict[str, Any] = {self.sampler["sample"]: np.concatenate([step["scale"] * x] * rows)}
        given[self.sampler["timestep"]] = np.full(self.sampler["timesteps"], step["timestep"])
        given |= {**texts, **self.constants}
        network = self.networks["denoiser"]
        types: dict[str, Any] = {
            "tensor(float)": np.float32,
            "tensor(int64)": np.int64,
            "tensor(bool)": np.bool_,
        }
        feed = {i.name: given[i.name].astype(types[i.type]) for i in network.get_inputs()}
        out = network.run(None, feed)[0]
        if not self.sampler["guided"]:
            return out
        without, with_prompt = out[:1], out[1:]
        return without + self.sampler["guidance_scale"] * (with_prompt - without)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--negative", default="", metavar="PROMPT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--to", type=Path, default=Path("image.png"))
    given = parser.parse_args()

    def progress(done: int, steps: int) -> None:
        sys.stderr.write(f"\rstep {done} of {steps}" + "\n" * (done == steps))

    pipeline = Pipeline(Path(__file__).parent, num_threads=given.threads)
    image = pipeline(
        given.prompt, negative_prompt=given.negative, seed=given.seed, progress=progress
    )
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(given.to)


if __name__ == "__main__":
    main()
