#include "instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace mkdext::cpu {
namespace {

InstructionSet choose() {
  const auto supported = supported_instruction_sets();
  const char* wanted = std::getenv("MKDEXT_INSTRUCTION_SET");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string names;
  for (const InstructionSet set : supported) {
    if (instruction_set_name(set) == wanted) return set;
    names += (names.empty() ? "" : ", ") + instruction_set_name(set);
  }
  throw std::runtime_error("MKDEXT_INSTRUCTION_SET must be one of " + names +
                           " on this processor, got '" + wanted + "'");
}

}  // namespace

InstructionSet active_instruction_set() {
  static const InstructionSet set = choose();
  return set;
}

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets{InstructionSet::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(InstructionSet::kAvx2);
    if (__builtin_cpu_supports("avx512f")) sets.push_back(InstructionSet::kAvx512);
  }
#endif
  return sets;
}

std::string instruction_set_name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    default:
      return "portable";
  }
}

}  // namespace mkdext::cpu
