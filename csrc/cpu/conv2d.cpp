// The CPU side of conv2d.h: tensors in, tasks out to the threads. There is one algorithm,
// Winograd's; what it does not suit goes to PyTorch's own convolution before it comes here.
//
// Parallel axis  Rows of tiles of the whole batch (correlations). For the weight gradient, groups
// of
//                such rows, each with sums of its own, and vectors of output channels. The groups
//                depend on the shape alone, so the bits do not depend on the number of threads.
#include "../conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "scratch.h"
#include "winograd.h"

namespace mkdext::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTaps = 9;

// Below this many multiplications per thread, waking another one costs more than it brings.
constexpr int64_t kWorkPerThread = 1'000'000;

// The sums of a group are read once more in the end: it should have this many tiles at least, and
// the sums of all groups should not take more memory than this.
constexpr int64_t kTilesPerGroup = 128;
constexpr int64_t kSumsBytes = 32 << 20;
constexpr int64_t kMostGroups = 8;

// ---------------------------------------------------------------------------------- the tensors

MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor new_memory(const Tensor& like, int64_t elements) {
  return torch::stable::new_empty(like, {elements});
}

float* numbers(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// A batch of maps as the kernels read or write them.
class Maps {
 public:
  // Of a tensor that is the pixel shuffle of the maps by `factor`; copies what cannot be read.
  Maps(const Tensor& tensor, int64_t factor)
      : tensor_(is_usable(tensor, factor)
                    ? tensor
                    : torch::stable::contiguous(tensor, format_of(factor > 1))) {
    const int64_t row = tensor_.stride(2), pixel = tensor_.stride(3);
    layout_ = {tensor_.stride(1), factor * row, factor * pixel, factor, row, pixel};
    if (factor > 1) layout_.channel = 1;  // a single channel may have any step
  }

  static Maps results(const Tensor& like, const ConvShape& shape, int64_t channels, int64_t factor,
                      bool channels_last) {
    const std::array sizes{shape.batch, channels / (factor * factor), factor * shape.height,
                           factor * shape.width};
    return {torch::stable::empty(sizes, ScalarType::Float, std::nullopt, like.device(),
                                 std::nullopt, format_of(channels_last || factor > 1)),
            factor};
  }

  const Tensor& tensor() const { return tensor_; }
  const MapLayout& layout() const { return layout_; }
  const float* of_sample(int64_t b) const {
    return static_cast<const float*>(tensor_.const_data_ptr()) + b * tensor_.stride(0);
  }
  float* result_of_sample(int64_t b) const { return numbers(tensor_) + b * tensor_.stride(0); }

 private:
  static bool is_usable(const Tensor& tensor, int64_t factor) {
    return tensor.stride(1) == 1 || (factor == 1 && tensor.stride(3) == 1);
  }

  Tensor tensor_;
  MapLayout layout_;
};

// --------------------------------------------------------------------------------------- the work

// Calls run(b, begin, end, scratch) for parts of samples that make up the rows of tiles of the
// batch, on all threads.
template <typename Run>
void for_each_part(const ConvShape& shape, int64_t rows, int64_t scratch_size, const Run& run) {
  const double row = 4.0 * shape.width * shape.in_channels * shape.out_channels * kTaps;
  const auto grain = static_cast<int64_t>(std::max(1.0, kWorkPerThread / row));
  torch::stable::parallel_for(0, shape.batch * rows, grain, [&](int64_t begin, int64_t end) {
    Scratch<float> scratch(scratch_size);
    while (begin < end) {
      const int64_t b = begin / rows, stop = std::min(end, (b + 1) * rows);
      run(b, begin - b * rows, stop - b * rows, scratch.data());
      begin = stop;
    }
  });
}

struct MapsAndWeight {
  Maps maps;
  const Tensor* weight;
};

// output = the sum of the terms' correlations, plus the bias unless it is null. The shape is the
// forward's; for kInputGrad the maps are gradients of its output.
void correlate(const ConvShape& shape, WeightOrder order, const std::vector<MapsAndWeight>& terms,
               const float* bias, const Maps& output) {
  const bool forward = order == WeightOrder::kForward;
  const SampleShape sizes{forward ? shape.in_channels : shape.out_channels,
                          forward ? shape.out_channels : shape.in_channels, shape.height,
                          shape.width, 3};
  const WinogradSample sample{sizes, terms[0].maps.layout(), output.layout()};
  const WinogradKernels& kernels = winograd_kernels();
  const auto count = static_cast<int64_t>(terms.size());
  std::vector<const float*> weights;
  for (const MapsAndWeight& term : terms)
    weights.push_back(static_cast<const float*>(term.weight->const_data_ptr()));
  const Tensor memory = new_memory(output.tensor(), kernels.weights_size(sample, count));
  float* const transformed = numbers(memory);
  kernels.transform_weights(sample, order, weights.data(), count, transformed);
  for_each_part(shape, kernels.rows(sizes), kernels.correlate_scratch(sample, count),
                [&](int64_t b, int64_t begin, int64_t end, float* scratch) {
                  std::array<const float*, 2> maps{};
                  for (int64_t n = 0; n < count; ++n) maps[n] = terms[n].maps.of_sample(b);
                  kernels.correlate(sample, maps.data(), transformed, count, bias, begin, end,
                                    scratch, output.result_of_sample(b));
                });
}

// The gradients of the weight, and of the bias unless it is null.
void weight_gradient(const ConvShape& shape, const Maps& grad, const Maps& input,
                     float* grad_weight, float* grad_bias) {
  if (shape.batch == 0) {  // nothing to sum
    std::fill_n(grad_weight, shape.out_channels * shape.in_channels * kTaps, 0.f);
    if (grad_bias) std::fill_n(grad_bias, shape.out_channels, 0.f);
    return;
  }
  const SampleShape sizes{shape.in_channels, shape.out_channels, shape.height, shape.width, 3};
  const WinogradSample sample{sizes, input.layout(), grad.layout()};
  const WinogradKernels& kernels = winograd_kernels();
  const int64_t rows = kernels.rows(sizes), vectors = kernels.vectors(sample);
  const int64_t tiles = shape.batch * rows * ((shape.width + 3) / 4);
  const int64_t of_group = kernels.weight_grad_sums_size(sample);
  const int64_t most = kSumsBytes / (of_group * static_cast<int64_t>(sizeof(float)));
  const int64_t groups = std::clamp<int64_t>(std::min(tiles / kTilesPerGroup, most), 1,
                                             std::min(kMostGroups, shape.batch * rows));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::clamp<int64_t>(threads / groups, 1, vectors);
  const int64_t scratch_size = kernels.weight_grad_scratch(sample);
  const Tensor memory = new_memory(grad.tensor(), groups * of_group);
  float* const sums = numbers(memory);

  torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t task_begin, int64_t task_end) {
    Scratch<float> scratch(scratch_size);
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t group = task / parts, part = task % parts;
      int64_t begin = group * shape.batch * rows / groups;
      const int64_t end = (group + 1) * shape.batch * rows / groups;
      bool add = false;
      while (begin < end) {
        const int64_t b = begin / rows, stop = std::min(end, (b + 1) * rows);
        const Part of_sample{begin - b * rows, stop - b * rows, part * vectors / parts,
                             (part + 1) * vectors / parts};
        kernels.weight_grad_sums(sample, grad.of_sample(b), input.of_sample(b), of_sample, add,
                                 grad_bias != nullptr, scratch.data(), sums + group * of_group);
        add = true;
        begin = stop;
      }
    }
  });
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (of_group * groups / vectors));
  torch::stable::parallel_for(0, vectors, grain, [&](int64_t begin, int64_t end) {
    Scratch<float> scratch(scratch_size);
    kernels.weight_grad(sample, sums, groups, begin, end, scratch.data(), grad_weight, grad_bias);
  });
}

