// The Winograd algorithm of per-sample convolution, for one sample on one thread: 3x3 kernels in
// float32. The caller loops over samples and owns the threads.
#pragma once

#include <cstdint>

#include "../dynamic_conv2d.h"
#include "sample.h"

namespace mkdext::cpu {

struct WinogradKernels {
  // How many parts one sample can be cut into for `correlate`: rows of tiles.
  int64_t (*correlate_parts)(const SampleShape& shape);

  // Elements of scratch memory, aligned to 64 bytes, that `correlate` needs.
  int64_t (*correlate_scratch)(const SampleShape& shape, int64_t terms);

  // The output's rows of the parts [begin, end) = the sum of the terms' correlations.
  void (*correlate)(const SampleShape& shape, WeightOrder order, const Term<float>* terms,
                    int64_t term_count, int64_t begin, int64_t end, float* scratch, float* output);

  // How many parts one sample can be cut into for `weight_grad`: vectors of output channels.
  int64_t (*weight_grad_parts)(int64_t out_channels);

  // Elements of scratch memory, aligned to 64 bytes, that `weight_grad` needs.
  int64_t (*weight_grad_scratch)(const SampleShape& shape);

  // grad_weight's output channels of the parts [begin, end) = their weight gradient.
  void (*weight_grad)(const SampleShape& shape, const float* grad, const float* input,
                      int64_t begin, int64_t end, float* scratch, float* grad_weight);
};

// The kernels of the active instruction set.
const WinogradKernels& winograd_kernels();

}  // namespace mkdext::cpu
