"""The figures of a run: means with intervals, the tests, and the default method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digits.networks import ARCHITECTURES, LAYERS
from benchmarks.digits.study import plan
from benchmarks.digits.study.cache import Cache
from benchmarks.digits.study.plan import Settings
from benchmarks.digits.study.statistics import Draws, Floats, holm, interval, paired_p

Summary = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Figure:
    """One number, or the difference between two methods, and where it comes from."""

    metric: str
    value: float
    low: float | None = None
    """The interval's ends; None for amounts."""
    high: float | None = None
    network: str = ""
    layer: str = ""
    method: str = ""
    other: str = ""
    """The method that the difference is to."""
    instances: str = ""
    """The number of instances in the scenes, if not all scenes count."""
    seeds: int = 0
    scenes: int = 0
    p: float | None = None
    """Wilcoxon's, for a difference."""
    adjusted_p: float | None = None
    """After Holm's correction over all differences."""

    @property
    def name(self) -> str:
        """What the document calls it."""
        pair = f"{self.method} - {self.other}" if self.other else self.method
        parts = (pair, self.metric, self.network, self.layer)
        return " ".join(filter(None, (*parts, self.instances and f"k={self.instances}")))


def px_ap(histograms: Floats) -> Floats:
    """PxAP of mean histograms (..., 2, T + 1), see :func:`fastcam.metrics.px_ap`."""
    inside, outside = np.moveaxis(histograms[..., ::-1].cumsum(-1), -2, 0)
    total = inside + outside
    precision = np.divide(inside, total, out=np.zeros_like(total), where=total > 0)
    gained = np.diff(inside, axis=-1, prepend=0) / inside[..., -1:]
    found: Floats = (precision * gained).sum(-1)
    return found


def max_box_acc_v2(shares: Floats) -> Floats:
    """MaxBoxAccV2 of the shares of scenes that reach a level, (..., L, T)."""
    found: Floats = shares.max(-1).mean(-1)
    return found


SUMMARIES: dict[str, Summary] = {"px_ap": px_ap, "max_box_acc_v2": max_box_acc_v2}
"""The metrics that are not the mean of values by scene."""


class Results:
    """The rows of a run, and the draws that all its intervals share."""

    def __init__(self, cache: Cache, counts: np.ndarray) -> None:
        self.settings, self.counts = cache.settings, counts
        self._cache = cache
        self._draws: dict[Any, Draws] = {}

    def rows(self, metric: str, network: str, *place: str, seeds: int = 0) -> Floats:
        """(S, N, ...), of the first seeds or all."""
        chosen = range(seeds or self.settings.seeds)
        files = (self._cache.path(network, seed, *place) for seed in chosen)
        found: Floats = np.stack([self._cache.load(file, metric) for file in files])
        return found

    def figure(self, rows: Floats, scenes: np.ndarray, metric: str, **names: Any) -> Figure:
        """The mean over seeds and scenes, and its interval.

        Args:
            rows: (S, N, ...).
            scenes: which of the N count.
            metric, names: fields of the figure.
        """
        rows, strata = rows[:, scenes].astype(float), self.counts[: rows.shape[1]][scenes]
        key = (len(rows), strata.tobytes())
        if key not in self._draws:
            self._draws[key] = Draws.of(len(rows), strata, self.settings.draws)
        summary = SUMMARIES.get(metric, lambda means: means)
        low, high = interval(summary(self._draws[key].means(rows)))
        value = float(summary(rows.mean((0, 1))))
        seeds, count = rows.shape[:2]
        return Figure(metric, value, low, high, seeds=seeds, scenes=count, **names)

    def of_networks(self) -> Iterator[Figure]:
        """How well the networks classify."""
        for network in ARCHITECTURES:
            for metric in ("mean_average_precision", "macro_f1"):
                values = self.rows(metric, network)
                yield Figure(metric, float(values.mean()), network=network, seeds=len(values))
            seen = self.rows("recognised", network)
            yield self.figure(seen, self._all(seen), "recognised", network=network)

    def of_methods(self) -> Iterator[Figure]:
        """Every metric of every method."""
        settings = self.settings
        for network in ARCHITECTURES:
            for layer in LAYERS:
                for method in settings.methods:
                    if plan.takes_part(method, network, layer):
                        yield from self._of_method(network, layer, method)

    def _of_method(self, network: str, layer: str, method: str) -> Iterator[Figure]:
        settings = self.settings
        slow = method in settings.slow
        metrics = dict(plan.LOCALISATION)
        if method in settings.faithful:
            metrics |= plan.FAITHFULNESS
        names = {"network": network, "layer": layer, "method": method}
        for metric in metrics:
            rows = self.rows(metric, network, layer, method, seeds=1 if slow else 0)
            figure = partial(self.figure, rows, metric=metric, **names)
            yield figure(self._all(rows))
            if metric in plan.BY_COUNT and not slow:
                for count in np.unique(self.counts):
                    yield figure(self.counts == count, instances=str(count))

    def of_comparisons(self) -> list[Figure]:
        """The differences that were listed before the run."""
        several = self.counts > 1
        found = []
        for each in plan.COMPARISONS:
            first, second = (
                self.rows(each.metric, each.network, each.layer, method)
                for method in (each.method, each.other)
            )
            difference = first.astype(float) - second
            made = self.figure(difference, several, **asdict(each))
            p = paired_p(difference[:, several].mean(0))
            found.append(replace(made, p=p))
        adjusted = holm([figure.p for figure in found if figure.p is not None])
        return [
            replace(figure, adjusted_p=value) for figure, value in zip(found, adjusted, strict=True)
        ]

    @staticmethod
    def _all(rows: Floats) -> np.ndarray:
        return np.ones(rows.shape[1], dtype=bool)


def of_settings(settings: Settings) -> Iterator[Figure]:
    """The amounts of the run."""
    for name, value in asdict(settings).items():
        if isinstance(value, int):
            yield Figure(name, value)


def all_figures(cache: Cache, counts: np.ndarray) -> list[Figure]:
    """Everything that a run has found; ``counts`` (N,) are the scenes' numbers of instances."""
    results = Results(cache, counts)
    return [
        *of_settings(cache.settings),
        *results.of_networks(),
        *results.of_methods(),
        *results.of_comparisons(),
    ]


def default_of(figures: Sequence[Figure]) -> str:
    """The default method by the rule of the plan."""

    def mean(method: str, metric: str) -> float:
        values = [
            figure.value
            for figure in figures
            if (figure.method, figure.other, figure.metric, figure.layer, figure.instances)
            == (method, "", metric, "last", "")
        ]
        return float(np.mean(values))

    present = {figure.method for figure in figures}
    candidates = [method for method in plan.CANDIDATES if method in present]
    auc, recall = (
        {method: mean(method, metric) for method in candidates} for metric in ("auc", "recall")
    )
    return plan.default_method(auc, recall)


def to_lines(figures: Sequence[Figure]) -> bytes:
    """JSON lines, without the fields that a figure does not have."""
    lines = []
    for figure in figures:
        record = {
            field.name: value
            for field in fields(figure)
            if (value := getattr(figure, field.name)) != field.default
        }
        for name in ("value", "low", "high"):
            if isinstance(record.get(name), float):
                record[name] = round(record[name], 5)
        lines.append(json.dumps(record) + "\n")
    return "".join(lines).encode()


def from_lines(path: Path) -> list[Figure]:
    """The figures of a file."""
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines()]
