// The CUDA kernels run without a GPU: their own source, in blocks whose threads take turns.
//
// It is stricter than a GPU in three ways. Shared memory is full of NaN when a block begins. A copy
// that was not awaited has not happened. And the threads of a phase run in the given order, first
// to last or last to first, each to its end, so that a result that depends on the order shows.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../../csrc/cuda/plan.h"
#include "../../csrc/cuda/texture_threads.h"

namespace mkdext::cuda {
namespace {

bool last_thread_first = false;

template <typename Function>
void for_each(int64_t count, const Function& function) {
  for (int64_t n = 0; n < count; ++n) function(last_thread_first ? count - 1 - n : n);
}

// Operands of a fragment as numbers.
template <typename Type>
double element(uint32_t word, int index) {
  if constexpr (Type::kPerWord == 1) {
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  } else {
    typename Type::Element value;
    value.x = static_cast<uint16_t>(word >> 16 * index);
    return static_cast<float>(value);
  }
}

template <typename Registers>
class HostBlock {
 public:
  explicit HostBlock(int threads) : registers_(threads), pending_(threads) {}

  template <typename Phase>
  void each_thread(const Phase& phase) {
    for_each(static_cast<int64_t>(registers_.size()), [&](int64_t thread) {
      thread_ = static_cast<int>(thread);
      phase(thread_, registers_[thread_]);
    });
  }

  void barrier() {}

  template <int kBytes>
  void copy_async(void* shared, const void* global, bool valid) {
    Copy copy{shared, kBytes, {}};
    if (valid) std::memcpy(copy.bytes, global, kBytes);
    if (!is_multiple_of(shared, kBytes) || (valid && !is_multiple_of(global, kBytes)))
      std::memset(copy.bytes, 0xff, kBytes);  // a GPU would stop here
    pending_[thread_].push_back(copy);
  }

  void await_copies() {
    for (const Copy& copy : pending_[thread_]) std::memcpy(copy.to, copy.bytes, copy.size);
    pending_[thread_].clear();
  }

  template <typename Type, typename Operands>
  void multiply_add(const Operands& operands) {
    constexpr int kPerWord = Type::kPerWord, kDepth = kWordsPerStep * kPerWord;
    for (size_t warp = 0; warp < registers_.size(); warp += kLanes) {
      constexpr int kParts = Type::kParts;
      double a[kParts][16][kDepth], b[kParts][kDepth][8];
      Fragments lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = operands(registers_[warp + lane]);
        const int group = lane / 4, member = lane % 4;
        for (int part = 0; part < kParts; ++part) {
          const uint32_t* const of_a = lanes[lane].a + 4 * part;
          const uint32_t* const of_b = lanes[lane].b + 2 * part;
          for (int p = 0; p < kPerWord; ++p) {
            const int k = member * kPerWord + p, later = k + 4 * kPerWord;
            a[part][group][k] = element<Type>(of_a[0], p);
            a[part][group + 8][k] = element<Type>(of_a[1], p);
            a[part][group][later] = element<Type>(of_a[2], p);
            a[part][group + 8][later] = element<Type>(of_a[3], p);
            b[part][k][group] = element<Type>(of_b[0], p);
            b[part][later][group] = element<Type>(of_b[1], p);
          }
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int q = 0; q < 4; ++q) {
          const int row = lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
          double sum = lanes[lane].sum[q];
          for (int part = 0; part < kParts; ++part) {
            for (int other = 0; part + other < kParts; ++other) {  // without the smallest product
              for (int k = 0; k < kDepth; ++k) sum += a[part][row][k] * b[other][k][column];
            }
          }
          lanes[lane].sum[q] = static_cast<float>(sum);
        }
      }
    }
  }

 private:
  struct Copy {
    void* to;
    size_t size;
    unsigned char bytes[16];
  };
  std::vector<Registers> registers_;
  std::vector<std::vector<Copy>> pending_;
  int thread_ = 0;
};

class HostLauncher {
 public:
  int launches = 0;

  template <typename Kernel>
  void correlation(const CorrelationArguments<typename Kernel::Element>& arguments,
                   int64_t blocks) {
    each_block<Kernel>(blocks, [&](auto& block, auto& shared, int index) {
      const bool second = index >= arguments.first_of_second;
      Kernel::run(block, shared, arguments.maps, arguments.jobs[second],
                  second ? index - arguments.first_of_second : index);
    });
  }

