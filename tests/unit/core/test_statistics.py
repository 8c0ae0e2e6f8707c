"""One pass: what is recorded, what is shared, what is left alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.plain_linears import linear_layers
from tests.unit.core.helpers import calibrate, generator, one


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        self.out = nn.Linear(4, 6)
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor, apart: bool = False) -> Tensor:
        k = self.k(x + 1.0 if apart else x)
        return self.out(self.q(x) * k + self.v(x))


def batches(count: int = 4, *, seed: int = 0) -> list[Tensor]:
    g = generator(seed)
    return [torch.randn(2, 5, 6, generator=g) for _ in range(count)]


def test_numbers_against_all_rows_at_once() -> None:
    model, some = one(6, 3), batches()
    found = calibrate(model, some).statistics["linear"]
    x = torch.cat([b.reshape(-1, 6) for b in some]).double()
    assert (found.rows, found.calls) == (40, 4)
    assert torch.equal(found.low_I.double(), x.amin(0))
    assert torch.equal(found.high_I.double(), x.amax(0))
    assert torch.equal(found.amax.double(), x.abs().amax(0))
    assert found.gram_II is not None
    torch.testing.assert_close(found.gram_II.double(), x.T @ x, rtol=1e-5, atol=1e-5)


def test_two_dimensional_inputs_count_their_rows() -> None:
    found = calibrate(one(6, 3), [torch.randn(7, 6), torch.randn(2, 6)]).statistics["linear"]
    assert found.rows == 9


def test_the_sample_is_of_rows_that_were_seen_bounded_and_seeded() -> None:
    some = batches(20)
    rows = {tuple(r.tolist()) for b in some for r in b.reshape(-1, 6)}
    samples = [calibrate(one(6, 3), some, rows=32).statistics["linear"].sample_TI for _ in range(2)]
    assert samples[0].shape == (32, 6)
    assert torch.equal(*samples)
    kept = {tuple(r.tolist()) for r in samples[0]}
    assert len(kept) == 32
    assert kept <= rows


def test_the_sample_is_uniform() -> None:
    """Early and late rows have the same chance."""
    some = [torch.full((10, 1), float(n)) for n in range(50)]
    counts = torch.zeros(50)
    for seed in range(40):
        with StatisticsRecorder(m := one(1, 1), gram=False, sample_rows=25, seed=seed) as recorder:
            for b in some:
                m(b)
        sample_T = recorder.statistics()["linear"].sample_TI.flatten().long()
        counts += torch.bincount(sample_T, minlength=50)
    early, late = float(counts[:25].sum()), float(counts[25:].sum())
    assert early + late == 40 * 25
    assert abs(early - late) < 4 * (40 * 25) ** 0.5


def test_layers_that_read_one_tensor_share_a_gram_matrix() -> None:
    torch.manual_seed(0)
    found = calibrate(Attention(), batches()).statistics
    assert found["q"].gram_II is found["k"].gram_II is found["v"].gram_II
    assert found["q"].sample_TI is found["k"].sample_TI
    assert set(found["q"].shared_with) == {"k", "v"}
    assert found["out"].shared_with == ()


def test_a_layer_that_shares_now_and_then_is_right() -> None:
    torch.manual_seed(0)
    model, some = Attention(), batches(4)
    with torch.no_grad(), StatisticsRecorder(model, gram=True, sample_rows=64) as recorder:
        for n, b in enumerate(some):
            model(b, apart=n % 2 == 1)
    found = recorder.statistics()
    x = torch.cat([b.reshape(-1, 6) for b in some]).double()
    x_k = torch.cat([(b + (n % 2)).reshape(-1, 6) for n, b in enumerate(some)]).double()
    for name, rows in (("q", x), ("v", x), ("k", x_k)):
        gram = found[name].gram_II
        assert gram is not None
        torch.testing.assert_close(gram.double(), rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert "k" not in found["q"].shared_with


def test_a_tensor_changed_in_place_is_another_input() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.a(x)
            x.mul_(2.0)
            return y + self.b(x)

    x = torch.randn(4, 3, generator=generator(0))
    found = calibrate(Changing(), [x]).statistics
    assert found["a"].gram_II is not None
    assert found["b"].gram_II is not None
    torch.testing.assert_close(found["b"].gram_II, 4 * found["a"].gram_II)


class InPlace(nn.Module):
    """q and k read one tensor, in a view of which v's input was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        first = self.q(x) + self.k(x)
        x[:1].mul_(100)
        return first + self.v(x)


