// Winograd convolution F(4x4, 3x3) of one sample, or of a batch sample by sample. Compiled once per
// instruction set through per_instruction_set.h, hence no include guard and no includes but of its
// like.
//
// Equation       A 4x4 tile of the output is A^T [(G w G^T) * (B^T d B)] A, where d is the 6x6 tile
//                of the input around it and * multiplies element by element ("frequency" by
//                frequency); the sum over input channels is taken before A. It is Lagrange
//                interpolation at the points 0, +-a, +-b and infinity, here a = 2/3 and b = 3/2,
//                whose rounding errors are half of those of the usual 1 and 2. The weight gradient
//                is the adjoint in w: G^T [sum over tiles of (A g A^T) * (B^T d B)] G.
//                36 instead of 144 multiplications for each tile and pair of channels.
// Memory layout  Vector lanes are neighbouring channels. In the transform domain
//                  input, output, gradient   [frequency][channel / lanes][tile][lane]
//                  weight                    [frequency][output panel][input channel][2 * lanes]
//                  weight gradient           [frequency][input channel][output channel]
//                so that the products, one per frequency, read and write what the transforms
//                wrote, as it lies. The step between frequencies is an odd number of cache lines:
//                36 streams a power of two apart would share a few sets of the cache.
//                Tiles are taken in blocks whose transforms fit the L2 cache.
// Parallel axis  None in here: a call owns its rows of tiles (correlate), or its rows of tiles and
//                output channels (weight_grad_sums). For each output the sum is taken channel by
//                channel (correlate), or block by block of a grid of blocks that depends on the
//                shape and the rows alone and tile by tile within (weight_grad_sums).
// Accumulation   float32.

#include "winograd_transforms.h"

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// Register tile of `correlate`: tiles (broadcast) by up to kPanel vectors of output channels.
template <int vectors>
constexpr int kTileRows = (MKDEXT_VECTOR_COUNT == 32 ? 24 : 12) / vectors;

// Register tile of `weight_grad_sums`: input channels (broadcast) by up to kGradVectors vectors of
// output channels.
template <int vectors>
constexpr int kInputRows = kLanes < 8 || vectors > 1 ? 4 : 8;
constexpr int kGradVectors = MKDEXT_VECTOR_COUNT == 32 ? 4 : 2;

// Transforms of a block of tiles: about the size of the L2 cache. The weight gradient passes over
// its sums, which are larger, once per block and does better with fewer blocks.
constexpr int64_t kCorrelateBytes = 230'000;
constexpr int64_t kWeightGradBytes = 900'000;

// --------------------------------------------------------------------------------------- products

// out[vector][t][lane] = sum over c of input[c / kLanes][t][c % kLanes] weight[c][vector][lane] for
// `rows` tiles; `step` is the number of elements from a vector of channels to the next.
template <int rows, int vectors>
MKDEXT_OWN_REGISTERS void multiply(const float* input, const float* weight, int64_t inputs,
                                   int64_t step, float* out) {
  Lanes sums[rows][vectors];
#pragma GCC unroll 24
  for (int t = 0; t < rows; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[t][v] = Lanes{};
  const auto add = [&](int64_t lane) MKDEXT_INLINED {
    Lanes w[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) w[v] = in_register<float>(load(weight + v * kLanes));
    weight += vectors * kLanes;
#pragma GCC unroll 24
    for (int t = 0; t < rows; ++t) {
      const Lanes in = in_register<float>(broadcast(input[t * kLanes + lane]));
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[t][v] = in_register<float>(sums[t][v] + in * w[v]);
    }
  };
  for (; inputs >= kLanes; inputs -= kLanes, input += step) {
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) add(lane);
  }
  for (int64_t lane = 0; lane < inputs; ++lane) add(lane);
#pragma GCC unroll 24
  for (int t = 0; t < rows; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store(out + v * step + t * kLanes, sums[t][v]);
}

template <int rows, int vectors>
inline void multiply_tiles(const float* input, const float* weight, int64_t inputs, int64_t step,
                           int64_t tiles, float* out) {
  if (tiles < rows) {
    if constexpr (rows > 1)
      multiply_tiles<rows / 2, vectors>(input, weight, inputs, step, tiles, out);
    return;
  }
  for (int64_t t = 0; t < tiles; t += rows) {
    // The last ones may be computed twice: fewer at a time would take as long.
    const int64_t first = smaller(t, tiles - rows) * kLanes;
    multiply<rows, vectors>(input + first, weight, inputs, step, out + first);
  }
}

// sums[c][o] (+)= sum over t of input[c / kLanes][t][c % kLanes] grad[o / kLanes][t][o % kLanes]
// for `rows` input channels and `vectors` vectors of output channels.
template <int rows, int vectors>
MKDEXT_OWN_REGISTERS void multiply_grad(const float* input, const float* grad, int64_t step,
                                        int64_t tiles, bool add, int64_t sums_step, float* sums) {
  Lanes local[rows][vectors];
#pragma GCC unroll 16
  for (int c = 0; c < rows; ++c)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) local[c][v] = Lanes{};
  for (int64_t t = 0; t < tiles; ++t, input += kLanes, grad += kLanes) {
    Lanes g[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      g[v] = in_register<float>(load(grad + v * step));
    }
#pragma GCC unroll 16
    for (int c = 0; c < rows; ++c) {
      const Lanes in = in_register<float>(broadcast(input[c]));
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) local[c][v] = in_register<float>(local[c][v] + in * g[v]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < rows; ++c) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      float* to = sums + c * sums_step + v * kLanes;
      store(to, add ? local[c][v] + load(to) : local[c][v]);
    }
  }
}

