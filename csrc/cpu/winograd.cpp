#include "winograd.h"

#include <cstdint>
#include <utility>

#include "instruction_set.h"

#define MKDEXT_KERNELS "winograd_kernels.h"
#include "per_instruction_set.h"

namespace mkdext::cpu {

const WinogradKernels& winograd_kernels() {
#if defined(__x86_64__)
  switch (active_instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::kWinogradKernels;
    case InstructionSet::kAvx2:
      return avx2::kWinogradKernels;
    default:
      break;
  }
#endif
  return portable::kWinogradKernels;
}

}  // namespace mkdext::cpu
