"""Nested arguments as JSON and back: both forms that are on disk, and what cannot be stored."""

import json
from typing import Any

import pytest
import torch

from segquant.core.argument_trees import UnstorableArgumentError, flatten_tree, unflatten_tree


def arguments() -> dict[str, Any]:
    return {
        "sample": torch.arange(4.0),
        "timestep": torch.tensor(7),
        "added": {"text": torch.ones(2, 3), "ids": [torch.zeros(2), None]},
        "residuals": (torch.ones(1), 2.5, "name", True),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_arguments_come_back_from_json_with_tensors_by_their_paths() -> None:
    tensors: dict[str, torch.Tensor] = {}

    def put(tensor: torch.Tensor, path: str) -> str:
        tensors[path] = tensor
        return path

    tree = json.loads(json.dumps(flatten_tree(arguments(), put)))
    assert list(tensors) == ["sample", "timestep", "added.text", "added.ids.0", "residuals.0"]
    assert same(unflatten_tree(tree, tensors.__getitem__), arguments())


def test_a_trajectorys_form_has_lists_for_tuples_and_one_name_for_equal_fields() -> None:
    """As a trajectory is recorded: a number of the call before the path, equal fields once."""
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[str, bytes], str] = {}
    trees = []
    for call in range(2):
        given = arguments() | {"sample": torch.full((4,), float(call))}

        def put(tensor: torch.Tensor, path: str, call: int = call) -> str:
            name = f"in{call:04d}.{path}"
            first = names.setdefault((path, tensor.float().numpy().tobytes()), name)
            if first == name:
                tensors[name] = tensor
            return first

        trees.append(flatten_tree(given, put, tuples=False))
    assert set(tensors) == {
        *(f"in0000.{path}" for path in ("sample", "timestep", "added.text", "added.ids.0")),
        "in0000.residuals.0",
        "in0001.sample",
    }
    assert trees[1]["dict"]["sample"] == {"tensor": "in0001.sample"}
    assert trees[1]["dict"]["added"]["dict"]["text"] == {"tensor": "in0000.added.text"}
    assert set(trees[0]["dict"]["residuals"]) == {"list"}
    back = unflatten_tree(trees[1], tensors.__getitem__)
    assert torch.equal(back["sample"], torch.ones(4))
    assert isinstance(back["residuals"], list)


def test_what_is_no_json_is_refused_with_its_place() -> None:
    with pytest.raises(
        UnstorableArgumentError, match=r"argument a\.1 is a set; .*tensors"
    ) as error:
        flatten_tree({"a": [1, {2}]}, lambda _tensor, path: path)
    assert (error.value.path, error.value.kind) == ("a.1", "set")
