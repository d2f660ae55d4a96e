"""Noisy linear imputation: missing pixels from their neighbours, by nested dissection.

Every missing pixel is the weighted mean of its eight neighbours (Rong et al. 2022, arXiv
2202.00449, section 4.2): a sparse linear system over the image. Blocks of pixels are merged two by
two; a pixel whose neighbours all lie in its block is eliminated at once, so what is left of a block
are the pixels of its perimeter. All blocks of a size have the same equations, so each step is one
batched Cholesky factorization: for n x n pixels about n^3 operations, and no iteration.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE, _CORNER = 1 / 6, 1 / 12  # a neighbour's weight


def impute(images: Tensor, known: Tensor, noise: Tensor | None = None) -> Tensor:
    """Images with their missing pixels filled in.

    Args:
        images: (N, C, H, W).
        known: (N, H, W), True where a pixel stays.
        noise: (N, C, H, W), added to what is filled in.

    Returns:
        (N, C, H, W) in the images' dtype. Where no pixel is known, 0 and the noise.

    Raises:
        ValueError: for other shapes.
    """
    if images.dim() != 4 or known.shape != images[:, 0].shape:
        raise ValueError(
            f"images, known: got {tuple(images.shape)} and {tuple(known.shape)}, expected "
            "(N, C, H, W) and (N, H, W)"
        )
    height, width = images.shape[2:]
    # the last blocks have a perimeter of some 2 (H + W) pixels each: a few such matrices
    elements = 2**24 if images.device.type == "cpu" else 2**28
    systems = max(1, elements // (32 * (height + width) ** 2))
    parts = zip(images.split(systems), known.split(systems), strict=True)
    filled = torch.cat([_solve(some, kept) for some, kept in parts]) if len(images) else images
    if noise is not None:
        filled = filled + noise
    return torch.where(known.unsqueeze(1), images, filled.to(images.dtype))


class _Blocks(NamedTuple):
    """Equations of equal blocks of pixels: matrix times unknowns = right."""

    matrix: Tensor  # (N, rows, columns, m, m), of the m pixels that are left of a block
    right: Tensor  # (N, rows, columns, m, C)
    missing: Tensor  # (N, rows, columns, m), 1 where a pixel is missing
    places: Tensor  # (m, 2), where they are in the block
    extents: tuple[int, int]  # of a block


class _Step(NamedTuple):
    """What it takes to find eliminated pixels once those that were kept are known."""

    coupling: Tensor  # (N, rows, columns, e, k)
    solved: Tensor  # (N, rows, columns, e, C): they are this less coupling times those
    eliminated: Tensor  # (e,), which of the merged pixels
    kept: Tensor  # (k,)
    axis: int
    blocks: int  # how many blocks there were along the axis


def _solve(images: Tensor, known: Tensor) -> Tensor:
    blocks = _pixels(images.double(), ~known)
    steps = []
    while blocks.matrix[0, :, :, 0, 0].numel() > 1:
        rows, columns = blocks.matrix.shape[1:3]
        wide = blocks.extents[1] > blocks.extents[0]
        axis = 0 if columns == 1 or (wide and rows > 1) else 1
        blocks, step = _merge(blocks, axis)
        steps.append(step)
    found = torch.linalg.solve(blocks.matrix, blocks.right)
    for step in reversed(steps):
        found = _split(found, step)
    return found.squeeze(3).movedim(3, 1)  # (N, H, W, 1, C) -> (N, C, H, W)


def _pixels(images: Tensor, missing: Tensor) -> _Blocks:
    """Every pixel as a block: sum of weights times itself, and what its known neighbours give."""
    u = missing.to(images.dtype).unsqueeze(1)  # (N, 1, H, W)
    weights = images.new_tensor(
        [[_CORNER, _SIDE, _CORNER], [_SIDE, 0, _SIDE], [_CORNER, _SIDE, _CORNER]]
    )[None, None]
    total = F.conv2d(torch.ones_like(u), weights, padding=1)  # less at the border
    given = images.where(~missing.unsqueeze(1), 0.0)
    right = u * F.conv2d(given.flatten(0, 1).unsqueeze(1), weights, padding=1).view_as(given)
    # a little more than the weights: what touches no known pixel gets a solution too, 0
    diagonal = torch.where(missing.unsqueeze(1), total * (1 + 1e-12), 1.0)
    return _Blocks(
        diagonal.squeeze(1)[..., None, None],
        right.movedim(1, -1).unsqueeze(3),
        u.squeeze(1).unsqueeze(-1),
        torch.zeros(1, 2, dtype=torch.int64, device=images.device),
        (1, 1),
    )


def _merge(blocks: _Blocks, axis: int) -> tuple[_Blocks, _Step]:
    """Pairs of neighbouring blocks as one, without the pixels that have all neighbours in it."""
    count = blocks.matrix.shape[1 + axis]
    if count % 2:
        blocks = _padded(blocks, axis)
    shift = torch.zeros_like(blocks.places[0])
    shift[axis] = blocks.extents[axis]
    extents = tuple(n * 2 if i == axis else n for i, n in enumerate(blocks.extents))
    places = torch.cat([blocks.places, blocks.places + shift])

    first, second = (_every_other(blocks, axis, start) for start in (0, 1))
    distance = (blocks.places[:, None] - (blocks.places + shift)[None]).abs()
    side, corner = distance.sum(2) == 1, (distance == 1).all(2)
    weights = side.to(first.matrix) * _SIDE + corner.to(first.matrix) * _CORNER
    between = -weights * first.missing.unsqueeze(-1) * second.missing.unsqueeze(-2)
    matrix = torch.cat(
        [
            torch.cat([first.matrix, between], -1),
            torch.cat([between.mT, second.matrix], -1),
        ],
        -2,
    )
    right = torch.cat([first.right, second.right], -2)
    missing = torch.cat([first.missing, second.missing], -1)

    inner = ((places > 0) & (places < torch.tensor(extents, device=places.device) - 1)).all(1)
    eliminated, kept = inner.nonzero().flatten(), (~inner).nonzero().flatten()
    outer = matrix[..., eliminated[:, None], kept]
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(matrix[..., eliminated[:, None], eliminated])
    )
    coupling = inverse @ outer
    merged = _Blocks(
        matrix[..., kept[:, None], kept] - outer.mT @ coupling,
        right[..., kept, :] - coupling.mT @ right[..., eliminated, :],
        missing[..., kept],
        places[kept],
        (extents[0], extents[1]),
    )
    solved = inverse @ right[..., eliminated, :]
    return merged, _Step(coupling, solved, eliminated, kept, axis, count)


def _split(found: Tensor, step: _Step) -> Tensor:
    """The unknowns of the blocks before a merge, (N, rows, columns, m, C), from those after it."""
    rest = step.solved - step.coupling @ found
    size = len(step.kept) + len(step.eliminated)
    merged = found.new_empty(*found.shape[:3], size, found.shape[4])
    merged[..., step.kept, :], merged[..., step.eliminated, :] = found, rest
    axis = 1 + step.axis
    pairs = torch.stack(merged.chunk(2, 3), 1 + axis)  # the first and the second beside each other
    return pairs.flatten(axis, axis + 1).narrow(axis, 0, step.blocks)


def _every_other(blocks: _Blocks, axis: int, start: int) -> _Blocks:
    return blocks._replace(
        matrix=blocks.matrix.movedim(1 + axis, 0)[start::2].movedim(0, 1 + axis),
        right=blocks.right.movedim(1 + axis, 0)[start::2].movedim(0, 1 + axis),
        missing=blocks.missing.movedim(1 + axis, 0)[start::2].movedim(0, 1 + axis),
    )


def _padded(blocks: _Blocks, axis: int) -> _Blocks:
    """One more row or column of blocks, of known pixels that nothing depends on."""
    more = blocks.matrix.narrow(1 + axis, 0, 1)
    identity = torch.eye(more.shape[-1], dtype=more.dtype, device=more.device).expand_as(more)
    zeros = (
        torch.zeros_like(part.narrow(1 + axis, 0, 1)) for part in (blocks.right, blocks.missing)
    )
    right, missing = (
        torch.cat([part, zero], 1 + axis)
        for part, zero in zip((blocks.right, blocks.missing), zeros, strict=True)
    )
    matrix = torch.cat([blocks.matrix, identity], 1 + axis)
    return blocks._replace(matrix=matrix, right=right, missing=missing)
