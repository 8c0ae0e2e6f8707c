import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.metrics import lpips, mdsi, ms_ssim, psnr, ssim
from evaluation.records import Metric, MetricUnavailable

STORED = {
    "psnr": 20.532373240915007,
    "ssim": 0.4566539735301471,
    "ms_ssim": 0.9374553595856714,
    "mdsi": 0.36269757485769866,
}


def pair(noise: float = 0.1, *, count: int = 3, size: int = 48) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand((count, 3, 6, 6), generator=generator)
    reference = torch.nn.functional.interpolate(base, size=(size, size), mode="bilinear")
    grain = torch.randn(reference.shape, generator=generator)
    return (reference + noise * grain).clamp(0, 1), reference


@pytest.mark.parametrize("offset", [0.1, 0.5])
def test_psnr_of_a_constant_offset(offset: float) -> None:
    reference = torch.full((2, 3, 8, 8), 0.25)
    values = psnr.psnr_per_image(reference + offset, reference)
    assert values.tolist() == pytest.approx([-20 * math.log10(offset)] * 2, abs=1e-5)


def test_psnr_range_is_fixed_not_taken_from_the_image() -> None:
    dim = torch.full((1, 3, 8, 8), 0.1)  # an image's own range would give another number
    value = psnr.psnr_per_image(dim + 0.01, dim)
    assert value.item() == pytest.approx(40.0, abs=1e-3)


def test_psnr_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    images, reference = pair()
    for index, value in enumerate(psnr.psnr_per_image(images, reference).tolist()):
        other = peak_signal_noise_ratio(images[index], reference[index], data_range=1.0)
        assert value == pytest.approx(other.item(), abs=1e-4)


def test_identical_images() -> None:
    _, reference = pair()
    assert torch.isinf(psnr.psnr_per_image(reference, reference)).all()
    assert ssim.ssim_per_image(reference, reference).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(("size", "noise"), [(48, 0.1), (48, 0.4), (11, 0.1)])
