// The texture kernels of ../texture_kernels.h, thread by thread.
//
// Forward        A thread makes one element of the kernels: neighbouring threads write neighbours.
// Transpose      A thread makes one pixel of kChannels channels: neighbouring threads write
//                neighbours, and which bins hold the pixel is found out once for all channels.
// Parallel axis  Threads own disjoint elements of the output: there is no race.
// Accumulation   In float32, or float64 for float64; rows and columns in their order.
//
// Index is int32_t where the sizes allow it: divisions of 64 bits are slow on a GPU.
#pragma once

#include <cstdint>

#include "../texture_kernels.h"
#include "thread_block.h"

namespace mkdext::cuda {

template <typename Index>
struct TextureSizes {
  Index batch;
  Index channels;
  Index height;
  Index width;
  Index grid;
  Index kernel_size;

  explicit TextureSizes(const TextureShape& shape)
      : batch(static_cast<Index>(shape.batch)),
        channels(static_cast<Index>(shape.channels)),
        height(static_cast<Index>(shape.height)),
        width(static_cast<Index>(shape.width)),
        grid(static_cast<Index>(shape.grid)),
        kernel_size(static_cast<Index>(shape.kernel_size)) {}
};

template <typename Index>
struct IndexRange {
  Index begin;
  Index end;
};

// Part `index` of `count` of a length, as adaptive_bin does.
template <typename Index>
MKDEXT_DEVICE IndexRange<Index> part(Index index, Index count, Index length) {
  return {index * length / count, ((index + 1) * length + count - 1) / count};
}

// The parts that hold a position: those of `part` whose begin <= at < end.
template <typename Index>
MKDEXT_DEVICE IndexRange<Index> parts_that_hold(Index at, Index count, Index length) {
  return {at * count / length, ((at + 1) * count + length - 1) / length};
}

// Rows or columns of bin `i` of patch `p` of an axis.
template <typename Index>
MKDEXT_DEVICE IndexRange<Index> bin(Index p, Index i, Index length, Index grid, Index kernel_size) {
  const IndexRange<Index> patch = part(p, grid, length);
  const IndexRange<Index> within = part(i, kernel_size, patch.end - patch.begin);
  return {patch.begin + within.begin, patch.begin + within.end};
}

template <typename T, typename Sum, typename Index>
MKDEXT_DEVICE void texture_forward(const TextureSizes<Index>& sizes, const T* features, T* kernels,
                                   Index element) {
  const Index k = sizes.kernel_size;
  Index rest = element;
  const Index j = rest % k;
  rest /= k;
  const Index i = rest % k;
  rest /= k;
  const Index c = rest % sizes.channels;
  rest /= sizes.channels;
  const Index q = rest % sizes.grid;
  rest /= sizes.grid;
  const Index p = rest % sizes.grid, b = rest / sizes.grid;
  const IndexRange<Index> rows = bin(p, i, sizes.height, sizes.grid, k);
  const IndexRange<Index> columns = bin(q, j, sizes.width, sizes.grid, k);
  const T* const map = features + (b * sizes.channels + c) * sizes.height * sizes.width;
  Sum sum = 0;
  for (Index h = rows.begin; h < rows.end; ++h) {
    for (Index v = columns.begin; v < columns.end; ++v) {
      sum += static_cast<Sum>(map[h * sizes.width + v]);
    }
  }
  const Index count = (rows.end - rows.begin) * (columns.end - columns.begin);
  kernels[element] = static_cast<T>(sum / static_cast<Sum>(count));
}

constexpr int kTextureChannels = 8;  // of one thread of the transpose

template <typename Index>
MKDEXT_HOST_DEVICE Index texture_transpose_threads(const TextureSizes<Index>& sizes) {
  const Index groups = (sizes.channels + kTextureChannels - 1) / kTextureChannels;
  return sizes.batch * groups * sizes.height * sizes.width;
}

template <typename T, typename Sum, typename Index>
MKDEXT_DEVICE void texture_transpose(const TextureSizes<Index>& sizes, const T* kernels,
                                     T* features, Index thread) {
  const Index k = sizes.kernel_size, grid = sizes.grid;
  const Index groups = (sizes.channels + kTextureChannels - 1) / kTextureChannels;
  Index rest = thread;
  const Index v = rest % sizes.width;
  rest /= sizes.width;
  const Index h = rest % sizes.height;
  rest /= sizes.height;
  const Index first = rest % groups * kTextureChannels, b = rest / groups;
  Sum sums[kTextureChannels];
  MKDEXT_UNROLL for (int n = 0; n < kTextureChannels; ++n) sums[n] = 0;

  // Of one axis: the patches that hold a position, and the bins of a patch that do.
  const auto bins = [&](Index p, Index at, Index length) {
    const IndexRange<Index> patch = part(p, grid, length);
    return parts_that_hold(at - patch.begin, k, patch.end - patch.begin);
  };
  const auto size = [&](Index p, Index i, Index length) {
    const IndexRange<Index> range = bin(p, i, length, grid, k);
    return range.end - range.begin;
  };
  const IndexRange<Index> row_patches = parts_that_hold(h, grid, sizes.height);
  const IndexRange<Index> column_patches = parts_that_hold(v, grid, sizes.width);
  for (Index p = row_patches.begin; p < row_patches.end; ++p) {
    const IndexRange<Index> rows = bins(p, h, sizes.height);
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index row_count = size(p, i, sizes.height);
      for (Index q = column_patches.begin; q < column_patches.end; ++q) {
        const IndexRange<Index> columns = bins(q, v, sizes.width);
        const T* const patch =
            kernels + (((b * grid + p) * grid + q) * sizes.channels + first) * k * k;
        for (Index j = columns.begin; j < columns.end; ++j) {
          const Sum scale = Sum(1) / static_cast<Sum>(row_count * size(q, j, sizes.width));
          MKDEXT_UNROLL for (int n = 0; n < kTextureChannels; ++n) {
            if (first + n < sizes.channels)
              sums[n] += static_cast<Sum>(patch[(n * k + i) * k + j]) * scale;
          }
        }
      }
    }
  }
  T* const pixel = features + ((b * sizes.channels + first) * sizes.height + h) * sizes.width + v;
  MKDEXT_UNROLL for (int n = 0; n < kTextureChannels; ++n) {
    if (first + n < sizes.channels) pixel[n * sizes.height * sizes.width] = static_cast<T>(sums[n]);
  }
}

}  // namespace mkdext::cuda
