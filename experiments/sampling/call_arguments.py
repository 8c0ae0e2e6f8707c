"""What prompts give to a pipeline's call: a list for each argument, or one value for all."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from evaluation.datasets.interface import CLASS_LABELS, FILES, Prompt
from evaluation.datasets.picture_files import PictureFile

PROMPT, COUNT = "prompt", "batch_size"
# Pipelines for which a list of pictures is one set that every prompt of the call gets.
_SETS_OF_PICTURES = (
    *("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline", "Flux2KleinInpaintPipeline"),
    *("QwenImageEditPlusPipeline", "QwenImage21Pipeline", "BriaFibo2Pipeline"),
    *("GlmImagePipeline", "ZImageOmniPipeline"),
)
_ONE = re.compile(r"\b(str|int|float|bool|Image)\b")
_SEVERAL = re.compile(r"\b[Ll]ist\b|PipelineImageInput")


def call_arguments(pipeline: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The arguments of one call that are the prompts' own, in their order."""
    kind = type(pipeline)
    given = {
        name: [_value(pipeline, prompt, name) for prompt in prompts] for name in _names(prompts)
    }
    if not given and takes_count(kind):
        return {COUNT: len(prompts)}
    # what takes one value only is the same for all prompts of a batch: `check_call` has seen to it
    return {name: values if takes_list(kind, name) else values[0] for name, values in given.items()}


def example_prompt(kind: type) -> Prompt:
    """One that is enough for a call of such a pipeline, if any without a picture is."""
    takes = inspect.signature(kind.__call__).parameters
    text = "a red circle" if PROMPT in takes else None
    label = ((CLASS_LABELS, 0),) if text is None and CLASS_LABELS in takes else ()
    return Prompt(id="example", text=text, arguments=label)


def takes_count(kind: type) -> bool:
    """Whether the pipeline makes images of nothing but their number."""
    takes = inspect.signature(kind.__call__).parameters
    return COUNT in takes and PROMPT not in takes


def takes_list(kind: type, name: str) -> bool:
    """Whether an argument of the pipeline's call may be a list with an entry for each prompt.

    It is read from the annotation; of one that says nothing of lists or of single values, it may.
    """
    if name in FILES and kind.__name__ in _SETS_OF_PICTURES:
        return False
    parameter = inspect.signature(kind.__call__).parameters.get(name)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return True
    try:
        said = typing.get_type_hints(kind.__call__).get(name)
    except (NameError, TypeError, AttributeError):
        said = parameter.annotation
    words = said if isinstance(said, str) else _written(said)
    return _SEVERAL.search(words) is not None or _ONE.search(words) is None


def needs_one_a_call(kind: type, prompts: Sequence[Prompt]) -> list[str]:
    """Arguments that take one value a call and of which the prompts have several."""
    wanting = [name for name in _names(prompts) if not takes_list(kind, name)]
    return [name for name in wanting if len({_raw(prompt, name) for prompt in prompts}) > 1]


def _written(hint: Any) -> str:
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint.__name__
    return str(hint)


def _names(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    return prompts[0].names


def _raw(prompt: Prompt, name: str) -> Any:
    """As the data set has it: of a picture, where it lies."""
    if name == PROMPT:
        return prompt.text
    return {**dict(prompt.files), **dict(prompt.arguments)}[name]


def _value(pipeline: Any, prompt: Prompt, name: str) -> Any:
    value = _raw(prompt, name)
    if isinstance(value, PictureFile):
        return value.read()
    if name == CLASS_LABELS and isinstance(value, str):
        return pipeline.get_label_ids([value])[0]
    return value
