// Correlation and weight gradient on tensor cores: tf32, float32 as sums of two tf32, bfloat16 and
// float16; sums in float32.
//
// Correlation       A block makes kOutputs channels of a tile of pixels, a warp 4 rows x 16 columns
//                   of it. A matrix product has output channels as rows, 8 pixels in a row as
//                   columns, and sums over 8 words of channels at one tap; moving the tap moves the
//                   address of the pixels alone. Pixels of a column of taps are loaded once for all
//                   its rows.
// Weight gradient   Output channels as rows, input channels as columns, at one tap; sums over 8
//                   words of pixels in a row.
// Memory            Maps are packed into words on their way to shared memory: channels in planes of
//                   pixels for the correlation, pixels in rows for the weight gradient. Kernels lie
//                   there as in global memory. Pitches are such that the lanes of a fragment fall
//                   into different banks. Several blocks share a multiprocessor, so that one loads
//                   while another computes.
// Parallel axis     Blocks own disjoint parts of the output (or of `partial`): there is no race.
// Order of sums     Fixed by the shape alone.
#pragma once

#include <type_traits>

#include "element_types.h"
#include "problem.h"
#include "thread_block.h"

namespace mkdext::cuda {

constexpr int kLanes = 32;
constexpr int kFragmentRows = 16;
constexpr int kFragmentColumns = 8;

// The least pitch of at least `words` that is 8 beyond a multiple of 16 banks.
constexpr int pitch_of_planes(int words) {
  while (words % 16 != 8) ++words;
  return words;
}

// The least pitch of at least `words` that is an odd multiple of 4 banks.
constexpr int pitch_of_rows(int words) {
  while (words % 8 != 4) ++words;
  return words;
}

// store(n, load(n)) for the n < kCount of a thread. It loads a batch before it stores any, so that
// the loads are on their way together; for that `load` must have no branch.
template <int kCount, int kThreads, typename Load, typename Store>
MKDEXT_DEVICE void copy_in_batches(int thread, const Load& load, const Store& store) {
  constexpr int kMost = 8;  // more would not fit the registers of a thread
  constexpr int kEach = (kCount + kThreads - 1) / kThreads;
  constexpr int kBatches = (kEach + kMost - 1) / kMost;
  constexpr int kBatch = (kEach + kBatches - 1) / kBatches;
  MKDEXT_NO_UNROLL for (int batch = 0; batch < kBatches; ++batch) {
    const int first = thread + batch * (kBatch * kThreads);
    decltype(load(0)) values[kBatch];
    MKDEXT_UNROLL for (int n = 0; n < kBatch; ++n) {
      values[n] = load(smaller(first + n * kThreads, kCount - 1));
    }
    MKDEXT_UNROLL for (int n = 0; n < kBatch; ++n) {
      if (first + n * kThreads < kCount) store(first + n * kThreads, values[n]);
    }
  }
}

// What lies `offset` beyond `base`, or 0 if not `valid`. To read a 0 takes no predicate register
// until the load ends, and there are seven.
template <typename Element>
MKDEXT_DEVICE Element load_if(bool valid, const Element* base, int64_t offset) {
  static const Element kZero{};
  return *(valid ? base + offset : &kZero);
}

template <typename Type, int kWarpsOut, int kWarpsPixels, int kFragments, bool kAllTaps,
          int kTogether = kBlocksTogether>
struct TensorCoreCorrelation {
  using Element = typename Type::Element;

  static constexpr int kThreads = kWarpsOut * kWarpsPixels * kLanes;
  static constexpr int kBlocks = kTogether;
  static constexpr int kOutputs = kWarpsOut * kFragments * kFragmentRows;
  static constexpr int kWarpRows = 4;
  static constexpr int kSegments = 2;  // of 8 pixels
  static constexpr int kRows = kWarpsPixels * kWarpRows;
  static constexpr int kColumns = kSegments * kFragmentColumns;
  static constexpr int kDepth = kWordsPerStep * Type::kPerWord;
  using Grid = CorrelationGrid<kOutputs, kRows, kColumns>;

