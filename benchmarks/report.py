"""What was measured, for people: a table, a plot, and whether the targets are met."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Result

Case = dict[str, Result]
"""The results of one case by implementation."""

LARGE = 200_000_000  # bytes above which bandwidth decides on a GPU, and not launches
FUSED = ("gradcam_plus_plus_weights ", "cam gradcam++ ", "saliency ", "upsample ")
STREAMING = ("gap ", "weighted_sum ")


def by_case(results: Sequence[Result]) -> dict[str, Case]:
    grouped: dict[str, Case] = {}
    for result in results:
        grouped.setdefault(result.case, {})[result.implementation] = result
    return grouped


@dataclass(frozen=True)
class Target:
    """A figure of each case that has it, and its bound."""

    suite: str
    what: str
    figure: Callable[[Case], float | None]
    """None where the case has not got it."""
    at_least: float | None = None
    at_most: float | None = None
    every: bool = False
    """Whether each case has to meet the bound, not only the median."""

    def judge(self, cases: dict[str, Case]) -> list[str] | None:
        """A row of the summary; None where no case has the figure."""
        found = {name: self.figure(case) for name, case in cases.items()}
        figures = {name: value for name, value in found.items() if value is not None}
        if not figures:
            return None
        median = statistics.median(figures.values())
        pick = min if self.at_least is not None else max
        worst = pick(figures, key=lambda name: figures[name])
        decisive = figures[worst] if self.every else median
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        met = decisive >= self.at_least if self.at_least is not None else decisive <= self.at_most
        bound += " in every case" if self.every else ""
        row = [self.what, bound, f"{median:.2f}", f"{figures[worst]:.2f} ({worst})"]
        return [*row, str(len(figures)), "met" if met else "MISSED"]


def _faster(than: str, operators: tuple[str, ...] = ("",)) -> Callable[[Case], float | None]:
    """How many times faster fastcam is, for operators whose cases begin with one of these."""

    def figure(case: Case) -> float | None:
        if than not in case or not case["fastcam"].case.startswith(operators):
            return None
        return case[than].median / case["fastcam"].median

    return figure


def _time(against: str) -> Callable[[Case], float | None]:
    """fastcam's time as a multiple."""
    return lambda case: case["fastcam"].median / case[against].median if against in case else None


def _memory(case: Case, against: str = "inference") -> float | None:
    """fastcam's peak memory as a multiple of that of plain inference."""
    if against not in case:
        return None
    floor, own = case[against].peak_memory, case["fastcam"].peak_memory
    return own / floor if own is not None and floor else None


def _slowest_stage(case: Case) -> float | None:
    """fastcam's time as a multiple of that of its slowest stage alone."""
    if "network" not in case:
        return None
    stages = (case[name].median for name in ("decode", "network", "draw", "encode"))
    return case["fastcam"].median / max(stages)


def _one_class(inner: Callable[[Case], float | None]) -> Callable[[Case], float | None]:
    """Only of explanations of one class an image, batch 8 and more."""

    def figure(case: Case) -> float | None:
        own = case["fastcam"]
        return inner(case) if own.shape[0] >= 8 and " classes" not in own.case else None

    return figure


def _small(inner: Callable[[Case], float | None]) -> Callable[[Case], float | None]:
    """Only of cases where launches, not bandwidth, decide."""
    return lambda case: inner(case) if (case["fastcam"].bytes or 0) <= LARGE else None


def _floor(case: Case) -> float:
    """fastcam's time over that of a copy of as many bytes or of an empty launch, the longer one."""
    return case["fastcam"].median / max(case["copy"].median, case["launch"].median)


def _fraction_of_copy(case: Case) -> float | None:
    return case["fastcam"].fraction_of_copy if (case["fastcam"].bytes or 0) > LARGE else None


_OPERATORS_ON_CPU = [
    *(
        Target("ops", f"{name.strip()}: times faster than {than}", _faster(than, (name,)), bound)
        for name in FUSED
        for than, bound in (("reference", 3), ("reference_compiled", 1.3))
    ),
    Target(
        "ops",
        "gap, weighted_sum: time over reading the input once",
        _time("read"),
        at_most=1.3,
    ),
    Target("ops", "overlay at 1080p: times faster than OpenCV", _faster("opencv"), 1, every=True),
    Target(
        "ops", "any operator: times faster than reference", _faster("reference"), 0.95, every=True
    ),
]
_OPERATORS_ON_GPU = [
    Target("ops", "up to 200 MB: times faster than reference", _small(_faster("reference")), 5),
    Target(
        "ops",
        "up to 200 MB: times faster than reference_compiled",
        _small(_faster("reference_compiled")),
        1.5,
    ),
    Target("ops", "up to 200 MB: time over a copy or a launch", _small(_floor), at_most=1.3),
    Target("ops", "above 200 MB: share of the copy's bandwidth", _fraction_of_copy, 0.85),
]


