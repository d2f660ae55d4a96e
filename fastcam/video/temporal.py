"""What acts over time: the class that is held, the range of the heat, smoothing, frames between.

All of it works on raw maps (h, w) at the layer's resolution.
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
"""By how much the top class's probability must exceed that of the class that is held, ..."""
LEAD_FRAMES = 8
"""... on how many explained frames in a row, before the class changes."""
FORGETTING = 0.001
"""The share by which the running range shrinks towards that of a frame: half after 700 frames."""
_REACH = 3  # of a Gauss window, in standard deviations


@dataclass(frozen=True)
class RawMap:
    """One frame's map before it is brought to [0, 1], and its class."""

    map: Tensor
    """(h, w) float32."""
    class_id: int
    score: float
    """The logit."""
    probability: float
    standing: float
    """Its probability over that of the frame's top class; 1 for the top class itself."""


class Lock(ClassChoice):
    """The first frame's top class, held until others have led it long and clearly enough.

    That is by a probability of :data:`LEAD` on :data:`LEAD_FRAMES` frames in a row; then the top
    class takes its place. Stateful: frames come in order, and one object serves one clip.

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
    """The smallest and the largest finite value, None where there is none."""
    finite = values[values.isfinite()]
    return (finite.min().item(), finite.max().item()) if finite.numel() else None


def scaled(values: Tensor, bounds: Range) -> Tensor:
    """From the range to [0, 1]; what lies outside is cut, an empty range gives 0."""
    low, high = bounds
    return ((values - low) / (high - low)).clamp_(0, 1) if high > low else torch.zeros_like(values)


class FrameRange:
    """Each frame's own range."""

    def __call__(self, raw: RawMap) -> Range:
        return extremes(raw.map) or (0.0, 0.0)


@dataclass(frozen=True)
class FixedRange:
    """The same range for all frames."""

    bounds: Range

    def __call__(self, raw: RawMap) -> Range:
        return self.bounds


class RunningRange:
    """The range of the frames up to now; extremes are slowly forgotten (:data:`FORGETTING`).

    As long as other classes stood above this one, what a strong map of it looks like is not known.
    So the heat of the largest value is the best standing (:attr:`RawMap.standing`) up to now: a
    class that has not appeared yet is cold, and does not flicker.
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
    """How maps are brought to [0, 1].

    ========== ==============================================================
    frame      each by its own range
    running    by the range of the frames so far
    clip       by the range of the whole clip, which is read twice
    fixed:L,H  by the range from L to H of the raw maps
    ========== ==============================================================

    Raises:
        UsageError: another text.
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
        """Whether the whole clip has to be known."""
        self._fixed = FixedRange((bounds[0], bounds[1])) if fixed else None
        self._kind = kind

    def ranges(self, clip: Iterable[RawMap] = ()) -> Callable[[RawMap], Range]:
        """The range of each map, asked in order; ``clip`` are all, needed where it looks ahead."""
        if self._kind == "clip":
            found = [each for raw in clip if (each := extremes(raw.map)) is not None]
            lows, highs = zip(*found, strict=True) if found else ((0.0,), (0.0,))
            return FixedRange((min(lows), max(highs)))
        return self._fixed or (FrameRange() if self._kind == "frame" else RunningRange())


class Smoothing:
    """How raw maps are smoothed over time, among neighbours of the same class.

    ======= ==================================================================================
    none    not at all
    ema:A   m_t = A x_t + (1 - A) m_(t-1), A in (0, 1]
    gauss:S the mean of the neighbours, weighted by a Gaussian with a standard deviation of S
            frames; the clip is read twice
    ======= ==================================================================================

    Raises:
        UsageError: another text.
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
        """Whether the frames behind have to be known."""
        self._kind, self._value = kind, value
        self._last: RawMap | None = None

    def next(self, raw: RawMap) -> RawMap:
        """The frame that follows; not for what looks ahead."""
        last = self._last
        if self._kind == "ema" and last is not None and last.class_id == raw.class_id:
            raw = replace(raw, map=torch.lerp(last.map, raw.map, self._value))
        self._last = raw
        return raw

    def all(self, raws: Sequence[RawMap]) -> list[RawMap]:
        """A whole clip."""
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
    """The map at ``share`` of the way from left to right; left's where there is no way.

    That is at the end of a clip, and where the class changes.
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
    """The numbers between commas, none where one of them is no number."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        return []
