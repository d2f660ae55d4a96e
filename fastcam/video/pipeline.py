"""The pipeline: decode, explain, smooth and normalize over time, draw, encode."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from fastcam.engine.cores import single_threaded
from fastcam.errors import FastcamError, Interrupted, UsageError
from fastcam.explainer import TOP_CLASS, Explainer
from fastcam.explainer.threads import Ahead, Behind, Clock, Interrupts
from fastcam.pictures.render import Style
from fastcam.targets import ClassChoice, TopClasses
from fastcam.video.drawing import Drawing, ExplainedFrame
from fastcam.video.frame import Frame
from fastcam.video.network import Fitted, Network
from fastcam.video.sinks import Sink, check_suffix, open_sink
from fastcam.video.sources import Source, open_source
from fastcam.video.temporal import Lock, Norm, Range, RawMap, Smoothing, scaled
from fastcam.video.writer import check_codec

LOCK: Final = "lock"
CLIP: Final = "clip"
CHOICES: Final = (LOCK, CLIP, TOP_CLASS)
"""Targets that no class has to be named for."""
_BATCH, _BATCH_ON_GPU = 4, 32
_DRAWN = 2  # drawn pictures queued for the encoder; they take twice the memory of planes

T = TypeVar("T")
AnySource = Source | Iterable[Any] | Path | str | int


@dataclass(frozen=True)
class Report:
    """The statistics of a run."""

    frames: int
    seconds: float
    stages: dict[str, float]
    """Busy seconds of decode, network, draw and encode; they overlap."""
    padded: tuple[int, int] | None
    """(height, width) of the output if an odd height or width was padded, else None."""
    files: list[Path]
    """The files that were written."""
    lost_packets: int
    """How many packets of the source are missing or incomplete: 0, or :func:`explain` raises."""
    decode_errors: int
    """How many frames of the source were decoded with errors or not at all; likewise 0."""

    size: tuple[int, int]
    """(height, width) of the source's frames."""

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds

    @property
    def slowest_stage(self) -> str:
        """The stage with the most busy seconds."""
        return max(self.stages, key=lambda stage: self.stages[stage])


