"""A file of prompts: read whole or refused with the line; and what any data set must keep to."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.datasets.interface import Dataset, Prompt
from evaluation.datasets.loading import (
    check_pictures_of,
    load_dataset,
    prompts_hash,
    true_images_of,
)
from evaluation.datasets.picture_files import PictureFile
from evaluation.datasets.prompts_file import PromptsFile
from evaluation.images import write_png


def prompts_file(path: Path, rows: list[dict[str, str]], **settings: Any) -> PromptsFile:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        "name": "mine",
        "path": str(path),
        "images": None,
        "evaluation_prompts": 2,
        "calibration_prompts": 2,
        "seed": 0,
        "calibration_seed": None,
    }
    return PromptsFile(**{**given, **settings})


def rows(evaluation: int = 3, calibration: int = 9) -> list[dict[str, str]]:
    return [
        *({"id": f"e{i}", "prompt": f"evaluation {i}"} for i in range(evaluation)),
        *(
            {"id": f"c{i}", "prompt": f"calibration {i}", "split": "calibration"}
            for i in range(calibration)
        ),
    ]


def test_the_first_prompts_of_each_split_are_read(tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", rows())
    assert isinstance(config, Dataset)
    dataset = load_dataset(config)
    assert [prompt.id for prompt in dataset.evaluation] == ["e0", "e1"]
    assert [prompt.id for prompt in dataset.calibration] == ["c0", "c1"]
    assert not config.has_images()


def test_a_calibration_seed_draws_the_calibration_prompts_alone(tmp_path: Path) -> None:
    drawn = load_dataset(prompts_file(tmp_path / "a.jsonl", rows(), calibration_seed=1))
    other = load_dataset(prompts_file(tmp_path / "b.jsonl", rows(), calibration_seed=2))
    assert drawn.evaluation == other.evaluation
    assert drawn.calibration != other.calibration


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"id": "a"}], r"mine.jsonl:1: 'prompt' is missing, not a text"),
        ([{"id": "a/b", "prompt": "x"}], "mine.jsonl:1: id 'a/b'"),
        ([{"id": "a", "prompt": "x", "split": "test"}], "split 'test'"),
        ([*rows(), {"id": "e0", "prompt": "x"}], "mine.jsonl:13: id 'e0' is there already"),
        (rows(1, 9), "1 evaluation prompts of 2 asked for; add prompts or set dataset.evalu"),
        (
            [*rows(2, 1), {"id": "s", "prompt": "evaluation 0", "split": "calibration"}],
            "dataset mine: 1 prompts are in both splits, for example 'evaluation 0'",
        ),
    ],
)
def test_a_bad_file_is_refused(lines: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_dataset(prompts_file(tmp_path / "mine.jsonl", lines))


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_line(sign: str, tmp_path: Path) -> None:
    """JSON lets these stand in a text as they are, and Python's splitlines cuts there."""
    listed = [{"id": "a", "prompt": f"red{sign}circle"}, *rows()]
    config = prompts_file(tmp_path / "mine.jsonl", [])
    text = "\r\n".join(json.dumps(row, ensure_ascii=ord(sign) < 32) for row in listed)
    Path(config.path).write_text(text, encoding="utf-8")
    assert load_dataset(config).evaluation[0].text == f"red{sign}circle"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "prompt": None}, "'prompt' is None, not a text"),
        ({"id": "a", "prompt": ["a", "b"]}, "'prompt' is .*, not a text"),
        ({"id": "a", "prompt": {"a": 1}}, "'prompt' is .*, not a text"),
        ({"id": "a", "prompt": 3}, "'prompt' is 3, not a text"),
        ({"id": "a", "prompt": "x\ud83d"}, "half of a surrogate pair"),
        ({"id": "a", "prompt": "x\0y"}, "holds a NUL character"),
        ({"id": "a", "prompt": "x" * 1_000_000}, "1000000 characters; give 20000 at most"),
        ({"id": None, "prompt": "x"}, "'id' is None, not a text"),
        ({"id": ["a"], "prompt": "x"}, "'id' is .*, not a text"),
        ({"id": 7, "prompt": "x"}, "'id' is 7, not a text"),
        ({"id": "", "prompt": "x"}, "is empty"),
        ({"id": ".", "prompt": "x"}, "begins with a dot"),
        ({"id": "..", "prompt": "x"}, "begins with a dot"),
        ({"id": ".h", "prompt": "x"}, "begins with a dot"),
        ({"id": "a\0b", "prompt": "x"}, "holds a NUL"),
        ({"id": "a\nb", "prompt": "x"}, "a line break"),
        ({"id": "a\u2028b", "prompt": "x"}, "a line break"),
        ({"id": "\ud800", "prompt": "x"}, "half of a surrogate pair"),
        ({"id": "x" * 250, "prompt": "x"}, "250 bytes, more than 200"),
        ({"id": "\u00e9" * 150, "prompt": "x"}, "300 bytes, more than 200"),
        ({"id": "a", "prompt": "x", "split": None}, "split None"),
        ({"id": "a", "prompt": "x", "split": ["evaluation"]}, "split .'evaluation'"),
        ({"id": "a", "prompt": "x", "image": 5}, "'image' is 5, not the path of a picture"),
        ({"id": "a", "prompt": "x", "mask_image": "no.png"}, "'mask_image': .*no.png is no file"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_a_row_that_is_none_is_refused_with_its_line(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", [*rows(), row])
    with pytest.raises(ValueError, match=f"mine.jsonl:13: .*{said}") as caught:
        load_dataset(config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"id": "a", "prompt": "caf\u00e9"}'.encode("latin-1"),
            "mine.jsonl:1: byte 0xe9 is not UTF",
        ),
        ('{"id": "a", "prompt": "x"}'.encode("utf-16"), "mine.jsonl:1: byte 0xff is not UTF-8"),
        (bytes(range(256)) * 4, "is not UTF-8"),
        (b"\x00" * 100, "mine.jsonl:1: cannot be read as JSON"),
        (b"[" * 100_000, "mine.jsonl:1: cannot be read as JSON .nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b', "prompt": "x"}', "a number is too long"),
        (b'\n\n["a"]', "mine.jsonl:3: is a list, not an object"),
        (b"null", "mine.jsonl:1: is null"),
    ],
    ids=["latin-1", "utf-16", "binary", "zeros", "deep", "digits", "list", "null"],
)
def test_a_file_that_is_no_json_lines_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", [])
    Path(config.path).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_dataset(config)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", rows())
    Path(config.path).write_bytes(b"\xef\xbb\xbf" + Path(config.path).read_bytes())
    assert load_dataset(config).evaluation[0].id == "e0"


