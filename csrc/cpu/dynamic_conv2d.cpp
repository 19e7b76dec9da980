// The CPU side of dynamic_conv2d.h: tensors in, an algorithm chosen, tasks out to the threads.
//
// Parallel axis  (sample, part): a part is a range of output rows (forward, input gradient) or of
//                output channels (weight gradient). Each task writes only its own part, and where
//                the cuts fall changes no order of summation, so the bits do not depend on the
//                number of threads.
#include "../dynamic_conv2d.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "algorithm.h"
#include "direct.h"
#include "scratch.h"
#include "winograd.h"

namespace mkdext::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Below this many multiplications per thread, waking another one costs more
// than it brings.
constexpr int64_t kWorkPerThread = 1'000'000;

int64_t weight_size(const DynamicConvShape& shape) {
  return shape.in_channels * shape.out_channels * shape.kernel_size * shape.kernel_size;
}

// How the work is cut: each sample into `parts`, and at least `grain` parts to
// a thread. A part costs a packing of the weights, so there are no more than it
// takes to keep the threads busy to the end.
struct Cut {
  int64_t parts;
  int64_t grain;

  Cut(const DynamicConvShape& shape, int64_t limit) : parts(1) {
    const double work =
        static_cast<double>(shape.batch) * shape.height * shape.width * weight_size(shape);
    const double available = torch::stable::get_num_threads();
    const auto threads = static_cast<int64_t>(std::clamp(work / kWorkPerThread, 1.0, available));
    while (shape.batch * parts % threads != 0 && shape.batch * parts < 4 * threads) {
      ++parts;
    }
    parts = std::min(parts, limit);
    grain = std::max<int64_t>(1, shape.batch * parts / threads);
  }
};

// Sizes that nothing could compute end here: inside a task torch would hide the message.
void check_scratch(double bytes) {
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  STD_TORCH_CHECK(bytes <= memory, "dynamic_conv2d: these sizes need ", bytes,
                  " bytes of working memory, but this machine has ", memory);
}

// What is computed for every sample of a batch, part by part.
template <typename T>
struct Product {
  int64_t parts;    // into how many a sample can be cut
  int64_t scratch;  // elements of working memory
  // Computes the parts [begin, end) of sample b.
  std::function<void(T* scratch, int64_t b, int64_t begin, int64_t end)> run;
};

// Computes products that read the same tensors, on all threads: one sample's after the other, while
// the sample is in the cache.
template <typename T>
void compute(const DynamicConvShape& shape, const std::vector<Product<T>>& products) {
  if (shape.batch == 0) return;
  int64_t parts = 1, elements = 0;
  for (const Product<T>& product : products) {
    parts = std::max(parts, product.parts);
    elements = std::max(elements, product.scratch);
  }
  check_scratch(static_cast<double>(elements) * sizeof(T));
  const Cut cut(shape, parts);
  const auto run_tasks = [&](int64_t task_begin, int64_t task_end) {
    Scratch<T> scratch(elements);
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t part = task % cut.parts;
      for (const Product<T>& product : products) {
        const int64_t begin = part * product.parts / cut.parts;
        const int64_t end = (part + 1) * product.parts / cut.parts;
        if (begin < end) product.run(scratch.data(), task / cut.parts, begin, end);
      }
    }
  };
  torch::stable::parallel_for(0, shape.batch * cut.parts, cut.grain, run_tasks);
}

// The sample that a correlation of this shape works on.
SampleShape sample_shape(const DynamicConvShape& shape, WeightOrder order) {
  const bool forward = order == WeightOrder::kForward;
  return {forward ? shape.in_channels : shape.out_channels,
          forward ? shape.out_channels : shape.in_channels, shape.height, shape.width,
          shape.kernel_size};
}

// The terms of sample b.
template <typename T>
std::vector<Term<T>> terms_of_sample(const DynamicConvShape& shape, const SampleShape& sample,
                                     const std::vector<Term<T>>& terms, int64_t b) {
  std::vector<Term<T>> moved = terms;
  for (Term<T>& term : moved) {
    term.input += b * sample.in_channels * sample.height * sample.width;
    term.weight += b * weight_size(shape);
  }
  return moved;
}