def _fast_over_inference(implementation: str) -> Callable[[Case], float | None]:
    """Of resnet50, batch 8."""

    def figure(case: Case) -> float | None:
        own = case["fastcam"]
        if implementation not in case or not own.case.startswith("resnet50") or own.shape[0] != 8:
            return None
        return case[implementation].median / case["inference"].median

    return figure


def _fast_over_peer(case: Case) -> float | None:
    """pytorch_grad_cam's time over that of the fast mode, the faster of its precisions."""
    found = [case[name].median for name in ("fastcam_fast", "fastcam_fast_bf16") if name in case]
    if (
        not found
        or "pytorch_grad_cam" not in case
        or not case["fastcam"].case.startswith("resnet50")
    ):
        return None
    return case["pytorch_grad_cam"].median / min(found)


def _fast_mode(exact: float, bf16: float, faster: float) -> list[Target]:
    what = "fast mode, resnet50 batch 8, {}: time over float32 inference"
    return [
        Target(
            "endtoend",
            what.format("float32"),
            _fast_over_inference("fastcam_fast"),
            at_most=exact,
        ),
        Target(
            "endtoend",
            what.format("bfloat16"),
            _fast_over_inference("fastcam_fast_bf16"),
            at_most=bf16,
        ),
        Target(
            "endtoend",
            "fast mode, resnet50: times faster than pytorch_grad_cam",
            _fast_over_peer,
            faster,
        ),
    ]


def _explanations(suite: str, slower: float, faster: float) -> list[Target]:
    return [
        Target(
            suite,
            "batch >= 8: time over inference",
            _one_class(_time("inference")),
            at_most=slower,
        ),
        Target(suite, "batch >= 8: peak memory over inference", _one_class(_memory), at_most=1.1),
        Target(
            suite,
            "resnet50: times faster than pytorch_grad_cam",
            _faster("pytorch_grad_cam", ("resnet50 ", "gradcam")),
            faster,
        ),
    ]


_VIDEO = [
    Target("video", "times faster than pytorch_grad_cam's loop", _faster("pytorch_grad_cam"), 5),
    Target(
        "video",
        "memory of 10 minutes over that of 10 seconds",
        functools.partial(_memory, against="10-second clip"),
        at_most=1.1,
    ),
    Target(
        "video",
        "flicker of absent classes: times less than frame by frame",
        _faster("frame by frame"),
        5,
        every=True,
    ),
]


def _peer(case: Case) -> Result:
    """The library whose script it is, of a case of dropin."""
    return case[case["fastcam"].case.partition(" ")[0]]


def _taken_over(
    *methods: str, library: str = "", implementation: str = "fastcam"
) -> Callable[[Case], float | None]:
    """How many times faster a library's script is under the drop-in, of these methods or all."""

    def figure(case: Case) -> float | None:
        own, method = case["fastcam"], case["fastcam"].case.split(" ")[1]
        if implementation not in case or not own.case.startswith(library):
            return None
        if methods and method not in methods:
            return None
        return _peer(case).median / case[implementation].median

    return figure


def _over_forwards(*methods: str) -> Callable[[Case], float | None]:
    """The time under the drop-in over that of the forwards alone."""

    def figure(case: Case) -> float | None:
        own = case["fastcam"]
        if "forwards" not in case or own.case.split(" ")[1] not in methods:
            return None
        return own.median / case["forwards"].median

    return figure


def _memory_taken_over(case: Case) -> float | None:
    peer, own = _peer(case).peak_memory, case["fastcam"].peak_memory
    return own / peer if own is not None and peer else None