  static constexpr int kSquare = kTaps * kTaps;
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapColumns = kColumns + kTaps - 1;
  static constexpr int kMapPlane = pitch_of_planes(kMapRows * kMapColumns);
  // Kernels as they lie in global memory: a row holds the channels of an output, or, flipped, the
  // outputs of a channel; each nine taps.
  static constexpr int kPitch = kDepth * kSquare + 4 * Type::kPerWord;
  static constexpr int kFlippedPitch = kOutputs * kSquare + 8;
  static constexpr int kWeights =
      kOutputs * kPitch > kDepth* kFlippedPitch ? kOutputs * kPitch : kDepth * kFlippedPitch;

  struct Shared {
    alignas(16) Element weight[kWeights];
    uint32_t map[kWordsPerStep][kMapPlane];
  };
  struct Registers {
    float sums[kFragments][kWarpRows][kSegments][4];
    uint32_t weight[kFragments][4 * Type::kParts];
    uint32_t map[kWarpRows + kTaps - 1][kSegments][2 * Type::kParts];
  };

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared, const Maps& maps,
                                const Correlation<Element>& job, int64_t index) {
    if (job.flipped) {
      run_flipped<true>(block, shared, maps, job, index);
    } else {
      run_flipped<false>(block, shared, maps, job, index);
    }
  }

