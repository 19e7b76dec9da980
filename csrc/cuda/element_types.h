// The types that tensor cores multiply, packed in 32-bit words; sums are float32.
//
// Type::multiply_add is mma.sync m16n8k8 (tf32) or m16n8k16 (bf16, fp16): sum [16, 8] += a [16, K]
// b [K, 8], where K is 8 words. With g = lane / 4 and t = lane % 4 a lane holds, in words along K,
//
//   a[0..3] = A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4)      b[0..1] = B(t, g), B(t + 4,
//   g) sum[0..3] = C(g, 2t), C(g, 2t + 1), C(g + 8, 2t), C(g + 8, 2t + 1)
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kWordsPerStep = 8;  // along K

#if defined(__CUDACC__)
#define MKDEXT_MMA(shape)                                                         \
  asm volatile("mma.sync.aligned." shape                                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define MKDEXT_MULTIPLY_ADD(shape)                                                   \
  static __device__ __forceinline__ void multiply_add(float* sum, const uint32_t* a, \
                                                      const uint32_t* b) {           \
    MKDEXT_MMA(shape);                                                               \
  }
#else
#define MKDEXT_MULTIPLY_ADD(shape)
#endif

struct Tf32 {
  using Element = float;
  static constexpr int kPerWord = 1;

  // Rounded to the 10 bits of a tf32 mantissa, ties away from zero.
  static MKDEXT_DEVICE uint32_t pack(const float* values) {
#if defined(__CUDACC__)
    uint32_t word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(*values));
    return word;
#else
    uint32_t word;
    std::memcpy(&word, values, sizeof word);
    const bool finite = (word & 0x7f800000) != 0x7f800000;
    return finite ? (word + 0x1000) & ~uint32_t{0x1fff} : word;
#endif
  }

  MKDEXT_MULTIPLY_ADD("m16n8k8.row.col.f32.tf32.tf32.f32")
};

// Two elements to a word, the first one in the lower half.
template <typename T>
struct SixteenBits {
  using Element = T;
  static constexpr int kPerWord = 2;

  static MKDEXT_DEVICE uint32_t pack(const T* values) {
    return values[0].x | static_cast<uint32_t>(values[1].x) << 16;
  }
};

struct Bf16 : SixteenBits<c10::BFloat16> {
  MKDEXT_MULTIPLY_ADD("m16n8k16.row.col.f32.bf16.bf16.f32")
};

struct Fp16 : SixteenBits<c10::Half> {
  MKDEXT_MULTIPLY_ADD("m16n8k16.row.col.f32.f16.f16.f32")
};

#undef MKDEXT_MULTIPLY_ADD

}  // namespace mkdext::cuda