_GRADIENT = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM")
_PYTORCH_GRAD_CAM = functools.partial(_taken_over, library="pytorch_grad_cam")
_DROPIN = [
    Target("dropin", "any script: times faster", _taken_over(), 0.95, every=True),
    *(
        Target("dropin", name, _PYTORCH_GRAD_CAM(*methods), least, every=True)
        for name, methods, least in (
            ("gradient methods of pytorch_grad_cam", _GRADIENT, 2.5),
            ("EigenCAM", ("EigenCAM",), 20),
            ("ScoreCAM, AblationCAM", ("ScoreCAM", "AblationCAM"), 1.5),
            ("ROAD", ("ROADMostRelevantFirst", "ROADCombined"), 20),
        )
    ),
    Target(
        "dropin",
        "EigenCAM, ROAD: time over their forwards",
        _over_forwards("EigenCAM", "ROADMostRelevantFirst", "ROADCombined"),
        at_most=1.15,
        every=True,
    ),
    *(
        Target("dropin", f"{library}: never slower", _taken_over(library=library), 0.95, every=True)
        for library in ("torchcam", "captum")
    ),
    Target(
        "dropin",
        "torchcam, captum: peak memory over the library's",
        _memory_taken_over,
        at_most=1,
        every=True,
    ),
    Target(
        "dropin",
        "fast mode: gradient methods of pytorch_grad_cam",
        _PYTORCH_GRAD_CAM(*_GRADIENT, implementation="fastcam_fast"),
        6,
        every=True,
    ),
]
TARGETS = {
    "cpu": [
        *_DROPIN,
        *_VIDEO,
        Target(
            "video",
            "time over the stages' CPU time",
            _time("stages over cores"),
            at_most=1.1,
            every=True,
        ),
        *_OPERATORS_ON_CPU,
        *_explanations("capture", 1.1, 2.5),
        *_explanations("endtoend", 1.1, 2.5),
        *_fast_mode(0.75, 0.4, 6),
    ],
    "cuda": [
        *_DROPIN,
        *_VIDEO,
        Target("video", "time over that of the slowest stage", _slowest_stage, at_most=1.1),
        *_OPERATORS_ON_GPU,
        *_explanations("capture", 1.05, 15),
        *_explanations("endtoend", 1.05, 15),
        *_fast_mode(0.75, 0.25, 15),
    ],
}


def show(results: Sequence[Result], device_type: str) -> None:
    """The table and the judgement of the targets."""
    console = Console(width=None if Console().is_terminal else 160)
    cases, suite, device = by_case(results), results[0].suite, results[0].device
    names = list(dict.fromkeys(result.implementation for result in results))
    others = [name for name in names if name != "fastcam"]
    table = Table(title=f"{suite}, {device}: times of the others as multiples of fastcam's")
    table.add_column("case")
    columns = ["fastcam ms", *others]
    moving = any(result.bytes for result in results)
    columns += ["GB/s", "of copy"] if moving else []
    columns += ["peak MiB"]
    columns += ["x inference's"] if "inference" in names else []
    for column in columns:
        table.add_column(column, justify="right")
    for name, case in cases.items():
        own = case["fastcam"]
        row = [name, f"{1e3 * own.median:.4g}"]
        row += [f"{case[o].median / own.median:.2f}" if o in case else "" for o in others]
        if moving:
            row += [f"{own.gigabytes_per_second:.1f}", f"{own.fraction_of_copy:.2f}"]
        row += [f"{own.peak_memory / 2**20:.1f}" if own.peak_memory is not None else ""]
        memory = _memory(case)
        row += [f"{memory:.2f}"] if memory is not None else []
        table.add_row(*row)
    console.print(table)
    rows = [target.judge(cases) for target in TARGETS[device_type] if target.suite == suite]
    verdicts = Table(title=f"targets, {suite}, {device}")
    for column in ("", "bound", "median", "worst", "cases", ""):
        verdicts.add_column(column)
    for verdict in filter(None, rows):
        verdicts.add_row(*verdict)
    console.print(verdicts)


_MARKERS = "osD^vP*Xd"


def plot(results: Sequence[Result], path: Path) -> None:
    """Every case's times as multiples of fastcam's, on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    cases = by_case(results)
    names = dict.fromkeys(result.implementation for result in results)
    figure, axes = pyplot.subplots(
        figsize=(11, 1.8 + 0.24 * len(cases)), layout="constrained", dpi=110
    )
    for i, name in enumerate(name for name in names if name != "fastcam"):
        points = [
            (case[name].median / case["fastcam"].median, row)
            for row, case in enumerate(cases.values())
            if name in case
        ]
        axes.scatter(*zip(*points, strict=True), s=26, marker=_MARKERS[i], label=name, zorder=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), list(cases), fontsize=8)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(which="both", axis="x", alpha=0.25)
    axes.grid(which="major", axis="y", alpha=0.15)
    axes.set_xlabel("time as a multiple of fastcam's (right of 1: fastcam is faster)")
    axes.set_title(f"{results[0].suite} on {results[0].device}")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path)
    pyplot.close(figure)
