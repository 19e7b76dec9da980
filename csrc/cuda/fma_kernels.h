// Correlation and weight gradient on multiply-add units: float32 and float64, summed in that type.
//
// Correlation       A block makes kOutputs channels of a tile of pixels. Step by step it brings the
//                   tile, with a border for the taps, and the kernels of kDepth channels to shared
//                   memory; a thread holds the sums of kOutputsPerThread channels x 8 pixels in a
//                   row, so that a loaded value enters many products.
// Weight gradient   A block makes the nine taps of kOut x kIn kernels over its share of the pixels;
//                   a thread holds those of kOutPerThread output channels and one input channel.
// Memory            Tiles are copied asynchronously into the second of two stages while the first
//                   is computed with. Pixels outside the map and channels that do not exist are 0.
// Parallel axis     Blocks own disjoint parts of the output (or of `partial`): there is no race.
// Order of sums     Fixed by the shape alone.
#pragma once

#include "copies.h"
#include "problem.h"
#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kStrip = 8;  // pixels in a row of one thread

MKDEXT_HOST_DEVICE constexpr int padded(int length, int multiple) {
  return (length + multiple - 1) / multiple * multiple;
}

// kAllTaps: the kernel is 3 x 3. Otherwise squares may have fewer taps.
template <typename T, int kOutputs, int kRows, int kColumns, int kOutputsPerThread, int kDepth,
          bool kAllTaps>
struct FmaCorrelation {
  using Element = T;
  using Grid = CorrelationGrid<kOutputs, kRows, kColumns>;

  static constexpr int kStrips = kColumns / kStrip;
  static constexpr int kThreads = kOutputs / kOutputsPerThread * kRows * kStrips;
  static constexpr int kBlocks = kBlocksTogether;
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapColumns = kColumns + kTaps - 1;
  static constexpr int kMapPitch = padded(kMapColumns, 4);
  // 4 beyond a multiple of 32 banks: neither the copy's writes nor the reads collide.
  static constexpr int kWeightPitch = kOutputs + 4;
  static constexpr int kTapsOfStep = kDepth * kTaps * kTaps;

