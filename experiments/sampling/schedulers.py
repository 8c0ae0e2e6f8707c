"""Another scheduler than the pipeline's own, or its own with other settings."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError
from experiments.sampling.model_folder import pipeline_index, scheduler_config

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

CLASS = "class"  # the key of `model.scheduler` that is no setting
# Their noise is a Brownian path through the whole batch, no prompt's own.
_OF_THE_BATCH = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
_FLOW = "FlowMatch"
_FLOW_SETTING = "use_flow_sigmas"  # of samplers that can follow a flow too
_CALLS_OWN = ("eta",)  # what is an argument of the pipeline's call, as in DDIM's


def chosen_scheduler(config: ModelConfig, folder: Path) -> Any:
    """The scheduler that `model.scheduler` asks for, made of the pipeline's own config; None where
    the pipeline keeps its own.

    Raises:
        UserError: no such class or setting, or one whose noise cannot be a prompt's own.
    """
    named = pipeline_index(folder).get("scheduler")
    own_name = named[1] if isinstance(named, list) and isinstance(named[1], str) else None
    name = config.scheduler.get(CLASS, own_name)
    if name in _OF_THE_BATCH:
        raise UserError(
            f"model.scheduler: the noise of {name} is one path for the whole batch, so it would "
            "depend on which prompts are sampled together; choose another, with model.scheduler."
            f"{CLASS}=..."
        )
    if not config.scheduler:
        return None
    kind, own = _class(name), scheduler_config(folder)
    settings = {key: value for key, value in config.scheduler.items() if key != CLASS}
    _check_settings(kind, settings)
    _check_family(kind, settings, own, own_name=own_name)
    try:
        return kind.from_config(own, **settings)
    except (ImportError, ValueError, TypeError, NotImplementedError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"model.scheduler: {name} refuses its settings ({first})") from error


def scheduler_fields(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """What samples, for the record: the folder's config, or the class and config that ran."""
    chosen = chosen_scheduler(config, folder)
    if chosen is None:
        return scheduler_config(folder)
    kept = {
        key: value for key, value in dict(chosen.config).items() if key != "_use_default_values"
    }
    return {"_class_name": type(chosen).__name__, **kept}


def _class(name: Any) -> Any:
    import diffusers

    known = [
        n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith(("Flax", "_"))
    ]
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name in known else None
    if kind is None:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else "give the name of a class that it has"
        raise UserError(
            f"model.scheduler.{CLASS}={name}: diffusers {diffusers.__version__} has no such "
            f"scheduler; {hint}"
        )
    return kind


def _check_settings(kind: Any, settings: Mapping[str, Any]) -> None:
    allowed = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for key in settings:
        if key in allowed:
            continue
        if key in _CALLS_OWN:
            raise UserError(
                f"model.scheduler.{key}: it is an argument of the pipeline's call; give model.call."
                f"{key}=..."
            )
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"model.scheduler.{key}: {kind.__name__} has no such setting; {hint}it has "
            f"{', '.join(allowed)}"
        )


def _check_family(
    kind: Any, settings: Mapping[str, Any], own: Mapping[str, Any], *, own_name: str | None
) -> None:
    """A flow is not sampled as noise is taken away, nor the other way about."""
    if own_name is None:
        return
    was = _FLOW in own_name or bool(own.get(_FLOW_SETTING))
    now = _FLOW in kind.__name__ or bool(settings.get(_FLOW_SETTING, own.get(_FLOW_SETTING)))
    if was == now:
        return
    takes = _FLOW_SETTING in inspect.signature(kind.__init__).parameters
    raise UserError(
        f"model.scheduler.{CLASS}={kind.__name__}: the model's own is {own_name}, "
        + (
            "which follows a flow; "
            + (
                f"add model.scheduler.{_FLOW_SETTING}=true and prediction_type=flow_prediction"
                if takes
                else "choose a FlowMatch one"
            )
            if was
            else "which follows no flow; choose one that takes noise away, such as DDIMScheduler"
        )
    )
