"""The denoiser without its weights: which layers it has, and whether the files hold them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.model_folder import (
    main_denoisers,
    part_config,
    part_variant,
    pipeline_index,
)
from experiments.sampling.model_parts import denoiser_folders
from experiments.sampling.single_files import single_file
from segquant.core.plain_linears import keep_out, linear_layers
from segquant.core.several import called_parts, together

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig, RunConfig
    from segquant.core.schemes import TensorScheme

_NAMED_AT_MOST = 3
_UNET_SIDES = 8  # what diffusers' pipelines with a UNet ask of a side


def empty_denoiser(config: ModelConfig, folder: Path) -> nn.Module | None:
    """What is quantized, on the meta device; None where diffusers has no class of that name.

    Raises:
        UserError: a config makes none.
    """
    folders = denoiser_folders(config, folder)
    index = pipeline_index(folder)
    parts = {
        name: _empty_part(part, name=(index.get(name) or [None, None])[1])
        for name, part in folders.items()
    }
    known = {name: part for name, part in parts.items() if part is not None}
    return together(known) if len(known) == len(parts) else None


def _empty_part(part: Path, *, name: str | None) -> nn.Module | None:
    """Of the class that the pipeline names, or of its config's own."""
    import diffusers

    kind = getattr(diffusers, name or str(part_config(part).get("_class_name")), None)
    if kind is None or not hasattr(kind, "from_config"):
        return None  # loading it says more
    try:
        with torch.device("meta"):
            denoiser = kind.from_config(part_config(part))
    except Exception as error:  # whatever a class makes of somebody's config
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{part / 'config.json'}: {kind.__name__} refuses it ({said[0]})"
        ) from error
    return denoiser if isinstance(denoiser, nn.Module) else None


def check_tensors(config: ModelConfig, folder: Path, denoiser: nn.Module) -> None:
    """Every tensor of what is quantized is in its files, in its shape.

    Raises:
        UserError: names what is missing; diffusers would make it up.
    """
    parts = called_parts(denoiser).values()
    folders = denoiser_folders(config, folder)
    for (name, part), network in zip(folders.items(), parts, strict=True):
        if single_file(config.parts.get(name, "")) is None:  # else loading it tells
            _check_part(part, network)


