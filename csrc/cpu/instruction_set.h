// Which vector instructions the CPU kernels use: chosen once per process, when first asked.
#pragma once

#include <string>
#include <vector>

namespace mkdext::cpu {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// The best set that this processor has. The environment variable MKDEXT_INSTRUCTION_SET names a
// smaller one ("portable", "avx2", "avx512"); a name that is unknown or that the processor lacks
// throws std::runtime_error.
InstructionSet active_instruction_set();

// The sets that this processor can run, smallest first.
std::vector<InstructionSet> supported_instruction_sets();

std::string instruction_set_name(InstructionSet set);

}  // namespace mkdext::cpu