def test_ssim_agrees_with_torchmetrics(size: int, noise: float) -> None:
    """One axis after the other is the same as the square window."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, reference = (x.double() for x in pair(noise, size=size))
    expected = structural_similarity_index_measure(
        images, reference, sigma=1.5, kernel_size=11, reduction="none", data_range=1.0
    )
    assert ssim.ssim_per_image(images, reference).tolist() == pytest.approx(expected.tolist())


def test_ssim_needs_a_window() -> None:
    images, reference = pair(size=10)
    with pytest.raises(MetricUnavailable, match="at least 11 pixels a side; these are 10x10"):
        ssim.ssim_per_image(images, reference)


def psnr_of(values: list[float], *, flat: list[bool] | None = None) -> dict[str, Metric]:
    flat_N = torch.tensor(flat or [False] * len(values))
    return psnr.psnr_metrics(torch.tensor(values), flat_N=flat_N, seed=0, resamples=500)


def test_psnr_aggregate_is_the_mean_of_decibels_with_its_tail() -> None:
    metrics = psnr_of([10.0, 20.0, 30.0, 40.0])
    assert metrics["psnr"].value == 25.0  # the PSNR of the mean MSE would be 15.6 dB
    assert metrics["psnr_median"].value == 20.0
    assert metrics["psnr_p10"].value == 10.0
    assert metrics["psnr"].interval is not None
    assert metrics["psnr"].n == 4


def test_psnr_leaves_identical_images_out_and_counts_them() -> None:
    everything = psnr_of([math.inf] * 3)
    assert everything["psnr"].value == math.inf
    assert everything["psnr"].interval == [math.inf, math.inf]
    some = psnr_of([20.0, 22.0, math.inf])
    assert some["psnr"].value == 21.0  # whatever the size of the pictures
    assert "1 of 3 images are identical and left out" in some["psnr"].note
    assert (some["psnr_identical"].value, some["psnr"].n) == (1, 3)
    assert some["psnr_median"].value == 22.0


def test_psnr_of_flat_pictures_says_nothing() -> None:
    """A safety checker paints both pictures black: that is no perfect row."""
    some = psnr_of([math.inf, 20.0, math.inf], flat=[True, False, False])
    assert (some["psnr"].value, some["psnr_identical"].value) == (20.0, 1)
    assert "1 are of one flat colour" in some["psnr"].note
    with pytest.raises(MetricUnavailable, match="one flat colour"):
        psnr_of([math.inf] * 2, flat=[True, True])
    assert psnr_of([20.0, 30.0], flat=[True, True])["psnr"].value == 25.0  # not identical


def test_wrong_scale_size_and_dtype_are_refused() -> None:
    images, reference = pair()
    with pytest.raises(ValueError, match=r"scale to \[0, 1\]"):
        psnr.psnr_per_image(images * 255, reference)
    with pytest.raises(ValueError, match="nothing is resized"):
        ssim.ssim_per_image(images[..., :-1], reference)
    with pytest.raises(ValueError, match="give float"):
        psnr.psnr_per_image((images * 255).to(torch.uint8), reference)


def test_lpips_is_zero_for_identical_and_agrees_with_the_lpips_package(weights: Path) -> None:
    network = lpips.load_lpips(weights / lpips.LPIPS_BACKBONE, net="alex")
    images, reference = pair(size=64, count=2)
    assert lpips.lpips_per_image(network, reference, reference).tolist() == [0.0, 0.0]
    values = lpips.lpips_per_image(network, images, reference)
    assert (values > 0).all()
    with pytest.raises(MetricUnavailable, match="not resized"):
        lpips.lpips_per_image(network, images[..., :16, :16], reference[..., :16, :16])
    package = pytest.importorskip("lpips")
    other = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    other.net.load_state_dict(network.net.state_dict())
    theirs = other(images, reference, normalize=True).detach().reshape(-1)
    assert values.tolist() == pytest.approx(theirs.tolist(), rel=1e-4)


def test_lpips_is_of_the_image_as_it_is_not_of_a_resized_one(weights: Path) -> None:
    network = lpips.load_lpips(weights / lpips.LPIPS_BACKBONE, net="alex")
    images, reference = pair(size=320, count=1)
    smaller = [
        torch.nn.functional.interpolate(x, size=256, mode="area") for x in (images, reference)
    ]
    asked: list[torch.Size] = []
    network.scaling_layer.register_forward_hook(lambda *a: asked.append(a[1][0].shape))
    full = lpips.lpips_per_image(network, images, reference)
    assert asked == [images.shape, images.shape]
    assert full.item() != pytest.approx(lpips.lpips_per_image(network, *smaller).item(), rel=0.05)


@pytest.mark.parametrize(("height", "width", "noise"), [(176, 176, 0.02), (181, 240, 0.3)])
def test_ms_ssim_agrees_with_torchmetrics(height: int, width: int, noise: float) -> None:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as theirs,
    )

    generator = torch.Generator().manual_seed(1)
    reference = torch.rand(2, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    reference = torch.nn.functional.interpolate(reference, size=(height, width), mode="bilinear")
    grain = noise * torch.randn(reference.shape, generator=generator)
    images = (reference + grain).clamp(0, 1)
    expected = theirs(images.double(), reference.double(), data_range=1.0, reduction="none")
    found = ms_ssim.ms_ssim_per_image(images, reference)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_ms_ssim_in_closed_form_and_where_it_is_not_measured() -> None:
    """A constant offset leaves contrast and structure alone: the coarsest scale's light remains."""
    flat = torch.full((1, 3, 176, 176), 0.4)
    a, b, c1 = 0.4, 0.5, 0.01**2
    light = (2 * a * b + c1) / (a * a + b * b + c1)
    found = ms_ssim.ms_ssim_per_image(flat + 0.1, flat)
    assert found.item() == pytest.approx(light**0.1333, rel=1e-5)
    assert ms_ssim.ms_ssim_per_image(flat, flat).item() == 1.0
    opposite = torch.rand(1, 3, 176, 176)
    assert ms_ssim.ms_ssim_per_image(1 - opposite, opposite).item() == 0.0
    narrow = torch.zeros(1, 3, 200, 175)
    with pytest.raises(MetricUnavailable, match="at least 176 pixels a side; these are 175x200"):
        ms_ssim.ms_ssim_per_image(narrow, narrow)


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (400, 380), (1024, 700)])
def test_mdsi_agrees_with_piq(size: tuple[int, int]) -> None:
    package = pytest.importorskip("piq")
    generator = torch.Generator().manual_seed(size[0])
    coarse = torch.rand(2, 3, 8, 8, generator=generator)
    reference = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    noise = 0.3 * torch.randn(reference.shape, generator=generator)
    images = (reference + noise).clamp(0, 1)
    expected = package.mdsi(images.double(), reference.double(), data_range=1.0, reduction="none")
    found = mdsi.mdsi_per_image(images, reference)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_mdsi_in_closed_form() -> None:
    """One half shifted in colour alone: two values of the map, each half the pixels."""
    reference = torch.full((1, 3, 64, 64), 0.5)
    images = reference.clone()
    blue = torch.tensor([0.2989, 0.5870])  # light stays as it is: 0.2989 dR + 0.5870 dG = 0
    images[:, 0, :, 32:] += 0.2
    images[:, 1, :, 32:] -= 0.2 * blue[0] / blue[1]

    def colours(rgb: list[float]) -> tuple[float, float]:
        r, g, b = (255 * value for value in rgb)
        return 0.30 * r + 0.04 * g - 0.35 * b, 0.34 * r - 0.60 * g + 0.17 * b

    (h1, m1), (h2, m2) = colours([0.5] * 3), colours(images[0, :, 0, 63].double().tolist())
    alike = (2 * (h1 * h2 + m1 * m2) + 550) / (h1**2 + m1**2 + h2**2 + m2**2 + 550)
    values = (1.0, complex(0.6 + 0.4 * alike) ** 0.25)
    deviation = abs(values[0] - values[1]) / 2
    assert mdsi.mdsi_per_image(images, reference).item() == pytest.approx(deviation**0.25, rel=1e-3)
    assert mdsi.mdsi_per_image(reference, reference).item() == 0.0


