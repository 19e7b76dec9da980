// The CPU side of dynamic_conv2d.h: tensors in, an algorithm chosen, tasks out to the threads.
//
// Parallel axis  (sample, part): a part is a range of output rows (forward, input gradient) or of
//                output channels (weight gradient). Each task writes only its own part, and where
//                the cuts fall changes no order of summation, so the bits do not depend on the
//                number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "../dynamic_conv2d_layer.h"
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
struct SampleWork {
  int64_t parts;    // into how many a sample can be cut
  int64_t scratch;  // elements of working memory
  // Computes the parts [begin, end) of sample b.
  std::function<void(T* scratch, int64_t b, int64_t begin, int64_t end)> run;
};

// Computes products that read the same tensors, on all threads: one sample's after the other, while
// the sample is in the cache.
template <typename T>
void compute(const DynamicConvShape& shape, const std::vector<SampleWork<T>>& works) {
  if (shape.batch == 0) return;
  int64_t parts = 1, elements = 0;
  for (const SampleWork<T>& work : works) {
    parts = std::max(parts, work.parts);
    elements = std::max(elements, work.scratch);
  }
  check_scratch(static_cast<double>(elements) * sizeof(T));
  const Cut cut(shape, parts);
  const auto run_tasks = [&](int64_t task_begin, int64_t task_end) {
    Scratch<T> scratch(elements);
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t part = task % cut.parts;
      for (const SampleWork<T>& work : works) {
        const int64_t begin = part * work.parts / cut.parts;
        const int64_t end = (part + 1) * work.parts / cut.parts;
        if (begin < end) work.run(scratch.data(), task / cut.parts, begin, end);
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
    term.map += b * sample.in_channels * sample.height * sample.width;
    term.weight += b * weight_size(shape);
  }
  return moved;
}

template <typename T>
SampleWork<T> direct_correlation(const DynamicConvShape& shape, WeightOrder order,
                                 const std::vector<Term<T>>& terms, T* output) {
  const SampleShape sample = sample_shape(shape, order);
  const DirectKernels<T>& kernels = direct_kernels<T>();
  const auto run = [=, &kernels](T* scratch, int64_t b, int64_t begin, int64_t end) {
    T* const to = output + b * sample.out_channels * shape.height * shape.width;
    bool accumulate = false;
    for (const Term<T>& term : terms_of_sample(shape, sample, terms, b)) {
      kernels.correlate(sample, order, term.map, term.weight, begin, end, accumulate, scratch, to);
      accumulate = true;
    }
  };
  return {shape.height, kernels.correlate_scratch(sample), run};
}

// Elements up to the next cache line.
int64_t aligned(int64_t elements) { return (elements + 15) / 16 * 16; }

WinogradSample contiguous_sample(const SampleShape& shape) {
  return {shape, contiguous_layout(shape), contiguous_layout(shape)};
}

SampleWork<float> winograd_correlation(const DynamicConvShape& shape, WeightOrder order,
                                       const std::vector<Term<float>>& terms, float* output) {
  const WinogradSample sample = contiguous_sample(sample_shape(shape, order));
  const WinogradKernels& kernels = winograd_kernels();
  const int64_t count = terms.size();
  const int64_t of_weights = aligned(kernels.weights_size(sample, count));
  const auto run = [=, &kernels](float* scratch, int64_t b, int64_t begin, int64_t end) {
    std::vector<const float*> maps, weights;
    for (const Term<float>& term : terms_of_sample(shape, sample.shape, terms, b)) {
      maps.push_back(term.map);
      weights.push_back(term.weight);
    }
    kernels.transform_weights(sample, order, weights.data(), count, scratch);
    kernels.correlate(sample, maps.data(), scratch, count, nullptr, begin, end,
                      scratch + of_weights,
                      output + b * sample.shape.out_channels * shape.height * shape.width);
  };
  return {kernels.rows(sample.shape), of_weights + kernels.correlate_scratch(sample, count), run};
}

// The maps and kernels of sample b for a weight gradient.
template <typename T>
struct WeightGradient {
  const T* grad;
  const T* input;
  T* grad_weight;

  WeightGradient of_sample(const DynamicConvShape& shape, int64_t b) const {
    const int64_t area = shape.height * shape.width;
    return {grad + b * shape.out_channels * area, input + b * shape.in_channels * area,
            grad_weight + b * weight_size(shape)};
  }
};

template <typename T>
SampleWork<T> direct_weight_gradient(const DynamicConvShape& shape,
                                     const WeightGradient<T>& tensors) {
  const SampleShape sample = sample_shape(shape, WeightOrder::kForward);
  const DirectKernels<T>& kernels = direct_kernels<T>();
  const auto run = [=, &kernels](T* scratch, int64_t b, int64_t begin, int64_t end) {
    const auto [grad, input, grad_weight] = tensors.of_sample(shape, b);
    kernels.weight_grad(sample, grad, input, begin, end, scratch, grad_weight);
  };
  return {shape.out_channels, kernels.weight_grad_scratch(sample), run};
}

SampleWork<float> winograd_weight_gradient(const DynamicConvShape& shape,
                                           const WeightGradient<float>& tensors) {
  const WinogradSample sample = contiguous_sample(sample_shape(shape, WeightOrder::kForward));
  const WinogradKernels& kernels = winograd_kernels();
  const int64_t of_sums = aligned(kernels.weight_grad_sums_size(sample));
  const auto run = [=, &kernels](float* scratch, int64_t b, int64_t begin, int64_t end) {
    const auto [grad, input, grad_weight] = tensors.of_sample(shape, b);
    const Part part{0, kernels.rows(sample.shape), begin, end};
    kernels.weight_grad_sums(sample, grad, input, part, false, false, scratch + of_sums, scratch);
    kernels.weight_grad(sample, scratch, 1, begin, end, scratch + of_sums, grad_weight, nullptr);
  };
  return {kernels.vectors(sample), of_sums + kernels.weight_grad_scratch(sample), run};
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
SampleWork<T> correlation(const DynamicConvShape& shape, WeightOrder order, Algorithm algorithm,
                          const std::vector<Term<T>>& terms, T* output) {
  if constexpr (std::is_same_v<T, float>) {
    const bool forward = order == WeightOrder::kForward;
    if (takes_winograd(algorithm, forward ? Primitive::kForward : Primitive::kInputGrad, shape))
      return winograd_correlation(shape, order, terms, output);
  }
  return direct_correlation(shape, order, terms, output);
}

template <typename T>
SampleWork<T> weight_gradient(const DynamicConvShape& shape, Algorithm algorithm,
                              const WeightGradient<T>& tensors) {
  if constexpr (std::is_same_v<T, float>) {
    if (takes_winograd(algorithm, Primitive::kWeightGrad, shape))
      return winograd_weight_gradient(shape, tensors);
  }
  return direct_weight_gradient(shape, tensors);
}

// ----------------------------------------------------------------------------- the torch layer

void check_algorithm(Algorithm algorithm, const DynamicConvShape& shape, bool is_float32) {
  STD_TORCH_CHECK(can_run(algorithm, shape, is_float32), "dynamic_conv2d: algorithm ",
                  algorithm_name(algorithm), " cannot run with this dtype and kernel size");
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// One product of the layer, on pointers.
template <typename T>
SampleWork<T> product_of(const DynamicConvShape& shape, Algorithm algorithm,
                         const layer::Product& product) {
  T* const output = static_cast<T*>(product.output.mutable_data_ptr());
  if (product.primitive == Primitive::kWeightGrad) {
    const layer::Operands& operands = product.terms[0];
    return weight_gradient<T>(shape, algorithm,
                              {data<T>(operands.map), data<T>(operands.other), output});
  }
  std::vector<Term<T>> terms;
  for (const layer::Operands& operands : product.terms)
    terms.push_back({data<T>(operands.map), data<T>(operands.other)});
  const bool forward = product.primitive == Primitive::kForward;
  return correlation<T>(shape, forward ? WeightOrder::kForward : WeightOrder::kInputGrad, algorithm,
                        terms, output);
}

template <typename T>
void compute_all(const DynamicConvShape& shape, Algorithm algorithm,
                 const std::vector<layer::Product>& products) {
  std::vector<SampleWork<T>> computed;
  for (const layer::Product& product : products)
    computed.push_back(product_of<T>(shape, algorithm, product));
  compute(shape, computed);
}

struct Backend {
  static constexpr const char* kPlace = "on the CPU";

  static bool accepts(const Tensor& tensor) { return tensor.is_cpu(); }

  static void compute(const std::string& name, const DynamicConvShape& shape,
                      const std::vector<layer::Product>& products) {
    const Algorithm algorithm = algorithm_from_name(name, &AlgorithmEntry::on_cpu);
    const ScalarType dtype = products[0].output.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "dynamic_conv2d: dtype must be float32 or float64");
    check_algorithm(algorithm, shape, dtype == ScalarType::Float);
    if (dtype == ScalarType::Float) {
      compute_all<float>(shape, algorithm, products);
    } else {
      compute_all<double>(shape, algorithm, products);
    }
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&layer::dynamic_conv2d<Backend>));
  m.impl("dynamic_conv2d_input_grad", TORCH_BOX(&layer::dynamic_conv2d_input_grad<Backend>));
  m.impl("dynamic_conv2d_weight_grad", TORCH_BOX(&layer::dynamic_conv2d_weight_grad<Backend>));
  m.impl("dynamic_conv2d_double_backward",
         TORCH_BOX(&layer::dynamic_conv2d_double_backward<Backend>));
}

}  // namespace mkdext::cpu
