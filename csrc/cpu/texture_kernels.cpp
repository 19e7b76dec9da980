// The CPU side of texture_kernels.h.
//
// Equation       Both directions are separable: rows first, then columns, or the reverse.
//                  sums[s, v] = sum of the map's rows in row bin s
//                  y[s, t]    = sum of sums[s, :] in column bin t / (rows * columns)
//                In the transpose positions take the place of bins: row h is the sum of the row
//                bins that hold it. Rows that the same bins hold are equal and made once.
// Memory layout  Map [B, C, H, W]; kernels [B, grid * grid, C, k, k]. A lane is a channel: kernels
//                of neighbouring channels are neighbours in memory, and every element of the
//                output is written once.
// Parallel axis  (sample, block of channels): a task reads or writes the planes of its channels and
//                the same channels of every kernel, which no other task touches.
// Accumulation   In the type of the data, rows and columns in their order, whatever the number of
//                threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../texture_kernels_layer.h"
#include "instruction_set.h"
#include "scratch.h"

namespace mkdext::cpu {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
};

// Positions that the same bins hold.
struct Segment {
  Range at;
  Range bins;
};

// The grid * k bins of one axis, in order. They begin and end in order too, so that the bins that
// hold a position are neighbours.
template <typename T>
struct AxisBins {
  const Range* bins;
  const T* inverse;         // 1 / the bin's length
  const Segment* segments;  // they tile the axis
  int64_t segment_count;
  int64_t reach;  // bins to keep, if made k at a time, until every segment has all of its own
};

// What texture_kernels_block.h compiles once per instruction set, for up to `lanes` channels.
template <typename T>
struct BlockKernels {
  int64_t lanes;
  // Elements of scratch memory, aligned to 64 bytes.
  int64_t (*forward_scratch)(const TextureShape& shape);
  void (*forward)(const TextureShape& shape, const AxisBins<T>& rows, const AxisBins<T>& columns,
                  int64_t channels, const T* maps, T* scratch, T* kernels);
  int64_t (*transpose_scratch)(const TextureShape& shape, const AxisBins<T>& rows);
  void (*transpose)(const TextureShape& shape, const AxisBins<T>& rows, const AxisBins<T>& columns,
                    int64_t channels, const T* kernels, T* scratch, T* maps);
};

}  // namespace
}  // namespace mkdext::cpu

#define MKDEXT_KERNELS "texture_kernels_block.h"
#include "per_instruction_set.h"

namespace mkdext::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
const BlockKernels<T>& block_kernels() {
#if defined(__x86_64__)
  switch (active_instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::kBlockKernels<T>;
    case InstructionSet::kAvx2:
      return avx2::kBlockKernels<T>;
    default:
      break;
  }
#endif
  return portable::kBlockKernels<T>;
}

Range adaptive_bin(int64_t index, int64_t count, int64_t length) {
  return {index * length / count, ((index + 1) * length + count - 1) / count};
}

template <typename T>
class Axis {
 public:
  Axis(int64_t length, int64_t grid, int64_t kernel_size) {
    for (int64_t p = 0; p < grid; ++p) {
      const Range patch = adaptive_bin(p, grid, length);
      for (int64_t i = 0; i < kernel_size; ++i) {
        const Range bin = adaptive_bin(i, kernel_size, patch.end - patch.begin);
        bins_.push_back({patch.begin + bin.begin, patch.begin + bin.end});
        inverse_.push_back(T(1) / T(bin.end - bin.begin));
      }
    }
    Range holders{0, 0};
    for (int64_t at = 0; at < length;) {
      while (bins_[holders.begin].end <= at) ++holders.begin;
      while (holders.end < grid * kernel_size && bins_[holders.end].begin <= at) ++holders.end;
      int64_t end = bins_[holders.begin].end;
      if (holders.end < grid * kernel_size) end = std::min(end, bins_[holders.end].begin);
      segments_.push_back({{at, end}, holders});
      const int64_t made = (holders.end + kernel_size - 1) / kernel_size * kernel_size;
      reach_ = std::max(reach_, made - holders.begin);
      at = end;
    }
  }