template <typename T>
Product<T> direct_correlation(const DynamicConvShape& shape, WeightOrder order,
                              const std::vector<Term<T>>& terms, T* output) {
  const SampleShape sample = sample_shape(shape, order);
  const DirectKernels<T>& kernels = direct_kernels<T>();
  const auto run = [=, &kernels](T* scratch, int64_t b, int64_t begin, int64_t end) {
    T* const to = output + b * sample.out_channels * shape.height * shape.width;
    bool accumulate = false;
    for (const Term<T>& term : terms_of_sample(shape, sample, terms, b)) {
      kernels.correlate(sample, order, term.input, term.weight, begin, end, accumulate, scratch,
                        to);
      accumulate = true;
    }
  };
  return {shape.height, kernels.correlate_scratch(sample), run};
}

Product<float> winograd_correlation(const DynamicConvShape& shape, WeightOrder order,
                                    const std::vector<Term<float>>& terms, float* output) {
  const SampleShape sample = sample_shape(shape, order);
  const WinogradKernels& kernels = winograd_kernels();
  const auto run = [=, &kernels](float* scratch, int64_t b, int64_t begin, int64_t end) {
    kernels.correlate(sample, order, terms_of_sample(shape, sample, terms, b).data(), terms.size(),
                      begin, end, scratch,
                      output + b * sample.out_channels * shape.height * shape.width);
  };
  return {kernels.correlate_parts(sample), kernels.correlate_scratch(sample, terms.size()), run};
}

// With DirectKernels or WinogradKernels, which cut a sample into `parts`.
template <typename T, typename Kernels>
Product<T> weight_gradient_with(const Kernels& kernels, int64_t parts,
                                const DynamicConvShape& shape, const T* grad, const T* input,
                                T* grad_weight) {
  const SampleShape sample = sample_shape(shape, WeightOrder::kForward);
  const auto run = [=, &kernels](T* scratch, int64_t b, int64_t begin, int64_t end) {
    const int64_t area = shape.height * shape.width;
    kernels.weight_grad(sample, grad + b * shape.out_channels * area,
                        input + b * shape.in_channels * area, begin, end, scratch,
                        grad_weight + b * weight_size(shape));
  };
  return {parts, kernels.weight_grad_scratch(sample), run};
}

// ---------------------------------------------------------------------------------- the choice

// In float32; other types have one algorithm.
bool takes_winograd(Algorithm algorithm, Primitive primitive, const DynamicConvShape& shape) {
  const Algorithm taken =
      algorithm == Algorithm::kAuto ? choose(primitive, shape, true) : algorithm;
  return taken == Algorithm::kWinograd;
}

// output = the sum of the terms' correlations. For kInputGrad the "input" is a gradient of the
// output, and the shape is still the one of the forward.
template <typename T>
Product<T> correlation(const DynamicConvShape& shape, WeightOrder order, Algorithm algorithm,
                       const std::vector<Term<T>>& terms, T* output) {
  if constexpr (std::is_same_v<T, float>) {
    const bool forward = order == WeightOrder::kForward;
    if (takes_winograd(algorithm, forward ? Primitive::kForward : Primitive::kInputGrad, shape))
      return winograd_correlation(shape, order, terms, output);
  }
  return direct_correlation(shape, order, terms, output);
}

template <typename T>
Product<T> weight_gradient(const DynamicConvShape& shape, Algorithm algorithm, const T* grad,
                           const T* input, T* grad_weight) {
  if constexpr (std::is_same_v<T, float>) {
    if (takes_winograd(algorithm, Primitive::kWeightGrad, shape)) {
      const WinogradKernels& kernels = winograd_kernels();
      const int64_t parts = kernels.weight_grad_parts(shape.out_channels);
      return weight_gradient_with(kernels, parts, shape, grad, input, grad_weight);
    }
  }
  return weight_gradient_with(direct_kernels<T>(), shape.out_channels, shape, grad, input,
                              grad_weight);
}

// ----------------------------------------------------------------------------- the torch layer

// Takes over a string of the dispatcher. A parameter of type std::string would be simpler, but
// torch's conversion to it (ToImpl<std::string>) never frees the copy that it makes.
Algorithm take_algorithm(StringHandle handle) {
  const auto check = [](AOTITorchError error) {
    STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "dynamic_conv2d: algorithm must be a string");
  };
  size_t length = 0;
  const char* name = nullptr;
  check(torch_string_length(handle, &length));
  check(torch_string_c_str(handle, &name));
  const std::string copy(name, length);
  check(torch_delete_string(handle));
  return algorithm_from_name(copy);
}

