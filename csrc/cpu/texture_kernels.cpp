// The CPU side of texture_kernels.h.
//
// Equation       Both directions are separable: rows first, then columns.
//                  sums[s, v] = sum of the map's rows in row bin s
//                  y[s, t]    = sum of sums[s, :] in column bin t / (rows * columns)
// Memory layout  Map [B, C, H, W]; kernels [B, grid * grid, C, k, k]; one row of sums per task.
// Parallel axis  (sample, channel): a task reads or writes one plane of the map and the same
//                channel of every kernel, which no other task touches.
// Accumulation   In the type of the data, row by row and then column by column, whatever the number
//                of threads.
#include "../texture_kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

namespace mkdext::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Bin {
  int64_t begin;
  int64_t end;
};

Bin adaptive_bin(int64_t index, int64_t count, int64_t length) {
  return {index * length / count, ((index + 1) * length + count - 1) / count};
}

// The grid * k bins of one axis, in order.
std::vector<Bin> axis_bins(int64_t length, int64_t grid, int64_t kernel_size) {
  std::vector<Bin> bins;
  bins.reserve(grid * kernel_size);
  for (int64_t p = 0; p < grid; ++p) {
    const Bin patch = adaptive_bin(p, grid, length);
    for (int64_t i = 0; i < kernel_size; ++i) {
      const Bin bin = adaptive_bin(i, kernel_size, patch.end - patch.begin);
      bins.push_back({patch.begin + bin.begin, patch.begin + bin.end});
    }
  }
  return bins;
}

// Where element (row bin s, column bin t) of channel c of a sample lies among its kernels.
int64_t kernel_index(const TextureShape& shape, int64_t s, int64_t t, int64_t c) {
  const int64_t k = shape.kernel_size;
  const int64_t patch = s / k * shape.grid + t / k;
  return ((patch * shape.channels + c) * k + s % k) * k + t % k;
}

int64_t kernels_size(const TextureShape& shape) {
  return shape.grid * shape.grid * shape.channels * shape.kernel_size * shape.kernel_size;
}

// Fewer elements than this are not worth waking another thread.
constexpr int64_t kElementsPerThread = 65536;

int64_t planes_per_thread(const TextureShape& shape) {
  return std::max<int64_t>(1, kElementsPerThread / (shape.height * shape.width));
}

template <typename T>
void forward(const TextureShape& shape, const T* features, T* kernels) {
  const std::vector<Bin> rows = axis_bins(shape.height, shape.grid, shape.kernel_size);
  const std::vector<Bin> columns = axis_bins(shape.width, shape.grid, shape.kernel_size);
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<T> sums(shape.width);
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* map = features + plane * shape.height * shape.width;
      T* out = kernels + plane / shape.channels * kernels_size(shape);
      const int64_t c = plane % shape.channels;
      for (size_t s = 0; s < rows.size(); ++s) {
        std::fill(sums.begin(), sums.end(), T(0));
        for (int64_t h = rows[s].begin; h < rows[s].end; ++h) {
          for (int64_t v = 0; v < shape.width; ++v) sums[v] += map[h * shape.width + v];
        }
        for (size_t t = 0; t < columns.size(); ++t) {
          T sum = 0;
          for (int64_t v = columns[t].begin; v < columns[t].end; ++v) sum += sums[v];
          const int64_t count = (rows[s].end - rows[s].begin) * (columns[t].end - columns[t].begin);
          out[kernel_index(shape, s, t, c)] = sum / T(count);
        }
      }
    }
  };
  torch::stable::parallel_for(0, shape.batch * shape.channels, planes_per_thread(shape), run);
}

