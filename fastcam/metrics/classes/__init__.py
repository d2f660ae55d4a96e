"""The metrics over any number of batches and processes, as metrics of torchmetrics.

Each class has a function's arguments: those that are the same for all batches are given to the
class, the others to ``update``.
"""

from fastcam.metrics.classes.base import (
    MapMetric,
)
from fastcam.metrics.classes.of_maps import (
    ClassConfusion,
    Complexity,
    EnergyPointingGame,
    InstanceRecall,
    IoU,
    MaxBoxAccV2,
    PointingGame,
    PxAP,
    Sparseness,
)
from fastcam.metrics.classes.of_methods import (
    ADCC,
    ARCC,
    ClassificationMetric,
    ClassSensitivity,
    Coherency,
    MaxSensitivity,
    ParameterRandomisation,
)
from fastcam.metrics.classes.of_scores import (
    ROAD,
    AverageDrop,
    Deletion,
    IncreaseInConfidence,
    Infidelity,
    Insertion,
    InsertionMinusDeletion,
    Win,
)

__all__ = [
    "ADCC",
    "ARCC",
    "ROAD",
    "AverageDrop",
    "ClassConfusion",
    "ClassSensitivity",
    "ClassificationMetric",
    "Coherency",
    "Complexity",
    "Deletion",
    "EnergyPointingGame",
    "IncreaseInConfidence",
    "Infidelity",
    "Insertion",
    "InsertionMinusDeletion",
    "InstanceRecall",
    "IoU",
    "MapMetric",
    "MaxBoxAccV2",
    "MaxSensitivity",
    "ParameterRandomisation",
    "PointingGame",
    "PxAP",
    "Sparseness",
    "Win",
]