// ------------------------------------------------------------------------------------ the
// operators

void check_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float, "conv2d: ", name,
                  " must be float32 on the CPU");
}

void check_map(const Tensor& map, const char* name, const ConvShape& shape, int64_t channels,
               int64_t factor) {
  check_float(map, name);
  STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == shape.batch &&
                      map.size(1) * factor * factor == channels &&
                      map.size(2) == factor * shape.height && map.size(3) == factor * shape.width,
                  "conv2d: ", name, " must be [", shape.batch, ", ", channels / (factor * factor),
                  ", ", factor * shape.height, ", ", factor * shape.width, "]");
}

void check_weight(const Tensor& weight, const char* name, const ConvShape& shape) {
  check_float(weight, name);
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(0) == shape.out_channels &&
          weight.size(1) == shape.in_channels && weight.size(2) == 3 && weight.size(3) == 3,
      "conv2d: ", name, " must be [", shape.out_channels, ", ", shape.in_channels, ", 3, 3]");
}

void check_vector(const Tensor& bias, const char* name, const ConvShape& shape) {
  check_float(bias, name);
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == shape.out_channels, "conv2d: ", name,
                  " must be [", shape.out_channels, "]");
}

void check_shape(const ConvShape& shape, int64_t factor) {
  STD_TORCH_CHECK(
      shape.in_channels > 0 && shape.out_channels > 0 && shape.height > 0 && shape.width > 0 &&
          factor > 0 && factor <= shape.out_channels && shape.out_channels % (factor * factor) == 0,
      "conv2d: sizes must be positive and the output channels a multiple of ", "upscale_factor^2");
}

