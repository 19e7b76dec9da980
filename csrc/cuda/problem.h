// What is computed, and how it is cut into blocks: the arguments of the kernels of this folder.
//
// Kernels of any odd size are sums over squares of at most 3 x 3 taps; a 3 x 3 kernel is one
// square.
#pragma once

#include <cstdint>

#include "../dynamic_conv2d.h"
#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kTaps = 3;  // of a square, each way

// Blocks that shall fit a multiprocessor together, so that one's loads hide behind another's
// products. With 128 threads each it leaves a thread 168 registers. Shared memory has room for them
// where a multiprocessor has 164 KiB of it or more.
constexpr int kBlocksTogether = 3;

MKDEXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

MKDEXT_HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Geometry of the maps, the same for all kernels.
struct Maps {
  int64_t batch;
  int height;
  int width;
  int kernel_size;
};

MKDEXT_DEVICE int64_t area_of(const Maps& maps) {
  return static_cast<int64_t>(maps.height) * maps.width;
}

// output [B, outputs, H, W] = the sum over the terms of the correlation of map and weight.
//
// The forward sums over Ci and makes Co outputs. The input gradient sums over Co, makes Ci outputs
// and reads the kernels turned by 180 degrees: "flipped".
template <typename T>
struct Correlation {
  Term<T> terms[2];
  int term_count;
  T* output;
  int channels;  // summed over
  int outputs;
  bool flipped;
  bool aligned_maps;     // of 3 x 3 kernels: rows can be copied four elements at a time
  bool aligned_weights;  // of 3 x 3 kernels: rows can be copied 16 bytes at a time
};

// Up to two correlations of one launch; blocks [0, first_of_second) belong to the first.
template <typename T>
struct CorrelationArguments {
  Maps maps;
  Correlation<T> jobs[2];
  int first_of_second;
};

// grad_weight [B, Co, Ci, k, k] from grad [B, Co, H, W] and map [B, Ci, H, W]. The sum over pixels
// is cut into `splits` parts. If there is more than one they go to `partial`, [splits, B, Co, Ci,
// k, k] in the accumulation type, and a second kernel adds them up in order: no result depends on
// which block comes first.
template <typename T, typename Sum>
struct WeightGradientArguments {
  Maps maps;
  const T* grad;
  const T* map;
  T* output;
  Sum* partial;
  int in_channels;
  int out_channels;
  int splits;
};

// A tile of the output of a correlation.
struct CorrelationTile {
  int sample;
  int output;
  int row;
  int column;
};

// Reads a tile from shared memory, and not from registers in which it may lie.
MKDEXT_DEVICE CorrelationTile reread(const volatile CorrelationTile& tile) {
  return {tile.sample, tile.output, tile.row, tile.column};
}

// Blocks of kOutputs channels x kRows x kColumns pixels.
template <int kOutputs, int kRows, int kColumns>
struct CorrelationGrid {
  static constexpr int64_t kSumsOfBlock = kOutputs * kRows * kColumns;

  static MKDEXT_HOST_DEVICE int64_t blocks(const Maps& maps, int outputs) {
    return maps.batch * divide_up(outputs, kOutputs) * divide_up(maps.height, kRows) *
           divide_up(maps.width, kColumns);
  }

  static MKDEXT_DEVICE CorrelationTile tile(const Maps& maps, int outputs, int block) {
    const auto columns = static_cast<int>(divide_up(maps.width, kColumns));
    const auto rows = static_cast<int>(divide_up(maps.height, kRows));
    const auto groups = static_cast<int>(divide_up(outputs, kOutputs));
    CorrelationTile tile;
    tile.column = block % columns * kColumns;
    block /= columns;
    tile.row = block % rows * kRows;
    block /= rows;
    tile.output = block % groups * kOutputs;
    tile.sample = block / groups;
    return tile;
  }
};

// A square of taps: the first one's row and column in the kernel, and how many there are.
struct TapSquare {
  int row;
  int column;
  int rows;
  int columns;
};

MKDEXT_DEVICE int tap_squares_across(int kernel_size) { return (kernel_size + kTaps - 1) / kTaps; }

MKDEXT_DEVICE int tap_squares(int kernel_size) {
  return tap_squares_across(kernel_size) * tap_squares_across(kernel_size);
}

MKDEXT_DEVICE TapSquare tap_square(int kernel_size, int index) {
  const int across = tap_squares_across(kernel_size);
  const int row = index / across * kTaps, column = index % across * kTaps;
  return {row, column, smaller(kTaps, kernel_size - row), smaller(kTaps, kernel_size - column)};
}

// One step of a correlation's sum: a term, a square of taps and some channels from `channel` on.
struct CorrelationStep {
  int term;
  int square;
  TapSquare taps;
  int channel;
};

MKDEXT_DEVICE CorrelationStep first_step(const Maps& maps) {
  return {0, 0, tap_square(maps.kernel_size, 0), 0};
}

// The step after one of `depth` channels; its term does not exist after the last.
template <typename T>
MKDEXT_DEVICE CorrelationStep step_after(CorrelationStep step, const Maps& maps,
                                         const Correlation<T>& job, int depth) {
  step.channel += depth;
  if (step.channel < job.channels) return step;
  step.channel = 0;
  if (++step.square == tap_squares(maps.kernel_size)) {
    step.square = 0;
    ++step.term;
  }
  step.taps = tap_square(maps.kernel_size, step.square);
  return step;
}