def test_stored_values() -> None:
    """Numbers as they were when the independent implementations agreed."""
    rng = np.random.default_rng(5)
    coarse = np.kron(rng.uniform(size=(3, 11, 11)), np.ones((16, 16)))
    grainy = (coarse + 0.1 * rng.standard_normal(coarse.shape)).clip(0, 1)
    images, reference = (torch.from_numpy(x)[None] for x in (grainy, coarse))
    found = {
        "psnr": psnr.psnr_per_image(images, reference).item(),
        "ssim": ssim.ssim_per_image(images, reference).item(),
        "ms_ssim": ms_ssim.ms_ssim_per_image(images, reference).item(),
        "mdsi": mdsi.mdsi_per_image(images, reference).item(),
    }
    assert found == pytest.approx(STORED, rel=1e-6)


def test_ssim_of_a_large_image_filters_along_one_axis_at_a_time() -> None:
    """121 products a pixel took 20 s for 1024 pixels; 2 x 11 give the same number."""
    calls: list[int] = []
    original = ssim.gaussian_filter

    def counting(values: np.ndarray, *arguments: object, **more: object) -> np.ndarray:
        calls.append(values.size)
        return original(values, *arguments, **more)

    images, reference = pair(size=256, count=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssim, "gaussian_filter", counting)
        ssim.ssim_per_image(images, reference)
    assert calls == [3 * 256 * 256] * 5


def test_bad_case_rate_shows_what_a_mean_hides() -> None:
    metric = lpips.bad_case_rate(torch.tensor([0.01] * 9 + [0.9]))
    assert metric.value == pytest.approx(0.1)
    assert metric.interval == pytest.approx([0.0025, 0.4450], abs=1e-4)  # Clopper and Pearson
    none = lpips.bad_case_rate(torch.zeros(128))
    assert none.interval == pytest.approx([0.0, 1 - 0.025 ** (1 / 128)])
