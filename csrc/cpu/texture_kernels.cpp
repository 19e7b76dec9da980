// The CPU side of texture_kernels.h.
//
// Equation       Both directions are separable: rows first, then columns.
//                  sums[s, v] = sum of the map's rows in row bin s
//                  y[s, t]    = sum of sums[s, :] in column bin t / (rows * columns)
// Memory layout  Map [B, C, H, W]; kernels [B, grid * grid, C, k, k]. The k row bins of a patch row
//                are made one after the other and then moved between the two layouts together, so
//                that each kernel of a channel, k * k neighbours, is touched once.
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
template <typename T>
struct Axis {
  Axis(int64_t length, int64_t grid, int64_t kernel_size) {
    for (int64_t p = 0; p < grid; ++p) {
      const Bin patch = adaptive_bin(p, grid, length);
      for (int64_t i = 0; i < kernel_size; ++i) {
        const Bin bin = adaptive_bin(i, kernel_size, patch.end - patch.begin);
        bins.push_back({patch.begin + bin.begin, patch.begin + bin.end});
        inverse.push_back(T(1) / T(bin.end - bin.begin));
      }
    }
    if (length % (grid * kernel_size) == 0) width = length / (grid * kernel_size);
  }

  int64_t count() const { return static_cast<int64_t>(bins.size()); }

  std::vector<Bin> bins;
  std::vector<T> inverse;  // 1 / the bin's length
  int64_t width = 0;       // of every bin, if the bins tile the axis; else 0
};

// Calls function<width of bins, k>() for the usual sizes, so that the compiler unrolls the loops;
// 0 stands for any other.
template <typename Function>
void with_constant_sizes(int64_t width, int64_t kernel_size, const Function& function) {
  if (kernel_size != 3) return function.template operator()<0, 0>();
  switch (width) {
    case 1:
      return function.template operator()<1, 3>();
    case 2:
      return function.template operator()<2, 3>();
    case 4:
      return function.template operator()<4, 3>();
    default:
      return function.template operator()<0, 3>();
  }
}

// means[t] = scale * the mean of row in column bin t.
template <int64_t kWidth, typename T>
void reduce_columns(const Axis<T>& columns, T scale, const T* __restrict row, T* __restrict means) {
  if constexpr (kWidth > 0) {
    const T factor = scale / T(kWidth);
    for (int64_t t = 0; t < columns.count(); ++t) {
      T sum = row[t * kWidth];
      for (int64_t v = 1; v < kWidth; ++v) sum += row[t * kWidth + v];
      means[t] = sum * factor;
    }
  } else {
    for (int64_t t = 0; t < columns.count(); ++t) {
      T sum = 0;
      for (int64_t v = columns.bins[t].begin; v < columns.bins[t].end; ++v) sum += row[v];
      means[t] = sum * (scale * columns.inverse[t]);
    }
  }
}

// The transpose of reduce_columns.
template <int64_t kWidth, typename T>
void spread_columns(const Axis<T>& columns, int64_t length, T scale, const T* __restrict means,
                    T* __restrict row) {
  if constexpr (kWidth > 0) {
    const T factor = scale / T(kWidth);
    for (int64_t t = 0; t < columns.count(); ++t) {
      for (int64_t v = 0; v < kWidth; ++v) row[t * kWidth + v] = means[t] * factor;
    }
  } else {
    std::fill(row, row + length, T(0));
    for (int64_t t = 0; t < columns.count(); ++t) {
      const T value = means[t] * (scale * columns.inverse[t]);
      for (int64_t v = columns.bins[t].begin; v < columns.bins[t].end; ++v) row[v] += value;
    }
  }
}

// Calls function(element of the kernel, element of means) for channel c of the kernels of patch row
// p, whose means are [k, grid * k].
template <int64_t kSize, typename Function>
void for_each_kernel_element(const TextureShape& shape, int64_t p, int64_t c,
                             const Function& function) {
  const int64_t k = kSize > 0 ? kSize : shape.kernel_size;
  for (int64_t q = 0; q < shape.grid; ++q) {
    const int64_t kernel = ((p * shape.grid + q) * shape.channels + c) * k * k;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        function(kernel + i * k + j, (i * shape.grid + q) * k + j);
      }
    }
  }
}

int64_t kernels_size(const TextureShape& shape) {
  return shape.grid * shape.grid * shape.channels * shape.kernel_size * shape.kernel_size;
}

