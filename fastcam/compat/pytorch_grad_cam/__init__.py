"""pytorch-grad-cam's API without that package::

    import fastcam.compat.pytorch_grad_cam as pytorch_grad_cam

Signatures, numpy arrays and values are those of release 1.5.7, computed by fastcam.
"""

from fastcam.compat.pytorch_grad_cam import metrics, utils
from fastcam.compat.pytorch_grad_cam.ablation_cam import AblationCAM
from fastcam.compat.pytorch_grad_cam.ablation_layer import (
    AblationLayer,
    AblationLayerFasterRCNN,
    AblationLayerVit,
)
from fastcam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from fastcam.compat.pytorch_grad_cam.eigen_cam import EigenCAM
from fastcam.compat.pytorch_grad_cam.eigen_grad_cam import EigenGradCAM
from fastcam.compat.pytorch_grad_cam.feature_factorization.deep_feature_factorization import (
    DeepFeatureFactorization,
    run_dff_on_image,
)
from fastcam.compat.pytorch_grad_cam.fem import FEM
from fastcam.compat.pytorch_grad_cam.finer_cam import FinerCAM
from fastcam.compat.pytorch_grad_cam.fullgrad_cam import FullGrad
from fastcam.compat.pytorch_grad_cam.grad_cam import GradCAM
from fastcam.compat.pytorch_grad_cam.grad_cam_elementwise import GradCAMElementWise
from fastcam.compat.pytorch_grad_cam.grad_cam_plusplus import GradCAMPlusPlus
from fastcam.compat.pytorch_grad_cam.guided_backprop import GuidedBackpropReLUModel
from fastcam.compat.pytorch_grad_cam.hirescam import HiResCAM
from fastcam.compat.pytorch_grad_cam.kpca_cam import KPCA_CAM
from fastcam.compat.pytorch_grad_cam.layer_cam import LayerCAM
from fastcam.compat.pytorch_grad_cam.random_cam import RandomCAM
from fastcam.compat.pytorch_grad_cam.refine_cam import RefineCAM
from fastcam.compat.pytorch_grad_cam.score_cam import ScoreCAM
from fastcam.compat.pytorch_grad_cam.seg_eigen_cam import SegEigenCAM
from fastcam.compat.pytorch_grad_cam.sess import SESS
from fastcam.compat.pytorch_grad_cam.shapley_cam import ShapleyCAM
from fastcam.compat.pytorch_grad_cam.xgrad_cam import XGradCAM

# the names of the library, of which some are ours too; pylint: disable=duplicate-code
__all__ = [
    "FEM",
    "KPCA_CAM",
    "SESS",
    "AblationCAM",
    "AblationLayer",
    "AblationLayerFasterRCNN",
    "AblationLayerVit",
    "ActivationsAndGradients",
    "DeepFeatureFactorization",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "XGradCAM",
    "metrics",
    "run_dff_on_image",
    "utils",
]
