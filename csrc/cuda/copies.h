// How the threads of a block share the copies from global to shared memory.
#pragma once

#include "problem.h"
#include "thread_block.h"

namespace mkdext::cuda {

// copy(place, n) for the kPlaces of every n < kCount. A thread takes one place of several n, so
// that what depends on the place is computed once.
template <int kPlaces, int kCount, int kThreads, typename Copy>
MKDEXT_DEVICE void copy_places(int thread, const Copy& copy) {
  constexpr int kTogether = kThreads < kPlaces ? 1 : kThreads / kPlaces;
  constexpr int kTurns = (kPlaces + kThreads - 1) / kThreads;
  thread = anew(thread);
  MKDEXT_UNROLL for (int turn = 0; turn < kTurns; ++turn) {
    const int place = kTurns == 1 ? thread % kPlaces : thread + turn * kThreads;
    const int first = kTurns == 1 ? thread / kPlaces : 0;
    if (first >= kTogether || place >= kPlaces) return;
    MKDEXT_UNROLL for (int n = 0; n < kCount; n += kTogether) {
      if (n + kTogether <= kCount || n + first < kCount) copy(place, n + first);
    }
  }
}

// copy(row, column) for every row and column of a tile that is written column by column: eight
// rows by four columns to a warp, which fall into different banks.
template <int kRows, int kColumns, int kThreads, typename Copy>
MKDEXT_DEVICE void copy_transposed(int thread, const Copy& copy) {
  constexpr int kTogether = kThreads / 8;
  static_assert(kColumns % kTogether == 0);
  thread = anew(thread);
  MKDEXT_UNROLL for (int first = 0; first < kRows; first += 8) {
    const int row = first + thread % 8;
    if (first + 8 > kRows && row >= kRows) return;
    MKDEXT_UNROLL for (int column = 0; column < kColumns; column += kTogether) {
      copy(row, column + thread / 8);
    }
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
