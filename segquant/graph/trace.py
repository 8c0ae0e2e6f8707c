"""The front ends' common language: one forward pass as a list of ATen operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the traced pass, by its index into `Trace.shapes`."""

    index: int


@dataclass(kw_only=True)
class Op:
    """One call of `func`; `args` holds every argument of its schema, tensors as `Ref`.

    `outputs` lists the returned tensors in order, None where something else was returned.
    `module` is the dotted name of the innermost module that was running; `is_view` says that the
    outputs share memory with the first argument.
    """

    func: OpOverload
    name: str
    args: dict[str, Any]
    outputs: list[Ref | None]
    module: str
    is_view: bool = False

    def refs(self) -> Iterator[Ref]:
        for value in self.args.values():
            yield from _refs_of(value)

    def call(self, swap: Callable[[Ref], Any]) -> Any:
        """Calls `func` with every tensor replaced by `swap` of its reference."""
        positional, keyword = [], {}
        for name, _, kwarg_only in _arguments(self.func):
            value = _swap(self.args[name], swap)
            if kwarg_only:
                keyword[name] = value
            else:
                positional.append(value)
        return self.func(*positional, **keyword)

    def written(self) -> list[Ref]:
        """The arguments that the operation writes into."""
        return [ref for name in _written_names(self.func) for ref in _refs_of(self.args[name])]


@dataclass(kw_only=True)
class Trace:
    """A forward pass. `inputs` and `parameters` name the tensors that were there before it;
    a tensor that no operation made and that is in neither is a constant."""

    frontend: str
    fallback: str = ""  # why it was no other front end
    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    inputs: dict[Ref, str] = field(default_factory=dict)
    parameters: dict[Ref, str] = field(default_factory=dict)
    untracked: set[Ref] = field(default_factory=set)
    results: list[Ref] = field(default_factory=list)

    def add(self, shape: Sequence[int]) -> Ref:
        self.shapes.append(tuple(int(size) for size in shape))
        return Ref(len(self.shapes) - 1)


@cache
def _written_names(func: OpOverload) -> tuple[str, ...]:
    arguments = func._schema.arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def _arguments(func: OpOverload) -> tuple[tuple[str, Any, bool], ...]:
    return tuple((a.name, a.default_value, a.kwarg_only) for a in func._schema.arguments)


def bind(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of the schema of `func` by name, defaults filled in."""
    return {
        name: args[position] if position < len(args) else kwargs.get(name, default)
        for position, (name, default, _) in enumerate(_arguments(func))
    }


@cache
def short_name(func: OpOverload) -> str:
    """`aten::add_.Tensor` -> `add`: an in-place operation has the name of the plain one."""
    namespace, name = func._schema.name.split("::")
    name = name if namespace == "aten" else f"{namespace}::{name}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _refs_of(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs_of(item)


def _swap(value: Any, swap: Callable[[Ref], Any]) -> Any:
    if isinstance(value, Ref):
        return swap(value)
    if isinstance(value, (list, tuple)):
        return [_swap(item, swap) for item in value]
    if isinstance(value, torch.SymInt):
        return int(value)
    return value


@cache
def may_alias(func: OpOverload) -> bool:
    """The schema allows the result to share memory with an argument."""
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
