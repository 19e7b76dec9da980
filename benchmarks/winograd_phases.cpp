// Where the time of the Winograd kernels goes, on one thread: transforms, matrix products, and the
// whole, beside the FMA peak and the copy bandwidth of the same run.
//
//   g++ -O3 -std=c++20 -march=native -Icsrc/cpu benchmarks/winograd_phases.cpp -o phases
//   ./phases [shared] [batch in_channels out_channels side]
//
// By default as for dynamic_conv2d: a kernel for each sample, maps contiguous. With "shared" as for
// conv2d: one kernel for the batch, maps channels last.
//
// A phase alone runs over the same samples and blocks as in the whole, but finds more of its data
// in the cache; what the whole takes beyond the sum of its phases is the price of memory.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "winograd.h"

#define MKDEXT_ISA native
#if defined(__AVX512F__)
#define MKDEXT_VECTOR_BYTES 64
#define MKDEXT_VECTOR_COUNT 32
#elif defined(__AVX2__)
#define MKDEXT_VECTOR_BYTES 32
#define MKDEXT_VECTOR_COUNT 16
#elif defined(__aarch64__)
#define MKDEXT_VECTOR_BYTES 16
#define MKDEXT_VECTOR_COUNT 32
#else
#define MKDEXT_VECTOR_BYTES 16
#define MKDEXT_VECTOR_COUNT 16
#endif
#include "simd.h"
#include "winograd_kernels.h"

using namespace mkdext::cpu;
using namespace mkdext::cpu::native;

namespace {

constexpr int kRounds = 25;

// Milliseconds of the fastest of some rounds.
template <typename Run>
double fastest(const Run& run) {
  double best = 1e30;
  for (int round = 0; round <= kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - start;
    if (round > 0) best = std::min(best, taken.count());
  }
  return best;
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

// Random numbers in [-1, 1), aligned to a page.
std::unique_ptr<float, Free> random_numbers(int64_t size) {
  const int64_t bytes = (size * sizeof(float) + 4095) / 4096 * 4096;
  std::unique_ptr<float, Free> memory(static_cast<float*>(std::aligned_alloc(4096, bytes)));
  std::mt19937 generator(0);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::generate_n(memory.get(), size, [&] { return uniform(generator); });
  return memory;
}

// GFLOP/s of independent multiply-adds in registers.
double measure_peak() {
  constexpr int64_t repeats = 1'000'000;
  constexpr int chains = 12;
  const auto memory = random_numbers(chains * kLanes);
  const double milliseconds = fastest([&] {
    const Lanes factor = in_register<float>(broadcast(0.5f));
    Lanes sums[chains];
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) sums[i] = load(memory.get() + i * kLanes);
    for (int64_t n = 0; n < repeats; ++n) {
#pragma GCC unroll 16
      for (int i = 0; i < chains; ++i) sums[i] = in_register<float>(sums[i] + factor * factor);
    }
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) store(memory.get() + i * kLanes, sums[i]);
  });
  return 2.0 * repeats * chains * kLanes / milliseconds / 1e6;
}

// GB/s of a copy, bytes read and bytes written together.
double measure_copy() {
  constexpr int64_t size = 32 << 20;
  const auto from = random_numbers(size), to = random_numbers(size);
  const double milliseconds =
      fastest([&] { std::memcpy(to.get(), from.get(), size * sizeof(float)); });
  return 2.0 * size * sizeof(float) / milliseconds / 1e6;
}

void print(const char* name, double milliseconds, double share_of) {
  std::printf("  %-18s %8.2f ms  %3.0f %%\n", name, milliseconds, 100 * milliseconds / share_of);
}

}  // namespace

