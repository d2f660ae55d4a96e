"""Reading a layer's output as activations (N, C, *S), from shapes alone and without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Reshape = Callable[[Tensor], Tensor]

_MOST_PREFIX_TOKENS = 8  # a class token, a distillation token, register tokens


def has_positions(value: object) -> bool:
    """Whether this is a floating-point tensor with dimensions after (N, C)."""
    return isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.dim() <= 5


def token_grid(tokens: int, extents: tuple[int, int]) -> tuple[int, int, int] | None:
    """(prefix, rows, columns) with prefix + rows * columns = tokens; None if no patch size fits.

    Rows and columns are the image's ``extents`` over an integer patch size. Patch sizes that divide
    the image are preferred to those that leave a margin, then those with the fewest prefix tokens.
    """
    height, width = extents
    patches = range(min(height, width), 0, -1)
    dividing = [patch for patch in patches if height % patch == width % patch == 0]
    for sizes in (dividing, patches):
        for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
            for patch in sizes:
                rows, columns = height // patch, width // patch
                if rows * columns == tokens - prefix:
                    return prefix, rows, columns
    return None


def reading(shape: torch.Size, extents: tuple[int, ...] | None) -> Reshape | None:
    """The view that turns a layer's output of this shape into (N, C, *S), or None if there is none.

    ============= ========== ================================================================
    layer         input      read as
    ============= ========== ================================================================
    3-D           2-D images tokens (N, T, C), without the prefix tokens
    3-D           otherwise  (N, C, L)
    4-D, 5-D      any        (N, C, *S) or (N, *S, C), whichever scales the input's height and
                             width more evenly; (N, C, *S) if both do
    ============= ========== ================================================================

    Args:
        shape: the shape of the layer's output, (N, ...).
        extents: the input's spatial extents, or None if it has none.
    """
    if len(shape) == 3 and extents is not None and len(extents) == 2:
        grid = token_grid(shape[1], (extents[0], extents[1]))
        if grid is None:
            return None
        prefix, rows, columns = grid

        def grid_of(tokens: Tensor) -> Tensor:
            count, _, channels = tokens.shape
            shape = (count, rows, columns, channels)
            return tokens[:, prefix:].reshape(shape).movedim(-1, 1)

        return grid_of
    if len(shape) >= 4 and extents is not None and len(extents) >= 2:
        first, last = (_unevenness(positions, extents) for positions in (shape[2:], shape[1:-1]))
        if last < first:
            return lambda output: output.movedim(-1, 1)
    return lambda output: output


def is_ambiguous(shape: torch.Size, extents: tuple[int, ...] | None) -> bool:
    """Whether a layer's output of this shape could be read in another way too.

    From 2-D images, (N, a, b) is ambiguous if both a and b are grids of patches. (N, a, ..., b) is
    ambiguous if height and width scale about as evenly in (N, C, *S) as in (N, *S, C).
    """
    if extents is None:
        return len(shape) == 3
    if len(shape) == 3 and len(extents) == 1:
        return True
    if len(shape) == 3:
        pair = (extents[-2], extents[-1])
        return all(token_grid(count, pair) is not None for count in shape[1:])
    if len(shape) >= 4 and len(extents) >= 2 and shape[1] > 1 and shape[-1] > 1:
        both = shape[2:], shape[1:-1]
        if _have_one_scale(both[0], extents) != _have_one_scale(both[1], extents):
            return False
        first, last = (_unevenness(positions, extents) for positions in both)
        return abs(first - last) < math.log(2)
    return False


def _have_one_scale(positions: tuple[int, ...], extents: tuple[int, ...]) -> bool:
    """Whether height and width may be the input's divided by one number, up to one position."""
    least, most = 0.0, math.inf
    for i in (-2, -1):
        least = max(least, extents[i] / (positions[i] + 1))
        most = min(most, extents[i] / max(positions[i] - 1, 0.5))
    return least <= most


def _unevenness(positions: tuple[int, ...], extents: tuple[int, ...]) -> float:
    """The difference between the scales of height and width; 0 if they are equal."""
    scales = [extents[i] / max(positions[i], 1) for i in (-2, -1)]
    return abs(math.log(scales[0] / scales[1])) if min(scales) > 0 else math.inf
