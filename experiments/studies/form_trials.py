"""One quantized denoiser in every format: written, loaded again by its library, and compared.

`TRIALS` is the one list of formats that are tried; the table's columns are its names.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segquant.deploy.agreement import NUDGE, relative_difference
from segquant.deploy.other_formats import FormRefused, write_form
from segquant.deploy.other_formats.form_interface import quantized_layers


class Result(Enum):
    """What became of it. Names are what the csv says."""

    loaded = "loaded"  # by the library, here
    written = "written"  # its library does not run on a CPU
    refused = "refused"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A quantized denoiser as diffusers knows it, one call's inputs, and what they give."""

    denoiser: Any
    inputs: Mapping[str, Any]
    output: Tensor

    @classmethod
    def of(cls, denoiser: nn.Module, inputs: Mapping[str, Any]) -> Subject:
        import diffusers

        from segquant.diffusers import as_diffusers

        diffusers.utils.logging.set_verbosity_error()
        model = as_diffusers(denoiser.eval())
        return cls(denoiser=model, inputs=inputs, output=_output(model, inputs))

    @property
    def layers(self) -> int:
        return len(quantized_layers(self.denoiser))

    def layer_difference(self, loaded: nn.Module) -> float:
        """The median over the layers that the call reaches."""
        found: list[float] = []

        def compare(name: str) -> Callable[..., None]:
            def take(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                other = loaded.get_submodule(name)(args[0])
                found.append(relative_difference(other, out))

            return take

        layers = quantized_layers(self.denoiser).items()
        hooks = [layer.register_forward_hook(compare(name)) for name, layer in layers]
        _output(self.denoiser, self.inputs)
        for hook in hooks:
            hook.remove()
        return statistics.median(found)

    def nudged(self) -> float:
        """What moving the inputs by a millionth of themselves does: the yardstick."""
        moved = {k: v * (1 + NUDGE) if _is_state(v) else v for k, v in self.inputs.items()}
        return self.difference(_output(self.denoiser, moved))

    def difference(self, found: Tensor) -> float:
        return relative_difference(found, self.output)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one denoiser in one format."""

    result: Result
    layers: int
    difference: float | None = None  # of the output, relative; None where nothing was run
    layer_difference: float | None = None  # the same of each layer on what it reads: the median
    reasons: tuple[tuple[str, int], ...] = ()  # why not, and of how many layers
    refused: int = 0  # layers


Trial = Callable[[Subject, Path], Outcome]


def _output(denoiser: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = denoiser(**inputs, return_dict=False)[0]
    return found


def _is_state(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point() and value.dim() > 1


def _diffusers(subject: Subject, folder: Path) -> Outcome:
    subject.denoiser.save_pretrained(folder)
    return _loaded(subject, _from_pretrained(subject, folder))


def _from_pretrained(subject: Subject, folder: Path) -> nn.Module:
    kind, dtype = type(subject.denoiser), subject.denoiser.dtype
    loaded: nn.Module = kind.from_pretrained(folder, torch_dtype=dtype)
    return loaded


def _loaded(subject: Subject, model: nn.Module) -> Outcome:
    found = _output(model.eval(), subject.inputs)
    return Outcome(
        result=Result.loaded,
        layers=subject.layers,
        difference=subject.difference(found),
        layer_difference=subject.layer_difference(model),
    )


def _trial(form: str, load: Callable[[Subject, Path], nn.Module] | None) -> Trial:
    def run(subject: Subject, folder: Path) -> Outcome:
        try:
            write_form(subject.denoiser, folder, form=form, inputs=subject.inputs)
        except FormRefused as refusal:
            return Outcome(
                result=Result.refused,
                layers=refusal.layers,
                refused=refusal.refused,
                reasons=tuple((why, len(names)) for why, names in refusal.reasons.items()),
            )
        if load is None:
            return Outcome(result=Result.written, layers=subject.layers)
        return _loaded(subject, load(subject, folder))

    return run


def load_compressed_tensors(kind: type[Any], folder: Path) -> nn.Module:
    """A denoiser that compressed-tensors' own modules run; as docs/formats.md has it."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    del quantization["version"]
    quantization = QuantizationConfig.model_validate(quantization)
    model: Any = kind.from_config(config)
    apply_quantization_config(model, quantization, show_progress=False)
    ModelCompressor(quantization_config=quantization).compress_model(model)
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    model.load_state_dict(state, assign=True)
    loaded: nn.Module = model.eval()
    return loaded


def _compressed_tensors(subject: Subject, folder: Path) -> nn.Module:
    return load_compressed_tensors(type(subject.denoiser), folder)


TRIALS: Mapping[str, Trial] = {
    "diffusers": _diffusers,
    "compressed-tensors": _trial("compressed-tensors", _compressed_tensors),
    "torchao": _trial("torchao", _from_pretrained),
    "nunchaku-lite": _trial("nunchaku-lite", None),
}


def try_forms(subject: Subject, *, forms: Sequence[str]) -> dict[str, Outcome]:
    """By the formats' names."""
    with TemporaryDirectory() as home:
        return {name: TRIALS[name](subject, Path(home) / name) for name in forms}
