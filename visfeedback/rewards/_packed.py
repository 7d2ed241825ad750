"""Several tensors of a batch in one: what a mix of rewards preprocesses and encodes travels as a single tensor.

A row of the packed float32 tensor (N, K) is a header (how many tensors, and the type and shape of each), then their
values one after another. Exact for floats of at most 32 bits (longer ones are
rounded to that) and for whole numbers up to 2^24; gradients pass through.
Rows that hold tensors of different shapes may be stacked: the shorter ones end in zeros. May import: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.int32, torch.bool,
          torch.float64)  # fmt: skip


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (N, ...) of one N -> (N, K)."""
    header = [len(tensors)]
    for tensor in tensors:
        header += [DTYPES.index(tensor.dtype), tensor.ndim - 1, *tensor.shape[1:]]
    rows = torch.tensor(header, dtype=torch.float32, device=tensors[0].device).expand(len(tensors[0]), -1)
    return torch.cat([rows, *(tensor.reshape(len(tensor), -1).float() for tensor in tensors)], dim=1)


def unpack(packed: Tensor) -> list[tuple[list[int], list[Tensor]]]:
    """(N, K) -> for each set of shapes, which rows have it and their tensors."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, values in enumerate(packed.detach().cpu()):
        groups.setdefault(_header(values), []).append(row)
    return [(rows, _tensors(packed[rows], header)) for header, rows in groups.items()]


def stack(packed: Sequence[Tensor]) -> Tensor:
    """Packed batches (N, K) -> all rows (sum of N, largest K)."""
    width = max(part.shape[1] for part in packed)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in packed])


def _header(row: Tensor) -> tuple[int, ...]:
    """The numbers before the values."""
    end = 1
    for _ in range(int(row[0])):
        end += 2 + int(row[end + 1])
    return tuple(map(int, row[:end].tolist()))


def _tensors(rows: Tensor, header: tuple[int, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    place, start = 1, len(header)
    for _ in range(header[0]):
        dtype, dimensions = DTYPES[header[place]], header[place + 1]
        shape = header[place + 2 : place + 2 + dimensions]
        place, end = place + 2 + dimensions, start + math.prod(shape)
        found.append(rows[:, start:end].reshape(-1, *shape).to(dtype))
        start = end
    return found
