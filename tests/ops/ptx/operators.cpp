// The functions of csrc/cuda/launch.h for ctypes, as ../cuda_arithmetic.cpp has them.
//
// Precisions are numbered as in launch.h; shapes are {B, Ci, Co, H, W, k}. Pointers are the host's.
#include <cstdint>
#include <vector>

#include "../../../csrc/cuda/launch.h"

extern "C" {

using mkdext::cuda::CorrelationRequest;
using mkdext::cuda::Precision;

int launches();

// One or two correlations: the terms of the first, then those of the second; returns the launches.
int correlate(int precision, const int64_t* s, int count, const bool* flipped, const int* terms,
              const void** maps, const void** weights, void** outputs) {
  std::vector<CorrelationRequest> requests;
  for (int n = 0; n < count; ++n) {
    requests.push_back({flipped[n], {}, outputs[n]});
    for (int term = 0; term < terms[n]; ++term)
      requests.back().terms.push_back({*maps++, *weights++});
  }
  const int before = launches();
  mkdext::cuda::correlate(static_cast<Precision>(precision), {s[0], s[1], s[2], s[3], s[4], s[5]},
                          requests, nullptr);
  return launches() - before;
}

int splits(int precision, const int64_t* s) {
  return mkdext::cuda::weight_gradient_splits(static_cast<Precision>(precision),
                                              {s[0], s[1], s[2], s[3], s[4], s[5]});
}

int weight_gradient(int precision, const int64_t* s, const void* grad, const void* input,
                    void* partial, void* output) {
  const int before = launches();
  mkdext::cuda::weight_gradient(static_cast<Precision>(precision),
                                {s[0], s[1], s[2], s[3], s[4], s[5]}, grad, input, partial, output,
                                nullptr);
  return launches() - before;
}

// The shape is {B, C, H, W, grid, k}.
void texture(int precision, const int64_t* s, bool transpose, const void* from, void* to) {
  const auto run =
      transpose ? mkdext::cuda::texture_kernels_transpose : mkdext::cuda::texture_kernels;
  run(static_cast<Precision>(precision), {s[0], s[1], s[2], s[3], s[4], s[5]}, from, to, nullptr);
}

}  // extern "C"