@dataclass(frozen=True, kw_only=True)
class Options(Style):
    """Options of :func:`explain`: these, and how to draw, as in its base."""

    target: str = LOCK
    """The class: "lock" keeps the top class of a scene's first frame until another one leads for a
    while (see :class:`fastcam.video.temporal.Lock`); "clip" uses the class with the highest mean
    probability, which takes an extra pass over the clip; "top1" uses each frame's top class; or a
    class id or name."""
    norm: str = "running"
    """How to normalize maps to [0, 1]; see :class:`fastcam.video.temporal.Norm`."""
    smooth: str = "none"
    """Smoothing over time; see :class:`fastcam.video.temporal.Smoothing`."""
    stride: int = 1
    """Explain every ``stride``-th frame and interpolate the maps of the others."""
    max_height: int | None = None
    """Shrink taller frames to this height, in pixels."""
    batch: int | None = None
    """Frames per forward pass; by default 4 on a CPU and 32 on a GPU."""
    codec: str = "auto"
    """See :class:`fastcam.video.writer.Writer`."""
    raw: str | None = None
    """See :func:`fastcam.video.open_source`."""
    progress: Callable[[], object] = lambda: None
    """Called after each frame passed to the sink."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stride", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: expected at least 1")
        Norm(self.norm)
        Smoothing(self.smooth)
        check_codec(self.codec)


def check(sink: Path, **options: Any) -> None:
    """Raises UsageError if the sink or an option of :func:`explain` is wrong for any model."""
    check_suffix(sink)
    Options(**options)


@overload
def explain(
    source: AnySource, sink: None, explainer: Explainer, **options: Any
) -> Generator[ExplainedFrame]: ...


@overload
def explain(
    source: AnySource, sink: Sink | Path | str, explainer: Explainer, **options: Any
) -> Report: ...


def explain(
    source: AnySource, sink: Sink | Path | str | None, explainer: Explainer, **options: Any
) -> Report | Generator[ExplainedFrame]:
    """Explains every frame of a clip: a heatmap with the class name and probability in a corner.

    Decoding, drawing and encoding run in one thread each. On a CPU, the network runs in
    ``torch.get_num_threads()`` threads, each with its own batch and a copy of the model that shares
    its weights; state that the model updates between calls stays in the copies. Bounded queues
    connect the stages: memory use does not depend on the clip's length.

    Args:
        source: see :func:`fastcam.video.open_source`; closed at the end.
        sink: see :func:`fastcam.video.open_sink`; None to return an iterator.
        explainer: the network, method and layer.
        options: the attributes of :class:`Options`.

    Returns:
        A :class:`Report`, or, without a sink, an iterator over the explained frames. Closing the
        iterator ends its threads.

    Raises:
        UsageError: if an option, the class or the layer is unknown or does not fit.
        FastcamError: if the source is broken or ends early, or the sink cannot be written. All
            frames that could be decoded are saved in a readable sink. Its ``details`` contain
            ``frames``, ``files``, ``lost_packets`` and ``decode_errors`` as in the report. Frames
            are also saved on KeyboardInterrupt; a second Ctrl-C does not interrupt closing the
            sink.

    Warns:
        UserWarning: if the model cannot be copied, so the network runs in a single thread.
    """
    chosen = Options(**options)
    run = _Run(explainer, chosen)
    if sink is None:
        return run.explained(run.open(source))
    started = time.perf_counter()
    with run.open(source) as opened, Interrupts() as interrupts:
        made = open_sink(sink, opened, chosen.codec, run.device.type)
        with reporting(opened, made, run.reads_twice):
            run.into(made, opened, interrupts)
    seconds = time.perf_counter() - started
    return Report(
        seconds=seconds,
        stages=run.clock.seconds,
        padded=made.padded,
        size=run.size,
        **outcome(opened, made),
    )


def outcome(source: Source, sink: Sink) -> dict[str, Any]:
    """What was read and written, as attributes of a :class:`Report`, also after a failure."""
    return {
        "frames": sink.frames,
        "files": sink.files,
        "lost_packets": source.lost_packets,
        "decode_errors": source.decode_errors,
    }


@contextmanager
def reporting(source: Source, sink: Sink, twice: bool = False) -> Iterator[None]:
    """Adds the outcome to the ``details`` of an error, or of a signal that ends the command.

    Args:
        source, sink: those of the block, which closes the sink.
        twice: whether it reads the whole source before it writes the first frame.
    """
    try:
        yield
    except FastcamError as error:
        error.details = outcome(source, sink)
        raise
    except Interrupted as signal:
        signal.details = outcome(source, sink)
        if not sink.files:
            why = (
                ", because norm clip, smooth gauss and target clip read the whole clip before the "
                "first frame is drawn"
            )
            signal.kept = f"nothing is written{why if twice else ''}"
        raise


class _Run:
    """Turns one source into explained frames; the constructor validates the options."""

    def __init__(self, explainer: Explainer, options: Options) -> None:
        model = explainer.model
        self.device = explainer.device
        self.batch = options.batch or (_BATCH_ON_GPU if self.device.type == "cuda" else _BATCH)
        self.clock = Clock()
        self.size = 0, 0
        """(height, width) of the source's frames; known after the first."""
        self._drawing = Drawing(
            model.preprocessing,
            options,
            options.max_height,
        )
        self._raw, self._progress = options.raw, options.progress
        self._explainer = explainer
        self._network = Network(explainer, self.batch, options.stride, self.clock)
        self._norm, self._smoothing = Norm(options.norm), Smoothing(options.smooth)
        self._targets: ClassChoice | None = None  # target "clip": known after the first pass
        if options.target == LOCK:
            self._targets = Lock(model.probabilities)
        elif options.target != CLIP:
            self._targets = explainer.targets(options.target)

    @property
    def reads_twice(self) -> bool:
        """Whether drawing the first frame requires a pass over the whole clip."""
        return self._maps_first or self._targets is None

    @property
    def _maps_first(self) -> bool:
        """Whether drawing the first frame requires the maps of the whole clip."""
        return self._norm.looks_ahead or self._smoothing.looks_ahead

    def open(self, source: AnySource) -> Source:
        opened = open_source(source, self._raw, self.device.type)
        if not opened.twice and self.reads_twice:
            opened.close()
            raise UsageError(
                f"{opened.name}: can be read only once, but norm clip, smooth gauss and target "
                "clip require a second pass"
            )
        return opened

    def into(self, sink: Sink, source: Source, interrupts: Interrupts) -> None:
        """Writes the explained frames to the sink and closes it."""

        def encode(each: ExplainedFrame) -> None:
            with self.clock.of("encode"):
                sink.write(each)

        def draw(each: ExplainedFrame) -> None:
            with self.clock.of("draw"), single_threaded():
                picture = each.picture
            encoder.put(replace(each, drawing=lambda _: picture))

        with (
            sink,
            Behind(encode, _DRAWN if sink.draws else self.batch, "fastcam-encode") as encoder,
            Behind(draw, self.batch, "fastcam-draw") as drawer,
            closing(self.explained(source)) as explained,
            interrupts.allowed(),
        ):
            put = drawer.put if sink.draws else encoder.put
            for each in explained:
                self.size = each.frame.size
                put(each)
                self._progress()

    def explained(self, source: Source) -> Generator[ExplainedFrame]:
        """Yields the explained frames and closes the source at the end."""
        asked = self._targets or TopClasses(1)
        with source, closing(self._maps(source)) as maps:
            for frame, raw, (low, high) in maps:
                yield ExplainedFrame(
                    frame,
                    scaled(raw.map, (low, high)),
                    (low, high),
                    raw.class_id,
                    self._explainer.title(raw.class_id, asked),
                    raw.score,
                    raw.probability,
                    self._drawing,
                )

    def _maps(self, source: Source) -> Generator[tuple[Frame, RawMap, Range]]:
        targets = self._targets
        if targets is None:
            with self._ahead(source, self._network.fitted) as fitted:
                mean = self._network.mean_probabilities(fitted)
            targets = TopClasses(1, int(mean.argmax()))
        if not self._maps_first:
            ranges = self._norm.ranges()
            with (
                self._ahead(source, self._network.fitted) as fitted,
                closing(self._network.maps(fitted, targets)) as maps,
            ):
                for frame, raw in maps:
                    raw = self._smoothing.next(raw)
                    yield frame, raw, ranges(raw)
            return
        with (
            self._ahead(source, lambda each: _until_broken(self._network.fitted(each))) as fitted,
            closing(self._network.maps(fitted, targets)) as maps,
        ):
            raws = [raw for _, raw in maps]
        smooth = self._smoothing.all(raws)
        ranges = self._norm.ranges(smooth)
        with self._ahead(source, iter) as frames:
            # frames first, so that zip reads past the last frame and raises the clip's error
            for frame, raw in zip(frames, smooth, strict=False):
                yield frame, raw, ranges(raw)

    def _ahead(
        self, source: Source, prepare: Callable[[Iterable[Frame]], Iterator[T]]
    ) -> closing[Ahead[T]]:
        """Runs ``prepare`` on the source's frames in the decoder's thread."""
        frames: Iterable[Frame] = source
        if self.device.type == "cuda":
            from fastcam.video import cuda

            frames = cuda.uploaded(frames, self.device, self.batch)
        decoded = self.clock.each("decode", prepare(frames))
        return closing(Ahead(decoded, self.batch, "fastcam-decode", source.stop))


def _until_broken(fitted: Iterator[Fitted]) -> Iterator[Fitted]:
    """The items before a clip's error, which the drawing pass raises again."""
    try:
        yield from fitted
    except FastcamError:
        return