template <int vectors>
inline void multiply_grads(const float* input, const float* grad, int64_t step, int64_t tiles,
                           bool add, int64_t inputs, int64_t outputs, int64_t sums_step,
                           float* sums) {
  for (; outputs >= vectors; outputs -= vectors, grad += vectors * step, sums += vectors * kLanes) {
    for (int64_t c = 0; c < inputs; c += kInputRows<vectors>)
      multiply_grad<kInputRows<vectors>, vectors>(input + c / kLanes * step + c % kLanes, grad,
                                                  step, tiles, add, sums_step,
                                                  sums + c * sums_step);
  }
  if constexpr (vectors > 1) {
    if (outputs > 0)
      multiply_grads<vectors - 1>(input, grad, step, tiles, add, inputs, outputs, sums_step, sums);
  }
}

// -------------------------------------------------------------------------------------- correlate

// Sizes and scratch memory of `correlate`.
struct CorrelatePlan {
  Channels in, out;
  int64_t terms;
  Panels panels;
  BlockSize block;
  int64_t input_step, product_step, weight_step;  // from a frequency to the next

  CorrelatePlan(const WinogradSample& sample, int64_t terms)
      : in(sample.shape.in_channels, sample.input),
        out(sample.shape.out_channels, sample.output),
        terms(terms),
        panels{out.vectors(), terms * in.padded()},
        block(sample.shape, panels.inputs + out.padded(), kCorrelateBytes),
        input_step(frequency_step(panels.inputs * block.tiles())),
        product_step(frequency_step(out.padded() * block.tiles())),
        weight_step(frequency_step(panels.size())) {}

  // Input channels without the zeros that pad the last vector, where that can be told so simply.
  int64_t used_inputs() const { return terms * in.pixels == 1 ? in.each : panels.inputs; }

  int64_t scratch() const {
    return kFrequencies * (input_step + product_step) + pixels_scratch(block);
  }
};

// The products of a block, for all frequencies.
inline void multiply_block(const CorrelatePlan& plan, const Block& block, const float* inputs,
                           const float* weights, float* products) {
  const int64_t step = block.tiles() * kLanes;
  for (int f = 0; f < kFrequencies; ++f) {
    const float* input = inputs + f * plan.input_step;
    const float* weight = weights + f * plan.weight_step;
    float* product = products + f * plan.product_step;
    for (int64_t v = 0; v < plan.panels.vectors; v += plan.panels.width(v)) {
      const auto multiply = plan.panels.width(v) == kPanel
                                ? &multiply_tiles<kTileRows<kPanel>, kPanel>
                                : &multiply_tiles<kTileRows<1>, 1>;
      multiply(input, weight + plan.panels.offset(v, 0), plan.used_inputs(), step, block.tiles(),
               product + v * step);
    }
  }
}

int64_t rows_of_tiles(const SampleShape& shape) { return tiles_along(shape.height); }

int64_t weights_size(const WinogradSample& sample, int64_t terms) {
  return kFrequencies * CorrelatePlan(sample, terms).weight_step;
}

void transform_weights(const WinogradSample& sample, WeightOrder order, const float* const* weights,
                       int64_t terms, float* out) {
  const CorrelatePlan plan(sample, terms);
  for (int64_t n = 0; n < terms; ++n)
    transform_weight(sample.shape, order, weights[n], plan.in, plan.out, plan.panels,
                     n * plan.in.vectors(), plan.weight_step, out);
}

int64_t correlate_scratch(const WinogradSample& sample, int64_t terms) {
  return CorrelatePlan(sample, terms).scratch();
}

