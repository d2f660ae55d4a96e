"""Processing over time: locking the class, normalizing, smoothing and interpolating maps.

Everything works on raw maps (h, w) at the layer's resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.errors import UsageError
from fastcam.targets import ClassChoice

Range = tuple[float, float]

LEAD = 0.1
"""The lead in probability that another class needs over the locked one ..."""
LEAD_SECONDS = 0.3
"""... for this long to replace it."""
WEAK = 0.05
"""A locked class below this probability, and below another class, ..."""
WEAK_SECONDS = 1.0
"""... is not shown for longer than this."""
CUT = 0.1
"""The mean change of an 8 x 8 thumbnail, of values in [0, 1], from which on it may be a cut ..."""
CUT_RATIO = 2.5
"""... if it also is this many times the usual change."""
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
    """Locks the top class of the first frame of a scene until others lead it for long enough.

    The top class becomes the locked class

    - at a cut: if the picture changes by :data:`CUT` or more;
    - once it has led by a probability of :data:`LEAD` for :data:`LEAD_SECONDS`;
    - before the locked class has been below :data:`WEAK` for :data:`WEAK_SECONDS`.

    A class is shown until the next explained frame: where these are far apart, it changes at the
    last one that comes in time. Stateful: use one object per clip, with frames in order.

    Args:
        probabilities: logits (N, classes) -> probabilities (N, classes).
    """

    def __init__(self, probabilities: Callable[[Tensor], Tensor]) -> None:
        self._probabilities = probabilities
        self._held: int | None = None
        self._frames: list[tuple[float, bool]] = []
        self._last = 0.0  # seconds
        self._cuts = _Cuts()
        self._led = _Stretch(LEAD_SECONDS)
        self._weak = _Stretch(WEAK_SECONDS)

    def show(self, frames: Sequence[tuple[float, Tensor]]) -> None:
        """Gives the frames of the next call of :meth:`ids`.

        Args:
            frames: for each its time in seconds, and the network's input, (3, h, w) uint8. If there
                are more frames than rows of logits, as for clips, each row has the same number.
        """
        self._frames = [(time, self._cuts.next(picture)) for time, picture in frames]

    def ids(self, logits: Tensor) -> Tensor:
        """(N, 1)."""
        rows = self._probabilities(logits.float()).cpu()
        tops = rows.argmax(1).tolist()
        count = max(1, len(self._frames) // len(tops))
        ids = []
        for index, (row, top) in enumerate(zip(rows, tops, strict=True)):
            frames = self._frames[index * count : (index + 1) * count]
            cut = any(is_cut for _, is_cut in frames)
            ids.append(self._next(row, top, frames[0][0] if frames else self._last, cut))
        return torch.tensor(ids, device=logits.device).unsqueeze(1)

    def _next(self, row: Tensor, top: int, time: float, cut: bool) -> int:
        held = top if self._held is None or cut else self._held
        until = time + max(0.0, time - self._last)  # about the next frame
        led = self._led.reaches(bool(row[top] - row[held] > LEAD), time, until)
        weak = self._weak.reaches(bool(row[held] < min(WEAK, row[top].item())), time, until)
        if led or weak:
            held = top
            self._led.end()
            self._weak.end()
        self._held, self._last = held, time
        return held


class _Stretch:
    """How long something has been true.

    Args:
        seconds: how long is long enough.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def reaches(self, is_true: bool, time: float, until: float) -> bool:
        """Whether it will have been true for long enough by ``until``."""
        if not is_true:
            self._since = None
            return False
        if self._since is None:
            self._since = time
        return until - self._since >= self._seconds

    def end(self) -> None:
        self._since = None


class _Cuts:
    """Finds cuts by what changes from picture to picture."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._usual = 0.0

    def next(self, picture: Tensor) -> bool:
        """Whether there is a cut in front of a picture, (3, h, w) uint8."""
        thumbnail = F.adaptive_avg_pool2d(picture.float() / 255, 8)
        last, self._last = self._last, thumbnail
        if last is None:
            return False
        change = (thumbnail - last).abs().mean().item()
        is_cut = change > CUT and change > CUT_RATIO * self._usual
        self._usual += 0.1 * (change - self._usual)
        return is_cut


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