  struct Stage {
    alignas(32) T map[kDepth][kMapRows * kMapPitch];
    alignas(32) T weight[kTapsOfStep][kWeightPitch];
  };
  struct Shared {
    Stage stages[2];
  };
  struct Registers {
    T sums[kOutputsPerThread][kStrip];
  };

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared, Maps maps, const Correlation<T>& job,
                                int index) {
    if (kAllTaps) maps.kernel_size = kTaps;
    const CorrelationTile tile = Grid::tile(maps, job.outputs, index);
    block.each_thread([&](int, Registers& registers) {
      MKDEXT_UNROLL for (int m = 0; m < kOutputsPerThread; ++m) {
        MKDEXT_UNROLL for (int s = 0; s < kStrip; ++s) registers.sums[m][s] = T(0);
      }
    });
    CorrelationStep step = first_step(maps);
    copy(block, shared.stages[0], maps, job, tile, step);
    block.each_thread([&](int, Registers&) { block.await_copies(); });
    block.barrier();
    for (int stage = 0; step.term < job.term_count; stage = 1 - stage) {
      const CorrelationStep next = step_after(step, maps, job, kDepth);
      if (next.term < job.term_count) copy(block, shared.stages[1 - stage], maps, job, tile, next);
      multiply(block, shared.stages[stage], step.taps);
      block.each_thread([&](int, Registers&) { block.await_copies(); });
      block.barrier();
      step = next;
    }
    store(block, maps, job, tile);
  }

 private:
  template <typename Block>
  static MKDEXT_DEVICE void copy(Block& block, Stage& stage, const Maps& maps,
                                 const Correlation<T>& job, const CorrelationTile& tile,
                                 const CorrelationStep& step) {
    const int64_t area = area_of(maps);
    const T* const map = map_of_sample(maps, job.terms[step.term].map, job.channels, tile.sample);
    const T* const weight = weight_of_sample(maps, job, step.term, tile.sample);
    const int row = tile.row + step.taps.row - maps.kernel_size / 2;
    const int column = tile.column + step.taps.column - maps.kernel_size / 2;
    block.each_thread([&](int thread, Registers&) {
      copy_places<kMapRows * kMapColumns, kDepth, kThreads>(thread, [&](int place, int d) {
        const int r = place / kMapColumns, s = place % kMapColumns;
        const int h = row + r, v = column + s, c = step.channel + d;
        const bool inside = h >= 0 && h < maps.height && v >= 0 && v < maps.width;
        block.template copy_async<sizeof(T)>(
            &stage.map[d][r * kMapPitch + s],
            map + (c * area + static_cast<int64_t>(h) * maps.width + v),
            inside && c < job.channels);
      });
      copy_transposed<kTapsOfStep, kOutputs, kThreads>(thread, [&](int tap, int m) {
        const int d = tap / (kTaps * kTaps), i = tap / kTaps % kTaps, j = tap % kTaps;
        const int o = tile.output + m, c = step.channel + d;
        const bool exists = c < job.channels && i < step.taps.rows && j < step.taps.columns;
        block.template copy_async<sizeof(T)>(
            &stage.weight[tap][m],
            weight + (kernel_offset(maps, job, o, c) +
                      tap_offset(maps.kernel_size, step.taps, i, j, job.flipped)),
            exists && o < job.outputs);
      });
    });
  }

  // The first output channel, the row and the strip of a thread. Neighbours in a warp have
  // neighbouring rows, whose addresses fall into different banks.
  struct Place {
    int output;
    int row;
    int column;
  };
  static MKDEXT_DEVICE Place place(int thread) {
    return {thread / (kRows * kStrips) * kOutputsPerThread, thread % kRows,
            thread / kRows % kStrips * kStrip};
  }

  template <typename Block>
  static MKDEXT_DEVICE void multiply(Block& block, const Stage& stage, const TapSquare& taps) {
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      MKDEXT_NO_UNROLL for (int d = 0; d < kDepth; ++d) {
        MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
          if (!kAllTaps && i >= taps.rows) break;
          T x[kStrip + 4];
          const T* const row = &stage.map[d][(at.row + i) * kMapPitch + at.column];
          MKDEXT_UNROLL for (int q = 0; q < 2; ++q) load_four(row + 4 * q, x + 4 * q);
          x[kStrip] = row[kStrip];
          x[kStrip + 1] = row[kStrip + 1];
          MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
            if (!kAllTaps && j >= taps.columns) break;
            T w[kOutputsPerThread];
            const T* const weights = &stage.weight[(d * kTaps + i) * kTaps + j][at.output];
            MKDEXT_UNROLL for (int m = 0; m < kOutputsPerThread; m += 4) {
              load_four(weights + m, w + m);
            }
            MKDEXT_UNROLL for (int m = 0; m < kOutputsPerThread; ++m) {
              MKDEXT_UNROLL for (int s = 0; s < kStrip; ++s) {
                registers.sums[m][s] += w[m] * x[s + j];
              }
            }
          }
        }
      }
    });
  }

  template <typename Block>
  static MKDEXT_DEVICE void store(Block& block, const Maps& maps, const Correlation<T>& job,
                                  const CorrelationTile& tile) {
    T* const output = job.output + static_cast<int64_t>(tile.sample) * job.outputs * area_of(maps);
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      const int h = tile.row + at.row, v = tile.column + at.column;
      if (h >= maps.height || v >= maps.width) return;
      MKDEXT_UNROLL for (int m = 0; m < kOutputsPerThread; ++m) {
        const int64_t o = tile.output + at.output + m;
        if (o >= job.outputs) break;
        T* const to = output + o * area_of(maps) + static_cast<int64_t>(h) * maps.width + v;
        const bool in_fours = is_multiple_of(to, sizeof(Four<T>));
        MKDEXT_UNROLL for (int q = 0; q < kStrip; q += 4) {
          if (in_fours && v + q + 4 <= maps.width) {
            Four<T> four;
            MKDEXT_UNROLL for (int s = 0; s < 4; ++s) four.values[s] = registers.sums[m][q + s];
            *reinterpret_cast<Four<T>*>(to + q) = four;
          } else {
            MKDEXT_UNROLL for (int s = q; s < q + 4; ++s) {
              if (v + s < maps.width) to[s] = registers.sums[m][s];
            }
          }
        }
      }
    });
  }

  static MKDEXT_DEVICE void load_four(const T* from, T* to) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
    MKDEXT_UNROLL for (int s = 0; s < 4; ++s) to[s] = four.values[s];
  }
};

template <typename T, int kOut, int kIn, int kOutPerThread, int kRows, bool kAllTaps>
struct FmaWeightGradient {
  using Element = T;
  using Sum = T;
  using Grid = WeightGradientGrid<kOut, kIn>;

  static constexpr int kColumns = 16;
  using Pixels = PixelTiles<kRows, kColumns>;
  static constexpr int kThreads = kOut / kOutPerThread * kIn;
  static constexpr int kBlocks = kBlocksTogether;
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapColumns = kColumns + kTaps - 1;
  static constexpr int kMapPlane = kMapRows * kMapColumns | 1;  // odd: channels in different banks
  static constexpr int kGradPitch = kOut + 4;