void correlate(const WinogradSample& sample, const float* const* maps, const float* weights,
               int64_t terms, const float* bias, int64_t begin, int64_t end, float* scratch,
               float* output) {
  const CorrelatePlan plan(sample, terms);
  float* const inputs = scratch;
  float* const products = inputs + kFrequencies * plan.input_step;
  float* const pixels = products + kFrequencies * plan.product_step;
  for_each_block(sample.shape, plan.block, begin, end, [&](const Block& block) {
    for (int64_t n = 0; n < terms; ++n)
      transform_inputs(sample.shape, sample.input, block, maps[n], pixels, plan.input_step,
                       inputs + n * plan.in.padded() * block.tiles());
    multiply_block(plan, block, inputs, weights, products);
    transform_outputs(sample.shape, sample.output, block, products, plan.product_step, bias, pixels,
                      output);
  });
}

// ------------------------------------------------------------------------------------ weight_grad

// Sizes and scratch memory of `weight_grad_sums`.
struct WeightGradPlan {
  Channels in, out;
  BlockSize block;
  int64_t input_step, grad_step, sums_step;  // from a frequency to the next

  explicit WeightGradPlan(const WinogradSample& sample)
      : in(sample.shape.in_channels, sample.input),
        out(sample.shape.out_channels, sample.output),
        block(sample.shape, in.padded() + out.padded(), kWeightGradBytes),
        input_step(frequency_step(in.padded() * block.tiles())),
        grad_step(frequency_step(out.padded() * block.tiles())),
        sums_step(frequency_step(in.padded() * out.padded())) {}

  int64_t scratch() const {
    return kFrequencies * (input_step + grad_step) + pixels_scratch(block);
  }
};

// The products of a block, for all frequencies and some vectors of output channels.
inline void multiply_grad_block(const WeightGradPlan& plan, const Block& block, const float* inputs,
                                const float* grads, bool add, int64_t vectors, float* sums) {
  for (int f = 0; f < kFrequencies; ++f)
    multiply_grads<kGradVectors>(inputs + f * plan.input_step, grads + f * plan.grad_step,
                                 block.tiles() * kLanes, block.tiles(), add, plan.in.padded(),
                                 vectors, plan.out.padded(), sums + f * plan.sums_step);
}

int64_t vectors_of_outputs(const WinogradSample& sample) {
  return Channels(sample.shape.out_channels, sample.output).vectors();
}

int64_t weight_grad_sums_size(const WinogradSample& sample) {
  const WeightGradPlan plan(sample);
  return kFrequencies * plan.sums_step + plan.out.padded();
}

int64_t weight_grad_scratch(const WinogradSample& sample) {
  const WeightGradPlan plan(sample);
  return larger(plan.scratch(), plan.in.padded() * kTaps * kLanes);
}

void weight_grad_sums(const WinogradSample& sample, const float* grad, const float* input,
                      const Part& part, bool add, bool with_bias, float* scratch, float* sums) {
  const WeightGradPlan plan(sample);
  const int64_t vectors = part.vector_end - part.vector_begin;
  float* const inputs = scratch;
  float* const grads = inputs + kFrequencies * plan.input_step;
  float* const pixels = grads + kFrequencies * plan.grad_step;
  float* const bias_sums = with_bias ? sums + kFrequencies * plan.sums_step : nullptr;
  if (with_bias && !add)
    for (int64_t v = part.vector_begin; v < part.vector_end; ++v)
      store(bias_sums + v * kLanes, Lanes{});
  for_each_block(sample.shape, plan.block, part.row_begin, part.row_end, [&](const Block& block) {
    transform_inputs(sample.shape, sample.input, block, input, pixels, plan.input_step, inputs);
    transform_grads(sample.shape, sample.output, block, grad, part.vector_begin, part.vector_end,
                    pixels, plan.grad_step, grads, bias_sums);
    multiply_grad_block(plan, block, inputs, grads, add, vectors,
                        sums + part.vector_begin * kLanes);
    add = true;
  });
}

void weight_grad(const WinogradSample& sample, const float* sums, int64_t groups,
                 int64_t vector_begin, int64_t vector_end, float* scratch, float* grad_weight,
                 float* grad_bias) {
  const WeightGradPlan plan(sample);
  const int64_t group_step = weight_grad_sums_size(sample);
  const float* const bias_sums = sums + kFrequencies * plan.sums_step;
  for (int64_t v = vector_begin; v < vector_end; ++v) {
    transform_weight_grad(plan.in, plan.out, v, sums, plan.sums_step, groups, group_step, scratch,
                          grad_weight);
    if (!grad_bias) continue;
    Lanes sum{};
    for (int64_t g = 0; g < groups; ++g) sum += load(bias_sums + g * group_step + v * kLanes);
    for (int64_t l = 0; l < plan.out.lanes(v); ++l)
      grad_bias[plan.out.first(v) + l * plan.out.pixels] = sum[l];
  }
}

constexpr WinogradKernels kWinogradKernels{
    &rows_of_tiles,    &weights_size,       &transform_weights,     &correlate_scratch,
    &correlate,        &vectors_of_outputs, &weight_grad_sums_size, &weight_grad_scratch,
    &weight_grad_sums, &weight_grad};

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
