// The kernels of texture_kernels.h on a GPU, and their launches; the arithmetic stands in
// texture_threads.h. Nothing waits, and nothing is allocated.
#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>

#include "launch.h"
#include "launch_check.h"
#include "texture_threads.h"

namespace mkdext::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, typename Sum, typename Index>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(TextureSizes<Index> sizes, const T* features, T* kernels, Index elements) {
  const Index at = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < elements) texture_forward<T, Sum>(sizes, features, kernels, at);
}

template <typename T, typename Sum, typename Index>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(TextureSizes<Index> sizes, const T* kernels, T* features, Index threads) {
  const Index at = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < threads) texture_transpose<T, Sum>(sizes, kernels, features, at);
}

// Calls run with null pointers of the element and of the accumulation type.
template <typename Run>
void dispatch(Precision precision, const Run& run) {
  float* const single = nullptr;
  switch (precision) {
    case Precision::kFloat64:
      return run(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case Precision::kBFloat16:
      return run(static_cast<c10::BFloat16*>(nullptr), single);
    case Precision::kFloat16:
      return run(static_cast<c10::Half*>(nullptr), single);
    default:
      return run(single, single);
  }
}

// Calls run with sizes of 32 bits if no index, the last thread's included, needs more.
template <typename Run>
void with_sizes(const TextureShape& shape, const Run& run) {
  const int64_t patches = shape.grid * shape.grid;
  const int64_t plane = std::max((shape.height + 1) * (shape.width + 1),
                                 patches * shape.kernel_size * shape.kernel_size);
  const int64_t axis =
      (std::max(shape.height, shape.width) + 1) * (std::max(shape.grid, shape.kernel_size) + 1);
  const int64_t channels = (shape.channels + kTextureChannels) * shape.batch;
  if (plane < INT32_MAX / 2 / channels && axis < INT32_MAX / 2) {
    run(TextureSizes<int32_t>(shape));
  } else {
    run(TextureSizes<int64_t>(shape));
  }
}

}  // namespace

void texture_kernels(Precision precision, const TextureShape& shape, const void* features,
                     void* kernels, void* stream) {
  if (shape.batch == 0) return;
  dispatch(precision, [&](auto* element, auto* accumulator) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Sum = std::remove_pointer_t<decltype(accumulator)>;
    with_sizes(shape, [&](auto sizes) {
      const auto elements = sizes.batch * sizes.grid * sizes.grid * sizes.channels *
                            sizes.kernel_size * sizes.kernel_size;
      forward_kernel<T, Sum><<<grid_size("texture_kernels", (elements - 1) / kThreads + 1),
                               kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          sizes, static_cast<const T*>(features), static_cast<T*>(kernels), elements);
    });
    check_launch("texture_kernels");
  });
}

void texture_kernels_transpose(Precision precision, const TextureShape& shape, const void* kernels,
                               void* features, void* stream) {
  if (shape.batch == 0) return;
  dispatch(precision, [&](auto* element, auto* accumulator) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Sum = std::remove_pointer_t<decltype(accumulator)>;
    with_sizes(shape, [&](auto sizes) {
      const auto threads = texture_transpose_threads(sizes);
      transpose_kernel<T, Sum><<<grid_size("texture_kernels", (threads - 1) / kThreads + 1),
                                 kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          sizes, static_cast<const T*>(kernels), static_cast<T*>(features), threads);
    });
    check_launch("texture_kernels");
  });
}

}  // namespace mkdext::cuda
