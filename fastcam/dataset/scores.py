"""The metrics of ``fastcam bench``: values for each row of the manifest, and their summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastcam import ops
from fastcam.dataset.annotated import Instances
from fastcam.errors import ArgumentError, FastcamError, UsageError, first_line, near
from fastcam.explainer import Explained, Explainer
from fastcam.metrics.box_accuracy import LEVELS, box_ious
from fastcam.metrics.confidence import Confidence, as_numbers, confidence
from fastcam.metrics.curves import STEPS, deletion, insertion
from fastcam.metrics.overlap import class_confusion, instance_recall, iou
from fastcam.metrics.pixel_precision import pixel_histograms, px_ap
from fastcam.metrics.pointing import energy_pointing_game, pointing_game
from fastcam.metrics.quality import complexity, sparseness
from fastcam.metrics.road import PERCENTILES, road
from fastcam.models import LoadedModel

THRESHOLD = 0.5
"""The share of a map's maximum from which on it is hot."""
INSTANCES, OUTSIDE = "instances", "outside"
"""Columns: how many instances of the explained class the network sees, and how many it does not."""


@dataclass(frozen=True)
class Rated:
    """Maps of one class per picture, and what metrics ask for."""

    model: LoadedModel
    images: Tensor
    """The network's inputs, (N, 3, h, w)."""
    class_ids: list[int]
    """N of them."""
    instances: list[Instances] | None
    """Of each picture; None without annotations."""
    maps: Tensor
    """(N, h, w) in [0, 1]."""

    @cached_property
    def targets(self) -> list[Callable[[Tensor], Tensor]]:
        """The probability of the class, as the manifest has it: one function per image."""

        def probability(class_id: int, logits: Tensor) -> Tensor:
            rows = logits.unsqueeze(0) if logits.dim() else logits.view(1, 1)
            return self.model.probabilities(rows)[0, class_id]

        return [partial(probability, each) for each in self.class_ids]

    @cached_property
    def confidence(self) -> Confidence:
        """That in the images, and in the images times their maps."""
        return confidence(self.model.module, self.images, self.maps, self.targets)

    def regions(self, own: bool) -> list[Tensor]:
        """The boxes or masks of the class, or of all others, in each picture."""
        assert self.instances is not None
        return [
            torch.from_numpy(each.of(class_id, own)).to(self.maps.device)
            for each, class_id in zip(self.instances, self.class_ids, strict=True)
        ]

    def faithfulness(self, function: Callable[..., Any]) -> Any:
        """A metric that runs the network."""
        return function(self.model.module, self.images, self.maps, self.targets)

    def localisation(self, function: Callable[..., Tensor], **settings: Any) -> Tensor:
        """A metric of maps and instances, NaN for pictures without an instance of the class."""
        own = self.regions(True)
        kind = "boxes" if all(each.dim() == 2 for each in own) else "masks"
        values = function(self.maps, **{kind: own}, **settings)
        none = torch.tensor([len(each) == 0 for each in own], device=values.device)
        return values.masked_fill(none.view(-1, *[1] * (values.dim() - 1)), torch.nan)

    def confusion(self) -> Tensor:
        """:func:`fastcam.metrics.overlap.class_confusion`."""
        others = self.regions(False)
        kind = "boxes" if all(each.dim() == 2 for each in others) else "masks"
        settings = {f"other_{kind}": others, "threshold": THRESHOLD}
        return self.localisation(class_confusion, **settings)


@dataclass(frozen=True)
class Summary:
    """How the values of all rows become one number, from sums over rows."""

    terms: Callable[[Tensor], Tensor] = lambda values: values.unsqueeze(1)
    """Values (R, ...) -> what is summed, (R, U)."""
    result: Callable[[Tensor, Tensor], Tensor] = lambda sums, counts: sums[:, 0] / counts
    """Sums (D, U) and numbers of rows (D,) -> (D,)."""


def _box_terms(ious: Tensor) -> Tensor:
    return torch.cat([(ious >= level).double() for level in LEVELS], 1)


def _box_result(sums: Tensor, counts: Tensor) -> Tensor:
    return (sums / counts[:, None]).unflatten(1, (len(LEVELS), -1)).amax(2).mean(1)


def _pixel_result(sums: Tensor, counts: Tensor) -> Tensor:
    return torch.stack([px_ap(each.view(1, 2, -1)) for each in sums])


@dataclass(frozen=True)
class Metric:
    """A metric of ``fastcam bench``."""

    group: str
    higher_is_better: bool
    forwards: int
    """Runs of the network for each map."""
    values: Callable[[Rated], Tensor]
    """(N,), or several numbers for each map; NaN if there is none."""
    several: bool = False
    """Whether there are several."""
    summary: Summary = Summary()


LOCALISATION, FAITHFULNESS, FORM = "localisation", "faithfulness", "form"

