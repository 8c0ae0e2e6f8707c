"""Text encoders and VAE of a pipeline as networks of token ids and of latents."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

_TOKENIZER = "tokenizer"


class _Told:
    """In a tokenizer's place: tells ids that are given, whatever it is asked."""

    def __init__(self, real: Any, ids: Tensor | None) -> None:
        self.real, self.ids, self.asked = real, ids, dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, text: Any, **asked: Any) -> Any:
        if asked.get("padding") == "longest":  # to see whether something was cut: nothing was
            return SimpleNamespace(input_ids=torch.zeros(1, 0, dtype=torch.long))
        self.asked = asked
        if self.ids is None:
            return self.real(text, **asked)
        return SimpleNamespace(input_ids=self.ids, attention_mask=torch.ones_like(self.ids))


class TextNetwork(nn.Module):
    """Token ids of each tokenizer -> what `encode_prompt` returns of one prompt."""

    def __init__(self, pipeline: Any, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._pipeline, self._settings = (pipeline,), dict(settings)
        self.encoders = nn.ModuleDict(
            {n: p for n, p in pipeline.components.items() if n.startswith("text_encoder") and p}
        )
        self.tokenizers = [
            n for n, p in pipeline.components.items() if n.startswith(_TOKENIZER) and p is not None
        ]

    def encoded(
        self, prompt: str, ids: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """The embeddings of a prompt, and what each tokenizer was asked.

        Args:
            ids: in the place of what the tokenizers say; none of a missing name.
        """
        (pipeline,) = self._pipeline
        told = {name: _Told(getattr(pipeline, name), ids.get(name)) for name in self.tokenizers}
        kept = {name: getattr(pipeline, name) for name in told}
        takes = inspect.signature(pipeline.encode_prompt).parameters
        given = {**self._settings, "do_classifier_free_guidance": False, "device": "cpu"}
        given = {name: value for name, value in given.items() if name in takes}
        needed = [n for n, p in takes.items() if p.default is p.empty and n != "prompt"]
        given |= {name: None for name in needed if name not in given}
        for name, tokenizer in told.items():
            setattr(pipeline, name, tokenizer)
        try:
            out = pipeline.encode_prompt(prompt=prompt, **given)
        finally:
            for name, tokenizer in kept.items():
                setattr(pipeline, name, tokenizer)
        tensors = [value for value in out if isinstance(value, Tensor)]
        return tensors, {name: tokenizer.asked for name, tokenizer in told.items()}

    def forward(self, **ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoded("a", ids)[0])


class DecoderNetwork(nn.Module):
    """Latents as they are after the last step -> images in [-1, 1]."""

    def __init__(self, pipeline: Any, *, height: int, width: int) -> None:
        super().__init__()
        self._pipeline, self.vae = (pipeline,), pipeline.vae
        self._size = height, width

    def forward(self, latents: Tensor) -> Tensor:
        (pipeline,) = self._pipeline
        if latents.dim() == 3:  # tokens of two by two
            latents = pipeline._unpack_latents(latents, *self._size, pipeline.vae_scale_factor)
        config = self.vae.config
        latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        image: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return image
