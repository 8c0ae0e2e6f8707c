"""Small modules whose segments are known, as functions of two linears and an input.

Every pattern is (layers, forward, expected); `expected` holds, per layer named in it, the output
sizes, the input sizes, and which input segments are one-sided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8


@dataclass(frozen=True, kw_only=True)
class Pattern:
    sizes: dict[str, tuple[int, int]]
    forward: Callable[[Any, Tensor, Tensor], Any]
    out: dict[str, tuple[int, ...]]
    into: dict[str, tuple[int, ...]]
    one_sided: dict[str, tuple[bool, ...]]


class Everything(nn.Module):
    """All patterns side by side in one graph, which is quicker than one graph each."""

    def __init__(self) -> None:
        super().__init__()
        self.toys = nn.ModuleDict({name: Toy(pattern) for name, pattern in PATTERNS.items()})

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return [toy(x, y) for toy in self.toys.values()]


class Toy(nn.Module):
    """Linears by name and a forward given as a function."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        for name, (size_in, size_out) in pattern.sizes.items():
            self.add_module(name, nn.Linear(size_in, size_out))
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.table = nn.Parameter(torch.zeros(4, WIDTH))
        self.run = pattern.forward

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(self, x, y)


PATTERNS: dict[str, Pattern] = {}


def add(
    name: str,
    forward: Callable[[Any, Tensor, Tensor], Any],
    *,
    a: int = 2 * WIDTH,
    c: int = WIDTH,
    out: tuple[int, ...] | None = None,
    into: tuple[int, ...] | None = None,
    one_sided: tuple[bool, ...] | None = None,
    also: dict[str, tuple[int, ...]] | None = None,
) -> None:
    """`a` and `b` are linears of WIDTH -> a; `c` reads `c` features."""
    into = into or (c,)
    PATTERNS[name] = Pattern(
        sizes={"a": (WIDTH, a), "b": (WIDTH, a), "c": (c, WIDTH)},
        forward=forward,
        out={"a": out or (a,), **(also or {})},
        into={"c": into},
        one_sided={"c": one_sided or (False,) * len(into)},
    )


def _modulated(scale: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    return y * (1 + scale) + shift


# Output segments.
add("chunk", lambda m, x, y: m.c(_modulated(*m.a(x).chunk(2, dim=-1), y)), out=(8, 8))
add(
    "chunk_positional",
    lambda m, x, y: m.c(_modulated(*torch.chunk(m.a(x), 2, 2), y)),
    out=(8, 8),
)
add(
    "split_unequal",
    lambda m, x, y: [part.cumsum(1) for part in m.a(x).split([4, 12], dim=-1)],
    out=(4, 12),
)
add(
    "split_ragged",
    lambda m, x, y: [part.cumsum(1) for part in m.a(x).split(6, dim=-1)],
    out=(6, 6, 4),
)
add(
    "unflatten_unbind",
    lambda m, x, y: m.c(_modulated(*m.a(x).unflatten(-1, (2, WIDTH)).unbind(-2), y)),
    out=(8, 8),
)
add(
    "reshape_permute_index",
    lambda m, x, y: (lambda qkv: F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]))(
        m.a(x).reshape(2, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
    ),
    a=24,
    out=(8, 8, 8),
)
add(
    "heads_interleaved",
    lambda m, x, y: F.scaled_dot_product_attention(
        *m.a(x).reshape(2, 4, 2, 3, 4).permute(3, 0, 2, 1, 4).unbind(0)
    ),
    a=24,
)
add("slice_prefix", lambda m, x, y: m.c(m.a(x)[..., :WIDTH] * y), out=(8, 8))
add(
    "silu_chunk",
    lambda m, x, y: m.c(_modulated(*F.silu(m.a(x)).chunk(2, dim=-1), y)),
    out=(8, 8),
)
add(
    "reshape_table_chunk",
    lambda m, x, y: [
        part * y for part in (m.a(x[:, 0]).reshape(2, 4, WIDTH) + m.table).chunk(4, dim=1)
    ],
    a=32,
    out=(8, 8, 8, 8),
)
add(
    "norm_split",
    lambda m, x, y: m.c(_modulated(*m.norm(m.a(x)).split(WIDTH, dim=-1), y)),
    out=(8, 8),
)
add(
    "sum_chunk",
    lambda m, x, y: m.c(_modulated(*(m.a(x) + m.b(x)).chunk(2, dim=-1), y)),
    out=(8, 8),
    also={"b": (8, 8)},
)
add(
    "rotary",
    lambda m, x, y: (lambda h: h[..., 0::2] * y + h[..., 1::2] * y)(m.a(x)),
)
add(
    "rotary_halves",
    lambda m, x, y: [
        part[..., 0::2] * y[..., :4] - part[..., 1::2] * y[..., :4]
        for part in m.a(x).chunk(2, dim=-1)
    ],
    out=(8, 8),
)
add("even_channels", lambda m, x, y: m.a(x)[..., 0::2] * y)
add("token_chunk", lambda m, x, y: [part.cumsum(1) for part in m.a(x).chunk(2, dim=1)])
add("batch_chunk", lambda m, x, y: [part.cumsum(1) for part in m.a(x).chunk(2, dim=0)])
add("whole", lambda m, x, y: m.c(m.a(x)), c=16)

