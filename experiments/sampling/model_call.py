"""What a pipeline's call takes: can the harness give it all, and take what it returns?"""

from __future__ import annotations

import difflib
import inspect
import sys
import types
import typing
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from evaluation.datasets.interface import CLASS_LABELS, FILES
from experiments.config.checks import RESERVED
from experiments.errors import UserError
from experiments.sampling.call_arguments import PROMPT, needs_one_a_call, takes_count
from experiments.sampling.pipeline_classes import VARIADIC

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig

_NOT_OF_ROWS = set(RESERVED) - {PROMPT, *FILES}
_PICTURES = (*FILES, "video", "control_mask")  # which a default of None does not make optional


def check_call(config: ModelConfig, kind: type, *, prompts: Sequence[Prompt]) -> None:
    """Refuses a pipeline that cannot be called with what there is.

    Args:
        prompts: of the run; all give arguments of the same names.

    Raises:
        UserError: names the argument that is missing or not taken, or what it returns.
    """
    takes = inspect.signature(kind.__call__).parameters
    given = prompts[0].names
    _check_taken(config, kind, prompts)
    for key, parameter in takes.items():
        if key not in ("self", *config.call, *given) and _is_required(kind, parameter):
            said = f"model.path={config.path}: {kind.__name__} needs {key}, which is not given; "
            raise UserError(said + _how_to_give(key))
    if not given and not takes_count(kind):
        raise UserError(
            f"model.path={config.path}: {kind.__name__} needs more than noise, which is all that "
            "the data set has; give dataset=prompts, or dataset.num_classes"
        )
    made = _made(kind)
    if made and "images" not in made:
        raise UserError(
            f"model.path={config.path}: {kind.__name__} makes {' and '.join(sorted(made))}, and "
            "images are measured here; pipelines that make images can be run"
        )


def _how_to_give(key: str) -> str:
    if key == PROMPT:
        return "give dataset=shapes, or dataset=prompts with a file of prompts"
    if key == CLASS_LABELS:
        return f'give dataset=labels, or dataset=prompts with rows {{"id": ..., "{key}": 207}}'
    if key in FILES:
        return f'give it in the data set\'s rows: {{"id": ..., "prompt": ..., "{key}": "FILE"}}'
    return f"give model.call.{key}=... or a field {key} of the data set's rows, if it is no tensor"


def _check_taken(config: ModelConfig, kind: type, prompts: Sequence[Prompt]) -> None:
    """The call takes what is given, and each prompt its own."""
    takes = inspect.signature(kind.__call__).parameters
    name, given = kind.__name__, prompts[0].names
    listed = ", ".join(key for key in takes if key != "self")
    for key in config.call:
        if key not in takes:
            raise UserError(f"model.call.{key}: {name} takes no such argument; it takes {listed}")
        if key in given:
            raise UserError(f"model.call.{key}: the data set's rows have it too; give it once")
    for key in given:
        if key in _NOT_OF_ROWS:
            raise UserError(f"rows of the data set have {key}: {RESERVED[key]}; take it out")
        if key == PROMPT and key not in takes:
            raise UserError(
                f"model.path={config.path}: {name} takes no prompt (it takes {listed}); "
                + _without_prompt(kind)
            )
        if key not in takes:
            near = difflib.get_close_matches(key, takes, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{name} takes no {key}, which rows of the data set have{hint}")


def check_batch(config: ModelConfig, kind: type, *, prompts: Sequence[Prompt]) -> None:
    """Refuses a batch whose prompts differ in what the call takes once.

    Raises:
        UserError: names the argument.
    """
    wanting = needs_one_a_call(kind, prompts) if config.batch_size > 1 else []
    if wanting:
        raise UserError(
            f"model.batch_size={config.batch_size}: {kind.__name__} takes one {wanting[0]} a call, "
            "and the data set's rows have several; set model.batch_size=1"
        )


def _without_prompt(kind: type) -> str:
    if CLASS_LABELS in inspect.signature(kind.__call__).parameters:
        return "it makes images of classes: give dataset=labels"
    if takes_count(kind):
        return "it makes images of noise alone: give dataset=labels dataset.num_classes=null"
    return "pipelines that make images from prompts or classes can be run"


def check_labels(prompts: Sequence[Prompt], names: Collection[str], *, classes: int | None) -> None:
    """Refuses classes that the model does not have.

    Args:
        names: of the classes, where the model's folder gives them.
        classes: how many there are; None where that is not known.

    Raises:
        UserError: a name or number of none.
    """
    for prompt in prompts:
        label = dict(prompt.arguments).get(CLASS_LABELS)
        said = f"{CLASS_LABELS} of id {prompt.id!r} is {label!r}"
        if label is None:
            return
        if isinstance(label, str):
            if label not in names:
                near = difflib.get_close_matches(label, sorted(names), n=1)
                hint = f"did you mean {near[0]!r}?" if near else "give a class's number"
                raise UserError(f"{said}; the model names no such class: {hint}")
        elif isinstance(label, bool | float) or label < 0 or (classes and label >= classes):
            most = f"0 to {classes - 1}" if classes else "0, 1 and so on"
            raise UserError(f"{said}; the model's classes are {most}")


def _is_required(kind: type, parameter: inspect.Parameter) -> bool:
    """No default, or a picture of which None is no value although it is the default."""
    if parameter.kind in VARIADIC:
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
