"""A model's folder in diffusers' format: is it one, and is everything in it?"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.outside_files import read_json_object
from experiments.errors import UserError, told_to_the_user
from experiments.sampling.hub_cache import HUB_ID, cached_snapshot
from experiments.sampling.single_files import single_file, taken_for
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

DENOISERS = ("transformer", "unet")  # attribute names that diffusers gives the denoiser
SAFETY_CHECKER = "safety_checker"  # paints images black: it is left out, and the record says so
_NETWORK = re.compile(rf"(?:\w+_)?(?:{'|'.join(DENOISERS)}|controlnet|prior|decoder)(?:_\d+)?")
_INDEX = "model_index.json"
_NO_PARTS = ("id2label",)  # settings that are objects: names of classes
_MOST_BYTES = 64 * 2**20  # of a config or of a list of shards
_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
# What diffusers and transformers call a network's files, a variant's name in one of two places.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<before>\w+))?"
    r"(?:-\d+-of-\d+)?(?:\.(?P<after>\w+))?\.(?:safetensors|bin)"
)


def check_folder(config: ModelConfig) -> Path:
    """The model's folder; of a hub id, the one in the hub's local cache.

    Raises:
        UserError: it is not there, is no diffusers pipeline, or has no such denoisers.
    """
    folder = _find(config)
    if not (folder / _INDEX).is_file():
        raise UserError(
            f"model.path={config.path} is no diffusers pipeline: it has no {_INDEX}; give "
            "the folder that DiffusionPipeline.save_pretrained wrote"
        )
    denoisers_of(config, pipeline_index(folder))
    return folder


def denoisers_of(config: ModelConfig, index: Mapping[str, Any]) -> list[str]:
    """The parts that are quantized: `model.denoisers`, or every transformer and UNet.

    Raises:
        UserError: the pipeline has none, or not one that is named.
    """
    there = _networks(config, index)
    listed = ", ".join(there) or "none"
    if config.denoisers is None:
        found = main_denoisers(there)
        if not found:
            raise UserError(
                f"model.path={config.path}: its {_INDEX} names no {' or '.join(DENOISERS)}"
                + (f"; choose from model.denoisers=[{listed}]" if there else "")
            )
        return found
    chosen = list(dict.fromkeys(config.denoisers))
    lost = [name for name in chosen if name not in there]
    if lost or not chosen:
        raise UserError(
            f"model.denoisers=[{', '.join(chosen)}]: "
            + (f"the pipeline has no {', '.join(lost)}" if lost else "nothing would be quantized")
            + f"; it has {listed}, and null is every transformer and UNet"
        )
    for name in chosen:
        if "Multi" in there[name]:
            raise UserError(
                f"model.denoisers: {name} is a {there[name]}, several networks in one; leave it "
                "out, or save the pipeline with one of them"
            )
    return chosen


def denoisers_left_out(config: ModelConfig, index: Mapping[str, Any]) -> list[str]:
    """The networks of the pipeline that could be quantized and are not chosen."""
    chosen = denoisers_of(config, index)
    return [name for name in _networks(config, index) if name not in chosen]


def _networks(config: ModelConfig, index: Mapping[str, Any]) -> dict[str, str]:
    """What can be quantized of a pipeline: name -> class, empty where it is not known."""
    known = {name: kind[1] for name, kind in index.items() if names_a_class(kind)}
    return {
        name: known.get(name, "")
        for name in dict.fromkeys((*index, *config.parts))
        if _NETWORK.fullmatch(name) and (name in known or name in config.parts)
    }


def network_names(config: ModelConfig, index: Mapping[str, Any]) -> list[str]:
    """The parts that a pipeline calls step by step: denoisers and ControlNets."""
    return list(_networks(config, index))


def found_revision(config: ModelConfig) -> str | None:
    """The commit of a model in the hub's cache; None of a folder, which has none."""
    folder = _find(config)
    return folder.name if folder.parent.name == "snapshots" else None


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder says of its parts.

    Raises:
        UserError: it is no JSON of a pipeline's parts.
    """
    path = folder / _INDEX
    parts = _read(path)
    if not isinstance(parts.get("_class_name"), str):
        raise UserError(f"{path}: _class_name is {parts.get('_class_name')!r}, not a class's name")
    for name, kind in parts.items():
        if name.startswith("_"):
            continue
        # what is no list is a setting of the pipeline, but for the parts that all have
        wrong = isinstance(kind, list | dict) or is_denoiser(name) or name in ("vae", "scheduler")
        if name in _NO_PARTS and isinstance(kind, dict):
            continue
        if wrong and not names_a_class(kind) and kind != [None, None]:
            raise UserError(
                f"{path}: {name} is {kind!r}; a part is a list of its library and its class"
            )
        if ".." in name or "/" in name:
            raise UserError(f"{path}: {name!r} is no name of a part")
    return parts


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's settings; nothing where there are none."""
    path = folder / "scheduler" / "scheduler_config.json"
    return _read(path) if path.is_file() else {}


def part_config(folder: Path) -> dict[str, Any]:
    """The config of a part that is a network."""
    return _read(folder / "config.json")


