"""Which metrics there are: found, not listed."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from evaluation import metrics as package
from evaluation.metrics.metric_inputs import MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Shown

_NO_SETTINGS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})


def all_metrics(
    also: Sequence[str] = (), *, settings: Mapping[str, Mapping[str, Any]] = _NO_SETTINGS
) -> tuple[MetricBase, ...]:
    """Every metric of this package and those of the modules in `also`, by place and name.

    Args:
        also: importable modules with a `METRIC`, from wherever they are.
        settings: name of a metric -> field -> value.

    Raises:
        ValueError: a module that cannot be imported or is no metric; two metrics of one name or
            column; a setting of a metric, field or type that is not there.
    """
    classes = [module.METRIC for module in _modules(also)]
    classes.sort(key=lambda metric: (metric.place, metric.name))
    _check_unique([metric.name for metric in classes], what="name")
    _check_unique([column for metric in classes for column in metric.columns], what="column")
    unknown = sorted(set(settings) - {metric.name for metric in classes})
    if unknown:
        known = ", ".join(metric.name for metric in classes)
        raise ValueError(f"settings of {', '.join(unknown)}: no such metric; there are {known}")
    return tuple(_build(metric, settings.get(metric.name, {})) for metric in classes)


def chosen_metrics(
    names: Sequence[str] | None,
    *,
    also: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] = _NO_SETTINGS,
) -> tuple[MetricBase, ...]:
    """`all_metrics`, of the project's only those of `names` (None: all), and all of `also`.

    Raises:
        ValueError: as `all_metrics`; a name that no metric has.
    """
    metrics = all_metrics(also, settings=settings)
    if names is None:
        return metrics
    known = [metric.name for metric in metrics]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"measured: no metric {', '.join(unknown)}; there are {', '.join(known)}")
    asked = {*names, *(m.name for m in metrics if type(m).__module__ in also)}
    return tuple(metric for metric in metrics if metric.name in asked)


def shown(metrics: Iterable[MetricBase]) -> tuple[Shown, ...]:
    """What their files say of how they are shown, by place; a metric's own entry has its column."""
    words = [
        replace(item, per_image=item.per_image or metric.columns[0])
        if metric.columns and item.metric == metric.name
        else item
        for metric in metrics
        for item in sys.modules[type(metric).__module__].SHOWN
    ]
    return tuple(sorted(words, key=lambda item: item.place))


def metric_identity(metric: MetricBase, settings: MetricSettings) -> dict[str, Any]:
    """JSON of what its numbers depend on beside the images, the prompts and the code."""
    return {
        "name": metric.name,
        "fields": asdict(metric),
        "depends_on": metric.identity(settings),
    }


def _modules(also: Sequence[str]) -> Iterator[types.ModuleType]:
    own = [f"{package.__name__}.{item.name}" for item in pkgutil.iter_modules(package.__path__)]
    for name in dict.fromkeys((*own, *also)):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"metric {name}: cannot be imported: {error}") from error
        metric = getattr(module, "METRIC", None)
        if metric is None and name not in also:
            continue  # what metrics share
        if not (isinstance(metric, type) and issubclass(metric, MetricBase)):
            raise ValueError(
                f"metric {name}: METRIC is {metric!r}; say METRIC = a subclass of MetricBase"
            )
        if not hasattr(module, "SHOWN"):
            raise ValueError(f"metric {name}: no SHOWN; say SHOWN = (Shown(...),), or ()")
        yield module


def _check_unique(names: Sequence[str], *, what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two metrics have the {what} {', '.join(repeated)}; rename one")


def _build(metric: type[MetricBase], values: Mapping[str, Any]) -> MetricBase:
    hints = typing.get_type_hints(metric)
    known = [item.name for item in fields(metric)]
    for name, value in values.items():
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"{metric.name}.{name}: no such setting; allowed are {allowed}")
        if not _fits(value, hint=hints[name]):
            kind = getattr(hints[name], "__name__", str(hints[name]))
            raise ValueError(f"{metric.name}.{name}={value!r}: give a value of type {kind}")
    return metric(**values)


def _fits(value: Any, *, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, hint=item) for item in arguments)
    if hint is None:
        return value is None
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)
