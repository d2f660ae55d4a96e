"""Processing over time: locking the class, normalizing, smoothing and interpolating maps.

Everything works on raw maps (h, w) at the layer's resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcam.errors import UsageError
from fastcam.targets import ClassChoice

Range = tuple[float, float]

LEAD = 0.1
"""The lead in probability that another class needs over the locked one ..."""
LEAD_FRAMES = 8
"""... on this many consecutive explained frames to replace it."""
FORGETTING = 0.001
"""The decay per frame of the running range towards the frame's range: a half-life of 700 frames."""
_REACH = 3  # radius of the Gaussian window, in standard deviations


@dataclass(frozen=True)
class RawMap:
    """A frame's map before normalization, and its class."""

    map: Tensor
    """(h, w) float32."""
    class_id: int
    score: float
    """The logit."""
    probability: float
    standing: float
    """Its probability divided by that of the frame's top class."""


class Lock(ClassChoice):
    """Locks the first frame's top class until other classes lead it clearly and for long enough.

    Once the top class leads by a probability of :data:`LEAD` on :data:`LEAD_FRAMES` consecutive
    frames, it becomes the locked class. Stateful: use one object per clip, with frames in order.

    Args:
        probabilities: logits (N, classes) -> probabilities (N, classes).
    """

    def __init__(self, probabilities: Callable[[Tensor], Tensor]) -> None:
        self._probabilities = probabilities
        self._held: int | None = None
        self._led = 0  # frames in a row

    def ids(self, logits: Tensor) -> Tensor:
        """(N, 1)."""
        rows = self._probabilities(logits.float()).cpu()
        tops = rows.argmax(1).tolist()
        ids = [self._next(row, top) for row, top in zip(rows, tops, strict=True)]
        return torch.tensor(ids, device=logits.device).unsqueeze(1)

    def _next(self, row: Tensor, top: int) -> int:
        if self._held is None:
            self._held = top
        led = bool(row[top] - row[self._held] > LEAD)
        self._led = self._led + 1 if led else 0
        if self._led == LEAD_FRAMES:
            self._held, self._led = top, 0
        return self._held


def extremes(values: Tensor) -> Range | None:
    """The smallest and largest finite value, or None if there is none."""
    finite = values[values.isfinite()]
    return (finite.min().item(), finite.max().item()) if finite.numel() else None


def scaled(values: Tensor, bounds: Range) -> Tensor:
    """Scales the range to [0, 1] and clamps; an empty range gives 0."""
    low, high = bounds
    return ((values - low) / (high - low)).clamp_(0, 1) if high > low else torch.zeros_like(values)


class FrameRange:
    """The range of each frame."""

    def __call__(self, raw: RawMap) -> Range:
        return extremes(raw.map) or (0.0, 0.0)


@dataclass(frozen=True)
class FixedRange:
    """The same range for all frames."""

    bounds: Range

    def __call__(self, raw: RawMap) -> Range:
        return self.bounds


class RunningRange:
    """The range of the frames so far; extremes decay slowly (:data:`FORGETTING`).

    If other classes have always scored higher, the scale of a strong map of this class is unknown.
    The largest value therefore maps to the best standing so far (:attr:`RawMap.standing`): a class
    that has not appeared yet stays cold and does not flicker.
    """

    def __init__(self) -> None:
        self._bounds: Range | None = None
        self._standing = 0.0

    def __call__(self, raw: RawMap) -> Range:
        own = extremes(raw.map)
        if own is not None:
            low, high = self._bounds or own
            low += FORGETTING * (own[0] - low)
            high += FORGETTING * (own[1] - high)
            self._bounds = min(low, own[0]), max(high, own[1])
            self._standing = max(self._standing, raw.standing)
        low, high = self._bounds or (0.0, 0.0)
        return low, low + (high - low) / self._standing if self._standing > 0 else low


