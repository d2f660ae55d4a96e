"""The table of ``fastcam bench``: methods and metrics, with intervals over pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcam.dataset import manifest
from fastcam.dataset.scores import METRICS, OUTSIDE, Summary, column
from fastcam.errors import FastcamError
from fastcam.pictures import replacing

JSON, MARKDOWN = "report.json", "report.md"
DRAWS, SEED = 1000, 0
"""Of the bootstrap."""
_DRAWS_AT_ONCE = 50


class Estimate(NamedTuple):
    """A metric of a method over a data set."""

    value: float | None
    """None if no row has a value."""
    low: float | None
    """The interval's lower end; None with fewer than two pictures."""
    high: float | None
    rows: int
    """How many have a value."""


def estimate(values: Tensor, pictures: Tensor, summary: Summary) -> Estimate:
    """A metric with its 95 % interval, the percentiles of a bootstrap over pictures.

    A draw takes as many pictures as have values, with replacement, with all their rows.

    Args:
        values: (R, ...), of all rows; NaN if a row has none.
        pictures: (R,), the number of each row's picture.
        summary: the metric's.
    """
    kept = ~values.flatten(1).isnan().any(1) if values.dim() > 1 else ~values.isnan()
    if not kept.any():
        return Estimate(None, None, None, 0)
    numbers = pictures[kept].unique(return_inverse=True)[1]
    terms = summary.terms(values[kept]).double()
    count = int(numbers.max()) + 1
    sums = terms.new_zeros(count, terms.shape[1]).index_add_(0, numbers, terms)
    rows = numbers.bincount(minlength=count).double()
    value = summary.result(sums.sum(0, keepdim=True), rows.sum().unsqueeze(0)).item()
    if count < 2:
        return Estimate(_number(value), None, None, len(terms))
    found = torch.cat([summary.result(w @ sums, w @ rows) for w in _weights(count)])
    low, high = np.percentile(found.numpy(), [2.5, 97.5]).tolist()
    return Estimate(_number(value), _number(low), _number(high), len(terms))


def _weights(count: int) -> Iterator[Tensor]:
    """How often each picture is drawn: (draws, count), some draws at a time."""
    random = np.random.default_rng(SEED)
    for _ in range(DRAWS // _DRAWS_AT_ONCE):
        drawn = random.integers(count, size=(_DRAWS_AT_ONCE, count))
        counts = np.stack([np.bincount(each, minlength=count) for each in drawn])
        yield torch.from_numpy(counts.astype(np.float64))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(
    out: Path, methods: Sequence[str], metrics: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Writes ``report.json`` and ``report.md`` from the manifest.

    Args:
        out: the folder of a complete run.
        methods: the names of the methods.
        metrics: the names of the metrics.
        about: further entries of the report.
    """
    rows = manifest.read(out / manifest.MANIFEST)
    places = {path: number for number, path in enumerate(dict.fromkeys(rows["path"].to_pylist()))}
    pictures = torch.tensor([places[path] for path in rows["path"].to_pylist()])
    explained = rows["class_ids"].is_valid().to_numpy(zero_copy_only=False)
    found: dict[str, dict[str, Any]] = {}
    for name in metrics:
        metric = METRICS[name]
        of_methods = {}
        for method in methods:
            given = rows[column(name, method)].filter(explained)
            numbers = np.array(given.to_pylist(), np.float64)
            values = torch.from_numpy(numbers)
            chosen = pictures[torch.from_numpy(explained)]
            of_methods[method] = estimate(values, chosen, metric.summary)._asdict()
        found[name] = {
            "higher_is_better": metric.higher_is_better,
            "forwards": metric.forwards,
            "methods": of_methods,
        }
    report = {
        "format": 1,
        "rows": len(rows),
        "failed": int((~explained).sum()),
        "pictures": len(places),
        "outside": sum(filter(None, rows[OUTSIDE].to_pylist()))
        if OUTSIDE in rows.column_names
        else None,
        **about,
        "draws": DRAWS,
        "metrics": found,
    }
    text = f"{json.dumps(report, indent=1)}\n"
    for name, content in ((JSON, text), (MARKDOWN, _markdown(report))):
        with replacing(out / name) as temporary:
            temporary.write_text(content)


def read(out: Path) -> dict[str, Any]:
    """The report in a folder; raises FastcamError if it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((out / JSON).read_bytes())
    except (OSError, ValueError) as error:
        raise FastcamError(f"{out / JSON}: cannot be read: {error}") from None
    return found


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """The report as rows of text, the first one the heading: a row per metric, then methods."""
    methods = list(next(iter(report["metrics"].values()))["methods"])
    rows = [["metric", "good", "values", *methods]]
    for name, metric in report["metrics"].items():
        found = metric["methods"]
        counts = sorted({found[method]["rows"] for method in methods})
        count = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        good = "high" if metric["higher_is_better"] else "low"
        rows.append([name, good, count, *(_cell(found[method]) for method in methods)])
    return rows


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the numbers leave out, in words."""
    said = (
        (report["outside"], "instances outside of what the network sees, which do not count"),
        (report.get("unmarked"), "pictures without an instance"),
        (report.get("absent"), "annotated pictures that the data set does not have"),
        (report["failed"], "rows that could not be explained, see failures.parquet"),
    )
    return [f"{text}: {count}" for count, text in said if count]


def _cell(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _markdown(report: Mapping[str, Any]) -> str:
    head, *rows = table(report)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left_out = "".join(f"- {note}\n" for note in notes(report))
    return (
        f"{text}\n\nMeans, or the metric's own summary, with 95 % intervals by a bootstrap over "
        f"pictures ({report['draws']} draws).\n" + (f"\n{left_out}" if left_out else "")
    )
