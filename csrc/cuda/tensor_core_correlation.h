// Correlation on tensor cores: tf32, float32 as sums of two tf32, bfloat16 and float16; sums in
// float32.
//
// Product        A matrix product has output channels as rows, 8 pixels in a row as columns, and
//                sums over 8 words of channels at one tap; moving the tap moves the address of the
//                pixels alone. A block makes kOutputs channels of a tile of pixels, a warp 8 x 8
//                pixels of it. It goes through the rows of the map once for each column of taps; a
//                row meets the kernels of three rows of taps while it is in registers.
// Memory         Maps lie in shared memory in planes of pixels, channels packed into words; kernels
//                as in global memory. Pitches are such that the lanes of a fragment fall into
//                different banks. Several blocks share a multiprocessor, so that one loads while
//                another computes.
// Loads          Of 3 x 3 kernels 16 bytes, and of maps four pixels, at once where rows begin at
//                multiples of that; element by element elsewhere, and for other sizes of kernels.
// Parallel axis  Blocks own disjoint parts of the output: there is no race.
// Order of sums  Fixed by the shape alone.
#pragma once

#include "copies.h"
#include "element_types.h"
#include "problem.h"
#include "tensor_cores.h"
#include "thread_block.h"

namespace mkdext::cuda {

template <typename Type, int kWarpsOut, int kWarpsDown, int kWarpsAcross, int kFragments,
          bool kAligned, int kBlocksOfProcessor = kBlocksTogether>
struct TensorCoreCorrelation {
  using Element = typename Type::Element;

  static constexpr int kThreads = kWarpsOut * kWarpsDown * kWarpsAcross * kLanes;
  static constexpr int kBlocks = kBlocksOfProcessor;
  static constexpr int kOutputs = kWarpsOut * kFragments * kFragmentRows;
  static constexpr int kWarpRows = 8;
  static constexpr int kRows = kWarpsDown * kWarpRows;
  static constexpr int kColumns = kWarpsAcross * kFragmentColumns;
  static constexpr int kDepth = kWordsPerStep * Type::kPerWord;
  using Grid = CorrelationGrid<kOutputs, kRows, kColumns>;

  static constexpr int kSquare = kTaps * kTaps;
  // A row of the map begins four pixels before the tile, so that four at a time are aligned; the
  // first that is needed is the last of these.
  static constexpr int kQuad = 4;
  static constexpr int kFirst = kQuad - 1;
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapColumns = kColumns + 2 * kQuad;
  static constexpr int kMapPlane = pitch_of_planes(kMapRows * kMapColumns);
  // Kernels as they lie in global memory: a row holds the channels of an output, or, flipped, the
  // outputs of a channel; each nine taps.
  static constexpr int kPitch = kDepth * kSquare + 4 * Type::kPerWord;
  static constexpr int kFlippedPitch = kOutputs * kSquare + 8;
  static constexpr int kWeights =
      kOutputs * kPitch > kDepth* kFlippedPitch ? kOutputs * kPitch : kDepth * kFlippedPitch;

  // The taps of a kernel whose operands are in registers together: of 16 bits all of them, because
  // they are read two at a time; else those of a column.
  static constexpr int kTapsTogether = Type::kPerWord == 1 ? kTaps : kSquare;

  struct Shared {
    CorrelationTile tile;  // here, because multiply takes all registers
    alignas(kBytesOfPiece) Element weight[kWeights];
    alignas(kBytesOfPiece) uint32_t map[kWordsPerStep][kMapPlane];
  };
  struct Registers {
    float sums[kFragments][kWarpRows][4];
    uint32_t weight[kTapsTogether][kFragments][4 * Type::kParts];
    uint32_t map[2][2 * Type::kParts];  // of a row and the next
  };

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared, const Maps& maps,
                                const Correlation<Element>& job, int index) {
    if (job.flipped) {
      run_flipped<true>(block, shared, maps, job, index);
    } else {
      run_flipped<false>(block, shared, maps, job, index);
    }
  }