@pytest.mark.parametrize("gram", [True, False])
def test_inference_mode_sees_what_no_grad_sees(gram: bool) -> None:
    """Tensors have no version there: an input changed in place was taken for the same one."""
    x = torch.randn(3, 8, generator=generator(0))
    found = {}
    for mode in (torch.no_grad, torch.inference_mode):
        model = InPlace()
        with StatisticsRecorder(model, gram=gram) as recorder, mode():
            for _ in range(6):  # more than are held open
                model(x)
        found[mode] = recorder.statistics()
    for name, seen in found[torch.no_grad].items():
        other = found[torch.inference_mode][name]
        assert other.shared_with == seen.shared_with == {"q": ("k",), "k": ("q",)}.get(name, ())
        assert (other.rows, other.calls) == (seen.rows, seen.calls)
        for key in ("low_I", "high_I", "sample_TI", *(("gram_II",) if gram else ())):
            assert torch.equal(getattr(other, key), getattr(seen, key))
    assert torch.equal(found[torch.no_grad]["v"].low_I, torch.cat([100 * x[:1], x[1:]]).amin(0))


def test_a_layer_called_twice_with_one_tensor_counts_it_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.a(x)

    x = torch.randn(4, 3, generator=generator(0))
    found = calibrate(Twice(), [x]).statistics["a"]
    assert (found.rows, found.calls) == (8, 2)
    assert found.gram_II is not None
    torch.testing.assert_close(found.gram_II, 2 * x.T @ x)


def test_inputs_hooks_and_outputs_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    model, x = Attention(), batches(1)[0]
    before, expected = x.clone(), model(x)
    with StatisticsRecorder(model, gram=True) as recorder:
        found = model(x)
    assert torch.equal(found, expected)
    assert torch.equal(x, before)
    model(x)
    assert recorder.forwards == 1
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_uncalled_layers_are_absent_and_unknown_names_refused() -> None:
    model = Attention()
    assert "unused" not in calibrate(model, batches(1)).statistics
    assert "unused" in linear_layers(model)
    with pytest.raises(ValueError, match="not found among the denoiser's 5 Linears: nope"):
        StatisticsRecorder(model, layers=["q", "nope"], gram=False)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_input_names_its_layer(broken: float) -> None:
    with pytest.raises(ValueError, match="linear: its input held NaN"):
        calibrate(one(2, 2), [torch.tensor([[1.0, broken]])])


def test_an_input_whose_squares_overflow_names_its_layer() -> None:
    """Extremes are finite, the Gram matrix is not: GPTQ fell back to rounding to nearest."""
    with pytest.raises(
        ValueError, match=r"linear: its input reaches 1e.20, whose square overflows"
    ):
        calibrate(one(2, 2), [torch.tensor([[1.0, 1e20]])])


@pytest.mark.parametrize("gram", [True, False])
def test_round_trip_is_bit_equal_and_keeps_what_is_shared(tmp_path: Path, gram: bool) -> None:
    torch.manual_seed(0)
    saved = calibrate(Attention(), batches(), gram=gram)
    saved.save(tmp_path / "calibration")
    loaded = Calibration.load(tmp_path / "calibration")
    assert loaded.forwards == saved.forwards == 4
    assert list(loaded.statistics) == list(saved.statistics)
    for name, one_layer in saved.statistics.items():
        other = loaded.statistics[name]
        assert (other.rows, other.calls, other.shared_with) == (
            one_layer.rows,
            one_layer.calls,
            one_layer.shared_with,
        )
        for key in ("low_I", "high_I", "sample_TI"):
            assert torch.equal(getattr(other, key), getattr(one_layer, key))
        if gram:
            assert torch.equal(other.gram_II, one_layer.gram_II)
    assert (loaded.statistics["q"].gram_II is loaded.statistics["v"].gram_II) or not gram
    assert [p.name for p in tmp_path.iterdir()] == ["calibration"]


def test_loading_another_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tensors.safetensors and no manifest.json"):
        Calibration.load(tmp_path)
