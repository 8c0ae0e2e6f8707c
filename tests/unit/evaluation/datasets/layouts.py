"""Data sets of a few prompts in the layouts in which their authors pass them on."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("animals", "art", "fashion")


def jpeg(number: int, *, width: int = 24) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_mjhq(root: Path, *, count: int = 12, unpacked: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = {
        f"{(7919 * n) % 1000:03d}ab": {"category": CATEGORIES[n % 3], "prompt": f"a red circle {n}"}
        for n in range(count)
    }
    (root / "meta_data.json").write_text(json.dumps(rows))
    pictures = {
        f"{row['category']}/{name}.jpg": jpeg(n) for n, (name, row) in enumerate(rows.items())
    }
    if unpacked:
        for name, content in pictures.items():
            path = root / "mjhq30k_imgs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        write_zip(root / "mjhq30k_imgs.zip", pictures)
    return root


def write_dci(root: Path, *, count: int = 12) -> Path:
    for folder in ("annotations", "photos"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        row = {
            "image": f"sa_{n}.jpg",
            "short_caption": f"A boat {n}.",
            "extra_caption": f"It is blue {n}.",
            "mask_data": {},
        }
        (root / "annotations" / f"sa_{n}.json").write_text(json.dumps(row))
        (root / "photos" / f"sa_{n}.jpg").write_bytes(jpeg(n, width=20 + n))
    return root


def write_sdci(root: Path, *, count: int = 12) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    names = [f"sa_{n}" for n in range(count)]
    (root / "sDCI.yaml").write_text("".join(f"{n}: a blue boat {n}\n" for n in names))
    with tarfile.open(root / "sDCI.gz", "w:gz") as archive:
        for n, name in enumerate(names):
            info, content = tarfile.TarInfo(f"./{name}.jpg"), jpeg(n)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root


def write_coco(root: Path, *, count: int = 12) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{139 + 7 * n:012d}" for n in range(count)]
    images = [{"id": int(name), "file_name": f"{name}.jpg", "license": 1} for name in names]
    annotations = [
        {"id": 10 * n + k, "image_id": int(name), "caption": f"Caption {k} of {n}.\n"}
        for k in range(2)
        for n, name in enumerate(names)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (root / "captions_val2017.json").write_text(json.dumps(content))
    write_zip(
        root / "val2017.zip", {f"val2017/{name}.jpg": jpeg(n) for n, name in enumerate(names)}
    )
    return root


def write_partiprompts(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = ["Prompt\tCategory\tChallenge\tNote", 'the words "Fly" on a wall\tArts\tComplex\t']
    rows += [f"a boat {n}\tVehicles\tBasic\t" for n in range(11)]
    rows += ["a boat 3\tVehicles\tBasic\tthere already"]
    (root / "PartiPrompts.tsv").write_text("\n".join(rows) + "\n")
    return root


def write_drawbench(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = ["Prompts,Category", '"A stack of 3 plates, ""blue"".",DALL-E']
    rows += [f"A red car {n}.,Colors" for n in range(11)]
    (root / "DrawBench.csv").write_text("\r\n".join(rows))
    return root


def write_geneval(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "tag": "counting",
            "include": [{"class": "clock", "count": n}],
            "exclude": [{"class": "clock", "count": n + 1}],
            "prompt": f"a photo of {n} clocks",
        }
        for n in range(12)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "evaluation_metadata.jsonl").write_text(text)
    return root


def write_zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