void check_algorithm(Algorithm algorithm, const DynamicConvShape& shape, const Tensor& like) {
  STD_TORCH_CHECK(can_run(algorithm, shape, like.scalar_type() == ScalarType::Float),
                  "dynamic_conv2d: algorithm ", algorithm_name(algorithm),
                  " cannot run with this dtype and kernel size");
}

void check_map(const Tensor& map, const char* name, const DynamicConvShape& shape,
               int64_t channels) {
  STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == shape.batch && map.size(1) == channels &&
                      map.size(2) == shape.height && map.size(3) == shape.width,
                  "dynamic_conv2d: ", name, " must be [", shape.batch, ", ", channels, ", ",
                  shape.height, ", ", shape.width, "]");
}

void check_weight(const Tensor& weight, const char* name, const DynamicConvShape& shape) {
  STD_TORCH_CHECK(weight.dim() == 5 && weight.size(0) == shape.batch &&
                      weight.size(1) == shape.out_channels && weight.size(2) == shape.in_channels &&
                      weight.size(3) == shape.kernel_size && weight.size(4) == shape.kernel_size,
                  "dynamic_conv2d: ", name, " must be [", shape.batch, ", ", shape.out_channels,
                  ", ", shape.in_channels, ", ", shape.kernel_size, ", ", shape.kernel_size, "]");
}

void check_shape(const DynamicConvShape& shape) {
  STD_TORCH_CHECK(shape.in_channels > 0 && shape.out_channels > 0 && shape.height > 0 &&
                      shape.width > 0 && shape.kernel_size % 2 == 1,
                  "dynamic_conv2d: sizes must be positive and the kernel size odd");
}

void check_type(const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == like.scalar_type(),
                  "dynamic_conv2d: all tensors must be on the CPU and of one dtype");
}

// Calls run with a null pointer of the element type of `like`.
template <typename Run>
void dispatch(const Tensor& like, const Run& run) {
  if (like.scalar_type() == ScalarType::Float) {
    run(static_cast<float*>(nullptr));
  } else {
    STD_TORCH_CHECK(like.scalar_type() == ScalarType::Double,
                    "dynamic_conv2d: dtype must be float32 or float64");
    run(static_cast<double*>(nullptr));
  }
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor dynamic_conv2d(const Tensor& input, const Tensor& weight, StringHandle algorithm_handle) {
  const Algorithm algorithm = take_algorithm(algorithm_handle);
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 5,
                  "dynamic_conv2d: input must be 4-D and weight 5-D");
  const DynamicConvShape shape{input.size(0), input.size(1), weight.size(1),
                               input.size(2), input.size(3), weight.size(3)};
  check_shape(shape);
  check_weight(weight, "weight", shape);
  check_type(weight, input);
  check_algorithm(algorithm, shape, input);
  const Tensor x = torch::stable::contiguous(input);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor output =
      torch::stable::new_empty(x, {shape.batch, shape.out_channels, shape.height, shape.width});
  dispatch(x, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    compute<T>(shape, {correlation<T>(shape, WeightOrder::kForward, algorithm,
                                      {{data<T>(x), data<T>(w)}}, mutable_data<T>(output))});
  });
  return output;
}

Tensor dynamic_conv2d_input_grad(const Tensor& grad, const Tensor& weight,
                                 StringHandle algorithm_handle) {
  const Algorithm algorithm = take_algorithm(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4 && weight.dim() == 5,
                  "dynamic_conv2d: grad must be 4-D and weight 5-D");
  const DynamicConvShape shape{grad.size(0), weight.size(2), grad.size(1),
                               grad.size(2), grad.size(3),   weight.size(3)};
  check_shape(shape);
  check_weight(weight, "weight", shape);
  check_type(weight, grad);
  check_algorithm(algorithm, shape, grad);
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor output =
      torch::stable::new_empty(g, {shape.batch, shape.in_channels, shape.height, shape.width});
  dispatch(g, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    compute<T>(shape, {correlation<T>(shape, WeightOrder::kInputGrad, algorithm,
                                      {{data<T>(g), data<T>(w)}}, mutable_data<T>(output))});
  });
  return output;
}

