"""Deep feature factorization: the concepts in a layer's activations of a batch of images.

Collins et al. 2018, arXiv 1806.10206.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from fastcam.compat.pytorch_grad_cam.utils.image import (
    create_labels_legend,
    show_factorization_on_image,
)
from fastcam.dropin.pytorch_grad_cam.factorization import dff, factorized

__all__ = ["DeepFeatureFactorization", "dff", "run_dff_on_image"]


class DeepFeatureFactorization:
    """Concepts of a layer, and their maps at the images' size.

    Args:
        model: the network.
        target_layer: the layer whose activations are factorized.
        reshape_transform: converts the layer's output to (N, C, H, W).
        computation_on_concepts: a module for concepts (K, C), such as the classifier's head.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: nn.Module,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.computation_on_concepts = computation_on_concepts
        self.activations_and_grads = ActivationsAndGradients(
            self.model, [target_layer], reshape_transform
        )

    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> tuple[Any, ...]:
        """Concepts (C, K) and a list with the maps of each image, (K, H, W) in [0, 1].

        Also the result of ``computation_on_concepts``, if given.
        """
        return factorized(self, input_tensor, n_components)

    def __del__(self) -> None:
        if hasattr(self, "activations_and_grads"):
            self.activations_and_grads.release()


def run_dff_on_image(
    model: Any,
    target_layer: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    img_pil: Any,
    img_tensor: Tensor,
    reshape_transform: Callable[[Any], Tensor] | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> NDArray[np.uint8]:
    """An image beside its concepts and a legend with the classes of each concept.

    Args:
        model: the network, with class names in ``model.config.id2label``.
        target_layer, reshape_transform, n_components: as for :class:`DeepFeatureFactorization`.
        classifier: the head, for concepts (K, C).
        img_pil: the picture.
        img_tensor: (C, H, W), the preprocessed picture.
        top_k: the number of classes per concept.
    """
    picture = np.array(img_pil)
    factorization = DeepFeatureFactorization(
        model, target_layer, reshape_transform, computation_on_concepts=classifier
    )
    _, maps, outputs = factorization(img_tensor[None], n_components)
    probabilities = torch.softmax(torch.from_numpy(outputs), dim=-1).numpy()
    names = create_labels_legend(probabilities, labels=model.config.id2label, top_k=top_k)
    shown = show_factorization_on_image(
        picture / 255, maps[0], image_weight=0.3, concept_labels=names
    )
    return np.hstack((picture, shown))
