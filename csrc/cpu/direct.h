// The direct algorithm of per-sample convolution, for one sample on one thread: any odd kernel
// size, any sizes, float32 and float64. The caller loops over samples and owns the threads.
#pragma once

#include <cstdint>

#include "sample.h"

namespace mkdext::cpu {

template <typename T>
struct DirectKernels {
  // Elements of scratch memory, aligned to 64 bytes, that `correlate` needs.
  int64_t (*correlate_scratch)(const SampleShape& shape);

  // output[:, row_begin:row_end] = (or +=, if accumulate) the correlation of input with weight.
  void (*correlate)(const SampleShape& shape, WeightOrder order, const T* input, const T* weight,
                    int64_t row_begin, int64_t row_end, bool accumulate, T* scratch, T* output);

  // Elements of scratch memory, aligned to 64 bytes, that `weight_grad` needs.
  int64_t (*weight_grad_scratch)(const SampleShape& shape);

  // grad_weight[channel_begin:channel_end] = the weight gradient of those output channels.
  void (*weight_grad)(const SampleShape& shape, const T* grad, const T* input,
                      int64_t channel_begin, int64_t channel_end, T* scratch, T* grad_weight);
};

// The kernels of the active instruction set, for float and double.
template <typename T>
const DirectKernels<T>& direct_kernels();

}  // namespace mkdext::cpu
