"""Maps of whole data sets, in runs that can be interrupted at any moment.

    from fastcam import dataset, models
    from fastcam.explainer import Explainer

    explainer = Explainer(models.load("resnet50"), ["gradcam", "layercam"])
    dataset.explain("pictures", "maps", explainer, targets="label")
    maps = dataset.MapDataset("maps")

``inputs`` lists the pictures, ``decoding`` reads them in other processes, ``run`` explains them
shard by shard, ``shards`` writes each shard, ``manifest`` the rows of pictures, ``settings`` keeps
what must not change, ``torchrun`` and ``ray`` share the shards among processes and machines, and
``maps`` reads the result. ``annotations`` reads what persons have marked in pictures, ``annotated``
moves it to where the network sees it, ``scores`` compares maps with it, and ``report`` sums up.
"""

from fastcam.dataset.inputs import Inputs, open_inputs
from fastcam.dataset.maps import MapDataset
from fastcam.dataset.run import ANNOTATED, LABEL, Report, explain
from fastcam.dataset.scores import METRICS

__all__ = [
    "ANNOTATED",
    "LABEL",
    "METRICS",
    "Inputs",
    "MapDataset",
    "Report",
    "explain",
    "open_inputs",
]