# Gated linear units: the projection is cut, the product is not one-sided.
add(
    "geglu",
    lambda m, x, y: m.c((lambda v, g: v * F.gelu(g))(*m.a(x).chunk(2, dim=-1))),
    out=(8, 8),
)
add(
    "swiglu",
    lambda m, x, y: m.c((lambda v, g: F.silu(g) * v)(*m.a(x).chunk(2, dim=-1))),
    out=(8, 8),
)
add("geglu_two_linears", lambda m, x, y: m.c(F.gelu(m.a(x)) * m.b(x)), c=16)

# Input segments.
add("cat", lambda m, x, y: m.c(torch.cat([m.a(x), y], dim=-1)), c=24, into=(16, 8))
add(
    "cat_dropout_to",
    lambda m, x, y: m.c(F.dropout(torch.cat([m.a(x), y], -1), 0.1, m.training).to(y.dtype)),
    c=24,
    into=(16, 8),
)
add(
    "cat_norm_modulate",
    lambda m, x, y: m.c(m.norm(torch.cat([m.b(x)[..., :8], y], -1)) * m.a(x[:, :1])),
    c=16,
    into=(8, 8),
)
add(
    "cat_gelu",
    lambda m, x, y: m.c(F.gelu(torch.cat([m.a(x), y], dim=-1))),
    c=24,
    into=(16, 8),
    one_sided=(True, True),
)
add(
    "attention_gelu_cat",
    lambda m, x, y: m.c(
        torch.cat(
            [
                F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None]).flatten(1, 2),
                F.gelu(m.a(x), approximate="tanh"),
            ],
            dim=-1,
        )
    ),
    c=24,
    into=(8, 16),
    one_sided=(False, True),
)
add(
    "stack_flatten",
    lambda m, x, y: m.c(torch.stack([x, m.a(x)[..., :8]], dim=-2).flatten(-2)),
    c=16,
    into=(8, 8),
    out=(8, 8),
)
add(
    "nested_cat",
    lambda m, x, y: m.c(torch.cat([torch.cat([x, y], -1), m.a(x)], dim=-1)),
    c=32,
    into=(8, 8, 16),
)
add("pad", lambda m, x, y: m.c(F.pad(m.a(x), (0, 4))), c=20, into=(16, 4))


def _filled(m: Any, x: Tensor, y: Tensor) -> Tensor:
    buffer = torch.zeros(2, 4, 16, dtype=x.dtype, device=x.device)
    buffer[..., :8] = y
    buffer[..., 8:] = F.relu(m.a(x)[..., :8])
    return m.c(buffer)