 private:
  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void run_flipped(Block& block, Shared& shared, const Maps& maps,
                                        const Correlation<Element>& job, int64_t index) {
    const CorrelationTile tile = Grid::tile(maps, job.outputs, index);
    const int steps = correlation_steps(maps, job, kDepth);
    block.each_thread([&](int, Registers& registers) {
      MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
        MKDEXT_UNROLL for (int r = 0; r < kWarpRows; ++r) {
          MKDEXT_UNROLL for (int s = 0; s < kSegments; ++s) {
            MKDEXT_UNROLL for (int q = 0; q < 4; ++q) registers.sums[f][r][s][q] = 0.0f;
          }
        }
      }
    });
    MKDEXT_NO_UNROLL for (int n = 0; n < steps; ++n) {
      const CorrelationStep step = correlation_step(maps, job, kDepth, n);
      load_weights<kFlipped>(block, shared, maps, job, tile, step);
      load_map(block, shared, maps, job, tile, step);
      block.each_thread([&](int, Registers&) { block.await_copies(); });
      block.barrier();
      multiply<kFlipped>(block, shared, step.taps);
      block.barrier();
    }
    store(block, maps, job, tile);
  }

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void load_weights(Block& block, Shared& shared, const Maps& maps,
                                         const Correlation<Element>& job,
                                         const CorrelationTile& tile, const CorrelationStep& step) {
    const Element* const weight =
        job.terms[step.term].weight +
        tile.sample * job.channels * job.outputs * (maps.kernel_size * maps.kernel_size);
    constexpr int kShortRow = kFlipped ? kOutputs : kDepth,
                  kShortRows = kFlipped ? kDepth : kOutputs;
    constexpr int kRowPitch = kFlipped ? kFlippedPitch : kPitch;
    constexpr int kRowLength = kShortRow * kSquare;
    block.each_thread([&](int thread, Registers&) {
      if (kAllTaps && job.aligned_weights) {
        constexpr int kAtOnce = 16 / sizeof(Element);
        constexpr int kPieces = kRowLength / kAtOnce;
        const int first = kFlipped ? tile.output : step.channel;
        const int length = kSquare * ((kFlipped ? job.outputs : job.channels) - first);
        for (int e = thread; e < kShortRows * kPieces; e += kThreads) {
          const int at = e % kPieces * kAtOnce, row = e / kPieces;
          const int o = tile.output + (kFlipped ? 0 : row), c = step.channel + (kFlipped ? row : 0);
          const bool valid = o < job.outputs && c < job.channels && at < length;
          const Element* const from = valid ? weight + kernel_offset(maps, job, o, c) + at : weight;
          block.template copy_async<16>(&shared.weight[row * kRowPitch + at], from, valid);
        }
      } else {
        const auto load = [&](int e) {
          const int at = e % kRowLength, row = e / kRowLength;
          const int tap = at % kSquare, i = tap / kTaps, j = tap % kTaps;
          const int o = tile.output + (kFlipped ? at / kSquare : row);
          const int c = step.channel + (kFlipped ? row : at / kSquare);
          // Flipped, a square lies here as in memory: its last tap first.
          const int tap_row = kFlipped ? step.taps.rows - 1 - i : i;
          const int tap_column = kFlipped ? step.taps.columns - 1 - j : j;
          const bool valid =
              o < job.outputs && c < job.channels && i < step.taps.rows && j < step.taps.columns;
          return load_if(
              valid, weight,
              kernel_offset(maps, job, o, c) +
                  tap_offset(maps.kernel_size, step.taps, tap_row, tap_column, kFlipped));
        };
        copy_in_batches<kShortRows * kRowLength, kThreads>(thread, load, [&](int e, Element value) {
          shared.weight[e / kRowLength * kRowPitch + e % kRowLength] = value;
        });
      }
    });
  }

  template <typename Block>
  static MKDEXT_DEVICE void load_map(Block& block, Shared& shared, const Maps& maps,
                                     const Correlation<Element>& job, const CorrelationTile& tile,
                                     const CorrelationStep& step) {
    const int64_t area = static_cast<int64_t>(maps.height) * maps.width;
    const Element* const map = job.terms[step.term].map + tile.sample * job.channels * area;
    const int row = tile.row + step.taps.row - maps.kernel_size / 2;
    const int column = tile.column + step.taps.column - maps.kernel_size / 2;
    block.each_thread([&](int thread, Registers&) {
      const auto load = [&](int e) {
        const int s = e % kMapColumns, r = e / kMapColumns % kMapRows;
        const int word = e / (kMapColumns * kMapRows);
        const int h = row + r, v = column + s, c = step.channel + word * Type::kPerWord;
        const bool inside = h >= 0 && h < maps.height && v >= 0 && v < maps.width;
        const int64_t offset = c * area + static_cast<int64_t>(h) * maps.width + v;
        Element values[Type::kPerWord];
        MKDEXT_UNROLL for (int q = 0; q < Type::kPerWord; ++q) {
          values[q] = load_if(inside && c + q < job.channels, map, offset + q * area);
        }
        return Type::pack(values);
      };
      constexpr int kPlane = kMapRows * kMapColumns;
      copy_in_batches<kWordsPerStep * kPlane, kThreads>(
          thread, load, [&](int e, uint32_t word) { shared.map[e / kPlane][e % kPlane] = word; });
    });
  }

  struct Place {
    int output;
    int row;
    int group;   // lane / 4
    int member;  // lane % 4
  };
  static MKDEXT_DEVICE Place place(int thread) {
    const int warp = thread / kLanes, lane = thread % kLanes;
    return {warp / kWarpsPixels * kFragments * kFragmentRows, warp % kWarpsPixels * kWarpRows,
            lane / 4, lane % 4};
  }

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void multiply(Block& block, const Shared& shared, const TapSquare& taps) {
    MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
      if (!kAllTaps && j >= taps.columns) break;
      block.each_thread([&](int thread, Registers& registers) {
        const Place at = place(thread);
        MKDEXT_UNROLL for (int r = 0; r < kWarpRows + kTaps - 1; ++r) {
          MKDEXT_UNROLL for (int s = 0; s < kSegments; ++s) {
            const int pixel = (at.row + r) * kMapColumns + s * kFragmentColumns + at.group + j;
            uint32_t* const words = registers.map[r][s];
            Type::split(shared.map[at.member][pixel], words, 2);
            Type::split(shared.map[at.member + 4][pixel], words + 1, 2);
          }
        }
      });
      MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
        if (!kAllTaps && i >= taps.rows) break;
        // Where the tap lies in a square of kernels that is stored last tap first.
        const int row = !kFlipped ? i : kAllTaps ? kTaps - 1 - i : taps.rows - 1 - i;
        const int column = !kFlipped ? j : kAllTaps ? kTaps - 1 - j : taps.columns - 1 - j;
        block.each_thread([&](int thread, Registers& registers) {
          const Place at = place(thread);
          MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
            MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
              const int m = at.output + f * kFragmentRows + at.group + q % 2 * 8;
              const int word = at.member + q / 2 * 4;
              Element values[Type::kPerWord];
              MKDEXT_UNROLL for (int p = 0; p < Type::kPerWord; ++p) {
                const int d = word * Type::kPerWord + p;
                const int kernel =
                    kFlipped ? d * kFlippedPitch + m * kSquare : m * kPitch + d * kSquare;
                values[p] = shared.weight[kernel + row * kTaps + column];
              }
              Type::split(Type::pack(values), registers.weight[f] + q, 4);
            }
          }
        });
        MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
          MKDEXT_UNROLL for (int r = 0; r < kWarpRows; ++r) {
            MKDEXT_UNROLL for (int s = 0; s < kSegments; ++s) {
              block.template multiply_add<Type>([&](Registers& registers) {
                return Fragments{registers.sums[f][r][s], registers.weight[f],
                                 registers.map[r + i][s]};
              });
            }
          }
        }
      }
    }
  }

  template <typename Block>
  static MKDEXT_DEVICE void store(Block& block, const Maps& maps, const Correlation<Element>& job,
                                  const CorrelationTile& tile) {
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
        MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
          const int64_t o = tile.output + at.output + f * kFragmentRows + at.group + half * 8;
          if (o >= job.outputs) continue;
          MKDEXT_UNROLL for (int r = 0; r < kWarpRows; ++r) {
            const int h = tile.row + at.row + r;
            if (h >= maps.height) continue;
            MKDEXT_UNROLL for (int s = 0; s < kSegments; ++s) {
              const int v = tile.column + s * kFragmentColumns + at.member * 2;
              const float* const sum = registers.sums[f][r][s] + half * 2;
              store_pair(sum, maps.width - v,
                         job.output +
                             ((tile.sample * job.outputs + o) * maps.height + h) * maps.width + v);
            }
          }
        }
      }
    });
  }

  struct alignas(2 * sizeof(Element)) Pair {
    Element values[2];
  };

  // Stores as many of the two as there is room for.
  static MKDEXT_DEVICE void store_pair(const float* sum, int room, Element* to) {
    if (room >= 2 && is_multiple_of(to, sizeof(Pair))) {
      *reinterpret_cast<Pair*>(to) =
          Pair{{static_cast<Element>(sum[0]), static_cast<Element>(sum[1])}};
    } else {
      if (room >= 1) to[0] = static_cast<Element>(sum[0]);
      if (room >= 2) to[1] = static_cast<Element>(sum[1]);
    }
  }
};

