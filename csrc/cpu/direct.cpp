#include "direct.h"

#include <cstdint>
#include <utility>

#include "instruction_set.h"

#define MKDEXT_KERNELS "direct_kernels.h"
#include "per_instruction_set.h"

namespace mkdext::cpu {

template <typename T>
const DirectKernels<T>& direct_kernels() {
#if defined(__x86_64__)
  switch (active_instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::kDirectKernels<T>;
    case InstructionSet::kAvx2:
      return avx2::kDirectKernels<T>;
    default:
      break;
  }
#endif
  return portable::kDirectKernels<T>;
}

template const DirectKernels<float>& direct_kernels<float>();
template const DirectKernels<double>& direct_kernels<double>();

}  // namespace mkdext::cpu
