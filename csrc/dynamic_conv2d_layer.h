// The torch layer of dynamic_conv2d.h, the same for every device: tensors in, backstop checks,
// contiguous copies, the result's memory. A Backend computes:
//
//   Backend::kPlace, Backend::accepts(tensor)   "on the CPU", and whether a tensor is there
//   Backend::compute(algorithm, shape, products)
//       products over one batch, of contiguous tensors; throws if it has no such algorithm or dtype
//
// TORCH_BOX(&layer::dynamic_conv2d<Backend>) and the three others are then the operators.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dynamic_conv2d.h"

namespace mkdext::layer {

using torch::stable::Tensor;

struct Operands {
  Tensor map;    // x, or g for the gradients
  Tensor other;  // w, or x for the weight gradient
};

// output = the sum of a primitive over the operands; the weight gradient has one pair.
struct Product {
  Primitive primitive;
  std::vector<Operands> terms;
  Tensor output;
};

// Takes over a string of the dispatcher. A parameter of type std::string would be simpler, but
// torch's conversion to it (ToImpl<std::string>) never frees the copy that it makes.
inline std::string take_string(StringHandle handle) {
  const auto check = [](AOTITorchError error) {
    STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "dynamic_conv2d: algorithm must be a string");
  };
  size_t length = 0;
  const char* name = nullptr;
  check(torch_string_length(handle, &length));
  check(torch_string_c_str(handle, &name));
  const std::string copy(name, length);
  check(torch_delete_string(handle));
  return copy;
}

inline void check_map(const Tensor& map, const char* name, const DynamicConvShape& shape,
                      int64_t channels) {
  STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == shape.batch && map.size(1) == channels &&
                      map.size(2) == shape.height && map.size(3) == shape.width,
                  "dynamic_conv2d: ", name, " must be [", shape.batch, ", ", channels, ", ",
                  shape.height, ", ", shape.width, "]");
}

inline void check_weight(const Tensor& weight, const char* name, const DynamicConvShape& shape) {
  STD_TORCH_CHECK(weight.dim() == 5 && weight.size(0) == shape.batch &&
                      weight.size(1) == shape.out_channels && weight.size(2) == shape.in_channels &&
                      weight.size(3) == shape.kernel_size && weight.size(4) == shape.kernel_size,
                  "dynamic_conv2d: ", name, " must be [", shape.batch, ", ", shape.out_channels,
                  ", ", shape.in_channels, ", ", shape.kernel_size, ", ", shape.kernel_size, "]");
}

inline void check_shape(const DynamicConvShape& shape) {
  STD_TORCH_CHECK(shape.in_channels > 0 && shape.out_channels > 0 && shape.height > 0 &&
                      shape.width > 0 && shape.kernel_size % 2 == 1,
                  "dynamic_conv2d: sizes must be positive and the kernel size odd");
}

template <typename Backend>
void check_place(const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(Backend::accepts(tensor) && tensor.scalar_type() == like.scalar_type() &&
                      tensor.get_device_index() == like.get_device_index(),
                  "dynamic_conv2d: all tensors must be ", Backend::kPlace, " and of one dtype");
}

template <typename Backend>
Tensor dynamic_conv2d(const Tensor& input, const Tensor& weight, StringHandle algorithm_handle) {
  const std::string algorithm = take_string(algorithm_handle);
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 5,
                  "dynamic_conv2d: input must be 4-D and weight 5-D");
  const DynamicConvShape shape{input.size(0), input.size(1), weight.size(1),
                               input.size(2), input.size(3), weight.size(3)};
  check_shape(shape);
  check_weight(weight, "weight", shape);
  check_place<Backend>(weight, input);
  const Tensor x = torch::stable::contiguous(input);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor output =
      torch::stable::new_empty(x, {shape.batch, shape.out_channels, shape.height, shape.width});
  Backend::compute(algorithm, shape, {{Primitive::kForward, {{x, w}}, output}});
  return output;
}

template <typename Backend>
Tensor dynamic_conv2d_input_grad(const Tensor& grad, const Tensor& weight,
                                 StringHandle algorithm_handle) {
  const std::string algorithm = take_string(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4 && weight.dim() == 5,
                  "dynamic_conv2d: grad must be 4-D and weight 5-D");
  const DynamicConvShape shape{grad.size(0), weight.size(2), grad.size(1),
                               grad.size(2), grad.size(3),   weight.size(3)};
  check_shape(shape);
  check_weight(weight, "weight", shape);
  check_place<Backend>(weight, grad);
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor output =
      torch::stable::new_empty(g, {shape.batch, shape.in_channels, shape.height, shape.width});
  Backend::compute(algorithm, shape, {{Primitive::kInputGrad, {{g, w}}, output}});
  return output;
}

