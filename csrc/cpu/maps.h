// The operators that `saliency` is made of.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

namespace fastcam::cpu {

torch::stable::Tensor cam(
    const torch::stable::Tensor& activations, const torch::stable::Tensor& gradients,
    std::string method, bool relu, double eps);

torch::stable::Tensor upsample(
    const torch::stable::Tensor& maps, std::vector<int64_t> size, bool normalize, double eps);

}  // namespace fastcam::cpu
