// Winograd's algorithm for 3x3 kernels in float32, for one sample on one thread. The caller loops
// over samples and owns the threads.
#pragma once

#include <cstdint>

#include "sample.h"

namespace mkdext::cpu {

// A sample, and how its input, and its output or the gradient of that, lie in memory.
struct WinogradSample {
  SampleShape shape;
  MapLayout input;
  MapLayout output;
};

// Rows of tiles and vectors of output channels.
struct Part {
  int64_t row_begin;
  int64_t row_end;
  int64_t vector_begin;
  int64_t vector_end;
};

// Scratch memory and memory for results within the algorithm is counted in elements, and aligned to
// 64 bytes.
struct WinogradKernels {
  // Into how many rows of tiles a sample can be cut.
  int64_t (*rows)(const SampleShape& shape);

  // Memory of the transformed kernels of all terms, and the transform.
  int64_t (*weights_size)(const WinogradSample& sample, int64_t terms);
  void (*transform_weights)(const WinogradSample& sample, WeightOrder order,
                            const float* const* weights, int64_t terms, float* transformed);

  // The output's rows of tiles [begin, end) = the sum of the terms' correlations of maps with
  // transformed kernels, plus a number for each channel unless `bias` is null.
  int64_t (*correlate_scratch)(const WinogradSample& sample, int64_t terms);
  void (*correlate)(const WinogradSample& sample, const float* const* maps,
                    const float* transformed, int64_t terms, const float* bias, int64_t begin,
                    int64_t end, float* scratch, float* output);

  // Into how many vectors the output channels can be cut.
  int64_t (*vectors)(const WinogradSample& sample);

  // Memory of a group's sums, which make weight gradients, and of scratch for what follows.
  int64_t (*weight_grad_sums_size)(const WinogradSample& sample);
  int64_t (*weight_grad_scratch)(const WinogradSample& sample);

  // sums = (or +=, if add) those of a part of a sample; without a bias not those of its gradient.
  void (*weight_grad_sums)(const WinogradSample& sample, const float* grad, const float* input,
                           const Part& part, bool add, bool with_bias, float* scratch, float* sums);

  // The gradients of the weight, and of the bias unless it is null, for some vectors of output
  // channels, from the sums of groups that follow each other.
  void (*weight_grad)(const WinogradSample& sample, const float* sums, int64_t groups,
                      int64_t vector_begin, int64_t vector_end, float* scratch, float* grad_weight,
                      float* grad_bias);
};

// The kernels of the active instruction set.
const WinogradKernels& winograd_kernels();

}  // namespace mkdext::cpu
