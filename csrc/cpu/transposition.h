// Transposition of a square of lanes. Included by files of kernels after simd.h, hence no include
// guard and no includes.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

enum class Pick { kUnpackLow, kUnpackHigh, kPairLow, kPairHigh, kBlockLow, kBlockHigh };

// Lane j of a shuffle of two vectors: lanes of the second are counted from `lanes` on. The first
// four work within 4 lanes each, the blocks exchange groups of `size` lanes.
constexpr int picked(Pick pick, int lanes, int size, int j) {
  const int base = j & ~3, in = j & 3;
  switch (pick) {
    case Pick::kUnpackLow:
      return base + in / 2 + (in & 1 ? lanes : 0);
    case Pick::kUnpackHigh:
      return base + 2 + in / 2 + (in & 1 ? lanes : 0);
    case Pick::kPairLow:
      return base + (in & 1) + (in & 2 ? lanes : 0);
    case Pick::kPairHigh:
      return base + 2 + (in & 1) + (in & 2 ? lanes : 0);
    case Pick::kBlockLow:
      return j & size ? lanes + j - size : j;
    default:
      return j & size ? lanes + j : j + size;
  }
}

template <typename T, Pick pick, int size, int... lane>
inline Vec<T> shuffle(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = sizeof...(lane);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, picked(pick, lanes, size, lane)...);
#else
  return __builtin_shuffle(a, b, Mask<T>{picked(pick, lanes, size, lane)...});
#endif
}

template <typename T, Pick pick, int size = 0>
inline Vec<T> shuffle(const Vec<T>& a, const Vec<T>& b) {
  return shuffle<T, pick, size>(a, b, std::make_integer_sequence<int, Simd<T>::kLanes>{});
}

template <typename T, int size>
inline void exchange_blocks(Vec<T> (&rows)[Simd<T>::kLanes]) {
  if constexpr (size < Simd<T>::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < Simd<T>::kLanes; ++i) {
      if (i & size) continue;
      const Vec<T> a = rows[i], b = rows[i + size];
      rows[i] = shuffle<T, Pick::kBlockLow, size>(a, b);
      rows[i + size] = shuffle<T, Pick::kBlockHigh, size>(a, b);
    }
    exchange_blocks<T, 2 * size>(rows);
  }
}

// rows[i][j] becomes rows[j][i].
template <typename T>
inline void transpose(Vec<T> (&rows)[Simd<T>::kLanes]) {
  if constexpr (sizeof(T) == 8) {
    exchange_blocks<T, 1>(rows);
  } else {
    // Within 16 bytes, where exchanges of single floats would take more instructions.
#pragma GCC unroll 16
    for (int i = 0; i < Simd<T>::kLanes; i += 4) {
      const Vec<T> low_ab = shuffle<T, Pick::kUnpackLow>(rows[i], rows[i + 1]);
      const Vec<T> high_ab = shuffle<T, Pick::kUnpackHigh>(rows[i], rows[i + 1]);
      const Vec<T> low_cd = shuffle<T, Pick::kUnpackLow>(rows[i + 2], rows[i + 3]);
      const Vec<T> high_cd = shuffle<T, Pick::kUnpackHigh>(rows[i + 2], rows[i + 3]);
      rows[i] = shuffle<T, Pick::kPairLow>(low_ab, low_cd);
      rows[i + 1] = shuffle<T, Pick::kPairHigh>(low_ab, low_cd);
      rows[i + 2] = shuffle<T, Pick::kPairLow>(high_ab, high_cd);
      rows[i + 3] = shuffle<T, Pick::kPairHigh>(high_ab, high_cd);
    }
    exchange_blocks<T, 4>(rows);
  }
}

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