def _png(path: Path, *, width: int = 4) -> Path:
    write_png(path, np.zeros((4, width, 3), np.uint8))
    return path


def _claims(path: Path, *, side: int) -> None:
    """A PNG of a few bytes whose head says that it has side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(bytes(100)), b"IEND": b""}
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks.items()
        )
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "cannot be read as a picture"),
        (lambda path: path.write_bytes(b""), "cannot be read as a picture"),
        (lambda path: path.write_text("not a picture"), "cannot be read as a picture"),
        (lambda path: _claims(path, side=9000), "is 9000x9000; a picture has"),
        (lambda path: _claims(path, side=60000), "too many pixels"),
        (lambda path: path.unlink(), "e1.png is missing"),
    ],
    ids=["half", "empty", "text", "large", "bomb", "missing"],
)
def test_a_damaged_true_image_is_found_before_anything_is_sampled(
    damage: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    for name in ("e0", "e1"):
        _png(tmp_path / f"{name}.png")
    dataset = load_dataset(prompts_file(tmp_path / "mine.jsonl", rows(), images=str(tmp_path)))
    check_pictures_of(dataset)
    damage(tmp_path / "e1.png")
    with pytest.raises(ValueError, match=said):
        check_pictures_of(dataset)


def test_pictures_of_the_rows_go_with_their_prompts(tmp_path: Path) -> None:
    _png(tmp_path / "a.png")
    given = [row | {"image": "a.png"} for row in rows()]
    dataset = load_dataset(prompts_file(tmp_path / "mine.jsonl", given))
    assert dataset.evaluation[0].files == (("image", PictureFile(path=tmp_path / "a.png")),)
    check_pictures_of(dataset)
    before = prompts_hash(dataset.evaluation)
    _png(tmp_path / "a.png", width=5)
    assert prompts_hash(dataset.evaluation) != before
    (tmp_path / "a.png").write_text("none")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        check_pictures_of(dataset)


def test_either_every_prompt_has_a_picture_or_none(tmp_path: Path) -> None:
    _png(tmp_path / "a.png")
    first, *others = rows()
    config = prompts_file(tmp_path / "mine.jsonl", [first | {"image": "a.png"}, *others])
    with pytest.raises(ValueError, match="'e0' has image, 'e1' has no image; give every"):
        load_dataset(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", rows())
    config.path = "nowhere.jsonl"
    with pytest.raises(ValueError, match=r"dataset\.path=nowhere\.jsonl: no such file"):
        load_dataset(config)


def test_true_images_are_those_of_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "true"
    config = prompts_file(tmp_path / "mine.jsonl", rows(), images=str(source))
    prompts = load_dataset(config).evaluation
    write_png(source / "e0.png", np.full((4, 4, 3), 7, np.uint8))
    assert config.has_images()
    found = config.image_files(prompts)
    assert found == {name: PictureFile(path=source / f"{name}.png") for name in ("e0", "e1")}
    with pytest.raises(ValueError, match=r"dataset\.images=.*true: .*e1\.png is missing"):
        config.check_images(prompts)
    _png(source / "e1.png", width=5)  # sizes may differ: each is resized for a metric
    config.check_images(prompts)
    with pytest.raises(ValueError, match="draws no images"):
        config.write_true_images(tmp_path, prompts)


def test_pictures_for_a_call_have_one_size(tmp_path: Path) -> None:
    for number, row in enumerate(listed := rows()):
        row["image"] = _png(tmp_path / f"{number}.png", width=4 + number % 2).name
    dataset = load_dataset(prompts_file(tmp_path / "mine.jsonl", listed))
    with pytest.raises(ValueError, match=r"1\.png is 5x4, .*0\.png is 4x4; all pictures that a"):
        check_pictures_of(dataset)


@dataclass(kw_only=True)
class Own:
    """A data set of one's own, with a mistake."""

    splits: dict[str, tuple[Prompt, ...]]
    name: str = "own"
    evaluation_prompts: int = 2
    calibration_prompts: int = 1
    seed: int = 0
    calibration_seed: int | None = None

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        return self.splits

    def has_images(self) -> bool:
        return False

    def image_files(self, prompts: object) -> dict[str, PictureFile]:
        return {}

    def write_true_images(self, folder: Path, prompts: object) -> None: ...


