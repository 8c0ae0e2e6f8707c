"""What a safetensors file says of itself in its header, without reading its tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8  # of the header's length, little-endian, before the header
_MOST_HEADER_BYTES = 100 * 2**20  # as the format's own reader has it
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A header's sums."""

    file_bytes: int  # of the whole file, as the header has it
    float_values: int  # a dtype that is asked for changes their bytes
    other_bytes: int

    def bytes_as(self, item_bytes: int) -> int:
        """In memory, in a dtype of so many bytes."""
        return self.float_values * item_bytes + self.other_bytes


def read_tensor_file(path: Path) -> TensorFile:
    """Reads the header alone.

    Raises:
        ValueError: it is cut off, or no safetensors file.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 0 < length <= _MOST_HEADER_BYTES:
                raise ValueError(f"{path}: is no safetensors file")
            header = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        floats = sum(prod(entry["shape"]) for entry in tensors if entry["dtype"] in _FLOATS)
        others = sum(map(_span, (entry for entry in tensors if entry["dtype"] not in _FLOATS)))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: is cut off, or no safetensors file") from error
    return TensorFile(
        file_bytes=_LENGTH_BYTES + length + end, float_values=floats, other_bytes=others
    )


def _span(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end) - int(begin)
