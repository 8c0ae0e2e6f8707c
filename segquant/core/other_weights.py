"""Weights of products that no method here quantizes, since no plain nn.Linear holds them.

Linears that `keep_out` has marked, Linears of a subclass (a checkpoint that is quantized already,
LoRA, the out_proj of attention) or of another library's class, a Linear whose weight is computed at
every call or is no float tensor, and parameters of two or more dimensions of any other module
(experts, the in_proj of attention).
Convolutions, embeddings and norms are none of these: they count as other parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from segquant.core.plain_linears import kept_because, linear_layers
from segquant.core.schemes import BITS_OF_BYTE, UNQUANTIZED_BITS

# Tables, kernels and factors: no operands of a matrix product.
_NO_PRODUCTS = (
    *(nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, ParametrizationList),
)


@dataclass(frozen=True, kw_only=True)
class OtherWeight:
    """A layer or parameter that stays as it is."""

    reason: str
    weights: int  # of the product: in_features x out_features of a Linear
    parameters: int  # elements of nn.Parameters that hold it, fewer where several are packed
    stored_bits: int  # of its tensors; 16 for what is wider


def other_weights(denoiser: nn.Module) -> dict[str, OtherWeight]:
    """By the name of the layer or of the parameter, in module order; a tied one once."""
    plain = linear_layers(denoiser)
    found: dict[str, OtherWeight] = {}
    counted: set[int] = set()
    for name, module in denoiser.named_modules():
        if name in plain or isinstance(module, _NO_PRODUCTS):
            continue
        tensors = {key: t for key, t in _tensors(module).items() if id(t) not in counted}
        counted |= {id(tensor) for tensor in tensors.values()}
        if (sizes := _sizes(module)) is not None:
            if tensors:
                weights = sizes[0] * sizes[1]
                found[name] = _other(_reason(module), list(tensors.values()), weights=weights)
            continue
        for key, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                path = f"{name}.{key}" if name else key
                reason = "a parameter, no Linear"
                found[path] = _other(reason, [tensor], weights=tensor.numel())
    return found


@dataclass(frozen=True, kw_only=True)
class WeightCount:
    """Numbers of a denoiser's weights."""

    linears: dict[str, int]  # of each plain Linear
    products: int  # of all operands of matrix products: Linears and `other_weights`
    rest: int  # other parameters: biases, norms, convolutions


def count_weights(denoiser: nn.Module) -> WeightCount:
    """Of a denoiser that is not quantized yet."""
    linears = {name: linear.weight.numel() for name, linear in linear_layers(denoiser).items()}
    others = other_weights(denoiser).values()
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return WeightCount(
        linears=linears,
        products=sum(linears.values()) + sum(other.weights for other in others),
        rest=parameters - sum(linears.values()) - sum(other.parameters for other in others),
    )


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """In and out features of what is a Linear by its attributes."""
    inputs, outputs = (getattr(module, f"{end}_features", None) for end in ("in", "out"))
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters and buffers of two or more dimensions."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if is_parametrized(module):
        own += list(module.get_submodule("parametrizations").named_parameters())
    return {name: tensor for name, tensor in own if tensor.dim() > 1}


def _other(reason: str, tensors: Sequence[Tensor], *, weights: int) -> OtherWeight:
    return OtherWeight(
        reason=reason,
        weights=weights,
        parameters=sum(t.numel() for t in tensors if isinstance(t, nn.Parameter)),
        stored_bits=sum(
            t.numel() * min(t.element_size() * BITS_OF_BYTE, UNQUANTIZED_BITS) for t in tensors
        ),
    )


def _reason(module: nn.Module) -> str:
    kind = type(module)
    if (kept := kept_because(module)) is not None:
        return kept
    if not isinstance(module, nn.Linear):
        return f"a {kind.__name__}, no nn.Linear"
    if kind is not nn.Linear:
        return f"a subclass of nn.Linear ({kind.__name__})"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter: it is computed at every call"
    stored = type(weight.data)
    return f"its weight is of {weight.dtype if stored is Tensor else stored.__name__}, not floats"
