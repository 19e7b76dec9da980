// Which algorithm computes a per-sample convolution. The rules stand here and nowhere else; what
// they decide depends on shape and dtype alone, never on the machine or the number of threads.
#pragma once

#include <array>
#include <string_view>

#include "../dynamic_conv2d.h"

namespace mkdext::cpu {

// kAuto leaves the choice to `choose`.
enum class Algorithm { kAuto, kDirect, kWinograd };
inline constexpr std::array kAlgorithms{Algorithm::kAuto, Algorithm::kDirect, Algorithm::kWinograd};

inline constexpr std::array kPrimitives{Primitive::kForward, Primitive::kInputGrad,
                                        Primitive::kWeightGrad};

// Whether the algorithm can compute the three primitives of this shape, in float32 or float64.
bool can_run(Algorithm algorithm, const DynamicConvShape& shape, bool is_float32);

// The algorithm that kAuto stands for: the fastest of those that can run.
Algorithm choose(Primitive primitive, const DynamicConvShape& shape, bool is_float32);

std::string_view algorithm_name(Algorithm algorithm);

// Throws std::invalid_argument with the names if it is none of them.
Algorithm algorithm_from_name(std::string_view name);

std::string_view primitive_name(Primitive primitive);

}  // namespace mkdext::cpu
