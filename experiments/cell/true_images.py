"""Stage: the data set's own images of the evaluation prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cell.stage import Stage
from experiments.errors import told_to_the_user


@dataclass(frozen=True, kw_only=True)
class TrueImages(Stage):
    """One `<id>.png` a prompt."""

    kind = "dataset"
    anywhere = True

    def fields(self) -> dict[str, Any]:
        prompts = self.around.prompts_hash.evaluation
        return {"prompts": prompts, "images": self.around.true_images_hash}

    def code(self) -> tuple[str, ...]:
        return (type(self.around.config.dataset).__module__,)

    def make(self, folder: Path) -> None:
        with told_to_the_user():
            self.around.config.dataset.write_true_images(folder, self.around.dataset.evaluation)