add("setitem", _filled, c=16, into=(8, 8), out=(8, 8), one_sided=(False, True))
add("token_cat", lambda m, x, y: m.c(torch.cat([x, y], dim=1)))
add("positional_add", lambda m, x, y: m.c(x + torch.cat([m.table[:, :4], m.table[:, :4]], -1)))
add("residual_cat", lambda m, x, y: m.c(m.a(x) + torch.cat([x, y], dim=-1)), c=16)
add(
    "head_merge",
    lambda m, x, y: m.c(
        torch.einsum(
            "bhij,bjhd->bihd", (x @ y.mT)[:, None].expand(2, 2, 4, 4), y.view(2, 4, 2, 4)
        ).reshape(2, 4, 8)
    ),
)

# Polarity.
_POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "quick_gelu": lambda h: h * torch.sigmoid(1.702 * h),
    "silu_by_hand": lambda h: h * torch.sigmoid(h),
    "relu_squared": lambda h: F.relu(h) ** 2,
    "exp": torch.exp,
    "abs": torch.abs,
    "softplus": F.softplus,
    "mish": F.mish,
    "square": lambda h: h * h,
    "clamp_min": lambda h: h.clamp(min=-1.0),
    "where": lambda h: torch.where(h > 0, F.silu(h), F.relu(h)),
    "silu_scaled": lambda h: 0.5 * F.silu(h) + 1.0,
    "silu_negated": lambda h: -F.silu(h),
    "silu_inplace": lambda h: F.silu(h, inplace=True),
    "silu_in_float32": lambda h: F.silu(h.double()).to(h.dtype),
    "elu": F.elu,
    "silu_reshaped": lambda h: F.silu(h).unflatten(-1, (2, 4)).flatten(-2),
}
_BOTH_SIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu_residual": lambda h: F.silu(h) + h,
    "leaky_relu": F.leaky_relu,
    "clamp": lambda h: h.clamp(-1, 1),
    "silu_then_norm": lambda h: F.layer_norm(F.silu(h), (8,)),
    "product": lambda h: h * h.flip(-1),
    "cube": lambda h: h**3,
    "silu_difference": lambda h: F.silu(h) - F.silu(h.flip(1)),
}
for _name, _function in _POSITIVE.items():
    add(f"polarity_{_name}", lambda m, x, y, f=_function: m.c(f(m.a(x))), a=8, one_sided=(True,))
for _name, _function in _BOTH_SIDES.items():
    add(f"polarity_{_name}", lambda m, x, y, f=_function: m.c(f(m.a(x))), a=8, one_sided=(False,))
add(
    "polarity_lost_to_parameter",
    lambda m, x, y: m.c(F.silu(m.a(x)) * m.table),
    a=8,
)

# Other ways to call a layer.
add("functional", lambda m, x, y: F.linear(x, m.a.weight, m.a.bias).chunk(2, -1)[0] * y, out=(8, 8))
add("matmul_weight", lambda m, x, y: (x @ m.a.weight.T).chunk(2, -1)[0] * y, out=(8, 8))
add("called_twice", lambda m, x, y: (m.c(F.silu(x)), m.c(y)))
add("called_twice_cut", lambda m, x, y: (m.a(x).chunk(2, -1)[0] * y, m.a(y).cumsum(1)), out=(8, 8))


# Empty pieces say nothing of the rest, whether what they were cut from is uniform or not.
def _with_empty_pieces(m: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    both = torch.cat([a, b], -1)
    narrow = F.silu(a[..., :1])[..., 1:]
    uniform, mixed = F.silu(a[..., 2 * WIDTH :]) + y[..., :0], 2 * F.gelu(both[..., 4 * WIDTH :])
    return m.c(torch.cat([uniform, F.relu(a), mixed, uniform * mixed, torch.exp(narrow)], -1))


add("empty_pieces", _with_empty_pieces, c=2 * WIDTH, into=(2 * WIDTH,), one_sided=(True,))
