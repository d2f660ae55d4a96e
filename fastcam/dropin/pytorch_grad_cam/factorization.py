"""Deep feature factorization: the concepts in a layer's activations of a batch of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image

Array = NDArray[Any]


def dff(activations: Array, n_components: int = 5) -> tuple[Array, Array]:
    """Factorizes activations into concepts and their maps, by scikit-learn's NMF.

    Args:
        activations: (N, C, H, W); NaN counts as 0.
        n_components: K.

    Returns:
        Concepts (C, K) and maps (N, K, H, W).
    """
    from sklearn.decomposition import NMF

    images, channels, height, width = activations.shape
    values = activations.transpose(1, 0, 2, 3).reshape(channels, -1)
    values = np.where(np.isnan(values), values.dtype.type(0), values)
    low = values.min(axis=-1, keepdims=True)
    model = NMF(n_components=n_components, init="random", random_state=0)
    concepts = model.fit_transform(values - low) + low
    maps = model.components_.reshape(n_components, images, height, width)
    return concepts, maps.transpose(1, 0, 2, 3)


def factorized(factorization: Any, input_tensor: Tensor, n_components: int = 16) -> tuple[Any, ...]:
    """A DeepFeatureFactorization object's concepts (C, K), and the maps (K, H, W) of each image.

    Also the result of its ``computation_on_concepts``, if it has one.
    """
    height, width = input_tensor.shape[2:]
    factorization.activations_and_grads(input_tensor)
    activations = factorization.activations_and_grads.activations[0].detach().cpu().numpy()
    concepts, maps = dff(activations, n_components=n_components)
    enlarged = [scale_cam_image(of_image, (width, height)) for of_image in maps]
    if not factorization.computation_on_concepts:
        return concepts, enlarged
    with torch.no_grad():
        rows = torch.from_numpy(np.float32(concepts.T))
        outputs = factorization.computation_on_concepts(rows)
    return concepts, enlarged, outputs.cpu().numpy()