// The map of a sample, [channels, H, W].
template <typename T>
MKDEXT_DEVICE const T* map_of_sample(const Maps& maps, const T* map, int channels, int sample) {
  return map + static_cast<int64_t>(sample) * channels * area_of(maps);
}

// The kernels of a sample, [Co, Ci, k, k].
template <typename T>
MKDEXT_DEVICE const T* weight_of_sample(const Maps& maps, const Correlation<T>& job, int term,
                                        int sample) {
  const int64_t kernels = static_cast<int64_t>(job.channels) * job.outputs;
  return job.terms[term].weight + sample * kernels * (maps.kernel_size * maps.kernel_size);
}

// The position in a kernel of tap (i, j) of a square.
MKDEXT_DEVICE int tap_offset(int kernel_size, const TapSquare& taps, int i, int j, bool flipped) {
  const int at = (taps.row + i) * kernel_size + taps.column + j;
  return flipped ? kernel_size * kernel_size - 1 - at : at;
}

// Where the kernel of output o and channel c of a sample begins.
template <typename T>
MKDEXT_DEVICE int64_t kernel_offset(const Maps& maps, const Correlation<T>& job, int o, int c) {
  const int64_t row = job.flipped ? c : o, column = job.flipped ? o : c;
  const int across = job.flipped ? job.outputs : job.channels;
  return (row * across + column) * (maps.kernel_size * maps.kernel_size);
}

// A block of the weight gradient: one square of taps of some kernels, over some tiles of pixels.
struct WeightGradientTile {
  int sample;
  int split;
  int square;
  int out_channel;
  int in_channel;
};

MKDEXT_DEVICE WeightGradientTile reread(const volatile WeightGradientTile& tile) {
  return {tile.sample, tile.split, tile.square, tile.out_channel, tile.in_channel};
}

template <int kOut, int kIn>
struct WeightGradientGrid {
  static constexpr int64_t kSumsOfBlock = kOut * kIn;

  static MKDEXT_HOST_DEVICE int64_t blocks_of_one_split(const Maps& maps, int out_channels,
                                                        int in_channels) {
    const int64_t across = divide_up(maps.kernel_size, kTaps);
    return maps.batch * across * across * divide_up(out_channels, kOut) *
           divide_up(in_channels, kIn);
  }

  template <typename T, typename Sum>
  static MKDEXT_DEVICE WeightGradientTile tile(const WeightGradientArguments<T, Sum>& arguments,
                                               int block) {
    const auto across = static_cast<int>(divide_up(arguments.maps.kernel_size, kTaps));
    const auto outs = static_cast<int>(divide_up(arguments.out_channels, kOut));
    const auto ins = static_cast<int>(divide_up(arguments.in_channels, kIn));
    WeightGradientTile tile;
    tile.in_channel = block % ins * kIn;
    block /= ins;
    tile.out_channel = block % outs * kOut;
    block /= outs;
    tile.square = block % (across * across);
    block /= across * across;
    tile.split = block % arguments.splits;
    tile.sample = block / arguments.splits;
    return tile;
  }
};

// Tiles of kRows x kColumns pixels, and the range of them that a split adds up.
template <int kRows, int kColumns>
struct PixelTiles {
  static constexpr int kTileRows = kRows;
  static constexpr int kTileColumns = kColumns;

  int across;
  int count;

  MKDEXT_DEVICE explicit PixelTiles(const Maps& maps)
      : across(static_cast<int>(divide_up(maps.width, kColumns))),
        count(static_cast<int>(divide_up(maps.height, kRows)) * across) {}

  MKDEXT_DEVICE int first_of(int split, int splits) const {
    return static_cast<int>(static_cast<int64_t>(count) * split / splits);
  }
  MKDEXT_DEVICE int row(int tile) const { return tile / across * kRows; }
  MKDEXT_DEVICE int column(int tile) const { return tile % across * kColumns; }
};

// Writes the taps value(i, j) of a square of one kernel of the weight gradient, or of its part.
template <typename T, typename Sum, typename Value>
MKDEXT_DEVICE void store_taps(const WeightGradientArguments<T, Sum>& arguments,
                              const WeightGradientTile& tile, const TapSquare& taps, int o, int c,
                              const Value& value) {
  if (o >= arguments.out_channels || c >= arguments.in_channels) return;
  const int size = arguments.maps.kernel_size;
  const int64_t part = arguments.partial == nullptr ? 0 : tile.split * arguments.maps.batch;
  const int64_t kernel =
      ((part + tile.sample) * arguments.out_channels + o) * arguments.in_channels + c;
  const int64_t first = kernel * (size * size) + tap_offset(size, taps, 0, 0, false);
  MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
    MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
      if (i >= taps.rows || j >= taps.columns) continue;
      if (arguments.partial == nullptr) {
        arguments.output[first + i * size + j] = static_cast<T>(value(i, j));
      } else {
        arguments.partial[first + i * size + j] = value(i, j);
      }
    }
  }
}

// One element of the sum of the parts, in their order.
template <typename T, typename Sum>
MKDEXT_DEVICE void add_parts(const WeightGradientArguments<T, Sum>& arguments, int64_t size,
                             int64_t at) {
  Sum sum = arguments.partial[at];
  for (int split = 1; split < arguments.splits; ++split) {
    sum += arguments.partial[split * size + at];
  }
  arguments.output[at] = static_cast<T>(sum);
}

}  // namespace mkdext::cuda
