#include "algorithm.h"

namespace mkdext::cpu {
namespace {

// The Winograd kernels pad channels to whole vectors, usually of 8. Measured with 1 to 64 channels
// they win where more than half of what they compute is no padding.
bool fills_vectors(const DynamicConvShape& shape) {
  const auto padded = [](int64_t channels) { return (channels + 7) / 8 * 8; };
  return 2.0 * shape.in_channels * shape.out_channels >
         1.0 * padded(shape.in_channels) * padded(shape.out_channels);
}

}  // namespace

bool can_run(Algorithm algorithm, const DynamicConvShape& shape, bool is_float32) {
  if (!kAlgorithms[static_cast<size_t>(algorithm)].on_cpu) return false;
  return algorithm != Algorithm::kWinograd || (is_float32 && shape.kernel_size == 3);
}

Algorithm choose(Primitive, const DynamicConvShape& shape, bool is_float32) {
  const bool winograd = can_run(Algorithm::kWinograd, shape, is_float32) && fills_vectors(shape);
  return winograd ? Algorithm::kWinograd : Algorithm::kDirect;
}

std::string_view primitive_name(Primitive primitive) {
  switch (primitive) {
    case Primitive::kInputGrad:
      return "input_grad";
    case Primitive::kWeightGrad:
      return "weight_grad";
    default:
      return "forward";
  }
}

}  // namespace mkdext::cpu
