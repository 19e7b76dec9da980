// What the algorithms of convolution are told about one sample.
#pragma once

#include <cstdint>

namespace mkdext::cpu {

// A correlation of one sample: input [in_channels, height, width] -> output [out_channels, ...].
struct SampleShape {
  int64_t in_channels;
  int64_t out_channels;
  int64_t height;
  int64_t width;
  int64_t kernel_size;
};

// How a map [channels, height, width] of one sample lies in memory: elements from a channel, a row
// or a pixel of a row to the next. With a factor r above 1 it lies there as its pixel_shuffle(r):
// channel (c r + i) r + j of pixel (h, v) is channel c of pixel (r h + i, r v + j). The steps are
// still those of the map that is not shuffled; sub_row and sub_pixel are those of i and j.
struct MapLayout {
  int64_t channel;
  int64_t row;
  int64_t pixel;
  int64_t factor = 1;
  int64_t sub_row = 0;
  int64_t sub_pixel = 0;

  bool operator==(const MapLayout&) const = default;
};

inline MapLayout contiguous_layout(const SampleShape& shape) {
  return {shape.height * shape.width, shape.width, 1};
}

// How the weight of (output channel o, input channel c) is read: kForward takes w[o, c, i, j];
// kInputGrad takes w[c, o, k-1-i, k-1-j], which turns the correlation into the input gradient.
enum class WeightOrder { kForward, kInputGrad };

}  // namespace mkdext::cpu
