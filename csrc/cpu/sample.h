// What the algorithms of per-sample convolution are told about one sample.
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

// How the weight of (output channel o, input channel c) is read: kForward takes w[o, c, i, j];
// kInputGrad takes w[c, o, k-1-i, k-1-j], which turns the correlation into the input gradient.
enum class WeightOrder { kForward, kInputGrad };

}  // namespace mkdext::cpu
