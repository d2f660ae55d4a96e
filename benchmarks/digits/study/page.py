"""docs/benchmark.md: tables and pictures are generated, the answer in words is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.digits.networks import ARCHITECTURES, LAYERS
from benchmarks.digits.study import drawings, plan, scenes
from benchmarks.digits.study.cache import ROOT, Cache
from benchmarks.digits.study.figures import Figure, default_of
from benchmarks.digits.train import write

PAGE = "docs/benchmark.md"
ANSWER = "## Answer\n"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
INTERVALS = ("auc", "recall", "other_hits")
NAMES = {
    "auc": "AUC",
    "recall": "recall",
    "other_hits": "other hits",
    "confusion": "confusion",
    "pointing": "pointing",
    "energy": "energy",
    "iou": "IoU",
    "px_ap": "PxAP",
    "max_box_acc_v2": "MaxBoxAccV2",
    "complexity": "complexity",
    "sparseness": "sparseness",
    "relative_drop": "average drop",
    "increase": "increase",
    "insertion_minus_deletion": "insertion - deletion",
    "road": "ROAD",
    "infidelity": "infidelity",
    "max_sensitivity": "max-sensitivity",
    "coherency": "coherency",
    "adcc": "ADCC",
    "arcc": "ARCC",
    "class_sensitivity": "other class",
    "parameter_randomisation": "randomised",
}
PLACES = {"last": "the last layer", "before": "the layer before the last"}
CLAIM = re.compile(r"(?P<number>[-+]?\d*\.?\d+)(?P<percent> %)?<!--(?P<name>[^>]*?)-->")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d*\.?\d+")


@dataclass(frozen=True)
class Files:
    """What a run writes."""

    figures: Path
    page: Path
    plot: Path
    disagreement: Path

    @classmethod
    def of(cls, root: Path) -> Files:
        """The files below a folder, the repository's or another."""
        images = root / "docs" / "images" / "benchmark"
        return cls(
            root / "benchmarks" / "results" / "digits.jsonl",
            root / PAGE,
            images / "intervals.png",
            images / "disagreement.jpg",
        )