// The shape of a convolution with a result like `grad`.
ConvShape shape_from_grad(const Tensor& grad, int64_t in_channels, int64_t factor) {
  STD_TORCH_CHECK(
      grad.dim() == 4 && factor > 0 && grad.size(2) % factor == 0 && grad.size(3) % factor == 0,
      "conv2d: grad must be 4-D, with sides that upscale_factor divides");
  const ConvShape shape{grad.size(0), in_channels, grad.size(1) * factor * factor,
                        grad.size(2) / factor, grad.size(3) / factor};
  check_shape(shape, factor);
  check_float(grad, "grad");
  return shape;
}

// Stands for a result that is not wanted.
Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

const float* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

Tensor conv2d(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, int64_t factor,
              bool channels_last) {
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 4, "conv2d: input and weight must be 4-D");
  const ConvShape shape{input.size(0), input.size(1), weight.size(0), input.size(2), input.size(3)};
  check_shape(shape, factor);
  check_map(input, "input", shape, shape.in_channels, 1);
  check_weight(weight, "weight", shape);
  if (bias) {
    check_vector(*bias, "bias", shape);
    bias = torch::stable::contiguous(*bias);
  }
  const Tensor w = torch::stable::contiguous(weight);
  const Maps output = Maps::results(input, shape, shape.out_channels, factor, channels_last);
  correlate(shape, WeightOrder::kForward, {{Maps(input, 1), &w}}, data(bias), output);
  return output.tensor();
}

// The gradients of input, if the weight is given, of the weight, if the input is given, and with it
// of the bias, if wanted. The others are empty tensors of one dimension.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, std::optional<Tensor> input,
                                                   std::optional<Tensor> weight, bool want_bias,
                                                   int64_t factor, bool channels_last) {
  STD_TORCH_CHECK(input || weight, "conv2d: a backward needs input or weight");
  STD_TORCH_CHECK(input || !want_bias, "conv2d: the gradient of the bias needs input");
  STD_TORCH_CHECK((input ? *input : *weight).dim() == 4, "conv2d: input and weight must be 4-D");
  const ConvShape shape = shape_from_grad(grad, (input ? *input : *weight).size(1), factor);
  const Maps grads(grad, factor);
  Tensor of_input = nothing(grad), of_weight = nothing(grad), of_bias = nothing(grad);
  if (weight) {
    check_weight(*weight, "weight", shape);
    const Tensor w = torch::stable::contiguous(*weight);
    const Maps output = Maps::results(grad, shape, shape.in_channels, 1, channels_last);
    correlate(shape, WeightOrder::kInputGrad, {{grads, &w}}, nullptr, output);
    of_input = output.tensor();
  }
  if (want_bias) of_bias = torch::stable::new_empty(grad, {shape.out_channels});
  if (input) {
    check_map(*input, "input", shape, shape.in_channels, 1);
    of_weight = torch::stable::new_empty(grad, {shape.out_channels, shape.in_channels, 3, 3});
    weight_gradient(shape, grads, Maps(*input, 1), numbers(of_weight),
                    want_bias ? numbers(of_bias) : nullptr);
  }
  return {of_input, of_weight, of_bias};
}