Tensor dynamic_conv2d_weight_grad(const Tensor& grad, const Tensor& input, int64_t kernel_size,
                                  StringHandle algorithm_handle) {
  const Algorithm algorithm = take_algorithm(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4 && input.dim() == 4,
                  "dynamic_conv2d: grad and input must be 4-D");
  const DynamicConvShape shape{input.size(0), input.size(1), grad.size(1),
                               input.size(2), input.size(3), kernel_size};
  check_shape(shape);
  check_map(grad, "grad", shape, shape.out_channels);
  check_type(grad, input);
  check_algorithm(algorithm, shape, grad);
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor x = torch::stable::contiguous(input);
  Tensor output = torch::stable::new_empty(
      g, {shape.batch, shape.out_channels, shape.in_channels, kernel_size, kernel_size});
  dispatch(g, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    compute<T>(shape, {weight_gradient<T>(shape, algorithm, data<T>(g), data<T>(x),
                                          mutable_data<T>(output))});
  });
  return output;
}

// Returns grad_g, grad_x and grad_w of dynamic_conv2d.h. What is not wanted, and what is zero
// because no cotangent reaches it, is an empty tensor of one dimension.
std::tuple<Tensor, Tensor, Tensor> dynamic_conv2d_double_backward(
    const Tensor& grad, std::optional<Tensor> input, std::optional<Tensor> weight,
    std::optional<Tensor> grad_grad_input, std::optional<Tensor> grad_grad_weight, bool want_grad,
    bool want_input, bool want_weight, StringHandle algorithm_handle) {
  const Algorithm algorithm = take_algorithm(algorithm_handle);
  STD_TORCH_CHECK(grad.dim() == 4, "dynamic_conv2d: grad must be 4-D");
  STD_TORCH_CHECK(grad_grad_input || grad_grad_weight,
                  "dynamic_conv2d: a double backward needs a cotangent");
  DynamicConvShape shape{grad.size(0), 0, grad.size(1), grad.size(2), grad.size(3), 0};
  const auto prepare_map = [&](const std::optional<Tensor>& map, const char* name) {
    check_map(*map, name, shape, shape.in_channels);
    check_type(*map, grad);
    return torch::stable::contiguous(*map);
  };
  const auto prepare_weight = [&](const std::optional<Tensor>& value, const char* name) {
    check_weight(*value, name, shape);
    check_type(*value, grad);
    return torch::stable::contiguous(*value);
  };
  // Any kernel-shaped tensor tells the channels and the kernel size; only the weight gradient of
  // ggx can do without one, and then `weight` must still be given.
  const std::optional<Tensor>& like = grad_grad_weight ? grad_grad_weight : weight;
  STD_TORCH_CHECK(like && like->dim() == 5, "dynamic_conv2d: weight must be given and 5-D");
  shape.in_channels = like->size(2);
  shape.kernel_size = like->size(3);
  check_shape(shape);
  check_algorithm(algorithm, shape, grad);

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
  dispatch(g, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    std::vector<Product<T>> products;
    if (want_grad) {
      std::vector<Term<T>> terms;
      if (ggx) terms.push_back({data<T>(*ggx), data<T>(*w)});
      if (ggw) terms.push_back({data<T>(*x), data<T>(*ggw)});
      products.push_back(correlation<T>(shape, WeightOrder::kForward, algorithm, terms,
                                        mutable_data<T>(grad_grad)));
    }
    if (input_wanted) {
      products.push_back(correlation<T>(shape, WeightOrder::kInputGrad, algorithm,
                                        {{data<T>(g), data<T>(*ggw)}},
                                        mutable_data<T>(grad_input)));
    }
    if (weight_wanted) {
      products.push_back(weight_gradient<T>(shape, algorithm, data<T>(g), data<T>(*ggx),
                                            mutable_data<T>(grad_weight)));
    }
    compute(shape, products);
  });
  return {grad_grad, grad_input, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d));
  m.impl("dynamic_conv2d_input_grad", TORCH_BOX(&dynamic_conv2d_input_grad));
  m.impl("dynamic_conv2d_weight_grad", TORCH_BOX(&dynamic_conv2d_weight_grad));
  m.impl("dynamic_conv2d_double_backward", TORCH_BOX(&dynamic_conv2d_double_backward));
}

}  // namespace mkdext::cpu
