// What the kernels for tensor cores share: pitches of shared memory, and how it is filled.
#pragma once

#include <cstdint>

#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kLanes = 32;
constexpr int kFragmentRows = 16;
constexpr int kFragmentColumns = 8;
constexpr int kBytesOfPiece = 16;  // that are copied at once
constexpr int kWordsOfPiece = kBytesOfPiece / 4;

// The least pitch of at least `words` that is 8 beyond a multiple of 16 banks.
constexpr int pitch_of_planes(int words) {
  while (words % 16 != 8) ++words;
  return words;
}

// The least pitch of at least `words` that is an odd multiple of 4 banks.
constexpr int pitch_of_rows(int words) {
  while (words % 8 != 4) ++words;
  return words;
}

// One half of `a`, and above it one half of `b`; 1 means the upper half.
MKDEXT_DEVICE uint32_t join(uint32_t a, int half_of_a, uint32_t b, int half_of_b) {
#if defined(__CUDACC__)
  return __byte_perm(a, b, (half_of_a ? 0x32 : 0x10) | (half_of_b ? 0x7600 : 0x5400));
#else
  return (half_of_a ? a >> 16 : a & 0xffff) | (half_of_b ? b & 0xffff0000 : b << 16);
#endif
}

// copy(place, n) for the kPlaces of every n < kCount. A thread takes one place of several n, so
// that what depends on the place is computed once.
template <int kPlaces, int kCount, int kThreads, typename Copy>
MKDEXT_DEVICE void copy_places(int thread, const Copy& copy) {
  constexpr int kTogether = kThreads / kPlaces;
  static_assert(kTogether > 0);
  thread = anew(thread);
  const int place = thread % kPlaces, first = thread / kPlaces;
  if (first >= kTogether) return;
  MKDEXT_UNROLL for (int n = 0; n < kCount; n += kTogether) {
    if (n + kTogether <= kCount || n + first < kCount) copy(place, n + first);
  }
}

// store(n, load(n)) for the n < kCount of a thread. It loads a batch before it stores any, so that
// the loads are on their way together; for that `load` must have no branch.
template <int kCount, int kThreads, typename Load, typename Store>
MKDEXT_DEVICE void copy_in_batches(int thread, const Load& load, const Store& store) {
  constexpr int kMost = 8;  // more would not fit the registers of a thread
  constexpr int kEach = (kCount + kThreads - 1) / kThreads;
  constexpr int kBatches = (kEach + kMost - 1) / kMost;
  constexpr int kBatch = (kEach + kBatches - 1) / kBatches;
  MKDEXT_NO_UNROLL for (int batch = 0; batch < kBatches; ++batch) {
    const int first = anew(thread) + batch * (kBatch * kThreads);
    decltype(load(0)) values[kBatch];
    MKDEXT_UNROLL for (int n = 0; n < kBatch; ++n) {
      values[n] = load(smaller(first + n * kThreads, kCount - 1));
    }
    MKDEXT_UNROLL for (int n = 0; n < kBatch; ++n) {
      if (first + n * kThreads < kCount) store(first + n * kThreads, values[n]);
    }
  }
}

// What lies at `from`, or 0 if not `valid`. To read a 0 takes no predicate register until the load
// ends, and there are seven.
template <typename Value>
MKDEXT_DEVICE Value load_if(bool valid, const Value* from) {
  static const Value kZero{};
  return *(valid ? from : &kZero);
}

}  // namespace mkdext::cuda
