"""The first steps of torchcam and captum with one network; run with -m."""

import os
import pickle
import sys

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam, LayerAttribution, LayerGradCam
from matplotlib import pyplot as plt
from PIL import Image
from torchcam.methods import (
    CAM,
    FinerCAM,
    GradCAMpp,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    SmoothGradCAMpp,
    XGradCAM,
)
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric
from torchcam.utils import overlay_mask
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize, pil_to_tensor, resize, to_pil_image


class Found(dict):  # type: ignore[type-arg]
    """What was found, by name."""


def torchcam(model, image, input_tensor, found, folder):  # type: ignore[no-untyped-def]
    with SmoothGradCAMpp(model) as cam_extractor:
        out = model(input_tensor.unsqueeze(0))
        activation_map = cam_extractor(out.squeeze(0).argmax().item(), out)
    found["smooth"] = activation_map[0].detach().numpy()
    plt.imshow(activation_map[0].squeeze(0).numpy())
    plt.axis("off")
    plt.tight_layout()
    plt.savefig(os.path.join(folder, "map.png"))
    result = overlay_mask(image, to_pil_image(activation_map[0].squeeze(0), mode="F"), alpha=0.5)
    result.save(os.path.join(folder, "overlay.png"))

    images = torch.stack([input_tensor, input_tensor.flip(2)])
    with LayerCAM(model, ["layer2", "layer3", "layer4"]) as cam_extractor:
        out = model(images)
        cams = cam_extractor([1, 2], out)
        found["fused"] = cam_extractor.fuse_cams(cams).numpy()
    for method in (GradCAMpp, XGradCAM, FinerCAM):
        with method(model, model.layer4) as cam_extractor:
            found[method.__name__] = cam_extractor(3, model(images))[0].numpy()
    with CAM(model, "layer4", "fc") as cam_extractor, torch.inference_mode():
        model(images)
        found["CAM"] = cam_extractor(class_idx=4)[0].numpy()
    with RefineCAM(model, ["layer3", "layer4"], base_method=LayerCAM) as cam_extractor:
        found["refined"] = cam_extractor(class_idx=5, scores=model(images))[0].numpy()
    with ScoreCAM(model, "conv1", batch_size=16) as cam_extractor:
        with torch.inference_mode():
            model(images[:1])
        found["score"] = cam_extractor(class_idx=6)[0].numpy()
    with LayerCAM(model, "layer4") as cam_extractor:
        for name, metric in {
            "confidence": ClassificationMetric(cam_extractor, lambda o: torch.softmax(o, dim=-1)),
            "curves": DeletionInsertionMetric(
                cam_extractor, lambda o: torch.softmax(o, dim=-1), steps=4
            ),
        }.items():
            metric.update(images)
            found[name] = np.array(list(metric.summary().values()))


def captum(model, input_tensor, found):  # type: ignore[no-untyped-def]
    images = torch.stack([input_tensor, input_tensor.flip(2)])
    layer_gc = LayerGradCam(model, model.layer4)
    attributions = layer_gc.attribute(images, target=[1, 7], relu_attributions=True)
    found["layer"] = attributions.detach().numpy()
    upsampled = LayerAttribution.interpolate(attributions, images.shape[2:], "bilinear")
    found["upsampled"] = upsampled.detach().numpy()
    for method in (GuidedBackprop, Deconvolution):
        found[method.__name__] = method(model).attribute(images, target=2).detach().numpy()
    guided = GuidedGradCam(model, model.layer4).attribute(images, 2)
    found["guided"] = guided.detach().numpy()


if __name__ == "__main__":
    image_path, folder = sys.argv[1:]
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    torch.nn.init.normal_(model.fc.weight)
    image = resize(Image.open(image_path).convert("RGB"), (96, 128))
    input_tensor = normalize(
        pil_to_tensor(image) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    found = Found()
    torchcam(model, image, input_tensor, found, folder)
    captum(model, input_tensor, found)
    found = pickle.loads(pickle.dumps(found))  # a class of __main__
    np.savez(os.path.join(folder, "found.npz"), **found)
