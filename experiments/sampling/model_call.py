"""What a pipeline's call takes: can the harness give it all, and take what it returns?"""

from __future__ import annotations

import difflib
import inspect
import sys
import types
import typing
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from evaluation.datasets.interface import FILES
from experiments.errors import UserError

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_GIVEN = ("self", "prompt")  # by the harness, in every call
_PICTURES = (*FILES, "video", "control_mask")  # which a default of None does not make optional
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def pipeline_class(
    index: Mapping[str, Any], *, path: str, name: str | None = None, given: Collection[str] = ()
) -> type:
    """The class that a pipeline's folder names, or another that takes its parts.

    Args:
        name: the other one; None is the folder's own.
        given: parts that come from elsewhere.

    Raises:
        UserError: the installed diffusers has no such pipeline, or it lacks or takes no such part.
    """
    import diffusers

    own = name is None
    name = index["_class_name"] if name is None else name
    try:
        kind = getattr(diffusers, name, None)
    except (ImportError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"model.path={path}: {name} cannot be imported ({said})") from error
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        if not own:
            every = [n for n in dir(diffusers) if n.endswith("Pipeline")]
            near = difflib.get_close_matches(name, every, n=1)
            hint = f"did you mean {near[0]}?" if near else "give the name of one that it has"
            raise UserError(
                f"model.pipeline={name}: diffusers {diffusers.__version__} has no such pipeline; "
                f"{hint}"
            )
        raise UserError(
            f"model.path={path}: diffusers {diffusers.__version__} has no pipeline {name}; install "
            "a newer one, or give the folder of another"
        )
    _check_parts(kind, index, path=path, given=given, own=own)
    return kind


def _check_parts(
    kind: type, index: Mapping[str, Any], *, path: str, given: Collection[str], own: bool
) -> None:
    """Every part without which the pipeline cannot be made is there, and it takes those given."""
    needed = inspect.signature(kind).parameters
    for name in given:
        if name not in needed:
            near = difflib.get_close_matches(name, needed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"model.parts.{name}: {kind.__name__} has no such part; {hint}it has "
                f"{', '.join(needed)}"
            )
    for name, parameter in needed.items():
        if parameter.kind in _VARIADIC or name in given:
            continue
        if parameter.default is inspect.Parameter.empty and not isinstance(index.get(name), list):
            raise UserError(
                f"model.path={path}: its model_index.json names no {name}, which {kind.__name__} "
                + (
                    "needs; copy the whole model there"
                    if own
                    else f"needs; give model.parts.{name}=FOLDER"
                )
            )


def check_call(config: ModelConfig, kind: type, *, pictures: Collection[str]) -> None:
    """Refuses a pipeline that cannot be called with what there is.

    Args:
        pictures: what the data set's rows give, by the call's names.

    Raises:
        UserError: names the argument that is missing or not taken, or what it returns.
    """
    takes = inspect.signature(kind.__call__).parameters
    name, listed = kind.__name__, ", ".join(key for key in takes if key != "self")
    if "prompt" not in takes:
        raise UserError(
            f"model.path={config.path}: {name} takes no prompt (it takes {listed}); pipelines "
            "that make images from prompts can be run"
        )
    for key in config.call:
        if key not in takes:
            raise UserError(f"model.call.{key}: {name} takes no such argument; it takes {listed}")
    for key in pictures:
        if key not in takes:
            raise UserError(f"{name} takes no {key}, which rows of the data set have")
    for key, parameter in takes.items():
        if key in (*_GIVEN, *config.call, *pictures) or not _is_required(kind, parameter):
            continue
        raise UserError(
            f"model.path={config.path}: {name} needs {key}, which is not given; "
            + (
                f'give it in the data set\'s rows: {{"id": ..., "prompt": ..., "{key}": "FILE"}}'
                if key in FILES
                else f"give model.call.{key}=..., if it is no tensor"
            )
        )
    made = _made(kind)
    if made and "images" not in made:
        raise UserError(
            f"model.path={config.path}: {name} makes {' and '.join(sorted(made))}, and images are "
            "measured here; pipelines that make images can be run"
        )


def _is_required(kind: type, parameter: inspect.Parameter) -> bool:
    """No default, or a picture of which None is no value although it is the default."""
    if parameter.kind in _VARIADIC:
        return False
    if parameter.default is inspect.Parameter.empty:
        return True
    return parameter.name in _PICTURES and not _takes_none(kind, parameter)


def _takes_none(kind: type, parameter: inspect.Parameter) -> bool:
    if parameter.default is not None:
        return True
    try:
        said = typing.get_type_hints(kind.__call__).get(parameter.name)
    except (NameError, TypeError):
        said = parameter.annotation
    if typing.get_origin(said) in (typing.Union, types.UnionType):
        # these say None of a picture that they need: it may come as latents instead
        needs = any(word in kind.__name__ for word in ("Fill", "Edit", "Refiner"))
        return type(None) in typing.get_args(said) and not needs
    return False


def _made(kind: type) -> set[str]:
    """What the outputs hold that its module knows: images, or the frames of a video, and so on."""
    from diffusers.utils import BaseOutput

    known = vars(sys.modules[kind.__module__]).values()
    outputs = [o for o in known if isinstance(o, type) and issubclass(o, BaseOutput)]
    return {name for output in outputs for name in getattr(output, "__annotations__", {})}
