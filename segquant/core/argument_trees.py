"""Nested arguments of a call as JSON, with their tensors beside it under names.

Each node of a tree has one key: `tensor` (a name), `dict`, `pairs` (a dict whose keys are no
strings), `list`, `tuple`, or `value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Tree = dict[str, Any]


class UnstorableArgumentError(ValueError):
    """An argument that is no tensor, container or plain value.

    Attributes:
        path: where it lies, such as `added_cond_kwargs.text_embeds`.
        kind: its type's name.
    """

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(
            f"argument {path or '(the call itself)'} is a {kind}; what can be stored are tensors, "
            "numbers, strings, None, and dicts, lists and tuples of them"
        )
        self.path, self.kind = path, kind


def flatten_tree(
    value: Any, name_of: Callable[[Tensor, str], str], *, tuples: bool = True, path: str = ""
) -> Tree:
    """The tree of nested arguments.

    Args:
        name_of: given each tensor (as it is: on its device, with its gradient) and its path, the
            keys and numbers that lead to it with dots between; puts it away and says under which
            name. Names may repeat: one for equal tensors.
        tuples: whether a tuple comes back as one; otherwise it is written as a list.
        path: of the value itself.

    Raises:
        UnstorableArgumentError: it holds something that is no JSON.
    """

    def child(item: Any, key: Any) -> Tree:
        below = f"{path}.{key}" if path else str(key)
        return flatten_tree(item, name_of, tuples=tuples, path=below)

    if isinstance(value, Tensor):
        return {"tensor": name_of(value, path)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: child(item, key) for key, item in value.items()}}
        if all(isinstance(key, int | float) for key in value):
            return {"pairs": [[key, child(item, key)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if tuples and isinstance(value, tuple) else "list"
        return {kind: [child(item, number) for number, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise UnstorableArgumentError(path, type(value).__name__)


def unflatten_tree(tree: Tree, tensor_of: Callable[[str], Tensor]) -> Any:
    """The inverse of `flatten_tree`; `tensor_of` gives the tensor of a name, where it is wanted."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensor_of(content)
    if kind == "dict":
        return {key: unflatten_tree(item, tensor_of) for key, item in content.items()}
    if kind == "pairs":
        return {key: unflatten_tree(item, tensor_of) for key, item in content}
    if kind in ("list", "tuple"):
        items = [unflatten_tree(item, tensor_of) for item in content]
        return tuple(items) if kind == "tuple" else items
    assert kind == "value", kind
    return content
