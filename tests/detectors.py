"""Small random detectors of torchvision's kinds, and what whole-graph autograd says of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou

CLASSES = 4


class Pyramid(nn.Module):
    """Two levels of 32 channels, strides 4 and 8."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
        self.fpn = FeaturePyramidNetwork([8, 12], 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        levels: dict[str, Tensor] = self.fpn(OrderedDict([("0", low), ("1", self.high(low))]))
        return levels


LEVELS = ("backbone.fpn.layer_blocks.0.0", "backbone.fpn.layer_blocks.1.0")
SIZES: dict[str, Any] = {"min_size": 64, "max_size": 128}


def make(kind: str) -> Any:
    """A detector of one kind in float64, whose answer to any picture has boxes."""
    torch.manual_seed(3)
    one = AnchorGenerator(((12,), (24,)), ((1.0,),) * 2)
    if kind in ("faster", "mask"):
        rois = MultiScaleRoIAlign(["0", "1"], output_size=3, sampling_ratio=2)
        parts: dict[str, Any] = {
            "rpn_anchor_generator": one,
            "box_roi_pool": rois,
            "box_score_thresh": 0.0,
            "box_detections_per_img": 5,
            "rpn_post_nms_top_n_test": 40,
            "box_head": detection.faster_rcnn.TwoMLPHead(32 * 9, 16),
            "box_predictor": detection.faster_rcnn.FastRCNNPredictor(16, CLASSES),
            **SIZES,
        }
        made: Any
        if kind == "mask":
            parts["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 4, 2)
            parts["mask_predictor"] = detection.mask_rcnn.MaskRCNNPredictor(256, 8, CLASSES)
            made = detection.MaskRCNN(Pyramid(), **parts)
        else:
            made = detection.FasterRCNN(Pyramid(), **parts)
    elif kind == "retinanet":
        made = detection.RetinaNet(
            Pyramid(), CLASSES, anchor_generator=one, score_thresh=0.0, **SIZES
        )
    elif kind == "fcos":
        made = detection.FCOS(Pyramid(), CLASSES, anchor_generator=one, score_thresh=0.0, **SIZES)
    else:
        anchors = DefaultBoxGenerator([[2]] * 2, scales=[0.2, 0.4, 0.6])
        head = detection.ssd.SSDHead([32, 32], anchors.num_anchors_per_location(), CLASSES)
        made = detection.ssd.SSD(Pyramid(), anchors, (64, 96), CLASSES, head=head, score_thresh=0.0)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.4 / parameter[0].numel() ** 0.5)
    return made.double().eval()


KINDS = ("faster", "mask", "retinanet", "fcos", "ssd")


def suppressed_class_logits(
    kind: str, model: Any, image: Tensor, box: Tensor, label: int
) -> Tensor:
    """The class logit of the candidate that fits a box best, as torchvision computes candidates.

    Everything is run step by step with a graph, the modules called by hand.
    """
    shown, _ = model.transform([image])
    features = model.backbone(shown.tensors)
    (size,) = shown.image_sizes
    if kind in ("faster", "mask"):
        proposals, _ = model.rpn(shown, features)
        pooled = model.roi_heads.box_roi_pool(features, proposals, shown.image_sizes)
        logits, codes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
        boxes = model.roi_heads.box_coder.decode(codes, proposals)[:, label]
    else:
        head = model.head(list(features.values()))
        (anchors,) = model.anchor_generator(shown, list(features.values()))
        logits, codes = head["cls_logits"][0], head["bbox_regression"][0]
        decode = model.box_coder.decode if kind == "fcos" else model.box_coder.decode_single
        boxes = decode(codes, anchors)
    (height, width), (rows, columns) = image.shape[1:], size
    boxes = torch.stack(
        [
            boxes[:, 0].clamp(0, columns) * width / columns,
            boxes[:, 1].clamp(0, rows) * height / rows,
            boxes[:, 2].clamp(0, columns) * width / columns,
            boxes[:, 3].clamp(0, rows) * height / rows,
        ],
        1,
    )
    return logits[box_iou(box[None], boxes)[0].argmax(), label]


def gradcam(activations: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM, (1, h, w)."""
    return F.relu((gradient.mean((2, 3), keepdim=True) * activations).sum(1))