// Fewer elements than this are not worth waking another thread.
constexpr int64_t kElementsPerThread = 65536;

int64_t planes_per_thread(const TextureShape& shape) {
  return std::max<int64_t>(1, kElementsPerThread / (shape.height * shape.width));
}

template <int64_t kWidth, int64_t kSize, typename T>
void reduce_plane(const TextureShape& shape, const Axis<T>& rows, const Axis<T>& columns, int64_t c,
                  const T* map, T* sums, T* means, T* kernels) {
  const int64_t k = shape.kernel_size, width = shape.width;
  for (int64_t p = 0; p < shape.grid; ++p) {
    for (int64_t i = 0; i < k; ++i) {
      const Bin bin = rows.bins[p * k + i];
      std::copy_n(map + bin.begin * width, width, sums);
      for (int64_t h = bin.begin + 1; h < bin.end; ++h) {
        for (int64_t v = 0; v < width; ++v) sums[v] += map[h * width + v];
      }
      reduce_columns<kWidth>(columns, rows.inverse[p * k + i], sums, means + i * columns.count());
    }
    for_each_kernel_element<kSize>(shape, p, c,
                                   [&](int64_t at, int64_t of) { kernels[at] = means[of]; });
  }
}

template <int64_t kWidth, int64_t kSize, typename T>
void spread_plane(const TextureShape& shape, const Axis<T>& rows, const Axis<T>& columns, int64_t c,
                  const T* kernels, T* sums, T* means, T* map) {
  const int64_t k = shape.kernel_size, width = shape.width;
  if (rows.width == 0) std::fill_n(map, shape.height * width, T(0));
  for (int64_t p = 0; p < shape.grid; ++p) {
    for_each_kernel_element<kSize>(shape, p, c,
                                   [&](int64_t at, int64_t of) { means[of] = kernels[at]; });
    for (int64_t i = 0; i < k; ++i) {
      const Bin bin = rows.bins[p * k + i];
      spread_columns<kWidth>(columns, width, rows.inverse[p * k + i], means + i * columns.count(),
                             sums);
      for (int64_t h = bin.begin; h < bin.end; ++h) {
        if (rows.width > 0) {
          std::copy_n(sums, width, map + h * width);
        } else {
          for (int64_t v = 0; v < width; ++v) map[h * width + v] += sums[v];
        }
      }
    }
  }
}

template <typename T>
void forward(const TextureShape& shape, const T* features, T* kernels) {
  const Axis<T> rows(shape.height, shape.grid, shape.kernel_size);
  const Axis<T> columns(shape.width, shape.grid, shape.kernel_size);
  with_constant_sizes(columns.width, shape.kernel_size, [&]<int64_t kWidth, int64_t kSize>() {
    const auto run = [&](int64_t begin, int64_t end) {
      std::vector<T> sums(shape.width), means(shape.kernel_size * columns.count());
      for (int64_t plane = begin; plane < end; ++plane) {
        reduce_plane<kWidth, kSize>(shape, rows, columns, plane % shape.channels,
                                    features + plane * shape.height * shape.width, sums.data(),
                                    means.data(),
                                    kernels + plane / shape.channels * kernels_size(shape));
      }
    };
    torch::stable::parallel_for(0, shape.batch * shape.channels, planes_per_thread(shape), run);
  });
}

template <typename T>
void transpose(const TextureShape& shape, const T* kernels, T* features) {
  const Axis<T> rows(shape.height, shape.grid, shape.kernel_size);
  const Axis<T> columns(shape.width, shape.grid, shape.kernel_size);
  with_constant_sizes(columns.width, shape.kernel_size, [&]<int64_t kWidth, int64_t kSize>() {
    const auto run = [&](int64_t begin, int64_t end) {
      std::vector<T> sums(shape.width), means(shape.kernel_size * columns.count());
      for (int64_t plane = begin; plane < end; ++plane) {
        spread_plane<kWidth, kSize>(shape, rows, columns, plane % shape.channels,
                                    kernels + plane / shape.channels * kernels_size(shape),
                                    sums.data(), means.data(),
                                    features + plane * shape.height * shape.width);
      }
    };
    torch::stable::parallel_for(0, shape.batch * shape.channels, planes_per_thread(shape), run);
  });
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
