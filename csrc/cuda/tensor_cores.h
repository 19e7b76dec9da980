// What the kernels for tensor cores share: sizes of fragments, and pitches of shared memory.
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

}  // namespace mkdext::cuda