 private:
  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void run_flipped(Block& block, Shared& shared, const Maps& maps,
                                        const Correlation<Element>& job, int index) {
    block.each_thread([&](int thread, Registers& registers) {
      if (thread == 0) shared.tile = Grid::tile(maps, job.outputs, index);
      MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
        MKDEXT_UNROLL for (int r = 0; r < kWarpRows; ++r) {
          MKDEXT_UNROLL for (int q = 0; q < 4; ++q) registers.sums[f][r][q] = 0.0f;
        }
      }
    });
    block.barrier();
    const int squares = kAligned ? 1 : tap_squares(maps.kernel_size);
    MKDEXT_NO_UNROLL for (int term = 0; term < job.term_count; ++term) {
      MKDEXT_NO_UNROLL for (int square = 0; square < squares; ++square) {
        const TapSquare taps = tap_square(kAligned ? kTaps : maps.kernel_size, square);
        MKDEXT_NO_UNROLL for (int c = 0; c < job.channels; c += kDepth) {
          add_step<kFlipped>(block, shared, maps, job, reread(shared.tile),
                             {term, square, taps, c});
        }
      }
    }
    store<kFlipped>(block, maps, job, reread(shared.tile));
  }

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void add_step(Block& block, Shared& shared, const Maps& maps,
                                     const Correlation<Element>& job, const CorrelationTile& tile,
                                     const CorrelationStep& step) {
    if (kAligned || job.aligned_weights) {
      copy_weights<kFlipped>(block, shared, maps, job, tile, step);
    } else {
      load_weights<kFlipped>(block, shared, maps, job, tile, step);
    }
    if (kAligned || job.aligned_maps) {
      copy_map(block, shared, maps, job, tile, step);
    } else {
      load_map(block, shared, maps, job, tile, step);
    }
    block.each_thread([&](int, Registers&) { block.await_copies(); });
    block.barrier();
    multiply<kFlipped>(block, shared, step.taps, smaller(kRows, maps.height - tile.row));
    block.barrier();
  }

  // A row of kernels in shared memory.
  template <bool kFlipped>
  struct WeightRow {
    static constexpr int kCount = kFlipped ? kDepth : kOutputs;
    static constexpr int kLength = (kFlipped ? kOutputs : kDepth) * kSquare;
    static constexpr int kPitch =
        kFlipped ? TensorCoreCorrelation::kFlippedPitch : TensorCoreCorrelation::kPitch;
  };

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void copy_weights(Block& block, Shared& shared, const Maps& maps,
                                         const Correlation<Element>& job,
                                         const CorrelationTile& tile, const CorrelationStep& step) {
    using Row = WeightRow<kFlipped>;
    constexpr int kAtOnce = kBytesOfPiece / sizeof(Element);
    constexpr int kPieces = Row::kLength / kAtOnce;
    const int across = kFlipped ? job.outputs : job.channels;
    const int first_row = kFlipped ? step.channel : tile.output;
    const int first_column = kFlipped ? tile.output : step.channel;
    const int pitch = across * kSquare;
    const Element* const weight =
        weight_of_sample(maps, job, step.term, tile.sample) +
        (static_cast<int64_t>(first_row) * across + first_column) * kSquare;
    const int rows = (kFlipped ? job.channels : job.outputs) - first_row;
    const int length = (across - first_column) * kSquare;
    block.each_thread([&](int thread, Registers&) {
      thread = anew(thread);
      // The addresses of all pieces at once would not fit the registers.
      MKDEXT_UNROLL_A_LITTLE for (int e = 0; e < Row::kCount * kPieces; e += kThreads) {
        const int row = (thread + e) / kPieces, at = (thread + e) % kPieces * kAtOnce;
        if (e + kThreads > Row::kCount * kPieces && row >= Row::kCount) break;
        block.template copy_async<kBytesOfPiece>(&shared.weight[row * Row::kPitch + at],
                                                 weight + (static_cast<int64_t>(row) * pitch + at),
                                                 row < rows && at < length);
      }
    });
  }

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void load_weights(Block& block, Shared& shared, const Maps& maps,
                                         const Correlation<Element>& job,
                                         const CorrelationTile& tile, const CorrelationStep& step) {
    using Row = WeightRow<kFlipped>;
    const int taps = maps.kernel_size * maps.kernel_size;
    const int across = kFlipped ? job.outputs : job.channels;
    const int first_row = kFlipped ? step.channel : tile.output;
    const int first_column = kFlipped ? tile.output : step.channel;
    const Element* const weight = weight_of_sample(maps, job, step.term, tile.sample) +
                                  (static_cast<int64_t>(first_row) * across + first_column) * taps;
    const int rows = (kFlipped ? job.channels : job.outputs) - first_row;
    block.each_thread([&](int thread, Registers&) {
      const auto load = [&](int e) {
        const int at = e % Row::kLength, row = e / Row::kLength, column = at / kSquare;
        // Flipped, a square lies here as in memory: its last tap first.
        const int place = kFlipped ? kSquare - 1 - at % kSquare : at % kSquare;
        const int i = place / kTaps, j = place % kTaps;
        const bool valid = row < rows && column < across - first_column && i < step.taps.rows &&
                           j < step.taps.columns;
        const int offset = column * taps + tap_offset(maps.kernel_size, step.taps, i, j, kFlipped);
        return load_if(valid, weight + (static_cast<int64_t>(row) * (across * taps) + offset));
      };
      copy_in_batches<Row::kCount * Row::kLength, kThreads>(
          thread, load, [&](int e, Element value) {
            shared.weight[e / Row::kLength * Row::kPitch + e % Row::kLength] = value;
          });
    });
  }

  // A thread takes the same four pixels of several planes.
  template <typename Block>
  static MKDEXT_DEVICE void copy_map(Block& block, Shared& shared, const Maps& maps,
                                     const Correlation<Element>& job, const CorrelationTile& tile,
                                     const CorrelationStep& step) {
    constexpr int kQuadsOfRow = kMapColumns / kQuad;
    constexpr int kQuads = kMapRows * kQuadsOfRow;
    constexpr int kTogether = kThreads / kQuads;
    static_assert(kTogether > 0 && kWordsPerStep % kTogether == 0);
    constexpr int kEach = kWordsPerStep / kTogether;
    const int64_t area = area_of(maps);
    const Element* const map =
        map_of_sample(maps, job.terms[step.term].map, job.channels, tile.sample) +
        step.channel * area;
    block.each_thread([&](int thread, Registers&) {
      thread = anew(thread);
      const int quad = thread % kQuads, first = thread / kQuads;
      if (first >= kTogether) return;
      const int h = tile.row - 1 + quad / kQuadsOfRow;
      const int v = tile.column - kQuad + quad % kQuadsOfRow * kQuad;
      const bool inside = h >= 0 && h < maps.height && v >= 0 && v < maps.width;
      const int channels = inside ? job.channels - step.channel : 0;
      const Element* from =
          map + (first * Type::kPerWord * area + static_cast<int64_t>(h) * maps.width + v);
      FourHalves values[kEach][2];
      MKDEXT_UNROLL for (int n = 0; n < kEach; ++n) {
        const int word = first + n * kTogether, c = word * Type::kPerWord;
        if constexpr (Type::kPerWord == 1) {
          block.template copy_async<kBytesOfPiece>(&shared.map[word][quad * kQuad], from,
                                                   c < channels);
        } else {
          MKDEXT_UNROLL for (int q = 0; q < 2; ++q) {
            const auto* const four = reinterpret_cast<const FourHalves*>(from + q * area);
            values[n][q] = load_if(c + q < channels, four);
          }
        }
        from += kTogether * Type::kPerWord * area;
      }
      if constexpr (Type::kPerWord == 2) {
        MKDEXT_UNROLL for (int n = 0; n < kEach; ++n) {
          Four<uint32_t> words;
          MKDEXT_UNROLL for (int s = 0; s < kQuad; ++s) {
            words.values[s] =
                join(values[n][0].words[s / 2], s % 2, values[n][1].words[s / 2], s % 2);
          }
          uint32_t* const to = &shared.map[first + n * kTogether][quad * kQuad];
          *reinterpret_cast<Four<uint32_t>*>(to) = words;
        }
      }
    });
  }

  struct alignas(8) FourHalves {
    uint32_t words[2];
  };

  template <typename Block>
  static MKDEXT_DEVICE void load_map(Block& block, Shared& shared, const Maps& maps,
                                     const Correlation<Element>& job, const CorrelationTile& tile,
                                     const CorrelationStep& step) {
    const int64_t area = area_of(maps);
    const Element* const map =
        map_of_sample(maps, job.terms[step.term].map, job.channels, tile.sample);
    const int row = tile.row + step.taps.row - maps.kernel_size / 2;
    const int column = tile.column + step.taps.column - maps.kernel_size / 2;
    constexpr int kNeeded = kColumns + kTaps - 1;
    constexpr int kPlane = kMapRows * kNeeded;
    block.each_thread([&](int thread, Registers&) {
      const auto load = [&](int e) {
        const int s = e % kNeeded, r = e / kNeeded % kMapRows;
        const int h = row + r, v = column + s, c = step.channel + e / kPlane * Type::kPerWord;
        const bool inside = h >= 0 && h < maps.height && v >= 0 && v < maps.width;
        const Element* const from = map + c * area + static_cast<int64_t>(h) * maps.width + v;
        Element values[Type::kPerWord];
        MKDEXT_UNROLL for (int q = 0; q < Type::kPerWord; ++q) {
          values[q] = load_if(inside && c + q < job.channels, from + q * area);
        }
        return Type::pack(values);
      };
      copy_in_batches<kWordsPerStep * kPlane, kThreads>(thread, load, [&](int e, uint32_t word) {
        const int s = e % kNeeded, r = e / kNeeded % kMapRows;
        shared.map[e / kPlane][r * kMapColumns + kFirst + s] = word;
      });
    });
  }

  // Where a warp's part of the tile begins, and where a lane's part of a fragment does.
  struct Place {
    int output;
    int row;
    int column;
    int group;   // lane / 4
    int member;  // lane % 4
  };
  static MKDEXT_DEVICE Place place(int thread) {
    const int warp = thread / kLanes, lane = thread % kLanes;
    constexpr int kWarpsOfTile = kWarpsDown * kWarpsAcross;
    return {warp / kWarpsOfTile * kFragments * kFragmentRows,
            warp % kWarpsOfTile / kWarpsAcross * kWarpRows, warp % kWarpsAcross * kFragmentColumns,
            lane / 4, lane % 4};
  }

  // The output of row `group` or, with half = 1, `group + 8` of a fragment. Flipped kernels of 16
  // bits are read two outputs at a time, which become these two rows.
  template <bool kFlipped>
  static MKDEXT_DEVICE int output_of(int group, int half) {
    return kFlipped && Type::kPerWord == 2 ? 2 * group + half : group + 8 * half;
  }

  // The place among the nine taps of a kernel in shared memory of tap (i, j) of a square.
  template <bool kFlipped>
  static MKDEXT_HOST_DEVICE constexpr int tap_of(int i, int j) {
    return kFlipped ? kSquare - 1 - (i * kTaps + j) : i * kTaps + j;
  }

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void multiply(Block& block, const Shared& shared, const TapSquare& taps,
                                     int rows) {
    if constexpr (kTapsTogether == kTaps) {
      MKDEXT_NO_UNROLL for (int j = 0; j < (kAligned ? kTaps : taps.columns); ++j) {
        fetch_weights<kFlipped>(block, shared, j);
        multiply_column<kFlipped>(block, shared, taps, rows, j);
      }
    } else {
      fetch_weights<kFlipped>(block, shared, 0);
      MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
        if (kAligned || j < taps.columns) multiply_column<kFlipped>(block, shared, taps, rows, j);
      }
    }
  }

  // Adds the products of a column of taps.
  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void multiply_column(Block& block, const Shared& shared,
                                            const TapSquare& taps, int rows, int j) {
    constexpr int kCount = kWarpRows + kTaps - 1;
    fetch_map(block, shared, 0, j);
    MKDEXT_UNROLL for (int r = 0; r < kCount; ++r) {
      if (r >= rows + kTaps - 1) break;
      if (r + 1 < kCount) fetch_map(block, shared, r + 1, j);
      MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
        if (r < i || r - i >= kWarpRows || (!kAligned && i >= taps.rows)) continue;
        MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
          block.template multiply_add<Type>([&](Registers& registers) {
            const int tap = kTapsTogether == kTaps ? i : tap_of<kFlipped>(i, j);
            return Fragments{registers.sums[f][r - i], registers.weight[tap][f],
                             registers.map[r % 2]};
          });
        }
      }
    }
  }

  // Brings row r of the map, moved by j columns, into registers.
  template <typename Block>
  static MKDEXT_DEVICE void fetch_map(Block& block, const Shared& shared, int r, int j) {
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      const int pixel = (at.row + r) * kMapColumns + kFirst + at.column + at.group + j;
      Type::split(shared.map[at.member][pixel], registers.map[r % 2], 2);
      Type::split(shared.map[at.member + 4][pixel], registers.map[r % 2] + 1, 2);
    });
  }

  // Brings the operands of all taps, or of column j, into registers.
  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void fetch_weights(Block& block, const Shared& shared, int j) {
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
        const int m = at.output + f * kFragmentRows;
        MKDEXT_UNROLL for (int q = 0; q < 2; ++q) {
          const int d = (at.member + q * 4) * Type::kPerWord;
          const auto kernel = [&](int half, int channel) {
            return kernel_of<kFlipped>(shared, m + output_of<kFlipped>(at.group, half), channel);
          };
          if constexpr (Type::kPerWord == 1) {
            MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
              MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
                Type::split(Type::pack(kernel(half, d) + tap_of<kFlipped>(i, j)),
                            &registers.weight[i][f][2 * q + half], 4);
              }
            }
          } else if constexpr (kFlipped) {
            // Two outputs are neighbours, the two channels of a word are not.
            const TwoSquares one(kernel(0, d)), other(kernel(0, d + 1));
            MKDEXT_UNROLL for (int e = 0; e < 2 * kSquare; ++e) {
              registers.weight[e % kSquare][f][2 * q + e / kSquare] =
                  join(one.words[e / 2], e % 2, other.words[e / 2], e % 2);
            }
          } else {
            MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
              const TwoSquares channels(kernel(half, d));
              MKDEXT_UNROLL for (int t = 0; t < kSquare; ++t) {
                const int e = t + kSquare;
                registers.weight[t][f][2 * q + half] =
                    join(channels.words[t / 2], t % 2, channels.words[e / 2], e % 2);
              }
            }
          }
        }
      }
    });
  }

  // The nine taps of output m and channel d of a step.
  template <bool kFlipped>
  static MKDEXT_DEVICE const Element* kernel_of(const Shared& shared, int m, int d) {
    return shared.weight + (kFlipped ? d * kFlippedPitch + m * kSquare : m * kPitch + d * kSquare);
  }

  // Two neighbours of nine elements of 16 bits, which begin at a multiple of four bytes.
  struct TwoSquares {
    uint32_t words[kSquare];

    MKDEXT_DEVICE explicit TwoSquares(const Element* from) {
      MKDEXT_UNROLL for (int n = 0; n < kSquare; ++n) {
        words[n] = reinterpret_cast<const uint32_t*>(from)[n];
      }
    }
  };

  template <bool kFlipped, typename Block>
  static MKDEXT_DEVICE void store(Block& block, const Maps& maps, const Correlation<Element>& job,
                                  const CorrelationTile& tile) {
    Element* const output =
        job.output + static_cast<int64_t>(tile.sample) * job.outputs * area_of(maps);
    const bool in_pairs = maps.width % 2 == 0 && is_multiple_of(job.output, sizeof(Pair));
    block.each_thread([&](int thread, Registers& registers) {
      const Place at = place(thread);
      const int h = tile.row + at.row, v = tile.column + at.column + at.member * 2;
      if (v >= maps.width) return;
      MKDEXT_UNROLL for (int f = 0; f < kFragments; ++f) {
        MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
          const int o =
              tile.output + at.output + f * kFragmentRows + output_of<kFlipped>(at.group, half);
          if (o >= job.outputs) continue;
          Element* to = output + (o * area_of(maps) + static_cast<int64_t>(h) * maps.width + v);
          MKDEXT_UNROLL for (int r = 0; r < kWarpRows; ++r) {
            if (h + r >= maps.height) break;
            const float* const sum = registers.sums[f][r] + half * 2;
            const Pair pair{{static_cast<Element>(sum[0]), static_cast<Element>(sum[1])}};
            if (in_pairs) {
              *reinterpret_cast<Pair*>(to) = pair;
            } else {
              to[0] = pair.values[0];
              if (v + 1 < maps.width) to[1] = pair.values[1];
            }
            to += maps.width;
          }
        }
      }
    });
  }

  struct alignas(2 * sizeof(Element)) Pair {
    Element values[2];
  };
};

}  // namespace mkdext::cuda
