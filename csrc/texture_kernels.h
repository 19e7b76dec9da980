// Texture-aware kernels: a feature map cut into grid x grid patches, each averaged to k x k.
//
//   features [B, C, H, W]  ->  kernels [B, grid * grid, C, k, k]
//
// Patch (p, q) of the map is rows [floor(p H / grid), ceil((p+1) H / grid)) and the columns alike;
// bin (i, j) of a patch of L rows is its rows [floor(i L / k), ceil((i+1) L / k)) and the columns
// alike: the rule of adaptive average pooling, twice. Bins overlap when sizes do not divide and are
// never empty. Where grid divides H and W the whole equals adaptive average pooling of the map to
// (grid * k) x (grid * k).
//
//   forward     y[b, p grid + q, c, i, j] = mean of x[b, c, h, v] over the bin's rows and columns
//   transpose   x[b, c, h, v] = sum over the bins that hold (h, v) of y / (bin's rows * columns)
//
// Linear, so the transpose is the gradient of the forward, and the forward that of the transpose.
// Tensors are contiguous float32 or float64; B >= 0 and all other sizes >= 1.
#pragma once

#include <cstdint>

namespace mkdext {

struct TextureShape {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t grid;
  int64_t kernel_size;
};

}  // namespace mkdext
