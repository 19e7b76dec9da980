// Compiles one file of kernels once per instruction set. No include guard: a source file defines
// MKDEXT_KERNELS as the file's name and includes this, after every standard header it needs.
//
// The kernels are included with
//   MKDEXT_ISA            the namespace to put them in: portable, avx2, avx512
//   MKDEXT_VECTOR_BYTES   the width of a vector register
//   MKDEXT_VECTOR_COUNT   how many such registers there are
// The kernel file and simd.h, which goes before it, may include nothing: a standard inline function
// compiled here for AVX2 could be the copy that the linker keeps for the whole library, and crash
// on an older processor.

#define MKDEXT_ISA portable
#define MKDEXT_VECTOR_BYTES 16
#if defined(__aarch64__)
#define MKDEXT_VECTOR_COUNT 32
#else
#define MKDEXT_VECTOR_COUNT 16
#endif
#include "simd.h"
#include MKDEXT_KERNELS
#undef MKDEXT_ISA
#undef MKDEXT_VECTOR_BYTES
#undef MKDEXT_VECTOR_COUNT

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define MKDEXT_ISA avx2
#define MKDEXT_VECTOR_BYTES 32
#define MKDEXT_VECTOR_COUNT 16
#include "simd.h"
#include MKDEXT_KERNELS
#undef MKDEXT_ISA
#undef MKDEXT_VECTOR_BYTES
#undef MKDEXT_VECTOR_COUNT
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma")
#endif
#define MKDEXT_ISA avx512
#define MKDEXT_VECTOR_BYTES 64
#define MKDEXT_VECTOR_COUNT 32
#include "simd.h"
#include MKDEXT_KERNELS
#undef MKDEXT_ISA
#undef MKDEXT_VECTOR_BYTES
#undef MKDEXT_VECTOR_COUNT
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

#undef MKDEXT_KERNELS
