"""Shadows: integer tensors of a value's own shape that operations which move data run on as is.

A shadow has stride 0 along every axis on which it is constant, so a uniform one holds one number
whatever its shape. Moving data needs no code of its own: `chunk` of a shadow is the chunk's shadow.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Shape = Sequence[int]


def uniform(value: int, shape: Shape) -> Tensor:
    return torch.tensor(value, dtype=torch.int64).expand(tuple(shape))


def along(values: Tensor, shape: Shape, *, dim: int) -> Tensor:
    """`values` laid along one axis, constant along the others."""
    view = [1] * len(shape)
    view[dim] = values.numel()
    return values.reshape(view).expand(tuple(shape))


def core(shadow: Tensor) -> Tensor:
    """The part that is stored: axes of stride 0 narrowed to one element, an empty tensor as is."""
    if shadow.numel() == 0:
        return shadow
    if shadow.untyped_storage().nbytes() == shadow.element_size():
        ones = (1,) * shadow.dim()
        return shadow.as_strided(ones, ones)
    for dim, (size, stride) in enumerate(zip(shadow.shape, shadow.stride(), strict=True)):
        if size > 1 and stride == 0:
            shadow = shadow.narrow(dim, 0, 1)
    return shadow


def compress(shadow: Tensor) -> Tensor:
    """The same numbers with stride 0 wherever they are constant along an axis."""
    if 0 in shadow.shape or shadow.untyped_storage().nbytes() == shadow.element_size():
        return shadow
    small = core(shadow)
    for dim, size in enumerate(small.shape):
        if size > 1:
            first = small.narrow(dim, 0, 1)
            if bool((small == first).all()):
                small = first
    if small.numel() * 2 <= shadow.untyped_storage().size() // 8:
        small = small.clone()
    return small.expand(shadow.shape)


def reshape(shadow: Tensor, shape: Shape) -> Tensor:
    """`reshape` that leaves constant leading axes common to both shapes unmaterialised."""
    lead = 0
    while lead < min(shadow.dim(), len(shape)) and shadow.shape[lead] == shape[lead]:
        lead += 1
    head = [
        1 if shadow.stride(dim) == 0 or shadow.shape[dim] == 1 else shadow.shape[dim]
        for dim in range(lead)
    ]
    small = shadow
    for dim, size in enumerate(head):
        small = small.narrow(dim, 0, size)
    return small.reshape([*head, *shape[lead:]]).expand(tuple(shape))


def varies(shadow: Tensor, dim: int) -> bool:
    return shadow.shape[dim] > 1 and shadow.stride(dim) != 0


def combine(
    shadows: Sequence[Tensor], shape: Shape, *, label: Callable[[tuple[int, ...]], int]
) -> Tensor:
    """Applies `label` to each distinct tuple of numbers found at one place of the shadows."""
    if 0 in shape:
        return uniform(0, shape)
    cores = [core(shadow) for shadow in shadows]
    extent = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        *(part.shape for part in cores)
    )
    smalls = [part.expand(extent) for part in cores]
    rank = max(len(shape), smalls[0].dim())
    if smalls[0].numel() == 1:
        value = label(tuple(int(small.reshape(-1)[0]) for small in smalls))
        return uniform(value, shape)
    codes, columns = smalls[0].reshape(-1), [smalls[0].reshape(-1)]
    for small in smalls[1:]:
        flat = small.reshape(-1)
        columns.append(flat)
        codes = codes * (int(flat.max()) + 1) + flat
        if len(columns) > 2:
            codes = torch.unique(codes, return_inverse=True)[1]
    distinct, where = torch.unique(codes, return_inverse=True)
    first = torch.full((distinct.numel(),), codes.numel(), dtype=torch.int64)
    first.scatter_reduce_(0, where, torch.arange(codes.numel()), reduce="amin")
    rows = torch.stack([column[first] for column in columns], dim=1).tolist()
    table = torch.tensor([label(tuple(row)) for row in rows], dtype=torch.int64)
    small = table[where].reshape(smalls[0].shape)
    return small.reshape([1] * (rank - small.dim()) + list(small.shape)).expand(tuple(shape))


def distinct_rows(shadow: Tensor) -> Tensor:
    """The rows along the last axis as a matrix, constant axes and most repetitions left out."""
    small = core(shadow)
    if small.numel() == 0:
        return small.new_empty(0, shadow.shape[-1])
    if small.dim() == 0:
        return small.reshape(1, 1)
    rows = small.reshape(-1, small.shape[-1])
    if rows.shape[0] > 1:
        new = (rows[1:] != rows[:-1]).any(dim=1)
        rows = rows[torch.cat([torch.ones(1, dtype=torch.bool), new])]
    return rows