def test_pictures_that_a_data_set_of_ones_own_names_wrongly_are_refused() -> None:
    @dataclass(kw_only=True)
    class Pictured(Own):
        found: Any

        def image_files(self, prompts: object) -> Any:
            return self.found

    def true_images(found: Any) -> object:
        splits = {"evaluation": (A, B), "calibration": (C,)}
        return true_images_of(load_dataset(Pictured(splits=splits, found=found)))

    picture = PictureFile(path=Path("a.png"))
    assert true_images(()) == {}
    assert true_images({"b": picture, "a": picture}) == {"a": picture, "b": picture}
    with pytest.raises(ValueError, match=r"dataset own: image_files\(\) gave list; it maps each"):
        true_images([Path("a.png"), Path("b.png")])
    with pytest.raises(ValueError, match=r"image_files\(\) has none of 'b'"):
        true_images({"a": picture})


A, B, C = (Prompt(id=name, text=name) for name in "abc")


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"evaluation": (A, B)}, r"prompts\(\) has evaluation; it must have evaluation and cal"),
        ({"evaluation": (A,), "calibration": (C,)}, "1 evaluation prompts with 1 different ids"),
        ({"evaluation": (A, A), "calibration": (C,)}, "2 evaluation prompts with 1 different ids"),
    ],
)
def test_a_data_set_that_breaks_its_word_is_refused(
    splits: dict[str, tuple[Prompt, ...]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        load_dataset(Own(splits=splits))
