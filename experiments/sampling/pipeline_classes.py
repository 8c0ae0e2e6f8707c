"""The class of a pipeline: the one that its folder names, or another that takes its parts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from experiments.errors import UserError

VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


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
        if parameter.kind in VARIADIC or name in given:
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