def check_weights(folder: Path, *, besides: Collection[str] = ()) -> None:
    """Every part of a pipeline that has a network has its weights, every shard of them.

    Args:
        besides: parts that come from elsewhere.

    Raises:
        UserError: names what is missing; nothing is fetched.
    """
    for part in _parts(folder):
        if part.name in besides:
            continue
        if not part.is_dir():
            raise UserError(
                f"{folder}: its {_INDEX} names {part.name}, and {part} is missing; copy the whole "
                "model there"
            )
        for name in _CONFIGS:
            if (part / name).is_file():
                _read(part / name)
        if (part / "config.json").is_file():  # else a tokenizer or a scheduler
            check_part_weights(part)
    variant_of(folder, besides=besides)


def check_part_weights(part: Path) -> None:
    """A network's folder has its weights, every shard of them.

    Raises:
        UserError: names what is missing.
    """
    lost = sorted(shard for shard in _shards(part) if not (part / shard).is_file())
    if lost:
        raise UserError(f"{part}: {', '.join(lost)} is missing; copy the whole model there")
    if not _variants(part):
        raise UserError(
            f"{part} has a config.json and no weights (diffusion_pytorch_model or model, "
            ".safetensors or .bin); copy the whole model there beforehand"
        )


def network_folders(folder: Path) -> list[Path]:
    """Those of a pipeline's parts that are networks, whether their weights are there or not."""
    return [part for part in _parts(folder) if (part / "config.json").is_file()]


def has_weights(part: Path) -> bool:
    return bool(_variants(part))


def variant_of(folder: Path, *, besides: Collection[str] = ()) -> str | None:
    """The variant that must be asked for (`fp16`): some part has no weights without one.

    Raises:
        UserError: no variant is there of every such part.
    """
    own = [part for part in _parts(folder) if part.name not in besides]
    lacking = [found for part in own if (found := _variants(part)) and "" not in found]
    if not lacking:
        return None
    common = set.intersection(*lacking)
    if not common:
        listed = ", ".join(sorted(set.union(*lacking)))
        raise UserError(f"{folder}: its parts have weights of different variants ({listed})")
    return min(common, key=lambda name: (name != "fp16", name))


def part_variant(part: Path) -> str | None:
    """The variant that one part must be asked for; None where it has weights without one."""
    found = _variants(part)
    return None if not found or "" in found else min(found, key=lambda n: (n != "fp16", n))


def _find(config: ModelConfig) -> Path:
    file = single_file(config.path)
    if file is None:
        return find_folder(config.path, revision=config.revision, key="model.path")
    if config.revision is not None:
        raise UserError(f"model.revision={config.revision}: a single file has no revisions")
    configs = config.configs or taken_for(file)
    return find_folder(configs, revision=None, key="model.configs")


def find_folder(path: str, *, revision: str | None, key: str) -> Path:
    """A folder as given, or that of a hub id in the hub's local cache.

    Raises:
        UserError: it is not there; nothing is downloaded.
    """
    folder = resolve_path(path)
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"model.revision={revision} with {key}={path}; a folder has no "
                "revisions: leave it null, or give the hub's owner/name"
            )
        return folder
    if folder.exists() or HUB_ID.fullmatch(path) is None:
        raise UserError(
            f"{key}={path}: no such folder; give a folder that "
            "DiffusionPipeline.save_pretrained wrote, or a hub model's owner/name"
        )
    found = cached_snapshot(path, revision)
    if found is None:
        at = "" if revision is None else f" model.revision={revision}"
        raise UserError(
            f"{key}={path}: no such folder, and the hub's local cache has no such "
            f"model{at and ' at' + at}; nothing is downloaded here: segbench fetch "
            f"model.path={path}{at} beforehand"
        )
    return found


def _parts(folder: Path) -> list[Path]:
    """The folders of the parts that a run loads."""
    return [
        folder / name
        for name, kind in pipeline_index(folder).items()
        if not name.startswith("_") and name != SAFETY_CHECKER and names_a_class(kind)
    ]


def _shards(part: Path) -> set[str]:
    """The files that lists of shards name."""
    shards: set[str] = set()
    for path in part.glob("*.index*.json"):
        listed = _read(path).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{path}: it has no weight_map of tensors and files; copy it again")
        names = set(listed.values()) if all(isinstance(v, str) for v in listed.values()) else {""}
        if any(name != Path(name).name or not name for name in names):
            raise UserError(f"{path}: its weight_map names what is no file; copy it again")
        shards |= names
    return shards


def _variants(part: Path) -> set[str]:
    """Variants of a part's weights, '' for those without; nothing of what is no network."""
    matches = (_WEIGHTS.fullmatch(path.name) for path in part.iterdir()) if part.is_dir() else ()
    return {match["before"] or match["after"] or "" for match in matches if match is not None}


def main_denoisers(index: Mapping[str, Any]) -> list[str]:
    """The transformers and UNets among a pipeline's parts."""
    return sorted(name for name, kind in index.items() if is_denoiser(name) and kind != [None] * 2)


def is_denoiser(name: str) -> bool:
    """Whether a part of that name is quantized unless others are chosen."""
    return re.fullmatch(rf"({'|'.join(DENOISERS)})(_\d+)?", name) is not None


def names_a_class(kind: Any) -> bool:
    """Whether an index's entry is a part: its library and its class."""
    return (
        isinstance(kind, list)
        and len(kind) == 2
        and all(isinstance(item, str) and item for item in kind)
    )


def _read(path: Path) -> dict[str, Any]:
    with told_to_the_user():
        return read_json_object(path, most_bytes=_MOST_BYTES)