  template <typename Kernel>
  void weight_gradient(
      const WeightGradientArguments<typename Kernel::Element, typename Kernel::Sum>& arguments,
      int64_t blocks) {
    each_block<Kernel>(blocks, [&](auto& block, auto& shared, int index) {
      Kernel::run(block, shared, arguments, index);
    });
  }

  template <typename T, typename Sum>
  void addition(const WeightGradientArguments<T, Sum>& arguments, int64_t size) {
    ++launches;
    for_each(size, [&](int64_t at) { add_parts(arguments, size, at); });
  }

 private:
  template <typename Kernel, typename Run>
  void each_block(int64_t blocks, const Run& run) {
    ++launches;
    for_each(blocks, [&](int64_t at) {
      const auto index = static_cast<int>(at);
      const auto shared = std::make_unique<typename Kernel::Shared>();
      std::memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
      HostBlock<typename Kernel::Registers> block(Kernel::kThreads);
      run(block, *shared, index);
    });
  }
};

template <typename Run>
void with_texture_types(int precision, const Run& run) {
  float* const single = nullptr;
  switch (static_cast<Precision>(precision)) {
    case Precision::kFloat64:
      return run(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case Precision::kBFloat16:
      return run(static_cast<c10::BFloat16*>(nullptr), single);
    case Precision::kFloat16:
      return run(static_cast<c10::Half*>(nullptr), single);
    default:
      return run(single, single);
  }
}

template <typename Index>
void texture(int precision, const TextureShape& shape, bool transpose, const void* from, void* to) {
  const TextureSizes<Index> sizes(shape);
  with_texture_types(precision, [&](auto* element, auto* accumulator) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Sum = std::remove_pointer_t<decltype(accumulator)>;
    if (transpose) {
      for_each(texture_transpose_threads(sizes), [&](int64_t thread) {
        texture_transpose<T, Sum>(sizes, static_cast<const T*>(from), static_cast<T*>(to),
                                  static_cast<Index>(thread));
      });
    } else {
      const int64_t patches = shape.grid * shape.grid, size = shape.kernel_size * shape.kernel_size;
      for_each(shape.batch * patches * shape.channels * size, [&](int64_t at) {
        texture_forward<T, Sum>(sizes, static_cast<const T*>(from), static_cast<T*>(to),
                                static_cast<Index>(at));
      });
    }
  });
}

}  // namespace
}  // namespace mkdext::cuda

// For ctypes. Precisions are numbered as in launch.h; the shape is {B, Ci, Co, H, W, k}.
extern "C" {

using mkdext::DynamicConvShape;
using mkdext::cuda::CorrelationRequest;
using mkdext::cuda::HostLauncher;
using mkdext::cuda::Precision;

void set_last_thread_first(bool value) { mkdext::cuda::last_thread_first = value; }

// One or two correlations: the terms of the first, then those of the second; returns the launches.
int correlate(int precision, const int64_t* s, int count, const bool* flipped, const int* terms,
              const void** maps, const void** weights, void** outputs) {
  std::vector<CorrelationRequest> requests;
  for (int n = 0; n < count; ++n) {
    requests.push_back({flipped[n], {}, outputs[n]});
    for (int term = 0; term < terms[n]; ++term)
      requests.back().terms.push_back({*maps++, *weights++});
  }
  HostLauncher launcher;
  mkdext::cuda::plan_correlations(launcher, static_cast<Precision>(precision),
                                  {s[0], s[1], s[2], s[3], s[4], s[5]}, requests);
  return launcher.launches;
}

int splits(int precision, const int64_t* s) {
  return mkdext::cuda::plan_splits(static_cast<Precision>(precision),
                                   {s[0], s[1], s[2], s[3], s[4], s[5]});
}

int weight_gradient(int precision, const int64_t* s, const void* grad, const void* input,
                    void* partial, void* output) {
  HostLauncher launcher;
  mkdext::cuda::plan_weight_gradient(launcher, static_cast<Precision>(precision),
                                     {s[0], s[1], s[2], s[3], s[4], s[5]}, grad, input, partial,
                                     output);
  return launcher.launches;
}

// The shape is {B, C, H, W, grid, k}.
void texture(int precision, const int64_t* s, bool transpose, bool wide, const void* from,
             void* to) {
  const mkdext::TextureShape shape{s[0], s[1], s[2], s[3], s[4], s[5]};
  if (wide) {
    mkdext::cuda::texture<int64_t>(precision, shape, transpose, from, to);
  } else {
    mkdext::cuda::texture<int32_t>(precision, shape, transpose, from, to);
  }
}

}  // extern "C"
