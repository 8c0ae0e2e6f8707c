"""What a layer does to its input before smoothing and quantization, undone in its weight.

`x W^T + b = [((x + t) / s) P R] [(W s) P R]^T + (b - W t)` for any shift t, positive scale s,
permutation P and orthogonal R: in float nothing changes, on a grid it does. Methods that find s, P
or R for themselves (PTQ4DiT, DMQ, QuaRot, SpinQuant, ViDiT-Q, PermuQuant, OrbitQuant) or shift an
input above zero (SVDQuant) use this; the smoothing of `segquant.core.smoothing` comes after it.

R is block diagonal over runs of equal length, so that any number of input features is rotated. P
says which channels lie in one run, and so which share a block of R, or a group's scale. Segments
of an input are runs of its channels as they come: a layer that is cut there has no P.

Legend: T rows, O output features, I input features, N blocks of B input features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segquant.core.input_statistics import LayerStatistics

SMALLEST_ROTATION = 4


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Each part may be missing. Tensors are float32.

    `hadamard` says that the rotation is one of signs and Hadamard blocks: additions, no storage.
    """

    shift_I: Tensor | None = None
    scale_I: Tensor | None = None
    permutation_I: Tensor | None = None  # int32: the channel that each place takes
    rotation_NBB: Tensor | None = None
    hadamard: bool = False

    @property
    def block_size(self) -> int:
        """Of the rotation; 0 for none."""
        return 0 if self.rotation_NBB is None else self.rotation_NBB.shape[-1]

    def of_input(self, x_I: Tensor) -> Tensor:
        """Any leading dimensions; float32."""
        x = x_I.float()
        if self.shift_I is not None:
            x = x + self.shift_I.to(x.device)
        if self.scale_I is not None:
            x = x / self.scale_I.to(x.device)
        x = self._permuted(x)
        return x if self.rotation_NBB is None else rotate(x, self.rotation_NBB.to(x.device))

    def of_weight(self, w_OI: Tensor) -> Tensor:
        """The weight that meets the transformed input, float32."""
        w = w_OI.float()
        if self.scale_I is not None:
            w = w * self.scale_I.to(w.device)
        w = self._permuted(w)
        return w if self.rotation_NBB is None else rotate(w, self.rotation_NBB.to(w.device))

    def _permuted(self, x_I: Tensor) -> Tensor:
        if self.permutation_I is None:
            return x_I
        return x_I.index_select(-1, self.permutation_I.to(x_I.device))

    def of_bias(self, linear: nn.Linear) -> Tensor | None:
        """The bias that takes the shift back."""
        bias_O: Tensor | None = linear.bias
        if self.shift_I is None:
            return bias_O
        taken_O = linear.weight.float() @ self.shift_I.to(linear.weight.device)
        return -taken_O if bias_O is None else bias_O.float() - taken_O

    def of_statistics(self, seen: LayerStatistics) -> LayerStatistics:
        """What the transformed input looked like.

        Extremes of a rotated input are those of the sampled rows, and of its parts there are none.
        A shifted input has no Gram matrix here, since the channels' means are not recorded.
        """
        sample_TI = self.of_input(seen.sample_TI)
        part_low_PI, part_high_PI = seen.part_low_PI, seen.part_high_PI
        if self.rotation_NBB is not None:
            low_I, high_I = sample_TI.amin(0), sample_TI.amax(0)
            part_low_PI = part_high_PI = None
        else:
            low_I, high_I = self.of_input(seen.low_I), self.of_input(seen.high_I)
            if part_low_PI is not None and part_high_PI is not None:
                part_low_PI, part_high_PI = self.of_input(part_low_PI), self.of_input(part_high_PI)
        return replace(
            seen,
            sample_TI=sample_TI,
            low_I=low_I,
            high_I=high_I,
            part_low_PI=part_low_PI,
            part_high_PI=part_high_PI,
            gram_II=self._of_gram(seen.gram_II),
            mismatch_II=self._of_gram(seen.mismatch_II),
        )

    def _of_gram(self, gram_II: Tensor | None) -> Tensor | None:
        if gram_II is None or self.shift_I is not None:
            return None
        gram = gram_II
        if self.scale_I is not None:
            gram = gram / (self.scale_I[:, None] * self.scale_I)
        if self.permutation_I is not None:
            gram = self._permuted(self._permuted(gram).T)
        if self.rotation_NBB is not None:
            gram = rotate(rotate(gram, self.rotation_NBB).T, self.rotation_NBB)
        return gram

    def of_linear(self, linear: nn.Linear) -> nn.Linear:
        """A Linear of the transformed input, in float32; the one given is left as it is."""
        bias_O = self.of_bias(linear)
        made = nn.Linear(
            linear.in_features, linear.out_features, bias=bias_O is not None, device="meta"
        )
        weight_OI = self.of_weight(linear.weight.detach())
        made.weight = nn.Parameter(weight_OI, requires_grad=False)
        if bias_O is not None:
            made.bias = nn.Parameter(bias_O.detach().float(), requires_grad=False)
        return made

    def buffers(self) -> Mapping[str, Tensor]:
        """The tensors by the names that QuantLinear gives them."""
        named = {
            "input_shift": self.shift_I,
            "input_scale": self.scale_I,
            "input_permutation": self.permutation_I,
            "input_rotation": self.rotation_NBB,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def rotate(x_I: Tensor, rotation_NBB: Tensor) -> Tensor:
    """x R for a block diagonal R: [..., I] -> [..., I]."""
    blocks, size = rotation_NBB.shape[0], rotation_NBB.shape[-1]
    parts = x_I.reshape(-1, blocks, size)
    turned: Tensor = torch.einsum("tnb,nbc->tnc", parts, rotation_NBB.to(x_I.dtype))
    return turned.reshape(x_I.shape)


def inverse_permutation(permutation_I: Tensor) -> Tensor:
    """The place that each channel has gone to."""
    return permutation_I.argsort()


def rotation_block(features: int, *, largest: int) -> int:
    """The largest power of two up to `largest` that divides the features; 0 if less than four."""
    size = features & -features
    while size > largest:
        size //= 2
    return size if size >= SMALLEST_ROTATION else 0


def regular_block(features: int, *, largest: int) -> int:
    """The largest power of four up to `largest` that divides the features; 0 where there is none.

    Regular Hadamard matrices have the sizes of squares; these are the ones built here.
    """
    size = rotation_block(features, largest=largest)
    return size if is_power_of_four(size) or size == 0 else size // 2


def is_power_of_four(size: int) -> bool:
    return size > 0 and size & (size - 1) == 0 and size.bit_length() % 2 == 1


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix over the root of its size: orthogonal and symmetric, float32."""
    assert size & (size - 1) == 0, size
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def regular_hadamard(size: int) -> Tensor:
    """A Hadamard matrix whose rows and columns all sum to 1, over the root of its size; float32.

    Kronecker powers of the symmetric 4 x 4 one that has -1 on its antidiagonal: orthogonal and
    symmetric. Sylvester's has a column of ones, which adds up whatever a block's channels have in
    common; here no column can. Source of its use: arXiv 2512.03673, section 3.
    """
    fits = is_power_of_four(size)
    assert fits, size
    base = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, base)
    return matrix / math.sqrt(size)


def hadamard_blocks(
    features: int,
    *,
    block_size: int,
    generator: torch.Generator | None,
    regular: bool = False,
) -> Tensor:
    """Hadamard blocks [N, B, B]; with a generator, random signs of the input channels first."""
    signs_I = torch.ones(features)
    if generator is not None:
        signs_I = torch.randint(0, 2, (features,), generator=generator) * 2.0 - 1.0
    block_BB = regular_hadamard(block_size) if regular else hadamard(block_size)
    return signs_I.reshape(-1, block_size)[:, :, None] * block_BB


def is_stated_by_size(rotation_NBB: Tensor) -> bool:
    """Whether a rotation of Hadamard blocks has no signs of its own: nothing of it is stored."""
    size = rotation_NBB.shape[-1]
    known = [hadamard(size)]
    if is_power_of_four(size):
        known.append(regular_hadamard(size))
    return any(bool((rotation_NBB == one.to(rotation_NBB)).all()) for one in known)
