import math
import socket
from pathlib import Path

import pytest
import torch

from evaluation.metrics import lpips, psnr, ssim
from evaluation.records import Metric, MetricUnavailable


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


def test_lpips_without_weights_is_unavailable_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(MetricUnavailable, match=lpips.LPIPS_BACKBONE) as raised:
        lpips.load_lpips()
    assert str(tmp_path) in raised.value.reason


@pytest.fixture
def alexnet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seeded stand-in weights where torchvision looks for the real ones."""
    import torchvision

    torch.manual_seed(0)
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    network = torchvision.models.AlexNet()
    network.classifier = torch.nn.Sequential()  # not used, and most of the bytes
    full = torchvision.models.alexnet(weights=None).state_dict()
    full.update(network.state_dict())
    torch.save(full, checkpoints / lpips.LPIPS_BACKBONE)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_lpips_is_zero_for_identical_and_agrees_with_the_lpips_package(alexnet_home: Path) -> None:
    network = lpips.load_lpips()
    images, reference = pair(size=64, count=2)
    assert lpips.lpips_per_image(network, reference, reference).tolist() == [0.0, 0.0]
    values = lpips.lpips_per_image(network, images, reference)
    assert (values > 0).all()
    package = pytest.importorskip("lpips")
    other = package.LPIPS(net="alex", verbose=False)(images, reference, normalize=True)
    assert values.tolist() == pytest.approx(other.detach().reshape(-1).tolist(), rel=1e-4)
    with pytest.raises(MetricUnavailable, match="not resized"):
        lpips.lpips_per_image(network, images[..., :16, :16], reference[..., :16, :16])


def test_bad_case_rate_shows_what_a_mean_hides() -> None:
    metric = lpips.bad_case_rate(torch.tensor([0.01] * 9 + [0.9]))
    assert metric.value == pytest.approx(0.1)
    assert metric.interval == pytest.approx([0.0025, 0.4450], abs=1e-4)  # Clopper and Pearson
    none = lpips.bad_case_rate(torch.zeros(128))
    assert none.interval == pytest.approx([0.0, 1 - 0.025 ** (1 / 128)])
