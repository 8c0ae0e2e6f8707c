"""The principal basis of a layer's input: its directions by energy, the rest mixed at random.

With X^T X = V diag(l) V^T, l falling, U1 are the first r columns of V and U2 the others; the basis
is U = [U1, U2 S] for a random orthogonal S, which spreads what energy the rest has over its
channels. In float `X W^T = (X U)(W U)^T` for any of it.

Legend: I input features, B the rest's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PrincipalBasis:
    """An orthogonal basis, float32 [I, I], and the share of the input's energy in its head."""

    basis_II: Tensor
    share: float


def principal_basis(
    gram_II: Tensor, *, rank: int, generator: torch.Generator | None
) -> PrincipalBasis:
    """The first `rank` columns are the directions of the largest second moment, largest first.

    Args:
        generator: of the rest's random rotation; None leaves the rest in the order of its energy.
    """
    assert 0 <= rank <= gram_II.shape[0], (rank, gram_II.shape)
    energies_I, vectors_II = torch.linalg.eigh(gram_II.double())
    energies_I, basis_II = energies_I.flip(0).clamp(min=0), vectors_II.flip(1)
    rest = basis_II.shape[0] - rank
    if generator is not None and rest > 1:
        turn_BB = random_orthogonal(rest, generator=generator).to(basis_II.device)
        basis_II = torch.cat([basis_II[:, :rank], basis_II[:, rank:] @ turn_BB], 1)
    total = float(energies_I.sum())
    share = float(energies_I[:rank].sum()) / total if total > 0 else 0.0
    return PrincipalBasis(basis_II=basis_II.float(), share=share)


def random_orthogonal(size: int, *, generator: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices, float64: QR of a normal draw, signs of R's diagonal."""
    draw = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis_BB, upper_BB = torch.linalg.qr(draw)
    signs_B = torch.where(upper_BB.diagonal() < 0, -1.0, 1.0)
    turned: Tensor = basis_BB * signs_B
    return turned
