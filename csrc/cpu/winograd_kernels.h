// Winograd convolution F(4x4, 3x3) of one sample. Compiled once per instruction set through
// per_instruction_set.h, hence no include guard and no includes but of its like.
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
// Parallel axis  None in here: a call owns its rows of tiles (correlate) or its output channels
//                (weight_grad). How the work is cut changes no order of summation: for each
//                output it is channel by channel (correlate), block by block of a grid of blocks
//                that depends on the shape alone and tile by tile within (weight_grad).
// Accumulation   float32.

#include "winograd_transforms.h"

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// Register tile of `correlate`: tiles (broadcast) by kPanel vectors of output channels.
constexpr int kTileRows = MKDEXT_VECTOR_COUNT == 32 ? 12 : 6;

// Register tile of `weight_grad`: input channels (broadcast) by vectors of output channels.
constexpr int kInputRows = 4;
constexpr int kGradVectors = MKDEXT_VECTOR_COUNT == 32 ? 4 : 2;

// Transforms of a block of tiles: about the size of the L2 cache. The weight gradient passes over
// its sums, which are larger, once per block and does better with fewer blocks.
constexpr int64_t kCorrelateBytes = 450'000;
constexpr int64_t kWeightGradBytes = 900'000;

// --------------------------------------------------------------------------------------- products

