"""A quantized layer in ONNX's standard operators, in the form that runtimes fuse into integers.

    x -> 3-D -> transform, / smoothing -> Split -> Q DQ MatMul(DQ(W^T)) of each piece -> Add
      -> Concat of smoothing groups -> Add(bias [1, 1, O])

DualScale is two products, of Relu(x) and of Min(x, 0). Scales that are known at run time alone (per
token, per step) are divided out first and multiplied back after a product whose scale is 1.

What breaks the fusing in ONNX Runtime, and is so avoided: inputs of two dimensions and a bias of
one (a float Gemm), Q and DQ without zero points, int8 activations (common subexpressions are merged
into float products; uint8 with zero point 128 is the same integers), int4 weights that go into DQ
themselves.

A layer whose grids have no integer product (weights alone, groups finer than the input's, zero
points known at run time) is a float product of the rounded input and the weight of its codes.

Legend: O output features, I input features, K rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segquant.core.grids import IntGrid
from segquant.core.linear import QuantLinear
from segquant.deploy.onnx_products import FloatProduct, IntegerProduct, why_float

_DIMENSIONS = 3  # of an input whose product is fused
# what a layer that only reads its input does without
_OF_OUTPUT = ("codes", "bias", "low_rank_up", "low_rank_down", "row_factors")


class NotInOnnx(ValueError):  # noqa: N818 - it is what was found
    """A layer that standard operators do not state; the message says why."""


def why_not_onnx(layer: QuantLinear) -> str | None:
    """Why standard operators do not state the layer, or None."""
    for what, scheme in (("weights", layer.spec.weight), ("activations", layer.spec.activation)):
        if scheme.quantized and not isinstance(scheme.grid, IntGrid):
            return f"{what} in {scheme.number_format.name}: runtimes have no such product on a CPU"
    return None


class OnnxLinear(nn.Module):
    """Stands in a QuantLinear's place while a denoiser is exported; it runs in torch too.

    There it gives what the layer gives, but for the order of additions. What is no code is float32.

    Raises:
        NotInOnnx: the layer's codes are small floats.
    """

    bias_O: Tensor | None
    up_KO: Tensor | None
    down_IK: Tensor | None

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        reason = why_not_onnx(layer)
        if reason is not None:
            raise NotInOnnx(reason)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.float_because = why_float(layer.spec)
        self._runs = layer.spec.runs()
        kind = IntegerProduct if self.float_because is None else FloatProduct
        self.products = nn.ModuleList(
            kind(layer, rows=slice(start, stop)) for _, start, stop in self._runs
        )
        self.reading = _without_weight(layer)
        up, down = layer.low_rank_up, layer.low_rank_down
        if up is not None and layer.row_factors is not None:
            up = up * layer.row_factors[:, None]
        self._keep("bias_O", layer.bias)
        self._keep("up_KO", None if up is None else up.T)
        self._keep("down_IK", None if down is None else down.T)

    @property
    def integer_products(self) -> int:
        """How many a call makes."""
        own = [product for product in self.products if isinstance(product, IntegerProduct)]
        return sum(product.count for product in own)

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        exact = None if tensor is None else tensor.detach().float()
        self.register_buffer(
            name, None if exact is None else exact.clone(memory_format=torch.contiguous_format)
        )

    def forward(self, input: Tensor) -> Tensor:
        x = input.float()
        for _ in range(_DIMENSIONS - x.dim()):
            x = x.unsqueeze(0)
        smooth: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        for (group, start, stop), product in zip(self._runs, self.products, strict=True):
            if group not in smooth:
                smooth[group] = self.reading.smooth_input(x, group)
            output = product(smooth[group], reading=self.reading, group=group)
            if self.up_KO is not None and self.down_IK is not None:
                output = output + (smooth[group] @ self.down_IK) @ self.up_KO[:, start:stop]
            outputs.append(output)
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if self.bias_O is not None:
            out = out + self.bias_O[None, None]
        for _ in range(_DIMENSIONS - input.dim()):
            out = out.squeeze(0)
        return out.to(input.dtype)


def _without_weight(layer: QuantLinear) -> QuantLinear:
    """The layer as far as it reads its input: transform, smoothing, scales."""
    made = QuantLinear(layer.spec, device="meta", dtype=torch.float32)
    for name in list(made._buffers):
        tensor = None if name in _OF_OUTPUT else getattr(layer, name, None)
        made._buffers[name] = None if tensor is None else tensor.detach()
    for name in ("weight_scale", "weight_zero_point", "_dense_OI"):
        made._buffers[name] = None
    return made