template <typename T>
void transpose(const TextureShape& shape, const T* kernels, T* features) {
  const std::vector<Bin> rows = axis_bins(shape.height, shape.grid, shape.kernel_size);
  const std::vector<Bin> columns = axis_bins(shape.width, shape.grid, shape.kernel_size);
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<T> sums(shape.width);
    for (int64_t plane = begin; plane < end; ++plane) {
      T* map = features + plane * shape.height * shape.width;
      const T* in = kernels + plane / shape.channels * kernels_size(shape);
      const int64_t c = plane % shape.channels;
      std::fill(map, map + shape.height * shape.width, T(0));
      for (size_t s = 0; s < rows.size(); ++s) {
        std::fill(sums.begin(), sums.end(), T(0));
        for (size_t t = 0; t < columns.size(); ++t) {
          const int64_t count = (rows[s].end - rows[s].begin) * (columns[t].end - columns[t].begin);
          const T value = in[kernel_index(shape, s, t, c)] / T(count);
          for (int64_t v = columns[t].begin; v < columns[t].end; ++v) sums[v] += value;
        }
        for (int64_t h = rows[s].begin; h < rows[s].end; ++h) {
          for (int64_t v = 0; v < shape.width; ++v) map[h * shape.width + v] += sums[v];
        }
      }
    }
  };
  torch::stable::parallel_for(0, shape.batch * shape.channels, planes_per_thread(shape), run);
}

// ----------------------------------------------------------------------------- the torch layer

void check(const Tensor& tensor, const TextureShape& shape) {
  STD_TORCH_CHECK(tensor.is_cpu() && (tensor.scalar_type() == ScalarType::Float ||
                                      tensor.scalar_type() == ScalarType::Double),
                  "texture_kernels: tensor must be float32 or float64 on the CPU");
  STD_TORCH_CHECK(shape.channels > 0 && shape.height > 0 && shape.width > 0 && shape.grid > 0 &&
                      shape.kernel_size > 0,
                  "texture_kernels: sizes must be positive");
}

Tensor texture_kernels(const Tensor& features, int64_t grid, int64_t kernel_size) {
  STD_TORCH_CHECK(features.dim() == 4, "texture_kernels: features must be 4-D");
  const TextureShape shape{
      features.size(0), features.size(1), features.size(2), features.size(3), grid, kernel_size};
  check(features, shape);
  const Tensor x = torch::stable::contiguous(features);
  Tensor output = torch::stable::new_empty(
      x, {shape.batch, grid * grid, shape.channels, kernel_size, kernel_size});
  if (x.scalar_type() == ScalarType::Float) {
    forward(shape, static_cast<const float*>(x.const_data_ptr()),
            static_cast<float*>(output.mutable_data_ptr()));
  } else {
    forward(shape, static_cast<const double*>(x.const_data_ptr()),
            static_cast<double*>(output.mutable_data_ptr()));
  }
  return output;
}

Tensor texture_kernels_transpose(const Tensor& kernels, int64_t grid, int64_t height,
                                 int64_t width) {
  STD_TORCH_CHECK(
      kernels.dim() == 5 && kernels.size(1) == grid * grid && kernels.size(3) == kernels.size(4),
      "texture_kernels: kernels must be [B, grid * grid, C, k, k]");
  const TextureShape shape{kernels.size(0), kernels.size(2), height, width, grid, kernels.size(3)};
  check(kernels, shape);
  const Tensor y = torch::stable::contiguous(kernels);
  Tensor output = torch::stable::new_empty(y, {shape.batch, shape.channels, height, width});
  if (y.scalar_type() == ScalarType::Float) {
    transpose(shape, static_cast<const float*>(y.const_data_ptr()),
              static_cast<float*>(output.mutable_data_ptr()));
  } else {
    transpose(shape, static_cast<const double*>(y.const_data_ptr()),
              static_cast<double*>(output.mutable_data_ptr()));
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CPU, m) {
  m.impl("texture_kernels", TORCH_BOX(&texture_kernels));
  m.impl("texture_kernels_transpose", TORCH_BOX(&texture_kernels_transpose));
}

}  // namespace mkdext::cpu