// out[vector][t][lane] = sum over c of input[c / kLanes][t][c % kLanes] weight[c][vector][lane] for
// `rows` tiles; `step` is the number of elements from a vector of channels to the next.
template <int rows, int vectors>
MKDEXT_OWN_REGISTERS void multiply(const float* input, const float* weight, int64_t inputs,
                                   int64_t step, float* out) {
  Lanes sums[rows][vectors];
#pragma GCC unroll 16
  for (int t = 0; t < rows; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[t][v] = Lanes{};
  for (int64_t c = 0; c < inputs; c += kLanes, input += step) {
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane, weight += vectors * kLanes) {
      Lanes w[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        w[v] = in_register<float>(load(weight + v * kLanes));
      }
#pragma GCC unroll 16
      for (int t = 0; t < rows; ++t) {
        const Lanes in = in_register<float>(broadcast(input[t * kLanes + lane]));
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          sums[t][v] = in_register<float>(sums[t][v] + in * w[v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < rows; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store(out + v * step + t * kLanes, sums[t][v]);
}

template <int rows, int vectors>
inline void multiply_tiles(const float* input, const float* weight, int64_t inputs, int64_t step,
                           int64_t tiles, float* out) {
  for (; tiles >= rows; tiles -= rows, input += rows * kLanes, out += rows * kLanes)
    multiply<rows, vectors>(input, weight, inputs, step, out);
  if constexpr (rows > 1) {
    if (tiles > 0) multiply_tiles<rows / 2, vectors>(input, weight, inputs, step, tiles, out);
  }
}

// sums[c][o] (+)= sum over t of input[c / kLanes][t][c % kLanes] grad[o / kLanes][t][o % kLanes]
// for kInputRows input channels and `vectors` vectors of output channels.
template <int vectors>
MKDEXT_OWN_REGISTERS void multiply_grad(const float* input, const float* grad, int64_t step,
                                        int64_t tiles, bool add, int64_t sums_step, float* sums) {
  Lanes local[kInputRows][vectors];
#pragma GCC unroll 16
  for (int c = 0; c < kInputRows; ++c)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) local[c][v] = Lanes{};
  for (int64_t t = 0; t < tiles; ++t, input += kLanes, grad += kLanes) {
    Lanes g[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      g[v] = in_register<float>(load(grad + v * step));
    }
#pragma GCC unroll 16
    for (int c = 0; c < kInputRows; ++c) {
      const Lanes in = in_register<float>(broadcast(input[c]));
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) local[c][v] = in_register<float>(local[c][v] + in * g[v]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kInputRows; ++c) {
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
    for (int64_t c = 0; c < inputs; c += kInputRows)
      multiply_grad<vectors>(input + c / kLanes * step + c % kLanes, grad, step, tiles, add,
                             sums_step, sums + c * sums_step);
  }
  if constexpr (vectors > 1) {
    if (outputs > 0)
      multiply_grads<vectors - 1>(input, grad, step, tiles, add, inputs, outputs, sums_step, sums);
  }
}

// -------------------------------------------------------------------------------------- correlate

// Sizes and scratch memory of `correlate`.
struct CorrelatePlan {
  int64_t padded;  // input channels of one term
  Panels panels;
  BlockSize block;
  int64_t input_step, product_step, weight_step;  // from a frequency to the next

  CorrelatePlan(const SampleShape& shape, int64_t terms)
      : padded(round_up(shape.in_channels, kLanes)),
        panels{ceil_div(shape.out_channels, kLanes), terms * padded},
        block(shape, panels.inputs + panels.vectors * kLanes, kCorrelateBytes),
        input_step(frequency_step(panels.inputs * block.tiles())),
        product_step(frequency_step(panels.vectors * kLanes * block.tiles())),
        weight_step(frequency_step(panels.size())) {}

  int64_t scratch() const {
    return kFrequencies * (input_step + product_step + weight_step) + pixels_scratch(block);
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
      const auto multiply = plan.panels.width(v) == kPanel ? &multiply_tiles<kTileRows, kPanel>
                                                           : &multiply_tiles<kTileRows, 1>;
      multiply(input, weight + plan.panels.offset(v, 0), plan.panels.inputs, step, block.tiles(),
               product + v * step);
    }
  }
}

int64_t correlate_parts(const SampleShape& shape) { return tiles_along(shape.height); }

int64_t correlate_scratch(const SampleShape& shape, int64_t terms) {
  return CorrelatePlan(shape, terms).scratch();
}

void correlate(const SampleShape& shape, WeightOrder order, const Term<float>* terms,
               int64_t term_count, int64_t begin, int64_t end, float* scratch, float* output) {
  const CorrelatePlan plan(shape, term_count);
  float* const weights = scratch;
  float* const inputs = weights + kFrequencies * plan.weight_step;
  float* const products = inputs + kFrequencies * plan.input_step;
  float* const pixels = products + kFrequencies * plan.product_step;
  for (int64_t n = 0; n < term_count; ++n)
    transform_weight(shape, order, terms[n].weight, plan.panels, n * plan.padded, plan.weight_step,
                     weights);

  for_each_block(shape, plan.block, begin, end, [&](const Block& block) {
    for (int64_t n = 0; n < term_count; ++n)
      transform_inputs(shape, block, terms[n].map, pixels, plan.input_step,
                       inputs + n * plan.padded * block.tiles());
    multiply_block(plan, block, inputs, weights, products);
    transform_outputs(shape, block, products, plan.product_step, pixels, output);
  });
}

// ------------------------------------------------------------------------------------ weight_grad

// Sizes and scratch memory of `weight_grad`.
struct WeightGradPlan {
  int64_t inputs, outputs;  // padded channels
  BlockSize block;
  int64_t input_step, grad_step, sums_step;  // from a frequency to the next

  explicit WeightGradPlan(const SampleShape& shape)
      : inputs(round_up(shape.in_channels, kLanes)),
        outputs(round_up(shape.out_channels, kLanes)),
        block(shape, inputs + outputs, kWeightGradBytes),
        input_step(frequency_step(inputs * block.tiles())),
        grad_step(frequency_step(outputs * block.tiles())),
        sums_step(frequency_step(inputs * outputs)) {}

  int64_t scratch() const {
    return kFrequencies * (input_step + grad_step + sums_step) + pixels_scratch(block) +
           inputs * kTaps * kLanes;
  }
};

// The products of a block, for all frequencies and the padded channels of a part.
inline void multiply_grad_block(const WeightGradPlan& plan, const Block& block, const float* inputs,
                                const float* grads, bool add, int64_t channels, float* sums) {
  const int64_t vectors = ceil_div(channels, kLanes);
  for (int f = 0; f < kFrequencies; ++f)
    multiply_grads<kGradVectors>(inputs + f * plan.input_step, grads + f * plan.grad_step,
                                 block.tiles() * kLanes, block.tiles(), add, plan.inputs, vectors,
                                 vectors * kLanes, sums + f * plan.sums_step);
}

int64_t weight_grad_parts(int64_t out_channels) { return ceil_div(out_channels, kLanes); }

int64_t weight_grad_scratch(const SampleShape& shape) { return WeightGradPlan(shape).scratch(); }

void weight_grad(const SampleShape& shape, const float* grad, const float* input, int64_t begin,
                 int64_t end, float* scratch, float* grad_weight) {
  const WeightGradPlan plan(shape);
  const int64_t first = begin * kLanes;
  const int64_t channels = smaller(end * kLanes, shape.out_channels) - first;
  float* const inputs = scratch;
  float* const grads = inputs + kFrequencies * plan.input_step;
  float* const sums = grads + kFrequencies * plan.grad_step;
  float* const pixels = sums + kFrequencies * plan.sums_step;
  float* const taps = pixels + pixels_scratch(plan.block);

  bool add = false;
  for_each_block(shape, plan.block, 0, tiles_along(shape.height), [&](const Block& block) {
    transform_inputs(shape, block, input, pixels, plan.input_step, inputs);
    transform_grads(shape, block, grad + first * shape.height * shape.width, channels, pixels,
                    plan.grad_step, grads);
    multiply_grad_block(plan, block, inputs, grads, add, channels, sums);
    add = true;
  });
  transform_weight_grads(shape, sums, plan.sums_step, channels, taps,
                         grad_weight + first * shape.in_channels * kTaps);
}

constexpr WinogradKernels kWinogradKernels{&correlate_parts,   &correlate_scratch,   &correlate,
                                           &weight_grad_parts, &weight_grad_scratch, &weight_grad};

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
