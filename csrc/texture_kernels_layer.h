// The torch layer of texture_kernels.h, the same for every device: tensors in, backstop checks,
// contiguous copies, the result's memory. A Backend has
//
//   Backend::check(tensor)                            throws unless it is on the device, of a dtype
//   Backend::forward(shape, features, kernels)        on contiguous tensors
//   Backend::transpose(shape, kernels, features)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "texture_kernels.h"

namespace mkdext::layer {

using torch::stable::Tensor;

inline void check_texture_sizes(const TextureShape& shape) {
  STD_TORCH_CHECK(shape.channels > 0 && shape.height > 0 && shape.width > 0 && shape.grid > 0 &&
                      shape.kernel_size > 0,
                  "texture_kernels: sizes must be positive");
}

template <typename Backend>
Tensor texture_kernels(const Tensor& features, int64_t grid, int64_t kernel_size) {
  STD_TORCH_CHECK(features.dim() == 4, "texture_kernels: features must be 4-D");
  const TextureShape shape{
      features.size(0), features.size(1), features.size(2), features.size(3), grid, kernel_size};
  Backend::check(features);
  check_texture_sizes(shape);
  const Tensor x = torch::stable::contiguous(features);
  Tensor output = torch::stable::new_empty(
      x, {shape.batch, grid * grid, shape.channels, kernel_size, kernel_size});
  Backend::forward(shape, x, output);
  return output;
}

template <typename Backend>
Tensor texture_kernels_transpose(const Tensor& kernels, int64_t grid, int64_t height,
                                 int64_t width) {
  STD_TORCH_CHECK(
      kernels.dim() == 5 && kernels.size(1) == grid * grid && kernels.size(3) == kernels.size(4),
      "texture_kernels: kernels must be [B, grid * grid, C, k, k]");
  const TextureShape shape{kernels.size(0), kernels.size(2), height, width, grid, kernels.size(3)};
  Backend::check(kernels);
  check_texture_sizes(shape);
  const Tensor y = torch::stable::contiguous(kernels);
  Tensor output = torch::stable::new_empty(y, {shape.batch, shape.channels, height, width});
  Backend::transpose(shape, y, output);
  return output;
}

}  // namespace mkdext::layer