class Norm:
    """How to normalize maps to [0, 1].

    ========== ==============================================================
    frame      by the range of each frame
    running    by the range of the frames so far
    clip       by the range of the whole clip, which takes two passes
    fixed:L,H  by the range [L, H] of raw values
    ========== ==============================================================

    Raises:
        UsageError: if the text is none of these.
    """

    def __init__(self, text: str) -> None:
        kind, _, numbers = text.partition(":")
        bounds = _numbers(numbers)
        fixed = kind == "fixed" and len(bounds) == 2 and bounds[0] < bounds[1]
        if not fixed and (text not in ("frame", "running", "clip")):
            raise UsageError(
                f"norm {text}: expected frame, running, clip or fixed:LOW,HIGH with LOW below HIGH"
            )
        self.looks_ahead = kind == "clip"
        """Whether it requires the whole clip."""
        self._fixed = FixedRange((bounds[0], bounds[1])) if fixed else None
        self._kind = kind

    def ranges(self, clip: Iterable[RawMap] = ()) -> Callable[[RawMap], Range]:
        """A function of each map, in order, to its range.

        Args:
            clip: all maps; required if :attr:`looks_ahead`.
        """
        if self._kind == "clip":
            found = [each for raw in clip if (each := extremes(raw.map)) is not None]
            lows, highs = zip(*found, strict=True) if found else ((0.0,), (0.0,))
            return FixedRange((min(lows), max(highs)))
        return self._fixed or (FrameRange() if self._kind == "frame" else RunningRange())


class Smoothing:
    """How to smooth raw maps over time, among neighbours of the same class.

    ======= ==================================================================================
    none    no smoothing
    ema:A   m_t = A x_t + (1 - A) m_(t-1), A in (0, 1]
    gauss:S Gaussian-weighted mean of the neighbours with a standard deviation of S frames;
            takes two passes over the clip
    ======= ==================================================================================

    Raises:
        UsageError: if the text is none of these.
    """

    def __init__(self, text: str) -> None:
        kind, _, number = text.partition(":")
        numbers = _numbers(number)
        value = numbers[0] if len(numbers) == 1 else 0.0
        given = {"ema": 0 < value <= 1, "gauss": 0 < value < math.inf}.get(kind, text == "none")
        if not given:
            raise UsageError(
                f"smooth {text}: expected none, ema:A with A in (0, 1], or gauss:S with S above 0"
            )
        self.looks_ahead = kind == "gauss"
        """Whether it requires later frames."""
        self._kind, self._value = kind, value
        self._last: RawMap | None = None

    def next(self, raw: RawMap) -> RawMap:
        """Smooths the next frame; not if :attr:`looks_ahead`."""
        last = self._last
        if self._kind == "ema" and last is not None and last.class_id == raw.class_id:
            raw = replace(raw, map=torch.lerp(last.map, raw.map, self._value))
        self._last = raw
        return raw

    def all(self, raws: Sequence[RawMap]) -> list[RawMap]:
        """Smooths a whole clip."""
        if self._kind != "gauss":
            return [self.next(raw) for raw in raws]
        reach = math.ceil(_REACH * self._value)
        weights = torch.arange(-reach, reach + 1).div(self._value).square().div(-2).exp()
        smooth = []
        for index, raw in enumerate(raws):
            first = max(0, index - reach)
            near = [
                (each.map.float(), weights[first + offset - index + reach])
                for offset, each in enumerate(raws[first : index + reach + 1])
                if each.class_id == raw.class_id
            ]
            maps, shares = (torch.stack(each) for each in zip(*near, strict=True))
            smooth.append(replace(raw, map=torch.tensordot(shares / shares.sum(), maps, 1)))
        return smooth


def between(left: RawMap, right: RawMap | None, share: float) -> RawMap:
    """Interpolates from left to right by ``share`` in [0, 1].

    Returns left at the end of a clip and if the class changes.
    """
    if right is None or left.class_id != right.class_id:
        return left
    return RawMap(
        torch.lerp(left.map, right.map, share),
        left.class_id,
        left.score + share * (right.score - left.score),
        left.probability + share * (right.probability - left.probability),
        left.standing + share * (right.standing - left.standing),
    )


def _numbers(text: str) -> list[float]:
    """Parses comma-separated numbers; empty if one is not a number."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        return []
