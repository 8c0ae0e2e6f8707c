"""What `segbench compare` does with two things that make images: it samples both alike.

Two pipelines, or a pipeline and a quantized checkpoint of its denoiser: the same prompts, the same
noise, the same settings, in a store that is thrown away unless `--work` names one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from baselines.noise_floor import NoiseFloor
from evaluation.datasets.interface import Prompt
from evaluation.datasets.loading import load_dataset
from evaluation.datasets.picture_files import PictureFile
from evaluation.datasets.prompts_file import PromptsFile
from evaluation.outside_files import json_lines
from experiments.cell.cell import Cell
from experiments.cell.checkpoint_denoiser import CheckpointDenoiser
from experiments.cell.float_denoiser import FloatDenoiser
from experiments.cell.progress import Progress
from experiments.cell.quantized_files import CHECKPOINT, REPORT
from experiments.cell.sampled_images import SampledImages
from experiments.cell.sweep import gather_cells
from experiments.config.request import read_request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError, told_to_the_user
from experiments.sampling.model_check import check_model, check_prompts
from experiments.store.digests import digest
from experiments.store.folders import Store
from experiments.store.manifest import MANIFEST
from experiments.verbs.prompt_texts import read_texts
from segquant.core.checkpoint import KIND
from segquant.core.files import read_manifest

AGAIN = "again"  # --noise: the harness samples A a second time
_OWN = ("model.path", "method", "bits", "out")
_PROMPTS = "128"  # of the data set's, where none are given


class Kind(Enum):
    images = "images"
    pipeline = "a pipeline"
    checkpoint = "a quantized checkpoint"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Folders of images to be compared, with their texts where those are known."""

    a: Path
    b: Path
    noise: Path | None
    texts: dict[str, str] | None
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class GivenPrompts:
    """Prompts to evaluate on and none to calibrate with."""

    listed: tuple[Prompt, ...]
    evaluation_prompts: int
    name: str = "given"
    calibration_prompts: int = 0
    seed: int = 0
    calibration_seed: int | None = None

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        return {"evaluation": self.listed, "calibration": ()}

    def has_images(self) -> bool:
        return False

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        return {}

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        raise ValueError("given prompts have no true images")


def kind_of(path: Path) -> Kind:
    """What lies in a folder.

    Raises:
        UserError: there is none, or a denoiser that cannot be read again.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; compare takes two folders of images or pipelines")
    if (path / "model_index.json").is_file():
        return Kind.pipeline
    if _checkpoint(path) is not None:
        return Kind.checkpoint
    if (path / REPORT).is_file():
        raise UserError(f"{path}: a library's denoiser, which is not kept; compare its images")
    return Kind.images


def _checkpoint(path: Path) -> Path | None:
    """The stage's folder holds it, or it is that itself."""
    for folder in (path / CHECKPOINT, path):
        try:
            read_manifest(folder, kind=KIND)
        except (OSError, ValueError):
            continue
        return folder
    return None


def name_of(path: Path) -> str:
    """What a page calls it: of a stage of this project, what was quantized how."""
    try:
        key = json.loads((path / MANIFEST).read_text())["key"]
        return f"{key['method']['class'].rpartition('.')[2]} {key['bits']['name']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return path.resolve().name


def sample_both(
    a: Path,
    b: Path,
    *,
    kinds: tuple[Kind, Kind],
    prompts: str | None,
    words: Sequence[str],
    work: Path,
    with_noise: bool,
) -> Sampled:
    """Images of both, in a store below `work`.

    Raises:
        UserError: two things that cannot be sampled alike, or prompts that are none.
    """
    if kinds[0] is not Kind.pipeline or kinds[1] is Kind.images:
        raise UserError(
            f"A is {kinds[0].value}, B {kinds[1].value}; give two folders of images, two "
            "pipelines, or a pipeline and then a checkpoint"
        )
    taken = [word for word in words if word.partition("=")[0] in _OWN]
    if taken:
        raise UserError(f"{', '.join(taken)}: A, B and --work say what these would")
    store = Store(work)
    store.prepare()
    given = _prompts(prompts, path=a, words=words, work=work)
    cell = _cell(a, given=given, words=words, store=store)
    if kinds[1] is Kind.pipeline:
        other = _cell(b, given=given, words=words, store=store).reference
    else:
        folder = _checkpoint(b)
        assert folder is not None
        other = _with_checkpoint(cell, folder)
    noise = _again(cell).build().path if with_noise else None
    texts = {prompt.id: prompt.text for prompt in given if prompt.text is not None}
    model = cell.config.model
    return Sampled(
        a=cell.reference.build().path,
        b=other.build().path,
        noise=noise,
        texts=texts if len(texts) == len(given) else None,
        notes=[
            f"Sampled here: {len(given)} prompts, {model.num_inference_steps} steps, "
            f"seed {cell.config.seed}, {model.dtype}, the same noise for both."
        ],
    )