  AxisBins<T> view() const {
    return {bins_.data(), inverse_.data(), segments_.data(), static_cast<int64_t>(segments_.size()),
            reach_};
  }

 private:
  std::vector<Range> bins_;
  std::vector<T> inverse_;
  std::vector<Segment> segments_;
  int64_t reach_ = 0;
};

// Fewer elements than this are not worth waking another thread.
constexpr int64_t kElementsPerThread = 65536;

// Calls function(sample, first channel, channels) for every block of channels of every sample.
template <typename Function>
void for_each_block(const TextureShape& shape, int64_t lanes, const Function& function) {
  const int64_t blocks = (shape.channels + lanes - 1) / lanes;
  const int64_t elements = lanes * shape.height * shape.width;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / elements);
  torch::stable::parallel_for(0, shape.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task % blocks * lanes;
      function(task / blocks, c, std::min(lanes, shape.channels - c));
    }
  });
}

// Where channel c of a sample begins: its map, and its kernel of the first patch.
int64_t map_offset(const TextureShape& shape, int64_t sample, int64_t c) {
  return (sample * shape.channels + c) * shape.height * shape.width;
}

int64_t kernel_offset(const TextureShape& shape, int64_t sample, int64_t c) {
  return (sample * shape.grid * shape.grid * shape.channels + c) * shape.kernel_size *
         shape.kernel_size;
}

template <typename T>
void forward(const TextureShape& shape, const T* features, T* kernels) {
  const Axis<T> row_axis(shape.height, shape.grid, shape.kernel_size);
  const Axis<T> column_axis(shape.width, shape.grid, shape.kernel_size);
  const AxisBins<T> rows = row_axis.view(), columns = column_axis.view();
  const BlockKernels<T>& block = block_kernels<T>();
  for_each_block(shape, block.lanes, [&](int64_t sample, int64_t c, int64_t channels) {
    Scratch<T> scratch(block.forward_scratch(shape));
    block.forward(shape, rows, columns, channels, features + map_offset(shape, sample, c),
                  scratch.data(), kernels + kernel_offset(shape, sample, c));
  });
}

template <typename T>
void transpose(const TextureShape& shape, const T* kernels, T* features) {
  const Axis<T> row_axis(shape.height, shape.grid, shape.kernel_size);
  const Axis<T> column_axis(shape.width, shape.grid, shape.kernel_size);
  const AxisBins<T> rows = row_axis.view(), columns = column_axis.view();
  const BlockKernels<T>& block = block_kernels<T>();
  for_each_block(shape, block.lanes, [&](int64_t sample, int64_t c, int64_t channels) {
    Scratch<T> scratch(block.transpose_scratch(shape, rows));
    block.transpose(shape, rows, columns, channels, kernels + kernel_offset(shape, sample, c),
                    scratch.data(), features + map_offset(shape, sample, c));
  });
}

struct Backend {
  static void check(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cpu() && (tensor.scalar_type() == ScalarType::Float ||
                                        tensor.scalar_type() == ScalarType::Double),
                    "texture_kernels: tensor must be float32 or float64 on the CPU");
  }

  static void forward(const TextureShape& shape, const Tensor& features, const Tensor& kernels) {
    if (features.scalar_type() == ScalarType::Float) {
      cpu::forward(shape, data<float>(features), mutable_data<float>(kernels));
    } else {
      cpu::forward(shape, data<double>(features), mutable_data<double>(kernels));
    }
  }

  static void transpose(const TextureShape& shape, const Tensor& kernels, const Tensor& features) {
    if (kernels.scalar_type() == ScalarType::Float) {
      cpu::transpose(shape, data<float>(kernels), mutable_data<float>(features));
    } else {
      cpu::transpose(shape, data<double>(kernels), mutable_data<double>(features));
    }
  }

 private:
  template <typename T>
  static const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
  }
  template <typename T>
  static T* mutable_data(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CPU, m) {
  m.impl("texture_kernels", TORCH_BOX(&layer::texture_kernels<Backend>));
  m.impl("texture_kernels_transpose", TORCH_BOX(&layer::texture_kernels_transpose<Backend>));
}

}  // namespace mkdext::cpu
