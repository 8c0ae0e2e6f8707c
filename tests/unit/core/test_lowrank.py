"""The low-rank branch: the best approximation, rounded before the residual is taken."""

import pytest
import torch

from segquant.core.layer import quantize_linear
from segquant.core.lowrank import LowRankSettings, truncated_svd
from segquant.core.recipe import LayerRecipe
from segquant.core.segments import whole
from tests.unit.core.helpers import bits, correlated, generator, one, power_ratio, seen


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_against_the_svd(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=generator(0))
    found = truncated_svd(w, rank=3, dtype=torch.float64)
    u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
    exact = (u[:, :3] * s[:3]) @ v[:3]
    torch.testing.assert_close(found.up_OR @ found.down_RI, exact)


def test_rank_is_clipped_and_a_whole_copy_is_no_accident() -> None:
    """The authors' code aborts on such a rank, or gets NaN from a residual of zero."""
    model, x = one(8, 6), correlated(64, 8, seed=0)
    quant, entry = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=8, out_features=6),
        bits=bits(4, 8),
        recipe=LayerRecipe(low_rank=LowRankSettings(rank=64)),
    )
    assert entry.rank == 6
    assert bool(quant(x).isfinite().all())
    assert power_ratio(quant(x), model(x)) < 1e-4


def test_the_residual_is_taken_from_the_rounded_factors() -> None:
    """Codes, scales and the stored factors add up to the weight within half a step."""
    model, x = one(16, 12), correlated(64, 16, seed=0)
    quant, _ = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=16, out_features=12),
        bits=bits(8, 16),
        recipe=LayerRecipe(low_rank=LowRankSettings(rank=2)),
    )
    assert quant.low_rank_up is not None
    assert quant.low_rank_up.dtype == torch.float16
    error = (quant.weight - model.linear.weight).abs().max()
    assert error <= 0.501 * quant.weight_scale.max()


def test_the_branch_reads_the_unquantized_input() -> None:
    """The authors' reads the quantized one. Here 2-bit activations must not matter."""
    model, x = one(8, 8), correlated(64, 8, seed=0)
    quant, _ = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=8, out_features=8),
        bits=bits(8, 2),
        recipe=LayerRecipe(low_rank=LowRankSettings(rank=8)),
    )
    assert power_ratio(quant(x), model(x)) < 1e-4


def test_iterations_lower_the_error_or_stop() -> None:
    torch.manual_seed(0)
    model, x = one(64, 48), correlated(256, 64, seed=1, spread=0.7)
    model.linear.weight.data = torch.randn(48, 4) @ torch.randn(4, 64) + 0.3 * torch.randn(48, 64)
    errors = [
        quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x),
            shape=whole(in_features=64, out_features=48),
            bits=bits(3, 16, fine=True),
            recipe=LayerRecipe(low_rank=LowRankSettings(rank=rank, iterations=iterations)),
        )[1].relative_error
        for rank, iterations in ((0, 1), (4, 1), (4, 20))
    ]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < errors[1]