// A warp makes kFragmentsOut x kFragmentsIn fragments of each of the nine taps.
template <typename Type, int kWarpsOut, int kWarpsIn, int kFragmentsOut, int kFragmentsIn,
          bool kAllTaps>
struct TensorCoreWeightGradient {
  using Element = typename Type::Element;
  using Sum = float;

  static constexpr int kThreads = kWarpsOut * kWarpsIn * kLanes;
  static constexpr int kBlocks = kBlocksTogether;
  static constexpr int kOut = kWarpsOut * kFragmentsOut * kFragmentRows;
  static constexpr int kIn = kWarpsIn * kFragmentsIn * kFragmentColumns;
  using Grid = WeightGradientGrid<kOut, kIn>;

  static constexpr int kRows = 4;
  static constexpr int kColumns = 16;
  using Pixels = PixelTiles<kRows, kColumns>;
  static constexpr int kWords = kColumns / Type::kPerWord;  // of a row of pixels
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapWords = (kColumns + kTaps - 1) / Type::kPerWord;
  static constexpr int kGradPitch = pitch_of_rows(kRows * kWords);
  static constexpr int kMapPlane = pitch_of_rows(kMapRows * kMapWords);

  struct Shared {
    uint32_t grad[kOut][kGradPitch];
    uint32_t map[kIn][kMapPlane];
  };
  struct Registers {
    float sums[kFragmentsOut][kFragmentsIn][kTaps * kTaps][4];
    uint32_t grad[kFragmentsOut][4 * Type::kParts];
    uint32_t map[kFragmentsIn][kTaps][2 * Type::kParts];
  };
  using Arguments = WeightGradientArguments<Element, float>;

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared, const Arguments& arguments,
                                int64_t index) {
    const WeightGradientTile tile = Grid::tile(arguments, index);
    const TapSquare taps = tap_square(arguments.maps.kernel_size, tile.square);
    const Pixels pixels(arguments.maps);
    const int first = pixels.first_of(tile.split, arguments.splits);
    const int end = pixels.first_of(tile.split + 1, arguments.splits);
    block.each_thread([&](int, Registers& registers) {
      MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
        MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
          MKDEXT_UNROLL for (int t = 0; t < kTaps * kTaps; ++t) {
            MKDEXT_UNROLL for (int q = 0; q < 4; ++q) registers.sums[f][n][t][q] = 0.0f;
          }
        }
      }
    });
    MKDEXT_NO_UNROLL for (int n = first; n < end; ++n) {
      load(block, shared, arguments, tile, taps, pixels.row(n), pixels.column(n));
      block.barrier();
      // No further: the zeros beyond the edge must not meet an infinity of the map.
      multiply(block, shared, taps, smaller(kRows, arguments.maps.height - pixels.row(n)),
               smaller(kColumns, arguments.maps.width - pixels.column(n)));
      block.barrier();
    }
    store(block, arguments, tile, taps);
  }

 private:
  template <typename Block>
  static MKDEXT_DEVICE void load(Block& block, Shared& shared, const Arguments& arguments,
                                 const WeightGradientTile& tile, const TapSquare& taps, int row,
                                 int column) {
    const Maps& maps = arguments.maps;
    const int64_t area = static_cast<int64_t>(maps.height) * maps.width;
    const Element* const grad = arguments.grad + tile.sample * arguments.out_channels * area;
    const Element* const map = arguments.map + tile.sample * arguments.in_channels * area;
    const int map_row = row + taps.row - maps.kernel_size / 2;
    const int map_column = column + taps.column - maps.kernel_size / 2;
    block.each_thread([&](int thread, Registers&) {
      constexpr int kGradPlane = kRows * kWords, kPlane = kMapRows * kMapWords;
      copy_in_batches<kOut * kGradPlane, kThreads>(
          thread,
          [&](int e) {
            return load_word(maps, grad, tile.out_channel + e / kGradPlane, arguments.out_channels,
                             row + e / kWords % kRows, column + e % kWords * Type::kPerWord);
          },
          [&](int e, uint32_t word) { shared.grad[e / kGradPlane][e % kGradPlane] = word; });
      copy_in_batches<kIn * kPlane, kThreads>(
          thread,
          [&](int e) {
            return load_word(maps, map, tile.in_channel + e / kPlane, arguments.in_channels,
                             map_row + e / kMapWords % kMapRows,
                             map_column + e % kMapWords * Type::kPerWord);
          },
          [&](int e, uint32_t word) { shared.map[e / kPlane][e % kPlane] = word; });
    });
  }

  // Neighbouring pixels of a channel, 0 outside the map.
  static MKDEXT_DEVICE uint32_t load_word(const Maps& maps, const Element* map, int channel,
                                          int channels, int h, int v) {
    const bool inside = channel < channels && h >= 0 && h < maps.height;
    const int64_t offset = (static_cast<int64_t>(channel) * maps.height + h) * maps.width + v;
    Element values[Type::kPerWord];
    MKDEXT_UNROLL for (int q = 0; q < Type::kPerWord; ++q) {
      values[q] = load_if(inside && v + q >= 0 && v + q < maps.width, map, offset + q);
    }
    return Type::pack(values);
  }

  struct Place {
    int out;
    int in;
    int group;   // lane / 4
    int member;  // lane % 4
  };
  static MKDEXT_DEVICE Place place(int thread) {
    const int warp = thread / kLanes, lane = thread % kLanes;
    return {warp / kWarpsIn * kFragmentsOut * kFragmentRows,
            warp % kWarpsIn * kFragmentsIn * kFragmentColumns, lane / 4, lane % 4};
  }

  template <typename Block>
  static MKDEXT_DEVICE void multiply(Block& block, const Shared& shared, const TapSquare& taps,
                                     int rows, int columns) {
    MKDEXT_NO_UNROLL for (int r = 0; r < rows; ++r) {
      MKDEXT_NO_UNROLL for (int step = 0; step < kWords; step += kWordsPerStep) {
        block.each_thread([&](int thread, Registers& registers) {
          const Place at = place(thread);
          MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
            MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
              const int m = at.out + f * kFragmentRows + at.group + q % 2 * 8;
              Type::split(shared.grad[m][r * kWords + step + at.member + q / 2 * 4],
                          registers.grad[f] + q, 4);
            }
          }
        });
        MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
          if (!kAllTaps && i >= taps.rows) break;
          block.each_thread([&](int thread, Registers& registers) {
            const Place at = place(thread);
            MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
              const int c = at.in + n * kFragmentColumns + at.group;
              MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
                const int word = step + at.member + half * 4;
                shifted(&shared.map[c][(r + i) * kMapWords + word],
                        bits_of_pixels(columns - word * Type::kPerWord), half, registers.map[n]);
              }
            }
          });
          MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
            if (!kAllTaps && j >= taps.columns) break;
            MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
              MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
                block.template multiply_add<Type>([&](Registers& registers) {
                  return Fragments{registers.sums[f][n][i * kTaps + j], registers.grad[f],
                                   registers.map[n][j]};
                });
              }
            }
          }
        }
      }
    }
  }

  // The word at `from` and the words that begin one and two pixels later, of which `bits` count.
  static MKDEXT_DEVICE void shifted(const uint32_t* from, uint32_t bits, int half,
                                    uint32_t (*words)[2 * Type::kParts]) {
    constexpr bool kSingle = Type::kPerWord == 1;
    const uint32_t second = kSingle ? from[1] : from[0] >> 16 | from[1] << 16;
    Type::split(from[0] & bits, words[0] + half, 2);
    Type::split(second & bits, words[1] + half, 2);
    Type::split((kSingle ? from[2] : from[1]) & bits, words[2] + half, 2);
  }

  // The bits of so many pixels of a word, of all if there are more.
  static MKDEXT_DEVICE uint32_t bits_of_pixels(int count) {
    if (count >= Type::kPerWord) return ~uint32_t{0};
    return count == 1 ? uint32_t{0xffff} : 0;
  }

  template <typename Block>
  static MKDEXT_DEVICE void store(Block& block, const Arguments& arguments,
                                  const WeightGradientTile& tile, const TapSquare& taps) {
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
        MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
          MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
            const int o = tile.out_channel + at.out + f * kFragmentRows + at.group + q / 2 * 8;
            const int c = tile.in_channel + at.in + n * kFragmentColumns + at.member * 2 + q % 2;
            store_taps(arguments, tile, taps, o, c,
                       [&](int i, int j) { return registers.sums[f][n][i * kTaps + j][q]; });
          }
        }
      }
    });
  }
};

}  // namespace mkdext::cuda