  struct Stage {
    alignas(32) T grad[kRows * kColumns][kGradPitch];
    T map[kIn][kMapPlane];
  };
  struct Shared {
    Stage stages[2];
  };
  struct Registers {
    T sums[kOutPerThread][kTaps * kTaps];
  };

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared,
                                const WeightGradientArguments<T, T>& arguments, int index) {
    const WeightGradientTile tile = Grid::tile(arguments, index);
    const TapSquare taps = tap_square(arguments.maps.kernel_size, tile.square);
    const Pixels pixels(arguments.maps);
    const int first = pixels.first_of(tile.split, arguments.splits);
    const int end = pixels.first_of(tile.split + 1, arguments.splits);
    block.each_thread([&](int, Registers& registers) {
      MKDEXT_UNROLL for (int m = 0; m < kOutPerThread; ++m) {
        MKDEXT_UNROLL for (int t = 0; t < kTaps * kTaps; ++t) registers.sums[m][t] = T(0);
      }
    });
    copy(block, shared.stages[first % 2], arguments, tile, taps, pixels, first);
    block.each_thread([&](int, Registers&) { block.await_copies(); });
    block.barrier();
    for (int n = first; n < end; ++n) {
      if (n + 1 < end)
        copy(block, shared.stages[(n + 1) % 2], arguments, tile, taps, pixels, n + 1);
      // No further: the zeros beyond the edge must not meet an infinity of the map.
      multiply(block, shared.stages[n % 2], taps,
               smaller(kRows, arguments.maps.height - pixels.row(n)),
               smaller(kColumns, arguments.maps.width - pixels.column(n)));
      block.each_thread([&](int, Registers&) { block.await_copies(); });
      block.barrier();
    }
    block.each_thread([&](int thread, Registers& registers) {
      const int o = tile.out_channel + thread / kIn * kOutPerThread;
      const int c = tile.in_channel + thread % kIn;
      MKDEXT_UNROLL for (int m = 0; m < kOutPerThread; ++m) {
        store_taps(arguments, tile, taps, o + m, c,
                   [&](int i, int j) { return registers.sums[m][i * kTaps + j]; });
      }
    });
  }

 private:
  template <typename Block>
  static MKDEXT_DEVICE void copy(Block& block, Stage& stage,
                                 const WeightGradientArguments<T, T>& arguments,
                                 const WeightGradientTile& tile, const TapSquare& taps,
                                 const Pixels& pixels, int index) {
    const Maps& maps = arguments.maps;
    const int64_t area = area_of(maps);
    const T* const grad = map_of_sample(maps, arguments.grad, arguments.out_channels, tile.sample);
    const T* const map = map_of_sample(maps, arguments.map, arguments.in_channels, tile.sample);
    const int row = pixels.row(index), column = pixels.column(index);
    const int map_row = row + taps.row - maps.kernel_size / 2;
    const int map_column = column + taps.column - maps.kernel_size / 2;
    block.each_thread([&](int thread, Registers&) {
      copy_transposed<kRows * kColumns, kOut, kThreads>(thread, [&](int pixel, int m) {
        const int h = row + pixel / kColumns, v = column + pixel % kColumns;
        const int o = tile.out_channel + m;
        block.template copy_async<sizeof(T)>(
            &stage.grad[pixel][m], grad + (o * area + static_cast<int64_t>(h) * maps.width + v),
            h < maps.height && v < maps.width && o < arguments.out_channels);
      });
      copy_places<kMapRows * kMapColumns, kIn, kThreads>(thread, [&](int place, int d) {
        const int h = map_row + place / kMapColumns, v = map_column + place % kMapColumns;
        const int c = tile.in_channel + d;
        const bool inside = h >= 0 && h < maps.height && v >= 0 && v < maps.width;
        block.template copy_async<sizeof(T)>(
            &stage.map[d][place], map + (c * area + static_cast<int64_t>(h) * maps.width + v),
            inside && c < arguments.in_channels);
      });
    });
  }

  template <typename Block>
  static MKDEXT_DEVICE void multiply(Block& block, const Stage& stage, const TapSquare& taps,
                                     int rows, int columns) {
    block.each_thread([&](int thread, Registers& registers) {
      const T* const map = stage.map[thread % kIn];
      const int output = thread / kIn * kOutPerThread;
      MKDEXT_NO_UNROLL for (int r = 0; r < rows; ++r) {
        MKDEXT_NO_UNROLL for (int strip = 0; strip < columns; strip += kStrip) {
          const T* const corner = map + r * kMapColumns + strip;
          MKDEXT_UNROLL for (int s = 0; s < kStrip; ++s) {
            if (strip + s >= columns) break;
            T g[kOutPerThread];
            const T* const grad = &stage.grad[r * kColumns + strip + s][output];
            MKDEXT_UNROLL for (int m = 0; m < kOutPerThread; m += 4) {
              const Four<T> four = *reinterpret_cast<const Four<T>*>(grad + m);
              MKDEXT_UNROLL for (int q = 0; q < 4; ++q) g[m + q] = four.values[q];
            }
            MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
              if (!kAllTaps && i >= taps.rows) break;
              MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
                if (!kAllTaps && j >= taps.columns) break;
                const T x = corner[i * kMapColumns + s + j];
                MKDEXT_UNROLL for (int m = 0; m < kOutPerThread; ++m) {
                  registers.sums[m][i * kTaps + j] += g[m] * x;
                }
              }
            }
          }
        }
      }
    });
  }
};

}  // namespace mkdext::cuda