class Tables:
    """Figures as tables in Markdown."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self.figures = figures
        self.by_name = {figure.name: figure for figure in figures}

    def find(
        self, method: str, metric: str, network: str, layer: str, instances: str = ""
    ) -> Figure | None:
        """A method's figure, if it has one."""
        wanted = Figure(metric, 0, network=network, layer=layer, method=method, instances=instances)
        return self.by_name.get(wanted.name)

    def methods(self, network: str, layer: str) -> list[str]:
        """Fast methods and controls by falling AUC; controls come last."""
        found = [
            figure
            for figure in self.figures
            if (figure.metric, figure.network, figure.layer) == ("auc", network, layer)
            and not figure.other
            and not figure.instances
            and figure.method not in plan.SLOW
        ]
        found.sort(key=lambda figure: (figure.method in plan.CONTROLS, -figure.value))
        return [figure.method for figure in found]

    def of_networks(self) -> str:
        """How well the networks classify."""
        rows = [
            [
                f"`{network}`: {architecture.title}",
                *(
                    shown(self.by_name[f"{metric} {network}"])
                    for metric in ("mean_average_precision", "macro_f1", "recognised")
                ),
            ]
            for network, architecture in ARCHITECTURES.items()
        ]
        return table(["network", "mean average precision", "macro F1", "sees the class"], rows)

    def of_methods(
        self, network: str, layer: str, names: Sequence[str], metrics: Sequence[str], full: bool
    ) -> str:
        """A row for each method; ``full`` shows intervals."""
        heads = [f"{NAMES[metric]} ({direction_of(metric)})" for metric in metrics]
        rows = []
        for method in names:
            cells = (self.find(method, metric, network, layer) for metric in metrics)
            rows.append([label_of(method), *(shown(cell, full) for cell in cells)])
        return table(["method", *heads], rows)

    def by_count(self, network: str, layer: str) -> str:
        """Recall and hits of the other class, for each number of instances."""
        counts = [str(count) for count in range(1, scenes.MOST + 1)]
        rows = []
        for method in ("gradcam", "gradcam++", "gradcam-relu-g", "layercam", "mean-activation"):
            cells = [
                " / ".join(
                    shown(self.find(method, metric, network, layer, count), False)
                    for metric in ("recall", "other_hits")
                )
                for count in counts
            ]
            rows.append([label_of(method), *cells])
        return table(["method", *(f"{count} of the same digit" for count in counts)], rows)

    def comparisons(self) -> str:
        """The tests."""
        rows = [
            [
                f"`{figure.network}`, {figure.layer}",
                f"{figure.method} - {figure.other}",
                NAMES[figure.metric],
                shown(figure),
                probability(figure.p),
                probability(figure.adjusted_p),
            ]
            for figure in self.figures
            if figure.other
        ]
        return table(["network, layer", "difference", "of", "value", "p", "p by Holm"], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def direction_of(metric: str) -> str:
    """Which end of a metric is good."""
    return (plan.LOCALISATION | plan.FAITHFULNESS)[metric]


def label_of(method: str) -> str:
    """The method; a control is in italics."""
    return f"*{method}*" if method in plan.CONTROLS else method


def shown(figure: Figure | None, full: bool = True) -> str:
    """A figure in a cell, with its interval."""
    if figure is None:
        return ""
    if not full or figure.low is None or figure.high is None:
        return decimal(figure.value)
    return f"{decimal(figure.value)} [{decimal(figure.low)}, {decimal(figure.high)}]"


def decimal(value: float) -> str:
    """A number in a cell, without the sign of -0.000."""
    return f"{round(value, 3) + 0.0:.3f}"


def probability(p: float | None) -> str:
    """A p-value in a cell."""
    assert p is not None
    return "< .0001" if p < 1e-4 else f"{p:.4f}"


def generated(figures: Sequence[Figure], files: Files) -> Iterator[str]:
    """The parts of the page between the markers."""
    tables = Tables(figures)
    amount = {figure.metric: int(figure.value) for figure in figures if not figure.network}
    intervals, disagreement, lines = (
        Path("..", file.relative_to(files.page.parents[1]))
        if file == files.figures
        else file.relative_to(files.page.parent)
        for file in (files.plot, files.disagreement, files.figures)
    )
    yield (
        f"Trainings of each network: {amount['seeds']}; scenes: {amount['scenes']}; draws for each "
        f"interval: {amount['draws']}. All figures are in [{lines.name}]({lines}).\n"
    )
    yield f"By the rule above, the command line's default is **{default_of(figures)}**.\n"
    yield f"![Intervals of every method]({intervals})\n"
    yield "### Networks\n"
    yield tables.of_networks()
    for layer in LAYERS:
        for network in ARCHITECTURES:
            names = tables.methods(network, layer)
            tell = partial(tables.of_methods, network, layer)
            others = [metric for metric in plan.LOCALISATION if metric not in INTERVALS]
            yield f"### `{network}`, {PLACES[layer]}\n"
            yield tell(names, INTERVALS, full=True)
            yield tell(names, others, full=False)
            yield "Recall / other hits by the number of instances:\n"
            yield tables.by_count(network, layer)
            yield f"Metrics of faithfulness, number of scenes: {amount['first_scenes']}\n"
            faithful = [name for name in names if tables.find(name, "road", network, layer)]
            yield tell(faithful, list(plan.FAITHFULNESS), full=False)
            yield "Slow methods, the same scenes, one training:\n"
            slow = [name for name in plan.SLOW if tables.find(name, "auc", network, layer)]
            yield tell(slow, (*INTERVALS, "pointing"), full=True)
    yield "### Tests\n"
    yield tables.comparisons()
    yield "### Where methods disagree most\n"
    yield f"![Maps of four methods on six scenes]({disagreement})\n"


def write_page(files: Files, figures: Sequence[Figure], cache: Cache) -> None:
    """Draws the pictures and rewrites the text between the page's markers."""
    drawn = scenes.draw(cache.settings.scenes)
    networks = {name: cache.network(name, 0, print) for name in ARCHITECTURES}
    methods = Tables(figures).methods("pooled", "last")
    drawings.plot(figures, methods, files.plot)
    drawings.draw_disagreement(dict(networks), drawn, files.disagreement)
    page = files.page if files.page.exists() else ROOT / PAGE
    write(files.page, replaced(page.read_text(), figures, files).encode())


def replaced(text: str, figures: Sequence[Figure], files: Files) -> str:
    """A page with these figures between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(generated(figures, files)) + "\n" + END + after


def answer_of(page: str) -> str:
    """What is written by hand about the figures."""
    return page.partition(ANSWER)[2].partition(BEGIN)[0]


def unproven(answer: str, figures: Sequence[Figure]) -> list[str]:
    """The numbers of a text that no figure supports.

    A number is followed by a comment that names its figure, ``.031<!--gradcam++ recall pooled
    last-->``, or one of the figure's fields, ``.02<!--gradcam++ recall pooled last: low-->``; it is
    a percentage if " %" lies between. It has to be the figure's value to the digits shown.
    """
    by_name = {figure.name: figure for figure in figures}
    wrong = []
    for claim in CLAIM.finditer(answer):
        name, _, field = claim["name"].strip().partition(": ")
        value = getattr(by_name.get(name), field or "value", None)
        if value is None:
            wrong.append(f"{claim[0]}: no such figure")
            continue
        digits = len(claim["number"].partition(".")[2])
        scaled = 100 * value if claim["percent"] else value
        if abs(float(claim["number"]) - scaled) > 0.5 * 10.0**-digits + 1e-9:
            wrong.append(f"{claim[0]}: the figure is {scaled}")
    rest = re.sub(r"<!--.*?-->", "", CLAIM.sub("", answer), flags=re.DOTALL)
    return wrong + [f"{number}: names no figure" for number in NUMBER.findall(rest)]
