// Which kernel makes what: the tile sizes of every precision and the choice among them by shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "fma_kernels.h"
#include "launch.h"
#include "tensor_core_correlation.h"
#include "tensor_core_weight_gradient.h"

namespace mkdext::cuda {

// For 3 x 3 kernels with many and with few output channels, and for kernels of any size. Those of
// tensor cores for 3 x 3 need rows that are aligned.
template <typename Precision>
struct Tiles;

template <>
struct Tiles<float> {
  using Element = float;
  static constexpr bool kNeedsAlignment = false;
  using Many = FmaCorrelation<float, 64, 8, 16, 8, 4, true>;
  using Few = FmaCorrelation<float, 16, 16, 16, 4, 4, true>;
  using Any = FmaCorrelation<float, 64, 8, 16, 8, 4, false>;
  using AnyFew = Any;
  using ManyOut = FmaWeightGradient<float, 64, 16, 8, 2, true>;
  using FewOut = FmaWeightGradient<float, 16, 64, 8, 2, true>;
  using AnyOut = FmaWeightGradient<float, 64, 16, 8, 2, false>;
};

template <>
struct Tiles<double> {
  using Element = double;
  static constexpr bool kNeedsAlignment = false;
  using Any = FmaCorrelation<double, 32, 8, 16, 4, 4, false>;
  using AnyFew = Any;
  using Many = Any;
  using Few = Any;
  using AnyOut = FmaWeightGradient<double, 32, 16, 4, 2, false>;
  using ManyOut = AnyOut;
  using FewOut = AnyOut;
};

template <typename Type>
struct TensorCoreTiles {
  using Element = typename Type::Element;
  static constexpr bool kNeedsAlignment = true;
  using Many = TensorCoreCorrelation<Type, 2, 1, 2, 2, true>;
  using Few = TensorCoreCorrelation<Type, 1, 2, 2, 1, true>;
  using Any = TensorCoreCorrelation<Type, 2, 1, 2, 2, false>;
  using AnyFew = TensorCoreCorrelation<Type, 1, 2, 2, 1, false>;
  using ManyOut = TensorCoreWeightGradient<Type, 2, 2, 2, 1, true>;
  using FewOut = TensorCoreWeightGradient<Type, 1, 4, 1, 2, true>;
  using AnyOut = TensorCoreWeightGradient<Type, 2, 2, 2, 1, false>;
};

template <>
struct Tiles<Tf32> : TensorCoreTiles<Tf32> {};
template <>
struct Tiles<Tf32x3> : TensorCoreTiles<Tf32x3> {
  // Products take so much longer than loads that smaller tiles, which share the multiprocessors
  // more evenly, cost little.
  using Many = TensorCoreCorrelation<Tf32x3, 2, 1, 1, 2, true, 2 * kBlocksTogether>;
  // Operands of two parts take more registers than three blocks leave to each.
  using ManyOut = TensorCoreWeightGradient<Tf32x3, 2, 2, 2, 1, true, 2>;
  using FewOut = TensorCoreWeightGradient<Tf32x3, 1, 4, 1, 2, true, 2>;
};
template <>
struct Tiles<Bf16> : TensorCoreTiles<Bf16> {};
template <>
struct Tiles<Fp16> : TensorCoreTiles<Fp16> {};

inline Maps maps_of(const DynamicConvShape& shape) {
  return {shape.batch, static_cast<int>(shape.height), static_cast<int>(shape.width),
          static_cast<int>(shape.kernel_size)};
}

// Tiles of few output channels load more for each product, so they must save a fifth of the work.
// Nobody has measured that on a GPU.
inline bool saves_work(int64_t few, int64_t many) { return few * 5 < many * 4; }

// Calls run with a null pointer of the correlation that makes so many outputs.
template <typename Precision, typename Run>
void with_correlation(const Maps& maps, int outputs, bool aligned, const Run& run) {
  using Choice = Tiles<Precision>;
  using Many = typename Choice::Many;
  using Few = typename Choice::Few;
  const auto sums = [&](auto* kernel) {
    using Grid = typename std::remove_pointer_t<decltype(kernel)>::Grid;
    return Grid::blocks(maps, outputs) * Grid::kSumsOfBlock;
  };
  const bool few = saves_work(sums(static_cast<Few*>(nullptr)), sums(static_cast<Many*>(nullptr)));
  if (maps.kernel_size != kTaps || (Choice::kNeedsAlignment && !aligned)) {
    few ? run(static_cast<typename Choice::AnyFew*>(nullptr))
        : run(static_cast<typename Choice::Any*>(nullptr));
  } else {
    few ? run(static_cast<Few*>(nullptr)) : run(static_cast<Many*>(nullptr));
  }
}

// Calls run with a null pointer of the weight gradient for so many channels.
template <typename Precision, typename Run>
void with_weight_gradient(const Maps& maps, int out_channels, int in_channels, bool aligned,
                          const Run& run) {
  using Choice = Tiles<Precision>;
  using Many = typename Choice::ManyOut;
  using Few = typename Choice::FewOut;
  const auto sums = [&](auto* kernel) {
    using Grid = typename std::remove_pointer_t<decltype(kernel)>::Grid;
    return Grid::blocks_of_one_split(maps, out_channels, in_channels) * Grid::kSumsOfBlock;
  };
  if (maps.kernel_size != kTaps || (Choice::kNeedsAlignment && !aligned)) {
    run(static_cast<typename Choice::AnyOut*>(nullptr));
  } else if (saves_work(sums(static_cast<Few*>(nullptr)), sums(static_cast<Many*>(nullptr)))) {
    run(static_cast<Few*>(nullptr));
  } else {
    run(static_cast<Many*>(nullptr));
  }
}

// Calls run with a null pointer of what names the precision above.
template <typename Run>
void with_precision(Precision precision, const Run& run) {
  switch (precision) {
    case Precision::kFloat64:
      return run(static_cast<double*>(nullptr));
    case Precision::kTf32:
      return run(static_cast<Tf32*>(nullptr));
    case Precision::kTf32x3:
      return run(static_cast<Tf32x3*>(nullptr));
    case Precision::kBFloat16:
      return run(static_cast<Bf16*>(nullptr));
    case Precision::kFloat16:
      return run(static_cast<Fp16*>(nullptr));
    default:
      return run(static_cast<float*>(nullptr));
  }
}

// Enough blocks to fill a GPU, and a number that depends on the shape alone, so that every GPU adds
// up in the same order. More would hide more latency, and write and read more parts; nobody has
// measured that on a GPU.
constexpr int64_t kBlocksOfWeightGradient = 256;

template <typename Kernel>
int splits_of(const Maps& maps, int out_channels, int in_channels) {
  const int64_t blocks = Kernel::Grid::blocks_of_one_split(maps, out_channels, in_channels);
  const int64_t wanted = divide_up(kBlocksOfWeightGradient, std::max<int64_t>(blocks, 1));
  const int64_t tiles = divide_up(maps.height, Kernel::Pixels::kTileRows) *
                        divide_up(maps.width, Kernel::Pixels::kTileColumns);
  return static_cast<int>(std::min(wanted, tiles));
}

}  // namespace mkdext::cuda
