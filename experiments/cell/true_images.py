"""Stage: the data set's own images of the evaluation prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.datasets.loading import true_images_of
from evaluation.datasets.picture_files import PictureFile, check_present
from experiments.cell.stage import Stage
from experiments.errors import told_to_the_user

LISTING = "pictures.json"


@dataclass(frozen=True, kw_only=True)
class TrueImages(Stage):
    """Drawn ones as `<id>.png`; of others a list: they are read where they lie."""

    kind = "dataset"
    anywhere = True

    def fields(self) -> dict[str, Any]:
        prompts = self.around.prompts_hash.evaluation
        return {"prompts": prompts, "images": self.around.true_images_hash}

    def code(self) -> tuple[str, ...]:
        return (type(self.around.config.dataset).__module__,)

    def make(self, folder: Path) -> None:
        dataset = self.around.dataset
        with told_to_the_user():
            pictures = true_images_of(dataset)
            if not pictures:
                dataset.config.write_true_images(folder, dataset.evaluation)
                return
            check_present(pictures, setting=f"dataset {dataset.name}")
            rows = [_row(name, picture) for name, picture in pictures.items()]
        (folder / LISTING).write_text(json.dumps(rows, indent=1) + "\n")

    def pictures(self) -> dict[str, PictureFile]:
        """Id -> where the image lies now: the stage is named by contents, and they may be moved."""
        finished, dataset = self.build(), self.around.dataset
        with told_to_the_user():
            pictures = true_images_of(dataset)
        drawn = {p.id: PictureFile(path=finished.path / f"{p.id}.png") for p in dataset.evaluation}
        return pictures or drawn


def _row(name: str, picture: PictureFile) -> dict[str, Any]:
    """Where it lay when the stage was made; its size, for which it is decoded."""
    width, height = picture.read().size
    return {
        "id": name,
        "path": str(picture.path),
        "member": picture.member,
        "sha256": picture.sha256(),
        "size": [width, height],
    }