// Returns grad_g, grad_x and grad_w of conv2d.h. What is not wanted is an empty tensor of one
// dimension. One of ggx and ggw must be given, and of the others what the wanted ones need.
std::tuple<Tensor, Tensor, Tensor> conv2d_double_backward(
    const Tensor& grad, std::optional<Tensor> input, std::optional<Tensor> weight,
    std::optional<Tensor> grad_grad_input, std::optional<Tensor> grad_grad_weight,
    std::optional<Tensor> grad_grad_bias, bool want_grad, bool want_input, bool want_weight,
    int64_t factor, bool channels_last) {
  STD_TORCH_CHECK(grad_grad_input || grad_grad_weight,
                  "conv2d: a double backward needs the cotangent of input or weight");
  const Tensor& like = grad_grad_input ? *grad_grad_input : *grad_grad_weight;
  STD_TORCH_CHECK(like.dim() == 4, "conv2d: cotangents must be 4-D");
  const ConvShape shape = shape_from_grad(grad, like.size(1), factor);
  const auto map = [&](const std::optional<Tensor>& given, const char* name) {
    STD_TORCH_CHECK(given, "conv2d: ", name, " must be given");
    check_map(*given, name, shape, shape.in_channels, 1);
    return Maps(*given, 1);
  };
  const auto kernel = [&](const std::optional<Tensor>& given, const char* name) {
    STD_TORCH_CHECK(given, "conv2d: ", name, " must be given");
    check_weight(*given, name, shape);
    return torch::stable::contiguous(*given);
  };
  std::optional<Tensor> w, ggw;
  if (grad_grad_weight) ggw = kernel(grad_grad_weight, "grad_grad_weight");
  if (grad_grad_bias) {
    check_vector(*grad_grad_bias, "grad_grad_bias", shape);
    grad_grad_bias = torch::stable::contiguous(*grad_grad_bias);
  }
  Tensor of_grad = nothing(grad), of_input = nothing(grad), of_weight = nothing(grad);
  if (want_grad) {
    std::vector<MapsAndWeight> terms;
    if (grad_grad_input) {
      w = kernel(weight, "weight");
      terms.push_back({map(grad_grad_input, "grad_grad_input"), &*w});
    }
    if (ggw) terms.push_back({map(input, "input"), &*ggw});
    // The terms of a sum are read in one layout.
    if (terms.size() == 2 && !(terms[0].maps.layout() == terms[1].maps.layout()))
      for (MapsAndWeight& term : terms)
        term.maps =
            Maps(torch::stable::contiguous(term.maps.tensor(), format_of(channels_last)), 1);
    const Maps output = Maps::results(grad, shape, shape.out_channels, factor, channels_last);
    correlate(shape, WeightOrder::kForward, terms, data(grad_grad_bias), output);
    of_grad = output.tensor();
  }
  if (want_input) {
    STD_TORCH_CHECK(ggw, "conv2d: grad_grad_weight must be given");
    const Maps output = Maps::results(grad, shape, shape.in_channels, 1, channels_last);
    correlate(shape, WeightOrder::kInputGrad, {{Maps(grad, factor), &*ggw}}, nullptr, output);
    of_input = output.tensor();
  }
  if (want_weight) {
    of_weight = torch::stable::new_empty(grad, {shape.out_channels, shape.in_channels, 3, 3});
    weight_gradient(shape, Maps(grad, factor), map(grad_grad_input, "grad_grad_input"),
                    numbers(of_weight), nullptr);
  }
  return {of_grad, of_input, of_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward));
  m.impl("conv2d_double_backward", TORCH_BOX(&conv2d_double_backward));
}

}  // namespace mkdext::cpu
