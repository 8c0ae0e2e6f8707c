"""Features of pictures: clean-fid's own where it is clean-fid's, kept and shared, resumable."""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import extractors
from evaluation.clip_evaluator import Evaluator
from evaluation.datasets.picture_files import PictureFile
from evaluation.extractors import (
    Extractor,
    clean_resize,
    evaluator_extractor,
    picture_features,
    straight_resize,
    weighted_extractor,
)
from evaluation.images import FolderPicture
from evaluation.records import MetricUnavailable
from evaluation.weight_files import Weights

CPU = torch.device("cpu")


def pictures(folder: Path, ids: list[str]) -> list[FolderPicture]:
    return [FolderPicture(path=folder / f"{name}.png") for name in ids]


def cleanly(encode: Callable[[torch.Tensor], torch.Tensor]) -> Extractor:
    return Extractor(key="of a test", prepare=clean_resize, encode=encode)


def test_rows_follow_the_ids_given(evaluator: Evaluator, image_folder) -> None:
    ids = ["p10", "p9", "p1"]  # neither sorted as text nor as numbers
    folder = image_folder("set", ids=ids)
    extract = evaluator_extractor(evaluator)
    rows = picture_features(pictures(folder, ids), extractor=extract)
    assert rows.shape == (3, 16)
    assert rows.dtype == np.float64
    back = picture_features(pictures(folder, ids[::-1]), extractor=extract)
    assert rows == pytest.approx(back[::-1], abs=1e-5)
    assert abs(rows[0] - rows[1]).max() > 1e-3


def test_features_are_those_of_clean_fid_on_the_folder(evaluator: Evaluator, image_folder) -> None:
    from cleanfid import fid

    folder = image_folder("set", ids=["b", "a", "c"])
    extract = evaluator_extractor(evaluator)
    expected = fid.get_folder_features(
        str(folder), extract.encode, num_workers=0, device=torch.device("cpu"), verbose=False
    )
    rows = picture_features(pictures(folder, ["a", "b", "c"]), extractor=extract)
    assert np.array_equal(rows, expected)


def test_pictures_of_any_format_are_resized_by_clean_fid(tmp_path: Path) -> None:
    """PNG images of one size and JPEG of several sizes: as clean-fid's loader gives them."""
    from cleanfid import fid

    rng = np.random.default_rng(0)
    sizes = [(64, 64), (320, 200), (299, 299), (31, 700)]
    for number, (width, height) in enumerate(sizes):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise.save(tmp_path / f"a{number}.jpg", quality=90)
        noise.save(tmp_path / f"b{number}.png")
    files = [tmp_path / f"{name}" for name in sorted(path.name for path in tmp_path.iterdir())]

    def extract(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :, ::7, ::7].reshape(len(batch), -1)

    expected = fid.get_files_features(
        [str(path) for path in files], extract, num_workers=0, batch_size=3,
        device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    found = picture_features(
        [PictureFile(path=path) for path in files], extractor=cleanly(extract), batch=3
    )
    assert np.array_equal(found, expected.astype(np.float64))


def test_extractor_gets_what_clean_fid_gives(image_folder) -> None:
    seen = []

    def extract(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return batch.mean(dim=(2, 3))

    folder = image_folder("set", ids=["a", "b"], size=64)
    rows = picture_features(pictures(folder, ["a", "b"]), extractor=cleanly(extract))
    assert seen[0].shape == (2, 3, 299, 299)
    assert seen[0].dtype == torch.float32
    assert 1.0 < seen[0].max() <= 255.0
    assert rows.shape == (2, 3)


def test_nan_features_are_refused(image_folder) -> None:
    folder = image_folder("set", ids=["a", "b"])
    with pytest.raises(ValueError, match="NaN"):
        picture_features(
            pictures(folder, ["a", "b"]),
            extractor=cleanly(lambda batch: batch.mean(dim=(2, 3)) * float("nan")),
        )


def test_a_killed_run_goes_on_and_rows_share_it(image_folder, tmp_path: Path) -> None:
    """The third batch fails: the next run computes it alone; other extractors have their own."""
    folder = image_folder("set", ids=[f"p{n}" for n in range(6)])
    of_all = pictures(folder, [f"p{n}" for n in range(6)])
    asked: list[int] = []

    def encode(batch: torch.Tensor) -> torch.Tensor:
        asked.append(len(batch))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return batch.mean(dim=(2, 3))

    def run(extractor: Extractor) -> np.ndarray:
        return picture_features(of_all, extractor=extractor, cache=tmp_path / "kept", batch=2)

    with pytest.raises(KeyboardInterrupt):
        run(cleanly(encode))
    whole = run(cleanly(encode))
    assert asked == [2, 2, 2, 2]
    assert np.array_equal(whole, picture_features(of_all, extractor=cleanly(encode), batch=2))
    again = run(cleanly(encode))
    assert len(asked) == 7
    assert np.array_equal(again, whole)
    run(dataclasses.replace(cleanly(encode), key="of other weights"))
    assert len(asked) == 10


def test_a_picture_is_squeezed_straight_to_its_size() -> None:
    wide = Image.fromarray(np.full((20, 60, 3), 255, dtype=np.uint8))
    prepared = straight_resize(42, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))(wide)
    assert prepared.shape == (3, 42, 42)
    assert prepared.mean(dim=(1, 2)).tolist() == pytest.approx([2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("name", "side", "width"), [("inception", 299, 2048), ("clip336", 42, 32), ("dinov2", 224, 128)]
)
def test_each_network_has_one_preprocessing_of_its_own(
    weights: Path, image_folder, name: str, side: int, width: int
) -> None:
    """Straight from the picture: never 299 pixels first and then 336."""
    made = weighted_extractor(name, weights=Weights(folder=weights, more={}), device=CPU)
    folder = image_folder("set", ids=["a", "b"], size=64)
    assert made.prepare(pictures(folder, ["a"])[0].read()).shape == (3, side, side)
    rows = picture_features(pictures(folder, ["a", "b"]), extractor=made)
    assert rows.shape == (2, width)
    assert abs(rows[0] - rows[1]).max() > 1e-6
    if name == "clip336":
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0)


def test_what_is_missing_or_another_file_is_said(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    def reason(folder: Path | None) -> str:
        with pytest.raises(MetricUnavailable) as raised:
            weighted_extractor("inception", weights=Weights(folder=folder, more={}), device=CPU)
        return raised.value.reason

    name = extractors.FILES["inception"]
    assert f"no weights at {tmp_path / name}" in reason(tmp_path)
    assert "metrics.weights=FOLDER" in reason(None)
    content = bytearray((weights / name).read_bytes())
    (tmp_path / name).write_bytes(content + b"x")
    assert "bytes; it is no" in reason(tmp_path)
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    assert "sha256 is" in reason(tmp_path)
