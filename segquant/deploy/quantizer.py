"""diffusers' side of a quantized denoiser: its quantization config and its quantizer.

`from_pretrained` builds the denoiser without memory, asks the quantizer to put quantized layers in
the places of Linears, and gives it each tensor. Every byte of the files is read against the seal
(`segquant.deploy.seal`) before that.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from segquant.core.layer_pass import replace_module
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import Bits
from segquant.core.spec_json import dtype_name, spec_from_dict
from segquant.core.stepwise import follow_steps
from segquant.deploy.seal import (
    KEY,
    VERSION,
    Contents,
    check_config,
    digests,
    layers_of,
    plain_config,
    read_sealed,
    seal_of,
)
from segquant.deploy.streamed import StreamedLinear, stream
from segquant.deploy.without_data import quantize_without_data, without_data


class Method(StrEnum):
    """diffusers asks for an Enum that is a text."""

    segquant = "segquant"


class SegQuantConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` in a quantized denoiser's config.json, or of `from_pretrained`.

    `SegQuantConfig(weights=8, activations=8)` rounds to nearest while a denoiser is loaded, which
    needs no data: a scale for each output feature, and for each token when it comes. Whatever needs
    a calibration is made by `segbench quantize`.

    Args:
        weights: bits of weights that are to be quantized now, 2 to 8.
        activations: bits of activations, 2 to 8; None leaves them as they are.
        group_size: input features that share a weight's scale; None for all.
        keep: patterns of layers' names that stay as they are.
        seal: of the weights' files; None before the denoiser was saved.
        dtype: of what is not quantized, where `torch_dtype` is not given.
        recipe: what was done, for people: model, method, bits.
    """

    def __init__(
        self,
        *,
        seal: str | None = None,
        dtype: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        version: int = VERSION,
        quant_method: Method | str = Method.segquant,
        weights: int | None = None,
        activations: int | None = None,
        group_size: int | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        if version != VERSION:
            raise ValueError(
                f"quantization_config of version {version}; this reads {VERSION}: update segquant"
            )
        self.quant_method = Method(quant_method)
        self.seal, self.dtype, self.version = seal, dtype, version
        self.recipe = dict(recipe or {})
        self.asked: Bits | None = None
        if weights is not None:
            self.asked = without_data(weights, activations, group_size=group_size, keep=keep)
            self.recipe |= {"method": "rtn", "bits": self.asked.name, "keep": list(keep)}
        elif activations is not None or group_size is not None or keep:
            raise ValueError(
                "SegQuantConfig: activations, group_size and keep go with weights=BITS"
            )
        self._of: weakref.ref[nn.Module] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What config.json gets; seal and type are those of the denoiser as it is now."""
        model = None if self._of is None else self._of()
        if model is not None and model.config.get("quantization_config") is self:  # type: ignore[union-attr, operator]
            contents = contents_of(model, model.state_dict())
            if contents is not None:
                self.seal, self.dtype = seal_of(contents.text()), contents.dtype
        return {
            "quant_method": self.quant_method.value,
            "version": self.version,
            "seal": self.seal,
            "dtype": self.dtype,
            "recipe": copy.deepcopy(self.recipe),
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """Called by the mixin's repr."""
        return self.to_dict()

    def follow(self, model: nn.Module) -> None:
        """Takes the seal from this denoiser from now on."""
        self._of = weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> SegQuantConfig:
        copied = SegQuantConfig(
            seal=self.seal,
            dtype=self.dtype,
            recipe=copy.deepcopy(self.recipe, memo),
            version=self.version,
        )
        copied.asked = copy.deepcopy(self.asked, memo)
        return copied


def contents_of(denoiser: nn.Module, state: Mapping[str, Tensor]) -> Contents | None:
    """What a quantized denoiser is; None while its tensors are elsewhere (offloaded by a hook)."""
    if any(tensor.is_meta for tensor in state.values()):
        return None
    return Contents(
        version=VERSION,
        denoiser_class=type(denoiser).__name__,
        config=plain_config(denoiser.config),  # type: ignore[arg-type]
        dtype=dtype_name(denoiser.dtype),  # type: ignore[arg-type]
        layers=layers_of(denoiser),
        tensors=digests(state),
    )


class SegQuantQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Loads what `as_diffusers` made and `save_pretrained` wrote."""

    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: SegQuantConfig, **given: Any) -> None:
        super().__init__(quantization_config, **given)
        self._contents: Contents | None = None
        self._layers: dict[str, StreamedLinear] = {}
        self._asked: torch.dtype | None = None  # for what is not quantized

    def validate_environment(self, *args: Any, device_map: Any = None, **given: Any) -> None:
        if not self.pre_quantized and self.quantization_config.asked is None:
            raise ValueError(
                "SegQuantConfig() says nothing to do: give weights=8 (and activations=8) to round "
                "to nearest, or load a folder that segbench quantize made"
            )
        if self.pre_quantized and self.quantization_config.seal is None:
            raise ValueError("config.json has a quantization_config without a seal; save it again")
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ValueError(
                "device_map puts layers on the disk, where scales would lose their type; keep them "
                "on cpu or a device, or use group offloading to disk after loading"
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """What is not quantized keeps its type unless another is asked for."""
        stored = self.quantization_config.dtype
        self._asked = getattr(torch, stored) if torch_dtype is None and stored else torch_dtype
        return self._asked

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: Sequence[str]
    ) -> list[str]:
        if not self.pre_quantized:
            return loaded_keys
        files = [checkpoint_files] if isinstance(checkpoint_files, str) else checkpoint_files
        self._contents = read_sealed(list(files), seal=self.quantization_config.seal)
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **given: Any) -> None:
        contents = self._contents
        if contents is None:  # quantized once its weights are there
            return
        check_config(
            contents,
            denoiser_class=type(model).__name__,
            config=model.config,  # type: ignore[arg-type]
        )
        linears = linear_layers(model)
        for name, entry in contents.layers.items():
            spec = spec_from_dict(entry["spec"])
            like_the_rest = entry["dtype"] == contents.dtype
            own = self._asked if like_the_rest else None
            own = own or getattr(torch, entry["dtype"])
            self._layers[name] = StreamedLinear(spec, device="meta", dtype=own)
            replace_module(model, old=linears.pop(name), new=self._layers[name])

    def check_if_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        state_dict: dict[str, Any],
        **given: Any,
    ) -> bool:
        return param_name.rpartition(".")[0] in self._layers

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device | str,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        dtype: torch.dtype | None = None,
        **given: Any,
    ) -> None:
        """Takes the tensor as the file has it: diffusers has cast `param_value` already."""
        layer, _, name = param_name.rpartition(".")
        quant = self._layers[layer]
        exact = state_dict[param_name].to(target_device, copy=True)
        quant.place(name, exact.to(quant.dtype) if name == "bias" else exact)
        quant.settle(torch.device(target_device))

    def _process_model_after_weight_loading(self, model: nn.Module, **given: Any) -> None:
        self._contents = None
        self._layers = {}
        config = self.quantization_config
        if not self.pre_quantized:
            quantize_without_data(model, config.asked)
            stream(model)
            config.dtype = dtype_name(model.dtype)  # type: ignore[arg-type]
            model.register_to_config(quantization_config=config)  # type: ignore[operator]
        follow_steps(model)
        config.follow(model)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The header of the files, which fits the config.json that was written a moment ago."""
        if not safe_serialization:
            raise ValueError("a quantized denoiser is saved as safetensors alone, never pickled")
        model = None if self.quantization_config._of is None else self.quantization_config._of()
        contents = None if model is None else contents_of(model, state_dict)
        text = None if contents is None else contents.text()
        if text is None or seal_of(text) != self.quantization_config.seal:
            raise ValueError(
                "this denoiser is a copy of the quantized one, or its tensors are offloaded; call "
                "segquant.diffusers.as_diffusers(denoiser) or bring it back, then save it"
            )
        return state_dict, {KEY: text}

    @property
    def supports_parallel_loading(self) -> bool:
        return False

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    def _dequantize(self, model: nn.Module) -> nn.Module:
        """Linears with the weights that the quantized layers amount to."""
        for module in list(model.modules()):
            if isinstance(module, StreamedLinear):
                replace_module(model, old=module, new=_linear(module))
        return model


def _linear(layer: StreamedLinear) -> nn.Linear:
    linear = nn.Linear(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        device="meta",
        dtype=layer.dtype,
    )
    linear.weight = nn.Parameter(layer.weight.data, requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear


def as_diffusers(denoiser: nn.Module, *, recipe: Mapping[str, Any] | None = None) -> nn.Module:
    """Makes a denoiser with quantized layers one that diffusers saves, loads and moves about.

    Args:
        recipe: what was done, for people; it stands in config.json.

    Raises:
        ValueError: it is none of diffusers' models, or has no quantized layer.
    """
    if not hasattr(denoiser, "register_to_config"):
        raise ValueError(f"{type(denoiser).__name__} is none of diffusers' models")
    stream(denoiser)
    if not any(isinstance(module, StreamedLinear) for module in denoiser.modules()):
        raise ValueError(f"{type(denoiser).__name__} has no quantized layer")
    config = SegQuantConfig(dtype=dtype_name(denoiser.dtype), recipe=recipe)  # type: ignore[arg-type]
    made: Any = denoiser
    made.register_to_config(quantization_config=config)
    config.follow(denoiser)
    made.hf_quantizer = SegQuantQuantizer(config)
    made.is_quantized = True
    made.quantization_method = config.quant_method
    return denoiser