def _check_part(part: Path, denoiser: nn.Module) -> None:
    found = _shapes(part, part_variant(part))
    if found is None:
        return
    own = {name: list(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    missing = [name for name in own if name not in found]
    if missing:
        raise UserError(
            f"{part}: {len(missing)} of {len(own)} tensors are missing ({_some(missing)}); copy "
            "the whole model there"
        )
    wrong = [name for name, shape in own.items() if found[name] != shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{part}: {name} has shape {found[name]}, and the config asks for {own[name]}; copy "
            "the whole model there"
        )


def check_layers(config: RunConfig, denoiser: nn.Module) -> None:
    """Groups and ranks that fit the layers that will be quantized.

    Raises:
        UserError: names a layer that does not take them, and what it takes.
    """
    bits = config.bits
    linears = {
        name: linear
        for name, linear in linear_layers(denoiser).items()
        if bits.kept_by(name) is None
    }
    if not linears or not bits.quantized:
        return
    for what, scheme in (("weight", bits.weight), ("activation", bits.activation)):
        _check_groups(f"bits.{what}.group_size", scheme, linears)
    rank = getattr(config.method, "rank", 0)
    most = max(min(linear.in_features, linear.out_features) for linear in linears.values())
    if rank > most:
        raise UserError(
            f"method.rank={rank}; the largest layer of {config.model.name} has rank {most}: give "
            f"at most that, and far less for a branch that costs little"
        )


def check_kept(configs: Sequence[RunConfig], denoisers: Sequence[nn.Module | None]) -> None:
    """Every pattern of `bits.keep` names a layer of one of the models.

    Raises:
        UserError: one names none: what it was to keep would be quantized without a word.
    """
    known = [denoiser for denoiser in denoisers if denoiser is not None]
    if len(known) < len(denoisers):
        return  # it may be a layer of the one whose layers are not known
    names = [name for denoiser in known for name, _ in denoiser.named_modules()]
    for pattern in dict.fromkeys(pattern for config in configs for pattern in config.bits.keep):
        if not any(fnmatchcase(name, pattern) for name in names):
            near = _some(list(linear_layers(known[0])))
            raise UserError(f"bits.keep: {pattern!r} names no layer; layers are {near}")


def keep_layers(denoiser: nn.Module, config: ModelConfig) -> None:
    """Marks the layers that `model.keep` keeps from every method, calibration included.

    Of several denoisers, a pattern is of names with or without the denoiser's before them.

    Raises:
        UserError: a pattern names no Linear.
    """
    parts = {id(part): part for part in (denoiser, *called_parts(denoiser).values())}
    marked = [keep_out(part, config.keep) for part in parts.values()]
    for pattern in config.keep:
        if not any(counts[pattern] for counts in marked):
            near = _some(list(linear_layers(denoiser)))
            raise UserError(f"model.keep: {pattern!r} names no layer; layers are {near}")


def check_sides(config: ModelConfig, folder: Path) -> None:
    """A height and a width that the pipeline's parts can divide.

    Raises:
        UserError: names the next ones that do.
    """
    step = _step_of_sides(folder)
    for name in ("height", "width"):
        side = getattr(config, name)
        if side is not None and side % step:
            near = sorted({max(step, side // step * step), (side // step + 1) * step})
            raise UserError(
                f"model.{name}={side} is not a multiple of {step}, which {config.name} asks for; "
                f"give {' or '.join(map(str, near))}"
            )


def _step_of_sides(folder: Path) -> int:
    """Pixels that stand for one position of the denoiser's input."""
    vae = folder / "vae"
    parts = main_denoisers(pipeline_index(folder))
    blocks = part_config(vae).get("block_out_channels") if (vae / "config.json").is_file() else None
    step = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 1
    if not parts:
        return step
    if parts[0].startswith("unet"):
        return step * _UNET_SIDES // gcd(step, _UNET_SIDES)
    patch = part_config(folder / parts[0]).get("patch_size", 1)
    return step * patch if isinstance(patch, int) and patch > 0 else step


def _check_groups(key: str, scheme: TensorScheme, linears: dict[str, nn.Linear]) -> None:
    size = scheme.group_size
    if not scheme.quantized or scheme.microscaled or size is None:
        return
    wrong = {name: x.in_features for name, x in linears.items() if x.in_features % size}
    if not wrong:
        return
    name, features = next(iter(wrong.items()))
    common = gcd(*(linear.in_features for linear in linears.values()))
    fits = [n for n in (256, 128, 64, 32, 16, 8, 4) if common % n == 0]
    advice = f"use {' or '.join(map(str, fits[:2]))}" if fits else "use another granularity"
    raise UserError(
        f"{key}={size}: {name} has in_features={features} ({len(wrong)} of {len(linears)} layers "
        f"are not its multiples); {advice}, or name those layers in bits.keep"
    )


def _shapes(part: Path, variant: str | None) -> dict[str, list[int]] | None:
    """Shape of every tensor in a part's safetensors; None where there are none."""
    from safetensors import SafetensorError, safe_open

    mark = "" if variant is None else f".{variant}"
    files = [
        path
        for path in sorted(part.glob("*.safetensors"))
        if (f"{mark}." in path.name or f"{mark}-" in path.name if mark else _is_plain(path))
    ]
    if not files:
        return None
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    shapes[name] = list(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); copy it again") from error
    return shapes


def _is_plain(path: Path) -> bool:
    return "." not in path.name.removesuffix(".safetensors")


def check_values_of(pipeline: Any, *, path: str, weightless: Collection[str] = ()) -> None:
    """Refuses weights that no image can come of.

    Args:
        weightless: parts that have none here.

    Raises:
        UserError: a value that is not finite, or a denoiser of zeros.
    """
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module) or part in weightless:
            continue
        named = list(module.named_parameters())
        for name, parameter in named:
            if parameter.is_meta:
                raise UserError(f"model.path={path}: {part} has no weights of {name}")
            if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
                raise UserError(
                    f"model.path={path}: {part}'s {name} has values that are not finite; copy the "
                    "model again, or give another model.dtype"
                )
        matrices = [p for _, p in named if p.is_floating_point() and prod(p.shape) > 1]
        if matrices and not any(bool(p.any()) for p in matrices):
            raise UserError(f"model.path={path}: all weights of {part} are zero; copy it again")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown}, ..."
