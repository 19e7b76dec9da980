// The types that tensor cores multiply, packed in 32-bit words; sums are float32.
//
// pack         makes a word of kPerWord elements.
// split        makes kParts operands of a word, on its way from shared memory to the tensor cores;
//              they stand `apart` from each other.
// multiply_add is mma.sync m16n8k8 (tf32) or m16n8k16 (bf16, fp16), or a few of them:
//              sum [16, 8] += a [16, K] b [K, 8], where K is 8 words.
//
// With g = lane / 4 and t = lane % 4 a lane holds, in words along K,
//
//   a[0..3]   = A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4)
//   b[0..1]   = B(t, g), B(t + 4, g)
//   sum[0..3] = C(g, 2t), C(g, 2t + 1), C(g + 8, 2t), C(g + 8, 2t + 1)
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kWordsPerStep = 8;  // along K

#if defined(__CUDACC__)
#define MKDEXT_MMA(shape, sum, a, b)                                              \
  asm volatile("mma.sync.aligned." shape                                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"((sum)[0]), "+f"((sum)[1]), "+f"((sum)[2]), "+f"((sum)[3])   \
               : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"((b)[0]), "r"((b)[1]))
#define MKDEXT_MULTIPLY_ADD(shape)                                                   \
  static __device__ __forceinline__ void multiply_add(float* sum, const uint32_t* a, \
                                                      const uint32_t* b) {           \
    MKDEXT_MMA(shape, sum, a, b);                                                    \
  }
#else
#define MKDEXT_MULTIPLY_ADD(shape)
#endif

// A word is one float32.
struct Single {
  using Element = float;
  static constexpr int kPerWord = 1;

  static MKDEXT_DEVICE uint32_t pack(const float* value) { return bits_of(*value); }

  static MKDEXT_DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  static MKDEXT_DEVICE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
};

struct Tf32 : Single {
  static constexpr int kParts = 1;

  // Rounded to the 10 bits of a tf32 mantissa, ties away from zero.
  static MKDEXT_DEVICE void split(uint32_t word, uint32_t* parts, int) {
#if defined(__CUDACC__)
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(*parts) : "f"(float_of(word)));
#else
    const bool finite = (word & 0x7f800000) != 0x7f800000;
    *parts = finite ? (word + 0x1000) & ~uint32_t{0x1fff} : word;
#endif
  }

  MKDEXT_MULTIPLY_ADD("m16n8k8.row.col.f32.tf32.tf32.f32")
};

// float32 as the sum of two tf32, a large and a small one. Of their four products that of the small
// ones is left out, at most 2^-20 of the whole and mostly far less; a small one is rounded, by
// 2^-22 of the whole.
struct Tf32x3 : Single {
  static constexpr int kParts = 2;

  // The small part has the sign of the number, and is 0 only of 0 and of numbers below 2^-137: an
  // infinity times a number whose rest is 0 must not be NaN, which infinity times 0 is.
  static MKDEXT_DEVICE void split(uint32_t word, uint32_t* parts, int apart) {
    const uint32_t large = word & 0xffffe000;
    const float value = float_of(word);
    const float rest = fabsf(value - float_of(large));             // NaN of an infinity,
    const float small = fmaxf(rest, fminf(fabsf(value), kLeast));  // which fmaxf leaves out
    parts[0] = large;
    const uint32_t rounded = (bits_of(small) + 0x1000) & 0x7fffe000;
    parts[apart] = rounded | (word & 0x80000000);
  }

#if defined(__CUDACC__)
  // Tensor cores cut off what their sums have too much, always towards zero; so only eight products
  // are added up there, and the rest is added to the sum outside, where it is rounded.
  static __device__ __forceinline__ void multiply_add(float* sum, const uint32_t* a,
                                                      const uint32_t* b) {
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    MKDEXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", part, a + 4, b);
    MKDEXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", part, a, b + 2);
    MKDEXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", part, a, b);
    // Volatile like the products: the compiler would let the parts of many wait in registers.
    MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
      asm volatile("add.f32 %0, %0, %1;" : "+f"(sum[q]) : "f"(part[q]));
    }
  }
#endif

 private:
  static constexpr float kLeast = 0x1p-126f;
};

// Two elements to a word, the first one in the lower half.
template <typename T>
struct SixteenBits {
  using Element = T;
  static constexpr int kPerWord = 2;
  static constexpr int kParts = 1;

  static MKDEXT_DEVICE uint32_t pack(const T* values) {
    return values[0].x | static_cast<uint32_t>(values[1].x) << 16;
  }

  static MKDEXT_DEVICE void split(uint32_t word, uint32_t* parts, int) { *parts = word; }
};

struct Bf16 : SixteenBits<c10::BFloat16> {
  MKDEXT_MULTIPLY_ADD("m16n8k16.row.col.f32.bf16.bf16.f32")
};

struct Fp16 : SixteenBits<c10::Half> {
  MKDEXT_MULTIPLY_ADD("m16n8k16.row.col.f32.f16.f16.f32")
};

#undef MKDEXT_MULTIPLY_ADD
#undef MKDEXT_MMA

}  // namespace mkdext::cuda
