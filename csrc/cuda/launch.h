// What the torch layer asks of the kernels: pointers, shapes and a stream (a cudaStream_t).
#pragma once

#include <cstdint>
#include <vector>

#include "../dynamic_conv2d.h"
#include "../texture_kernels.h"

namespace mkdext::cuda {

// The dtype of the tensors, and for float32 how: on multiply-add units, rounded to tf32 on tensor
// cores, or as sums of two tf32 there.
enum class Precision { kFloat32, kTf32, kTf32x3, kFloat64, kBFloat16, kFloat16 };

struct CorrelationRequest {
  bool flipped;                   // the input gradient
  std::vector<Term<void>> terms;  // at most 2
  void* output;
};

// Computes up to two correlations that do not depend on each other, in one launch if it can.
void correlate(Precision precision, const DynamicConvShape& shape,
               const std::vector<CorrelationRequest>& requests, void* stream);

// Into how many parts the weight gradient cuts its sum over pixels. With more than one it needs
// memory for the parts, each of the size of the result, of float32, or float64 for float64.
int weight_gradient_splits(Precision precision, const DynamicConvShape& shape);

// `partial` may be null if there is one part.
void weight_gradient(Precision precision, const DynamicConvShape& shape, const void* grad,
                     const void* input, void* partial, void* output, void* stream);

void texture_kernels(Precision precision, const TextureShape& shape, const void* features,
                     void* kernels, void* stream);
void texture_kernels_transpose(Precision precision, const TextureShape& shape, const void* kernels,
                               void* features, void* stream);

}  // namespace mkdext::cuda
