"""Files of maps: one format for clips and data sets, in safetensors.

========================= =========================================================================
``maps``                  (N, h, w) or (N, K, h, w) float16 in [0, 1], at the layer's resolution
``ranges``                (N, [K,] 2) float32, the raw values that map to 0 and 1
``classes``               (N, [K]) int64, -1 in a row without a map
``scores``                (N, [K]) float32, the logits
``probabilities``         (N, [K]) float32
``times``                 (N,) float64, in seconds; for clips
``extents``               (N, 2) int64, (h, w) of the row's maps, which lie at the top left of an
                          array with the largest; for data sets
========================= =========================================================================

The metadata has ``classes``, a JSON object that maps ids to names, and for data sets ``method`` and
``layer``. A row that could not be explained has maps, ranges, scores and probabilities of NaN.
"""

from fastcam.storage.reader import MapFile
from fastcam.storage.values import packed, unpacked
from fastcam.storage.writer import MapWriter

__all__ = ["MapFile", "MapWriter", "packed", "unpacked"]
