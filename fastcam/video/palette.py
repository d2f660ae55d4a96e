"""Pictures in 256 colours, for GIF."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastcam.pictures import Picture

Indices = NDArray[np.uint8]  # (H, W), into a palette
Palette = NDArray[np.uint8]  # (256, 3), RGB

_COLOURS = 256
_BITS = 6  # per channel of a bin
_BINS = 1 << 3 * _BITS
_ROUNDS = 3  # of k-means
# How much larger squared errors may become before a scene gets another palette
_TOLERANCE = np.array([1.25, 3.0])  # 1 dB on average; in the worst block
_SLACK = 1.0  # squared levels, for pictures of few colours
_BLOCK = 16  # pixels


class Quantizer:
    """Reduces the pictures of a clip to 256 colours, with one palette for each scene.

    A palette serves until a picture, or a part of one, loses more than in the picture that it was
    made for. Ordered dithering as strong as the palette's error keeps smooth heat smooth; it does
    not move, and a picture of few colours stays exact.
    """

    def __init__(self) -> None:
        self.palette: Palette = np.zeros((_COLOURS, 3), np.uint8)
        """That of the last picture."""
        self._limits = np.zeros(2)  # of the errors
        self._strength = 0.0  # of the dithering, in levels
        self._nearest = np.full(_BINS, -1, np.int16)  # index of each bin; -1: not known yet

    def __call__(self, picture: Picture) -> Indices:
        """The index of each pixel, (H, W), into :attr:`palette`."""
        indices = self._looked_up(picture)
        if (self._errors(picture, indices) > self._limits).any():
            self._renew(picture)
            indices = self._looked_up(picture)
            self._limits = _TOLERANCE * self._errors(picture, indices) + _SLACK
        return indices

    def _renew(self, picture: Picture) -> None:
        counts, colours = _histogram(picture)
        means = _split(counts, colours)
        for _ in range(_ROUNDS):
            means = _means(counts, colours, _nearest(colours, means), means)
        self.palette[:] = 0
        self.palette[: len(means)] = means.round()
        self._nearest[:] = -1
        error = counts @ ((colours - means[_nearest(colours, means)]) ** 2).mean(1) / counts.sum()
        self._strength = 2 * float(np.sqrt(error))

    def _looked_up(self, picture: Picture) -> Indices:
        bins = _bins(_dithered(picture, self._strength))
        found = self._nearest[bins]
        unknown = np.bincount(bins[found < 0]).nonzero()[0]
        if unknown.size:
            self._nearest[unknown] = _nearest(_centres(unknown), self.palette.astype(np.float32))
            found = self._nearest[bins]
        return found.astype(np.uint8)

    def _errors(self, picture: Picture, indices: Indices) -> NDArray[np.float64]:
        """The squared errors in levels: of a channel on average, and in the worst block."""
        import cv2

        shown = cv2.LUT(cv2.merge([indices] * 3), self.palette[None])
        errors = cv2.absdiff(picture, shown).astype(np.float32) ** 2
        blocks = [max(extent // _BLOCK, 1) for extent in indices.shape]
        means = cv2.resize(errors, blocks[::-1], interpolation=cv2.INTER_AREA)
        return np.array([errors.mean(), means.max()])


def _dithered(picture: Picture, strength: float) -> Picture:
    """The picture plus a pattern of 8 x 8 offsets in [-strength, strength]."""
    import cv2

    height, width = picture.shape[:2]
    offsets = (strength * _BAYER).round().astype(np.int16)
    tiled = np.tile(offsets, (-(-height // 8), -(-width // 8)))[:height, :width]
    return cv2.add(picture, cv2.merge([tiled] * 3), dtype=cv2.CV_8U)  # type: ignore[return-value]


def _bayer(size: int) -> NDArray[np.float64]:
    """The Bayer matrix, (size, size), in (-1, 1)."""
    matrix = np.zeros((1, 1))
    while len(matrix) < size:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (2 * matrix + 1) / matrix.size - 1


_BAYER = _bayer(8)


def _bins(picture: Picture) -> NDArray[np.int32]:
    """The bin of each pixel: the leading bits of its channels."""
    red, green, blue = (picture[..., c].astype(np.int32) >> 8 - _BITS for c in range(3))
    return red << 2 * _BITS | green << _BITS | blue


def _centres(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B,) -> (B, 3), the colours in the middle of bins."""
    channels = np.stack([bins >> 2 * _BITS, bins >> _BITS, bins], 1) & (1 << _BITS) - 1
    return ((channels + 0.5) * (1 << 8 - _BITS) - 0.5).astype(np.float32)


def _histogram(picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B,) pixels and (B, 3) mean colours of the bins that are not empty."""
    bins = _bins(picture).ravel()
    counts = np.bincount(bins, minlength=_BINS)
    used = counts.nonzero()[0]
    sums = [np.bincount(bins, picture[..., c].ravel(), _BINS)[used] for c in range(3)]
    counts = counts[used]
    return counts.astype(np.float32), (np.stack(sums, 1) / counts[:, None]).astype(np.float32)


def _split(counts: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halves the box of the largest squared error until there are 256; the means, (K, 3)."""
    boxes = [_Box(counts, colours)]
    while len(boxes) < _COLOURS:
        worst = max(range(len(boxes)), key=lambda k: boxes[k].error)
        if boxes[worst].error <= 0:
            break
        boxes[worst : worst + 1] = boxes[worst].halves()
    return np.stack([box.mean for box in boxes])


class _Box:
    """Some bins, (B,) pixels and (B, 3) colours."""

    def __init__(self, counts: NDArray[np.float32], colours: NDArray[np.float32]) -> None:
        self._counts, self._colours = counts, colours
        self.mean = counts @ colours / counts.sum()
        errors = counts @ (colours - self.mean) ** 2  # per channel
        self._channel = int(errors.argmax())
        self.error = float(errors.sum()) if len(counts) > 1 else 0.0

    def halves(self) -> list[_Box]:
        """The bins below and above the mean of the channel that varies most."""
        below = self._colours[:, self._channel] < self.mean[self._channel]
        if below.all() or not below.any():  # the mean is rounded
            below = self._colours[:, self._channel] < self._colours[:, self._channel].max()
        return [_Box(self._counts[part], self._colours[part]) for part in (below, ~below)]


def _nearest(colours: NDArray[np.float32], palette: NDArray[np.float32]) -> NDArray[np.int64]:
    """(B,), the index of the nearest of (K, 3) to each of (B, 3)."""
    lengths = (palette**2).sum(1) / 2
    return np.concatenate(
        [
            (lengths - colours[first : first + 4096] @ palette.T).argmin(1)
            for first in range(0, len(colours), 4096)
        ]
    )


def _means(
    counts: NDArray[np.float32],
    colours: NDArray[np.float32],
    chosen: NDArray[np.int64],
    before: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(K, 3), the mean of the colours that chose each; as ``before`` if there are none."""
    total = np.bincount(chosen, counts, len(before))
    sums = [np.bincount(chosen, counts * colours[:, c], len(before)) for c in range(3)]
    means = np.stack(sums, 1) / np.maximum(total, 1)[:, None]
    return np.where(total[:, None] > 0, means, before).astype(np.float32)
