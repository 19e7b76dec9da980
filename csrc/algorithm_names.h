// The values of dynamic_conv2d's `algorithm`: the only place where their names stand. The CPU and
// CUDA libraries both include it, and Python asks `mkdext._C` for it.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mkdext {

// kAuto leaves the choice to the device's code.
enum class Algorithm { kAuto, kDirect, kWinograd, kTf32, kTf32x3 };

struct AlgorithmEntry {
  Algorithm algorithm;
  std::string_view name;
  bool on_cpu;
  bool on_cuda;
};

inline constexpr std::array kAlgorithms{
    AlgorithmEntry{Algorithm::kAuto, "auto", true, true},
    AlgorithmEntry{Algorithm::kDirect, "direct", true, true},
    AlgorithmEntry{Algorithm::kWinograd, "winograd", true, false},
    AlgorithmEntry{Algorithm::kTf32, "tf32", false, true},
    AlgorithmEntry{Algorithm::kTf32x3, "tf32x3", false, true},
};

inline std::string_view algorithm_name(Algorithm algorithm) {
  return kAlgorithms[static_cast<size_t>(algorithm)].name;
}

// The algorithm of a device, AlgorithmEntry::on_cpu or on_cuda. Throws std::invalid_argument with
// the names if it has none of this name.
inline Algorithm algorithm_from_name(std::string_view name, bool AlgorithmEntry::* on_device) {
  std::string names;
  for (const AlgorithmEntry& entry : kAlgorithms) {
    if (!(entry.*on_device)) continue;
    if (entry.name == name) return entry.algorithm;
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw std::invalid_argument("dynamic_conv2d: algorithm must be one of " + names + ", got " +
                              std::string(name));
}

}  // namespace mkdext
