// From a request to launches: the same on a GPU and where the kernels are tested without one.
//
// A Launcher has
//   correlation<Kernel>(arguments, blocks)
//   weight_gradient<Kernel>(arguments, blocks)
//   addition(arguments, size): thread n of `size` calls add_parts(arguments, size, n)
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "launch.h"
#include "tiles.h"

namespace mkdext::cuda {

// Whether each of the rows of `length` elements can be copied so many bytes at a time.
template <typename T>
bool are_aligned(const void* rows, int64_t length, size_t bytes) {
  return is_multiple_of(rows, bytes) && length * sizeof(T) % bytes == 0;
}

template <typename T>
Correlation<T> job_of(const DynamicConvShape& shape, const CorrelationRequest& request) {
  Correlation<T> job{};
  job.channels = static_cast<int>(request.flipped ? shape.out_channels : shape.in_channels);
  job.outputs = static_cast<int>(request.flipped ? shape.in_channels : shape.out_channels);
  job.flipped = request.flipped;
  job.output = static_cast<T*>(request.output);
  job.aligned_maps = job.aligned_weights = shape.kernel_size == kTaps;
  for (const Term<void>& term : request.terms) {
    job.terms[job.term_count++] = {static_cast<const T*>(term.map),
                                   static_cast<const T*>(term.weight)};
    job.aligned_maps &= are_aligned<T>(term.map, shape.width, 4 * sizeof(T));
    // The kernels of an output, or flipped of a channel, are as long as the input channels.
    job.aligned_weights &= are_aligned<T>(term.weight, shape.in_channels * kTaps * kTaps, 16);
  }
  return job;
}

template <typename Kernel, typename Launcher>
void launch_correlations(Launcher& launcher, const Maps& maps,
                         const std::vector<Correlation<typename Kernel::Element>>& jobs) {
  CorrelationArguments<typename Kernel::Element> arguments{};
  arguments.maps = maps;
  int64_t blocks = 0;
  for (size_t n = 0; n < jobs.size(); ++n) {
    arguments.jobs[n] = jobs[n];
    blocks += Kernel::Grid::blocks(maps, jobs[n].outputs);
    if (n == 0) arguments.first_of_second = static_cast<int>(blocks);
  }
  launcher.template correlation<Kernel>(arguments, blocks);
}

template <typename Launcher>
void plan_correlations(Launcher& launcher, Precision precision, const DynamicConvShape& shape,
                       const std::vector<CorrelationRequest>& requests) {
  if (shape.batch == 0) return;
  const Maps maps = maps_of(shape);
  with_precision(precision, [&](auto* tag) {
    using Name = std::remove_pointer_t<decltype(tag)>;
    using T = typename Tiles<Name>::Element;
    std::vector<Correlation<T>> jobs;
    for (const CorrelationRequest& request : requests) jobs.push_back(job_of<T>(shape, request));
    const bool aligned = std::all_of(jobs.begin(), jobs.end(), [](const Correlation<T>& job) {
      return job.aligned_maps && job.aligned_weights;
    });
    with_correlation<Name>(maps, jobs.front().outputs, aligned, [&](auto* first) {
      with_correlation<Name>(maps, jobs.back().outputs, aligned, [&](auto* last) {
        using First = std::remove_pointer_t<decltype(first)>;
        using Last = std::remove_pointer_t<decltype(last)>;
        if constexpr (std::is_same_v<First, Last>) {
          launch_correlations<First>(launcher, maps, jobs);
        } else {
          launch_correlations<First>(launcher, maps, {jobs.front()});
          launch_correlations<Last>(launcher, maps, {jobs.back()});
        }
      });
    });
  });
}

// The same for aligned maps and others: it decides in which order parts are added up.
inline int plan_splits(Precision precision, const DynamicConvShape& shape) {
  const Maps maps = maps_of(shape);
  const auto outs = static_cast<int>(shape.out_channels);
  const auto ins = static_cast<int>(shape.in_channels);
  int splits = 1;
  with_precision(precision, [&](auto* tag) {
    using Name = std::remove_pointer_t<decltype(tag)>;
    with_weight_gradient<Name>(maps, outs, ins, true, [&](auto* kernel) {
      splits = splits_of<std::remove_pointer_t<decltype(kernel)>>(maps, outs, ins);
    });
  });
  return splits;
}

template <typename Launcher>
void plan_weight_gradient(Launcher& launcher, Precision precision, const DynamicConvShape& shape,
                          const void* grad, const void* input, void* partial, void* output) {
  if (shape.batch == 0) return;
  const Maps maps = maps_of(shape);
  const auto outs = static_cast<int>(shape.out_channels);
  const auto ins = static_cast<int>(shape.in_channels);
  with_precision(precision, [&](auto* tag) {
    using Name = std::remove_pointer_t<decltype(tag)>;
    using T = typename Tiles<Name>::Element;
    const bool aligned =
        are_aligned<T>(grad, shape.width, 16) && are_aligned<T>(input, shape.width, 16);
    with_weight_gradient<Name>(maps, outs, ins, aligned, [&](auto* kernel) {
      using Kernel = std::remove_pointer_t<decltype(kernel)>;
      using Sum = typename Kernel::Sum;
      WeightGradientArguments<T, Sum> arguments{};
      arguments.maps = maps;
      arguments.grad = static_cast<const T*>(grad);
      arguments.map = static_cast<const T*>(input);
      arguments.output = static_cast<T*>(output);
      arguments.in_channels = ins;
      arguments.out_channels = outs;
      arguments.splits = plan_splits(precision, shape);
      if (arguments.splits > 1) arguments.partial = static_cast<Sum*>(partial);
      launcher.template weight_gradient<Kernel>(
          arguments, arguments.splits * Kernel::Grid::blocks_of_one_split(maps, outs, ins));
      if (arguments.splits > 1)
        launcher.addition(arguments,
                          shape.batch * outs * ins * shape.kernel_size * shape.kernel_size);
    });
  });
}

}  // namespace mkdext::cuda
