import torch

from evaluation.metrics.flat_images import find_damaged


def test_damaged_images_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((5, 3, 16, 16), generator=generator)
    images[1] = 0.0
    images[2, 1, 3, 3] = float("nan")
    images[3] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # one colour: flat, though not grey
    found = find_damaged(images, ids=["good", "black", "nan", "red", "fine"])
    assert sorted(found) == ["black", "nan", "red"]
    assert "NaN" in found["nan"]
    assert "flat" in found["red"]


def test_flat_threshold_is_two_levels() -> None:
    images = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    images[0, ::2] += 3  # standard deviation 1.5/255
    images[1, ::2] += 5  # standard deviation 2.5/255
    assert list(find_damaged(images, ids=["below", "above"])) == ["below"]
