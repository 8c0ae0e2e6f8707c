"""Each data set is read from its own distribution's files, and what is wrong in them is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.datasets.control_images import draw
from evaluation.datasets.interface import Dataset
from evaluation.datasets.loading import check_pictures_of, load_dataset, prompts_hash
from evaluation.datasets.published_data import PublishedData
from evaluation.datasets.subset import READERS
from tests.unit.evaluation.datasets import layouts

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "coco": layouts.write_coco,
    "dci": layouts.write_dci,
    "drawbench": layouts.write_drawbench,
    "geneval": layouts.write_geneval,
    "mjhq": layouts.write_mjhq,
    "partiprompts": layouts.write_partiprompts,
    "sdci": layouts.write_sdci,
}
PICTURED = ("coco", "dci", "mjhq", "sdci")


def opened(name: str, root: Path, **settings: Any) -> PublishedData:
    given = {"name": name, "evaluation_prompts": 4, "calibration_prompts": 4}
    return READERS[name](**{**given, "root": str(root), **settings})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_in_its_own_layout(name: str, tmp_path: Path) -> None:
    config = opened(name, LAYOUTS[name](tmp_path / name))
    assert isinstance(config, Dataset)
    assert all(file.is_there() for file in config.outside_files())
    dataset = load_dataset(config)  # refuses a prompt that is in both splits
    check_pictures_of(dataset)
    assert (len(dataset.evaluation), len(dataset.calibration)) == (4, 4)
    assert config.has_images() is (name in PICTURED)
    pictures = config.image_files(dataset.evaluation)
    assert sorted(pictures) == (
        sorted(p.id for p in dataset.evaluation) if name in PICTURED else []
    )
    assert all(picture.read().mode == "RGB" for picture in pictures.values())
    shutil.rmtree(tmp_path / name)
    with pytest.raises(ValueError, match=r"no such file|holds no annotation") as caught:
        config.prompts()
    assert "\n" not in str(caught.value)
    said = [file.describe() for file in config.outside_files()]
    assert all("missing; get it from http" in line for line in said)
    assert len(said) == (2 if name in PICTURED else 1)


def test_mjhq(tmp_path: Path) -> None:
    config = opened("mjhq", layouts.write_mjhq(tmp_path))
    first = config.prompts()["evaluation"][1]
    assert (first.id, first.text) == ("919ab", "a red circle 1")
    picture = config.image_files([first])["919ab"]
    assert (picture.path.name, picture.member) == ("mjhq30k_imgs.zip", "art/919ab.jpg")
    assert picture.sha256() == hashlib.sha256(layouts.jpeg(1)).hexdigest()


def test_mjhq_unpacked_is_the_same(tmp_path: Path) -> None:
    packed = opened("mjhq", layouts.write_mjhq(tmp_path / "a"))
    unpacked = opened("mjhq", layouts.write_mjhq(tmp_path / "b", unpacked=True))
    prompts = packed.prompts()
    assert unpacked.prompts() == prompts
    assert [p.sha256() for p in unpacked.image_files(prompts["evaluation"]).values()] == [
        p.sha256() for p in packed.image_files(prompts["evaluation"]).values()
    ]
    assert [file.path.name for file in unpacked.outside_files()] == ["meta_data.json"]


def test_dci_joins_both_captions(tmp_path: Path) -> None:
    config = opened("dci", layouts.write_dci(tmp_path), selection="random")
    prompts = {p.id: p.text for p in config.prompts()["evaluation"]}
    assert all(text == f"A boat {n[3:]}. It is blue {n[3:]}." for n, text in prompts.items())


def test_sdci_is_read_in_its_compressed_tar_or_unpacked(tmp_path: Path) -> None:
    config = opened("sdci", layouts.write_sdci(tmp_path))
    prompts = config.prompts()["evaluation"]
    assert config.image_files(prompts)["sa_2"].member == "sa_2.jpg"
    shutil.unpack_archive(tmp_path / "sDCI.gz", tmp_path / "sDCI", format="gztar")
    assert config.image_files(prompts)["sa_2"].path == tmp_path / "sDCI" / "sa_2.jpg"


def test_coco_takes_the_first_caption_or_joins_all(tmp_path: Path) -> None:
    root = layouts.write_coco(tmp_path)
    first = opened("coco", root).prompts()["evaluation"][0]
    assert (first.id, first.text) == ("000000000139", "Caption 0 of 0.")
    joined = opened("coco", root, captions="joined")
    assert joined.prompts()["evaluation"][0].text == "Caption 0 of 0. Caption 1 of 0."
    content = (root / "captions_val2017.json").read_bytes()
    layouts.write_zip(
        root / "annotations_trainval2017.zip", {"annotations/captions_val2017.json": content}
    )
    (root / "captions_val2017.json").unlink()
    assert opened("coco", root, captions="joined").prompts() == joined.prompts()
    with pytest.raises(ValueError, match=r"dataset\.captions='all'; choose first or joined"):
        opened("coco", root, captions="all")


def test_quotes_stay_in_a_tsv_and_go_in_a_csv(tmp_path: Path) -> None:
    parti = opened("partiprompts", layouts.write_partiprompts(tmp_path))
    assert parti.text_of("00000") == 'the words "Fly" on a wall'
    assert opened("drawbench", layouts.write_drawbench(tmp_path)).text_of("00000") == (
        'A stack of 3 plates, "blue".'
    )


def test_geneval_has_several_images_a_prompt_each_with_its_noise(tmp_path: Path) -> None:
    root = layouts.write_geneval(tmp_path)
    config = READERS["geneval"](
        name="geneval", root=str(root), evaluation_prompts=8, calibration_prompts=4
    )
    prompts = load_dataset(config).evaluation
    assert [p.id for p in prompts[:5]] == ["00000-0", "00000-1", "00000-2", "00000-3", "00001-0"]
    assert {p.text for p in prompts} == {"a photo of 0 clocks", "a photo of 1 clocks"}
    config.evaluation_prompts = 9
    with pytest.raises(ValueError, match="evaluation_prompts=9 with 4 images a prompt; give a mul"):
        config.prompts()


FAULTS: dict[str, tuple[str, str, str, str]] = {
    "no json": ("mjhq", "meta_data.json", "{", r"meta_data\.json: cannot be read as JSON"),
    "no category": (
        "mjhq",
        "meta_data.json",
        json.dumps({"a": {"prompt": "x"}}),
        r"meta_data\.json: 'a' has no prompt and category",
    ),
    "no captions": (
        "coco",
        "captions_val2017.json",
        json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 1}]}),
        r"captions_val2017\.json: is no COCO file of captions \(KeyError: 'image_id'\)",
    ),
    "no picture": ("dci", "annotations/sa_0.json", "{}", r"sa_0\.json: has no image, short_capt"),
    "a list": ("sdci", "sDCI.yaml", "- a\n", r"sDCI\.yaml: is no mapping from ids to prompts"),
    "no yaml": ("sdci", "sDCI.yaml", "a: b\nb: [\n", r"sDCI\.yaml:3: cannot be read as YAML"),
    "no column": ("drawbench", "DrawBench.csv", "a,b\n1,2\n", r"DrawBench\.csv:2: has no prompt"),
    "no prompt": (
        "geneval",
        "evaluation_metadata.jsonl",
        '{"prompt": "x", "include": []}\n{}\n',
        r"evaluation_metadata\.jsonl:2: has no prompt",
    ),
    "few": ("partiprompts", "PartiPrompts.tsv", "Prompt\na\nb\n", "has 2 prompts; dataset.eval"),
    "all used": ("drawbench", "DrawBench.csv", "Prompts\na\nb\nc\nd\n", "0 prompts are left to c"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_file_is_named_in_one_line(fault: str, tmp_path: Path) -> None:
    name, file, content, said = FAULTS[fault]
    root = LAYOUTS[name](tmp_path)
    config = opened(name, root)
    (root / file).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        config.prompts()
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_missing_or_damaged_is_found_before_anything_is_sampled(
    tmp_path: Path,
) -> None:
    root = layouts.write_mjhq(tmp_path)
    dataset = load_dataset(opened("mjhq", root))
    contents = {
        f"{layouts.CATEGORIES[n % 3]}/{(7919 * n) % 1000:03d}ab.jpg": layouts.jpeg(n)
        for n in range(12)
    }
    damaged = {**contents, "art/919ab.jpg": layouts.jpeg(1)[:-30]}
    layouts.write_zip(root / "mjhq30k_imgs.zip", damaged)
    with pytest.raises(ValueError, match=r"mjhq30k_imgs\.zip: art/919ab\.jpg ends in the middle"):
        check_pictures_of(dataset)
    del contents["art/919ab.jpg"]
    layouts.write_zip(root / "mjhq30k_imgs.zip", contents)
    with pytest.raises(ValueError, match=r"dataset\.root=.*imgs\.zip: art/919ab\.jpg is missing$"):
        check_pictures_of(dataset)
    (root / "mjhq30k_imgs.zip").unlink()
    with pytest.raises(ValueError, match=r"imgs\.zip: .* is missing \(4 of 4 are\)"):
        check_pictures_of(dataset)
    alone = opened("mjhq", root, true_images=False)
    assert not alone.has_images()
    check_pictures_of(load_dataset(alone))  # prompts alone need no picture


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "txt", "yaml"])
def test_a_folder_of_ones_own(kind: str, tmp_path: Path) -> None:
    names = [f"{n:05d}" for n in range(8)]
    rows = {name: f"a blue boat {name}" for name in names}
    texts = {
        "jsonl": "".join(json.dumps({"id": n, "prompt": t}) + "\n" for n, t in rows.items()),
        "csv": "id,Caption\n" + "".join(f"{n},{t}\n" for n, t in rows.items()),
        "tsv": "text\n" + "".join(f"{t}\n" for t in rows.values()),
        "txt": "\n\n".join(rows.values()),
        "yaml": "".join(f'"{n}": {t}\n' for n, t in rows.items()),
    }
    (tmp_path / f"prompts.{kind}").write_text(texts[kind])
    (tmp_path / "pictures").mkdir()
    for n, name in enumerate(names):
        suffix = ("png", "jpg", "webp", "tiff")[n % 4]
        Image.new("RGB", (9 + n, 8)).save(tmp_path / "pictures" / f"{name}.{suffix}")
    config = opened("folder", tmp_path, images="pictures")
    dataset = load_dataset(config)
    check_pictures_of(dataset)
    assert [(p.id, p.text) for p in dataset.evaluation] == list(rows.items())[:4]
    sizes = [picture.read().size for picture in config.image_files(dataset.evaluation).values()]
    assert sizes == [(9, 8), (10, 8), (11, 8), (12, 8)]
    assert not opened("folder", tmp_path).has_images()


def test_pictures_of_a_folder_may_be_named_by_the_list(tmp_path: Path) -> None:
    rows = [{"prompt": f"boat {n}", "image": f"in/{n}.jpg"} for n in range(8)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    layouts.write_zip(tmp_path / "a.zip", {f"in/{n}.jpg": layouts.jpeg(n) for n in range(8)})
    config = opened("folder", tmp_path, prompts_file="mine.jsonl", images="a.zip")
    pictures = config.image_files(load_dataset(config).evaluation)
    assert [picture.member for picture in pictures.values()] == [f"in/{n}.jpg" for n in range(4)]
    with pytest.raises(ValueError, match=r"there is none; name one in dataset\.prompts_file"):
        opened("folder", tmp_path).prompts()
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: id 'x' is there already"):
        config.prompts()


def test_edges_go_into_the_call_with_their_prompt(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    root = layouts.write_dci(tmp_path)
    config = opened("dci", root, control="canny")
    dataset = load_dataset(config)
    check_pictures_of(dataset)  # of unequal sizes: a ControlNet's pipeline resizes each
    ((argument, drawn),) = dataset.evaluation[0].files
    assert argument == "control_image"
    source = np.asarray(Image.open(root / "photos" / f"{dataset.evaluation[0].id}.jpg"))
    edges = cv2.Canny(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY), 100, 200)
    assert np.array_equal(np.asarray(drawn.read()), np.repeat(edges[..., None], 3, axis=2))
    assert set(np.unique(edges)) == {0, 255}
    jpeg = opened("dci", root, control="canny", control_format="jpeg", control_as="image")
    ((argument, other),) = jpeg.prompts()["evaluation"][0].files
    Image.fromarray(edges).save(tmp_path / "as_the_authors.jpg")
    kept = np.asarray(Image.open(tmp_path / "as_the_authors.jpg").convert("RGB"))
    assert argument == "image"
    assert np.array_equal(np.asarray(other.read()), kept)
    hashes = [prompts_hash(c.prompts()["evaluation"]) for c in (config, jpeg, opened("dci", root))]
    assert len(set(hashes)) == 3


def test_edges_of_a_fixed_picture_are_those_of_other_versions_of_opencv() -> None:
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (333, 517, 3), dtype=np.uint8))
    digest = hashlib.sha256(np.asarray(draw("canny", picture)).tobytes()).hexdigest()
    assert digest == "d3d7dc305193c2181846ee66d7caf6510d805145ba1f0767df389015f3f9e768"


def test_edges_without_opencv_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    config = opened("mjhq", layouts.write_mjhq(tmp_path), control="canny")
    with pytest.raises(ValueError, match=r"needs OpenCV.*pip install 'segquant-bench\[canny\]'"):
        load_dataset(config)
    parti = opened("partiprompts", layouts.write_partiprompts(tmp_path), control="canny")
    with pytest.raises(ValueError, match="control=canny: partiprompts has no pictures"):
        parti.prompts()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"selection": "best"}, "dataset.selection='best'; choose one of first, random, deepcomp"),
        ({"selection": "list"}, "dataset.selection=list goes with dataset.ids=FILE"),
        ({"ids": "a.txt"}, "dataset.selection=list goes with dataset.ids=FILE"),
        ({"control": "depth"}, "dataset.control='depth'; choose one of null, canny"),
        ({"control_format": "webp"}, "dataset.control_format='webp'; choose one of png, jpeg"),
        ({"control_as": "edges"}, "choose one of image, mask_image, control_image"),
    ],
)
def test_a_setting_that_is_none_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        opened("mjhq", Path("nowhere"), **settings)