int main(int count, char** arguments) {
  int64_t size[] = {16, 64, 64, 48};
  const bool shared = count > 1 && std::strcmp(arguments[1], "shared") == 0;
  if (shared) {
    --count;
    ++arguments;
  }
  if (count != 1 && count != 5) {
    std::fprintf(stderr, "usage: phases [shared] [batch in_channels out_channels side]\n");
    return 2;
  }
  for (int i = 1; i < count; ++i) {
    size[i - 1] = std::atoll(arguments[i]);
    if (size[i - 1] < 1) {
      std::fprintf(stderr, "all sizes must be positive integers, got %s\n", arguments[i]);
      return 2;
    }
  }
  const auto [batch, ci, co, side] = size;
  const SampleShape shape{ci, co, side, side, 3};
  const SampleShape reversed{co, ci, side, side, 3};
  const int64_t area = side * side, kernel = ci * co * kTaps, rows = tiles_along(side);
  const auto laid_out = [&](const SampleShape& s) {
    if (shared) {
      const auto layout = [&](int64_t channels) { return MapLayout{1, side * channels, channels}; };
      return WinogradSample{s, layout(s.in_channels), layout(s.out_channels)};
    }
    return WinogradSample{s, contiguous_layout(s), contiguous_layout(s)};
  };
  const auto input = random_numbers(batch * ci * area), grad = random_numbers(batch * co * area);
  const auto weight = random_numbers(batch * kernel), grad_weight = random_numbers(batch * kernel);
  const double peak = measure_peak();
  const double direct = 2.0 * batch * kernel * area / 1e6;  // MFLOP
  const double products = 2.0 * batch * kFrequencies * ci * co * rows * rows / 1e6;
  std::printf("FMA peak of one thread %.1f GFLOP/s, copy %.1f GB/s\n", peak, measure_copy());

  const auto report = [&](const char* name, double whole,
                          std::initializer_list<std::pair<const char*, double>> phases) {
    std::printf("%s: %.2f ms, %.0f GFLOP/s of the direct algorithm\n", name, whole, direct / whole);
    double sum = 0;
    for (const auto& [phase, milliseconds] : phases) {
      print(phase, milliseconds, whole);
      sum += milliseconds;
      if (std::strcmp(phase, "products") == 0)
        std::printf("    %.0f %% of the FMA peak\n", 100 * products / milliseconds / peak);
    }
    print("memory", whole - sum, whole);
  };

  const auto each_sample = [&](const auto& run) {
    return fastest([&] {
      for (int64_t b = 0; b < batch; ++b) run(b);
    });
  };
  const auto each_kernel = [&](const auto& run) {
    return fastest([&] {
      for (int64_t b = 0; b < (shared ? 1 : batch); ++b) run(b);
    });
  };

  const auto correlation = [&](const char* name, const SampleShape& s, WeightOrder order,
                               const float* from, float* to) {
    const WinogradSample sample = laid_out(s);
    const CorrelatePlan plan(sample, 1);
    const auto transformed = random_numbers(weights_size(sample, 1));
    const auto scratch = random_numbers(correlate_scratch(sample, 1));
    float* const inputs = scratch.get();
    float* const results = inputs + kFrequencies * plan.input_step;
    float* const pixels = results + kFrequencies * plan.product_step;
    const auto each_block = [&](const auto& run) {
      return each_sample([&](int64_t b) {
        for_each_block(s, plan.block, 0, rows, [&](const Block& block) { run(b, block); });
      });
    };
    const auto transform = [&](int64_t b) {
      const float* one = weight.get() + b * kernel;
      transform_weights(sample, order, &one, 1, transformed.get());
    };
    const double whole = each_sample([&](int64_t b) {
      if (b == 0 || !shared) transform(b);
      const float* map = from + b * s.in_channels * area;
      correlate(sample, &map, transformed.get(), 1, nullptr, 0, rows, scratch.get(),
                to + b * s.out_channels * area);
    });
    const double kernels = each_kernel(transform);
    const double in = each_block([&](int64_t b, const Block& block) {
      transform_inputs(s, sample.input, block, from + b * s.in_channels * area, pixels,
                       plan.input_step, inputs);
    });
    const double multiplied = each_block([&](int64_t, const Block& block) {
      multiply_block(plan, block, inputs, transformed.get(), results);
    });
    const double out = each_block([&](int64_t b, const Block& block) {
      transform_outputs(s, sample.output, block, results, plan.product_step, nullptr, pixels,
                        to + b * s.out_channels * area);
    });
    report(name, whole,
           {{"kernel transform", kernels},
            {"input transform", in},
            {"products", multiplied},
            {"output transform", out}});
  };
  correlation("forward", shape, WeightOrder::kForward, input.get(), grad.get());
  correlation("input gradient", reversed, WeightOrder::kInputGrad, grad.get(), input.get());

  const WinogradSample sample = laid_out(shape);
  const WeightGradPlan plan(sample);
  const int64_t vectors = plan.out.vectors();
  const auto sums = random_numbers(weight_grad_sums_size(sample));
  const auto scratch = random_numbers(weight_grad_scratch(sample));
  float* const inputs = scratch.get();
  float* const grads = inputs + kFrequencies * plan.input_step;
  float* const pixels = grads + kFrequencies * plan.grad_step;
  const auto each_block = [&](const auto& run) {
    return each_sample([&](int64_t b) {
      for_each_block(shape, plan.block, 0, rows, [&](const Block& block) { run(b, block); });
    });
  };
  const auto finish = [&](int64_t b) {
    weight_grad(sample, sums.get(), 1, 0, vectors, scratch.get(), grad_weight.get() + b * kernel,
                nullptr);
  };
  const double whole = each_sample([&](int64_t b) {
    weight_grad_sums(sample, grad.get() + b * co * area, input.get() + b * ci * area,
                     {0, rows, 0, vectors}, b > 0 && shared, false, scratch.get(), sums.get());
    if (b == batch - 1 || !shared) finish(b);
  });
  const double in = each_block([&](int64_t b, const Block& block) {
    transform_inputs(shape, sample.input, block, input.get() + b * ci * area, pixels,
                     plan.input_step, inputs);
  });
  const double of_grad = each_block([&](int64_t b, const Block& block) {
    transform_grads(shape, sample.output, block, grad.get() + b * co * area, 0, vectors, pixels,
                    plan.grad_step, grads, nullptr);
  });
  const double multiplied = each_block([&](int64_t b, const Block& block) {
    multiply_grad_block(plan, block, inputs, grads, block.row_begin > 0 || (b > 0 && shared),
                        vectors, sums.get());
  });
  const double out = each_kernel(finish);
  report("weight gradient", whole,
         {{"input transform", in},
          {"gradient transform", of_grad},
          {"products", multiplied},
          {"kernel transform", out}});
}
