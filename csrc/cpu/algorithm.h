// Which algorithm computes a per-sample convolution. The rules stand here and nowhere else; what
// they decide depends on shape and dtype alone, never on the machine or the number of threads.
#pragma once

#include <array>
#include <string_view>

#include "../algorithm_names.h"
#include "../dynamic_conv2d.h"

namespace mkdext::cpu {

inline constexpr std::array kPrimitives{Primitive::kForward, Primitive::kInputGrad,
                                        Primitive::kWeightGrad};

// Whether the CPU can compute the three primitives of this shape by it, in float32 or float64.
bool can_run(Algorithm algorithm, const DynamicConvShape& shape, bool is_float32);

// The algorithm that kAuto stands for: the fastest of those that can run.
Algorithm choose(Primitive primitive, const DynamicConvShape& shape, bool is_float32);

std::string_view primitive_name(Primitive primitive);

}  // namespace mkdext::cpu