def _cell(path: Path, *, given: Sequence[Prompt], words: Sequence[str], store: Store) -> Cell:
    config = _config(path, words=words, work=store.root)
    own = GivenPrompts(listed=tuple(given), evaluation_prompts=len(given))
    config = dataclasses.replace(config, dataset=own)
    check_model(config.model, prompts=given)
    check_prompts(config.model, given)
    progress = Progress(cells=1, prompts=len(given))
    (cell,) = gather_cells([config], store=store, progress=progress)
    progress.cell(path.name)
    return cell


def _config(path: Path, *, words: Sequence[str], work: Path) -> RunConfig:
    own = [f"model.path={_quoted(path.resolve())}", "method=fp", "bits=w16a16", "logger=none"]
    request = [*own, *words, f"out={_quoted(work)}"]
    return read_request(request, multirun=False).cells[0]


def _quoted(path: Path) -> str:
    """As Hydra reads a text with any signs in it."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _prompts(
    said: str | None, *, path: Path, words: Sequence[str], work: Path
) -> tuple[Prompt, ...]:
    """Those of a file, or the first of the data set's."""
    with told_to_the_user():
        if said is None or said.isdigit():
            count = int(said or _PROMPTS)
            words = [*words, f"dataset.evaluation_prompts={count}"]
            found = load_dataset(_config(path, words=words, work=work).dataset).evaluation
        elif Path(said).suffix == ".txt":
            lines = Path(said).read_text(encoding="utf-8").splitlines()
            texts = [line.strip() for line in lines if line.strip()]
            found = tuple(Prompt(id=f"p{i:05}", text=text) for i, text in enumerate(texts))
        elif Path(said).suffix == ".jsonl":
            found = _listed(Path(said))
        else:
            texts_by_id = read_texts(Path(said))
            found = tuple(Prompt(id=name, text=text) for name, text in texts_by_id.items())
    if len(found) < 2:
        raise UserError(f"--prompts {said}: {len(found)} prompts; give two or more")
    return found


def _listed(path: Path) -> tuple[Prompt, ...]:
    """A file as `dataset=prompts` takes it; rows of another split are not for evaluation."""
    if not path.is_file():
        raise UserError(f"--prompts {path}: no such file")
    count = sum(row.get("split", "evaluation") == "evaluation" for _, row in json_lines(path))
    whole = PromptsFile(
        name="given", path=str(path), images=None, evaluation_prompts=count,
        calibration_prompts=0, seed=0, calibration_seed=None,
    )  # fmt: skip
    return whole.prompts()["evaluation"]


def _with_checkpoint(cell: Cell, folder: Path) -> SampledImages:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    contents = digest([[path.name, cell.around.file_key(path)] for path in files])
    denoiser = CheckpointDenoiser(around=cell.around, folder=folder, contents=contents)
    return dataclasses.replace(cell.reference, denoiser=denoiser)


def _again(cell: Cell) -> SampledImages:
    """A once more, as the noise floor has it: other batches, other threads."""
    floor = NoiseFloor()
    same = floor.num_threads == cell.around.num_threads
    return SampledImages(
        around=cell.around,
        denoiser=FloatDenoiser(),
        batch_size=floor.batch_size,
        num_threads=floor.num_threads + 1 if same else floor.num_threads,
    )