METRICS = {
    "pointing_game": Metric(
        LOCALISATION, True, 0, lambda rated: rated.localisation(pointing_game)
    ),
    "energy_pointing_game": Metric(
        LOCALISATION, True, 0, lambda rated: rated.localisation(energy_pointing_game)
    ),
    "iou": Metric(
        LOCALISATION, True, 0,
        lambda rated: rated.localisation(iou, thresholds=(THRESHOLD,))[:, 0],
    ),
    "instance_recall": Metric(
        LOCALISATION, True, 0,
        lambda rated: rated.localisation(instance_recall, threshold=THRESHOLD),
    ),
    "class_confusion": Metric(LOCALISATION, False, 0, Rated.confusion),
    "px_ap": Metric(
        LOCALISATION, True, 0,
        lambda rated: rated.localisation(pixel_histograms).flatten(1),
        True,
        Summary(lambda values: values, _pixel_result),
    ),
    "max_box_acc_v2": Metric(
        LOCALISATION, True, 0,
        lambda rated: rated.localisation(box_ious),
        True,
        Summary(_box_terms, _box_result),
    ),
    "average_drop": Metric(FAITHFULNESS, False, 2, lambda rated: rated.confidence.relative_drop),
    "increase_in_confidence": Metric(
        FAITHFULNESS, True, 2,
        lambda rated: as_numbers(rated.confidence.increase, rated.confidence.change),
    ),
    "deletion": Metric(
        FAITHFULNESS, False, STEPS + 1, lambda rated: rated.faithfulness(deletion).area
    ),
    "insertion": Metric(
        FAITHFULNESS, True, STEPS + 1, lambda rated: rated.faithfulness(insertion).area
    ),
    "road": Metric(
        FAITHFULNESS, True, 2 * len(PERCENTILES) + 1,
        lambda rated: rated.faithfulness(road).combined,
    ),
    "complexity": Metric(FORM, False, 0, lambda rated: complexity(rated.maps)),
    "sparseness": Metric(FORM, True, 0, lambda rated: sparseness(rated.maps)),
}  # fmt: skip
"""By name, in the order of the report. average_drop and increase_in_confidence share 2 forwards."""

DEFAULT = ("average_drop", "increase_in_confidence")


def chosen(names: Sequence[str], annotated: bool, boxes: bool) -> tuple[str, ...]:
    """The metrics that names and groups stand for, in the order of :data:`METRICS`.

    Args:
        names: of metrics and groups; none for the default, which is localisation if there are
            annotations, and the drop and increase in confidence.
        annotated: whether there are annotations.
        boxes: whether they are boxes; masks have no max_box_acc_v2.

    Raises:
        UsageError: if a name is unknown, or a metric needs annotations or boxes.
    """
    groups: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if name != "max_box_acc_v2" or boxes or not annotated:
            groups.setdefault(metric.group, []).append(name)
    wanted: set[str] = set()
    for name in names or ((LOCALISATION,) if annotated else ()) + DEFAULT:
        if name not in METRICS and name not in groups:
            known = (*groups, *METRICS)
            hint = near(name, known) or f"; choose from {', '.join(known)}"
            raise UsageError(f"metrics: unknown metric {name}{hint}")
        wanted |= set(groups.get(name, [name]))
    found = tuple(name for name in METRICS if name in wanted)
    for name in found:
        if METRICS[name].group == LOCALISATION and not annotated:
            raise UsageError(f"metrics: {name} needs instances; give --annotations")
        if name == "max_box_acc_v2" and not boxes:
            raise UsageError(f"metrics: {name} needs boxes, but the annotations are masks")
    return found


def column(metric: str, method: str) -> str:
    """The column of the manifest with the values of a metric for the maps of a method."""
    return f"{metric}_{method}"


def scores(
    names: Sequence[str],
    explainer: Explainer,
    images: Tensor,
    explained: Explained,
    instances: list[Instances] | None,
) -> dict[str, Tensor]:
    """The columns of a batch.

    Args:
        names: those of the metrics.
        explainer: has made the maps.
        images: the network's inputs, (N, 3, h, w).
        explained: one class per picture.
        instances: of each picture; None without annotations.

    Returns:
        By :func:`column`, (N,) or (N, V) for metrics with several numbers.

    Raises:
        UsageError: if a metric does not fit the network.
        FastcamError: if the network fails.
    """
    found: dict[str, Tensor] = {}
    class_ids = explained.class_ids[:, 0].tolist()
    if instances is not None:
        pairs = zip(instances, class_ids, strict=True)
        counts = torch.tensor([each.counts(class_id) for each, class_id in pairs])
        found |= {INSTANCES: counts[:, 0], OUTSIDE: counts[:, 1]}
    for method, raw in explained.by_method.items():
        maps = raw[:, 0].to(images.device)
        if len(explainer.layers) < 2:  # the mean of several layers is the finished map
            maps = ops.upsample(maps, images.shape[2:])
        rated = Rated(explainer.model, images, class_ids, instances, maps)
        for name in names:
            try:
                found[column(name, method)] = METRICS[name].values(rated).cpu()
            except ArgumentError as error:
                raise UsageError(f"metrics {name}: {error.problem}") from error
            except RuntimeError as error:
                raise FastcamError(
                    f"metrics {name}: the model fails on changed pictures: {first_line(error)}"
                ) from error
    return found