template <typename Backend>
Tensor dynamic_conv2d_weight_grad(const Tensor& grad, const Tensor& input, int64_t kernel_size,
                                  StringHandle algorithm_handle) {
  const std::string algorithm = take_string(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4 && input.dim() == 4,
                  "dynamic_conv2d: grad and input must be 4-D");
  const DynamicConvShape shape{input.size(0), input.size(1), grad.size(1),
                               input.size(2), input.size(3), kernel_size};
  check_shape(shape);
  check_map(grad, "grad", shape, shape.out_channels);
  check_place<Backend>(grad, input);
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor x = torch::stable::contiguous(input);
  Tensor output = torch::stable::new_empty(
      g, {shape.batch, shape.out_channels, shape.in_channels, kernel_size, kernel_size});
  Backend::compute(algorithm, shape, {{Primitive::kWeightGrad, {{g, x}}, output}});
  return output;
}

// Returns grad_g, grad_x and grad_w of dynamic_conv2d.h. What is not wanted, and what is zero
// because no cotangent reaches it, is an empty tensor of one dimension.
template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> dynamic_conv2d_double_backward(
    const Tensor& grad, std::optional<Tensor> input, std::optional<Tensor> weight,
    std::optional<Tensor> grad_grad_input, std::optional<Tensor> grad_grad_weight, bool want_grad,
    bool want_input, bool want_weight, StringHandle algorithm_handle) {
  const std::string algorithm = take_string(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4, "dynamic_conv2d: grad must be 4-D");
  STD_TORCH_CHECK(grad_grad_input || grad_grad_weight,
                  "dynamic_conv2d: a double backward needs a cotangent");
  DynamicConvShape shape{grad.size(0), 0, grad.size(1), grad.size(2), grad.size(3), 0};
  const auto prepare_map = [&](const std::optional<Tensor>& map, const char* name) {
    check_map(*map, name, shape, shape.in_channels);
    check_place<Backend>(*map, grad);
    return torch::stable::contiguous(*map);
  };
  const auto prepare_weight = [&](const std::optional<Tensor>& value, const char* name) {
    check_weight(*value, name, shape);
    check_place<Backend>(*value, grad);
    return torch::stable::contiguous(*value);
  };
  // Any kernel-shaped tensor tells the channels and the kernel size; only the weight gradient of
  // ggx can do without one, and then `weight` must still be given.
  const std::optional<Tensor>& like = grad_grad_weight ? grad_grad_weight : weight;
  STD_TORCH_CHECK(like && like->dim() == 5, "dynamic_conv2d: weight must be given and 5-D");
  shape.in_channels = like->size(2);
  shape.kernel_size = like->size(3);
  check_shape(shape);

  const Tensor g = torch::stable::contiguous(grad);
  std::optional<Tensor> x, w, ggx, ggw;
  if (grad_grad_input) ggx = prepare_map(grad_grad_input, "grad_grad_input");
  if (grad_grad_weight) ggw = prepare_weight(grad_grad_weight, "grad_grad_weight");
  if (want_grad && ggw) {
    STD_TORCH_CHECK(input, "dynamic_conv2d: input must be given");
    x = prepare_map(input, "input");
  }
  if (want_grad && ggx) {
    STD_TORCH_CHECK(weight, "dynamic_conv2d: weight must be given");
    w = prepare_weight(weight, "weight");
  }

  const auto output = [&](bool wanted, std::initializer_list<int64_t> sizes) {
    return wanted ? torch::stable::new_empty(g, sizes) : torch::stable::new_empty(g, {0});
  };
  const bool input_wanted = want_input && ggw.has_value();
  const bool weight_wanted = want_weight && ggx.has_value();
  Tensor grad_grad =
      output(want_grad, {shape.batch, shape.out_channels, shape.height, shape.width});
  Tensor grad_input =
      output(input_wanted, {shape.batch, shape.in_channels, shape.height, shape.width});
  Tensor grad_weight = output(weight_wanted, {shape.batch, shape.out_channels, shape.in_channels,
                                              shape.kernel_size, shape.kernel_size});
  std::vector<Product> products;
  if (want_grad) {
    products.push_back({Primitive::kForward, {}, grad_grad});
    if (ggx) products.back().terms.push_back({*ggx, *w});
    if (ggw) products.back().terms.push_back({*x, *ggw});
  }
  if (input_wanted) products.push_back({Primitive::kInputGrad, {{g, *ggw}}, grad_input});
  if (weight_wanted) products.push_back({Primitive::kWeightGrad, {{g, *ggx}}, grad_weight});
  if (!products.empty()) Backend::compute(algorithm, shape, products);
  return {grad_grad, grad_input, grad_weight};
}

}  // namespace mkdext::layer
