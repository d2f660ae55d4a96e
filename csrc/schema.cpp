#include <torch/csrc/stable/library.h>

// Shapes: activations (N, C, *S); gradients (N, C, *S) or (N, K, C, *S); weights (N, C) or (N, K, C);
// maps (*L, *S). fastcam/ops.py documents each.
STABLE_TORCH_LIBRARY(fastcam, m) {
  m.def("gap(Tensor gradients, int? spatial_dims=None) -> Tensor");
  m.def("gradcam_plus_plus_weights(Tensor activations, Tensor gradients, float eps=0.0) -> Tensor");
  m.def("weighted_sum(Tensor activations, Tensor weights, bool relu=True) -> Tensor");
  m.def(
      "cam(Tensor activations, Tensor gradients, str method, bool relu=True, float eps=0.0)"
      " -> Tensor");
  m.def(
      "saliency(Tensor activations, Tensor gradients, str method, SymInt[] size, bool relu=True,"
      " bool normalize=True, float eps=0.0) -> Tensor");
  m.def("normalize(Tensor maps, int spatial_dims=2, float eps=0.0) -> Tensor");
  m.def("upsample(Tensor maps, SymInt[] size, bool normalize=True, float eps=0.0) -> Tensor");
  m.def("guided_relu(Tensor input) -> Tensor");
  m.def("guided_relu_backward(Tensor grad_output, Tensor input) -> Tensor");
  m.def("guided_product(Tensor maps, Tensor guided, int spatial_dims=2, float eps=0.0) -> Tensor");
  m.def("impute(Tensor images, Tensor known) -> Tensor");
  m.def("overlay(Tensor images, Tensor maps, Tensor colormap, Tensor opacities) -> Tensor");
}
