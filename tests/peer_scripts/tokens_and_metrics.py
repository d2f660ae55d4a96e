"""A vision transformer explained, its maps judged, the concepts of a layer: pytorch-grad-cam."""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from pytorch_grad_cam import DeepFeatureFactorization, GradCAM, LayerCAM, ScoreCAM
from pytorch_grad_cam.ablation_cam import AblationCAM
from pytorch_grad_cam.ablation_layer import AblationLayerVit
from pytorch_grad_cam.metrics.cam_mult_image import (
    CamMultImageConfidenceChange,
    DropInConfidence,
    IncreaseInConfidence,
)
from pytorch_grad_cam.metrics.road import (
    ROADCombined,
    ROADLeastRelevantFirst,
    ROADMostRelevantFirst,
)
from pytorch_grad_cam.utils.image import preprocess_image, scale_cam_image
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from torchvision.models import VisionTransformer


def reshape_transform(tensor, height=6, width=6):  # type: ignore[no-untyped-def]
    result = tensor[:, 1:, :].reshape(tensor.size(0), height, width, tensor.size(2))
    return result.transpose(2, 3).transpose(1, 2)


class Benchmark:
    """A model with what is asked of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = VisionTransformer(48, 8, 3, 2, 24, 48, num_classes=12).eval()
        torch.nn.init.normal_(self.model.heads.head.weight, std=0.5)
        self.targets = [ClassifierOutputTarget(3), ClassifierOutputTarget(8)]
        self.metric_targets = [ClassifierOutputSoftmaxTarget(3), ClassifierOutputSoftmaxTarget(8)]


def main(image_path: str, output: str) -> None:
    bench = Benchmark()
    image = np.float32(cv2.resize(cv2.imread(image_path)[:, :, ::-1], (48, 48))) / 255
    images = torch.cat([preprocess_image(image), preprocess_image(image[:, ::-1])])
    layers = [bench.model.encoder.layers[-1].ln_1]
    found = {}
    for method in (GradCAM, LayerCAM, ScoreCAM):
        with method(bench.model, layers, reshape_transform=reshape_transform) as cam:
            found[method.__name__] = cam(images, bench.targets)
    with AblationCAM(
        bench.model, layers, reshape_transform, ablation_layer=AblationLayerVit()
    ) as cam:
        found["AblationCAM"] = cam(images, bench.targets)

    maps = found["GradCAM"]
    for metric in (DropInConfidence, IncreaseInConfidence, CamMultImageConfidenceChange):
        found[metric.__name__] = metric()(images, maps, bench.metric_targets, bench.model)
    torch.manual_seed(1)
    for name, metric in {
        "most": ROADMostRelevantFirst(percentile=75),
        "least": ROADLeastRelevantFirst(percentile=75),
        "combined": ROADCombined(percentiles=[20, 60, 90]),
    }.items():
        found[name] = metric(images, maps, bench.metric_targets, bench.model)
    found["half"], visualizations = ROADMostRelevantFirst(percentile=50)(
        images, maps, bench.metric_targets, bench.model, return_visualization=True
    )
    found["imputed"] = visualizations.numpy()

    dff = DeepFeatureFactorization(
        model=bench.model,
        target_layer=layers[0],
        reshape_transform=reshape_transform,
        computation_on_concepts=bench.model.heads,
    )
    concepts, explanations, outputs = dff(images, 4)
    found["concepts"], found["outputs"] = concepts, outputs
    found["explanations"] = np.stack([scale_cam_image(each) for each in explanations])
    np.savez(Path(output), **found)
    print({name: array.shape for name, array in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
