"""What text encoders say, kept: once texts are encoded, the encoders can leave the memory.

Every call of an encoder is filed under the hash of its arguments, with as much of its output as the
pipeline has looked at. In the encoder's place a network without weights answers from the files, bit
for bit; what it was never asked, the encoder itself answers, read from disk for the moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from experiments.sampling.assembled import load_part
from experiments.sampling.model_folder import check_folder, names_a_class, pipeline_index
from experiments.sampling.model_parts import part_class
from experiments.sampling.weightless import weightless

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

ENCODER = "text_encoder"  # what the names of such parts begin with
_PLAIN = "plain.json"
_LENGTH = "len"
Path_ = tuple[str, ...]


def encoder_names(index: Mapping[str, Any]) -> list[str]:
    """The text encoders that an index of parts names."""
    return [
        name for name, kind in index.items() if name.startswith(ENCODER) and names_a_class(kind)
    ]


@dataclass
class _Said:
    """An encoder's output, or a part of it, that notes what is looked at."""

    _value: Any
    _path: Path_
    _asked: dict[Path_, Any]

    def __getattr__(self, name: str) -> Any:
        return self._give(name, getattr(self._value, name))

    def __getitem__(self, key: Any) -> Any:
        return self._give(str(key), self._value[key])

    def __len__(self) -> int:
        return int(self._give(_LENGTH, len(self._value)))

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def _give(self, key: str, value: Any) -> Any:
        path = (*self._path, key)
        if (
            isinstance(value, Tensor)
            or value is None
            or isinstance(value, bool | int | float | str)
        ):
            self._asked[path] = value
            return value
        return _Said(value, path, self._asked)


@dataclass
class _Kept:
    """The same from files: what was looked at, and nothing else."""

    _asked: Mapping[Path_, Any]
    _path: Path_ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self._give(name)
        except KeyError as error:  # as where the encoder's output has no such thing
            raise AttributeError(str(error)) from error

    def __getitem__(self, key: Any) -> Any:
        return self._give(str(key))

    def __len__(self) -> int:
        return int(self._give(_LENGTH))

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def _give(self, key: str) -> Any:
        path = (*self._path, key)
        if path in self._asked:
            return self._asked[path]
        if any(known[: len(path)] == path for known in self._asked):
            return _Kept(self._asked, path)
        raise KeyError(
            f"nothing looked at {'.'.join(path)} of a text encoder's output when it was kept; set "
            "model.embeddings=false"
        )


@contextmanager
def recording(encoders: Mapping[str, nn.Module], folder: Path) -> Iterator[None]:
    """Files what the encoders are asked and say within the block."""
    seen: list[tuple[Path, dict[Path_, Any]]] = []
    with ExitStack() as stack:
        for name, encoder in encoders.items():

            def keep(_: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> Any:
                asked: dict[Path_, Any] = {}
                seen.append((folder / name / _digest(args, kwargs), asked))
                if isinstance(out, Tensor):
                    asked[()] = out
                    return out
                return _Said(out, (), asked)

            stack.callback(encoder.register_forward_hook(keep, with_kwargs=True).remove)
        yield
        for place, asked in seen:
            _write(place, asked)


def _write(place: Path, asked: Mapping[Path_, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    tensors = {
        json.dumps(path): value.detach().cpu().contiguous().clone()
        for path, value in asked.items()
        if isinstance(value, Tensor)
    }
    plain = [[list(path), v] for path, v in asked.items() if not isinstance(v, Tensor)]
    save_file(tensors, place / "tensors.safetensors")
    (place / _PLAIN).write_text(json.dumps(plain))


def _read(place: Path, device: torch.device) -> dict[Path_, Any]:
    tensors = load_file(place / "tensors.safetensors")
    asked: dict[Path_, Any] = {
        tuple(json.loads(path)): tensor.to(device) for path, tensor in tensors.items()
    }
    return asked | {tuple(path): value for path, value in json.loads((place / _PLAIN).read_text())}


def _digest(args: Any, kwargs: Any) -> str:
    """Of a call's arguments by value, wherever they lie."""
    hashed = hashlib.sha256()
    leaves, _ = tree_flatten_with_path((args, {k: kwargs[k] for k in sorted(kwargs)}))
    for path, leaf in leaves:
        hashed.update(repr(path).encode())
        if isinstance(leaf, Tensor):
            own = leaf.detach().cpu().contiguous()
            hashed.update(f"{own.dtype} {tuple(own.shape)}".encode())
            hashed.update(own.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            hashed.update(repr(leaf).encode())
    return hashed.hexdigest()[:32]


@dataclass(kw_only=True)
class TextStates:
    """Stand-ins for a pipeline's text encoders, and the files that they answer from."""

    config: ModelConfig
    device: torch.device
    folder: Path | None = None  # of `recording`; None: nothing was kept
    _genuine: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def stand_ins(self) -> dict[str, nn.Module]:
        """By the pipeline's names."""
        folder = check_folder(self.config)
        index = pipeline_index(folder)
        return {
            name: weightless(
                part_class(index[name], where=str(folder)),
                folder / name,
                dtype=getattr(torch, self.config.dtype),
                device=self.device,
                forward=self._answer(name),
            )
            for name in encoder_names(index)
        }

    def forget(self) -> None:
        """Lets go of encoders that were read for what no file had."""
        self._genuine.clear()

    def _answer(self, name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            place = None if self.folder is None else self.folder / name / _digest(args, kwargs)
            if place is None or not place.is_dir():
                return self._encoder(name)(*args, **kwargs)
            asked = _read(place, self.device)
            return asked[()] if () in asked else _Kept(asked)

        return forward

    def _encoder(self, name: str) -> nn.Module:
        if name not in self._genuine:
            self._genuine[name] = load_part(self.config, name).to(self.device)
        return self._genuine[name]
