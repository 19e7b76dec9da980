// Weight gradient on tensor cores: tf32, float32 as sums of two tf32, bfloat16 and float16; sums in
// float32.
//
// Product        A matrix product has output channels as rows, input channels as columns, at one
//                tap, and sums over 8 words of pixels in a row. A warp makes kFragmentsOut x
//                kFragmentsIn fragments of each of the nine taps. It goes through the rows of the
//                map; a row meets three rows of the gradient while it is in registers.
// Memory         Rows of pixels lie in shared memory as in global memory: words hold neighbours.
//                Pitches are such that the lanes of a fragment fall into different banks. Several
//                blocks share a multiprocessor, so that one loads while another computes.
// Loads          16 bytes at once where rows of maps begin at multiples of that and kernels are
//                3 x 3; element by element elsewhere.
// Parallel axis  Blocks own disjoint parts of the output (or of `partial`): there is no race.
// Order of sums  Fixed by the shape alone.
#pragma once

#include "copies.h"
#include "element_types.h"
#include "problem.h"
#include "tensor_cores.h"
#include "thread_block.h"

namespace mkdext::cuda {

template <typename Type, int kWarpsOut, int kWarpsIn, int kFragmentsOut, int kFragmentsIn,
          bool kAligned, int kBlocksOfProcessor = kBlocksTogether>
struct TensorCoreWeightGradient {
  using Element = typename Type::Element;
  using Sum = float;

  static constexpr int kThreads = kWarpsOut * kWarpsIn * kLanes;
  static constexpr int kBlocks = kBlocksOfProcessor;
  static constexpr int kOut = kWarpsOut * kFragmentsOut * kFragmentRows;
  static constexpr int kIn = kWarpsIn * kFragmentsIn * kFragmentColumns;
  using Grid = WeightGradientGrid<kOut, kIn>;

  static constexpr int kRows = 4 * Type::kPerWord;
  static constexpr int kColumns = 16;
  using Pixels = PixelTiles<kRows, kColumns>;
  static constexpr int kWords = kColumns / Type::kPerWord;  // of a row of the gradient
  // A row of the map has a piece before the tile and one behind it.
  static constexpr int kPixelsOfPiece = kWordsOfPiece * Type::kPerWord;
  static constexpr int kMapRows = kRows + kTaps - 1;
  static constexpr int kMapWords = kWords + 2 * kWordsOfPiece;
  static constexpr int kGradPitch = pitch_of_rows(kRows * kWords);
  static constexpr int kMapPlane = pitch_of_rows(kMapRows * kMapWords);

  static constexpr int kSquare = kTaps * kTaps;
  static constexpr int kSumRows = kWarpsOut * kFragmentRows;
  static constexpr int kSumPitch = kIn * kSquare + 1;

  struct Stage {
    alignas(kBytesOfPiece) uint32_t grad[kOut][kGradPitch];
    alignas(kBytesOfPiece) uint32_t map[kIn][kMapPlane];
  };
  struct Shared {
    WeightGradientTile tile;  // here, because multiply takes all registers
    union {
      Stage stage;
      float sums[kSumRows][kSumPitch];
    };
  };
  struct Registers {
    float sums[kFragmentsOut][kFragmentsIn][kSquare][4];
    uint32_t grad[kTaps][kFragmentsOut][4 * Type::kParts];  // of the latest rows
    uint32_t map[kFragmentsIn][kTaps][2 * Type::kParts];    // moved by each column of taps
  };
  using Arguments = WeightGradientArguments<Element, float>;

  template <typename Block>
  static MKDEXT_DEVICE void run(Block& block, Shared& shared, const Arguments& arguments,
                                int index) {
    block.each_thread([&](int thread, Registers& registers) {
      if (thread == 0) shared.tile = Grid::tile(arguments, index);
      MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
        MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
          MKDEXT_UNROLL for (int t = 0; t < kSquare; ++t) {
            MKDEXT_UNROLL for (int q = 0; q < 4; ++q) registers.sums[f][n][t][q] = 0.0f;
          }
        }
      }
    });
    block.barrier();
    const Pixels pixels(arguments.maps);
    const int split = reread(shared.tile).split;
    const int end = pixels.first_of(split + 1, arguments.splits);
    MKDEXT_NO_UNROLL for (int n = pixels.first_of(split, arguments.splits); n < end; ++n) {
      const WeightGradientTile tile = reread(shared.tile);
      const TapSquare taps = tap_square(kAligned ? kTaps : arguments.maps.kernel_size, tile.square);
      if constexpr (kAligned) {
        copy(block, shared.stage, arguments, tile, pixels.row(n), pixels.column(n));
        block.each_thread([&](int, Registers&) { block.await_copies(); });
      } else {
        load(block, shared.stage, arguments, tile, taps, pixels.row(n), pixels.column(n));
      }
      block.barrier();
      // No further: the zeros beyond the edge must not meet an infinity of the map.
      multiply(block, shared.stage, taps, smaller(kRows, arguments.maps.height - pixels.row(n)),
               smaller(kColumns, arguments.maps.width - pixels.column(n)));
      block.barrier();
    }
    const WeightGradientTile tile = reread(shared.tile);
    if constexpr (kAligned) {
      store_rows(block, shared, arguments, tile);
    } else {
      store(block, arguments, tile, tap_square(arguments.maps.kernel_size, tile.square));
    }
  }

 private:
  template <typename Block>
  static MKDEXT_DEVICE void copy(Block& block, Stage& stage, const Arguments& arguments,
                                 const WeightGradientTile& tile, int row, int column) {
    copy_rows<kOut, kRows, kWords>(block, stage.grad, arguments.maps, arguments.grad, tile.sample,
                                   tile.out_channel, arguments.out_channels, row, column);
    copy_rows<kIn, kMapRows, kMapWords>(block, stage.map, arguments.maps, arguments.map,
                                        tile.sample, tile.in_channel, arguments.in_channels,
                                        row - 1, column - kPixelsOfPiece);
  }

  // kChannels x kTileRows x kTileWords of the maps of a sample, from a channel, row and column on.
  template <int kChannels, int kTileRows, int kTileWords, int kPitch, typename Block>
  static MKDEXT_DEVICE void copy_rows(Block& block, uint32_t (&shared)[kChannels][kPitch],
                                      const Maps& maps, const Element* source, int sample,
                                      int channel, int channels, int row, int column) {
    constexpr int kPiecesOfRow = kTileWords / kWordsOfPiece;
    const int64_t area = area_of(maps);
    const Element* const map = map_of_sample(maps, source, channels, sample) + channel * area;
    block.each_thread([&](int thread, Registers&) {
      copy_places<kTileRows * kPiecesOfRow, kChannels, kThreads>(thread, [&](int piece, int n) {
        const int h = row + piece / kPiecesOfRow;
        const int v = column + piece % kPiecesOfRow * kPixelsOfPiece;
        const bool valid =
            h >= 0 && h < maps.height && v >= 0 && v < maps.width && channel + n < channels;
        const int64_t offset = n * area + static_cast<int64_t>(h) * maps.width + v;
        block.template copy_async<kBytesOfPiece>(&shared[n][piece * kWordsOfPiece], map + offset,
                                                 valid);
      });
    });
  }

  template <typename Block>
  static MKDEXT_DEVICE void load(Block& block, Stage& stage, const Arguments& arguments,
                                 const WeightGradientTile& tile, const TapSquare& taps, int row,
                                 int column) {
    const Maps& maps = arguments.maps;
    load_rows<kOut, kRows, kWords, 0, kWords>(block, stage.grad, maps, arguments.grad, tile.sample,
                                              tile.out_channel, arguments.out_channels, row,
                                              column);
    // From the word on that ends with the first pixel that is needed.
    load_rows<kIn, kMapRows, kMapWords, kWordsOfPiece - 1, kWords + 2>(
        block, stage.map, maps, arguments.map, tile.sample, tile.in_channel, arguments.in_channels,
        row + taps.row - maps.kernel_size / 2,
        column + taps.column - maps.kernel_size / 2 + 1 - Type::kPerWord);
  }

  // As copy_rows, but kCount words of each row, from word kFirst on, which begins at `column`.
  template <int kChannels, int kTileRows, int kTileWords, int kFirst, int kCount, int kPitch,
            typename Block>
  static MKDEXT_DEVICE void load_rows(Block& block, uint32_t (&shared)[kChannels][kPitch],
                                      const Maps& maps, const Element* source, int sample,
                                      int channel, int channels, int row, int column) {
    constexpr int kPlane = kTileRows * kCount;
    const int64_t area = area_of(maps);
    const Element* const map = map_of_sample(maps, source, channels, sample) + channel * area;
    block.each_thread([&](int thread, Registers&) {
      const auto load = [&](int e) {
        const int n = e / kPlane, h = row + e / kCount % kTileRows;
        const int v = column + e % kCount * Type::kPerWord;
        const bool inside = channel + n < channels && h >= 0 && h < maps.height;
        const Element* const from = map + n * area + static_cast<int64_t>(h) * maps.width + v;
        Element values[Type::kPerWord];
        MKDEXT_UNROLL for (int q = 0; q < Type::kPerWord; ++q) {
          values[q] = load_if(inside && v + q >= 0 && v + q < maps.width, from + q);
        }
        return Type::pack(values);
      };
      copy_in_batches<kChannels * kPlane, kThreads>(thread, load, [&](int e, uint32_t word) {
        shared[e / kPlane][e / kCount % kTileRows * kTileWords + kFirst + e % kCount] = word;
      });
    });
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
  static MKDEXT_DEVICE void multiply(Block& block, const Stage& stage, const TapSquare& taps,
                                     int rows, int columns) {
    MKDEXT_NO_UNROLL for (int step = 0; step < kWords && step * Type::kPerWord < columns;
                          step += kWordsPerStep) {
      MKDEXT_UNROLL for (int row = 0; row < kMapRows; ++row) {
        block.each_thread([&](int thread, Registers& registers) {
          const Place at = place(thread);
          if (row < kRows) fetch_grad(stage, at, row, step, registers.grad[row % kTaps]);
          fetch_map(stage, at, row, step, columns, registers.map);
        });
        MKDEXT_UNROLL for (int i = 0; i < kTaps; ++i) {
          const int r = row - i;
          if (r < 0 || r >= kRows || r >= rows || (!kAligned && i >= taps.rows)) continue;
          MKDEXT_UNROLL for (int j = 0; j < kTaps; ++j) {
            if (!kAligned && j >= taps.columns) break;
            MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
              MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
                block.template multiply_add<Type>([&](Registers& registers) {
                  return Fragments{registers.sums[f][n][i * kTaps + j],
                                   registers.grad[r % kTaps][f], registers.map[n][j]};
                });
              }
            }
          }
        }
      }
    }
  }

  static MKDEXT_DEVICE void fetch_grad(const Stage& stage, const Place& at, int row, int step,
                                       uint32_t (&fragments)[kFragmentsOut][4 * Type::kParts]) {
    MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
      MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
        const int m = at.out + f * kFragmentRows + at.group + q % 2 * 8;
        Type::split(stage.grad[m][row * kWords + step + at.member + q / 2 * 4], fragments[f] + q,
                    4);
      }
    }
  }

  // Of the pixels that meet the first `columns` of the gradient; others are 0.
  static MKDEXT_DEVICE void fetch_map(
      const Stage& stage, const Place& at, int row, int step, int columns,
      uint32_t (&fragments)[kFragmentsIn][kTaps][2 * Type::kParts]) {
    MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
      const int c = at.in + n * kFragmentColumns + at.group;
      MKDEXT_UNROLL for (int half = 0; half < 2; ++half) {
        const int word = step + at.member + half * 4;
        const uint32_t* const from = &stage.map[c][row * kMapWords + kWordsOfPiece + word];
        const uint32_t bits = bits_of_pixels(columns - word * Type::kPerWord);
        constexpr bool kSingle = Type::kPerWord == 1;
        const uint32_t before = kSingle ? from[-1] : join(from[-1], 1, from[0], 0);
        const uint32_t behind = kSingle ? from[1] : join(from[0], 1, from[1], 0);
        Type::split(before & bits, fragments[n][0] + half, 2);
        Type::split(from[0] & bits, fragments[n][1] + half, 2);
        Type::split(behind & bits, fragments[n][2] + half, 2);
      }
    }
  }

  // The bits of so many pixels of a word, of all if there are more.
  static MKDEXT_DEVICE uint32_t bits_of_pixels(int count) {
    if (count >= Type::kPerWord) return ~uint32_t{0};
    return count == 1 ? uint32_t{0xffff} : 0;
  }

  // By way of shared memory, so that neighbouring threads write neighbours: the nine taps of all
  // input channels of an output channel lie in a row.
  template <typename Block>
  static MKDEXT_DEVICE void store_rows(Block& block, Shared& shared, const Arguments& arguments,
                                       const WeightGradientTile& tile) {
    const int pitch = arguments.in_channels * kSquare;
    const int first = tile.in_channel * kSquare;
    const int length = smaller(kIn * kSquare, pitch - first);
    const int64_t part = arguments.partial == nullptr ? 0 : tile.split * arguments.maps.batch;
    const int64_t row = (part + tile.sample) * arguments.out_channels + tile.out_channel;
    MKDEXT_UNROLL for (int f = 0; f < kFragmentsOut; ++f) {
      block.each_thread([&](int thread, Registers& registers) {
        const Place at = place(thread);
        MKDEXT_UNROLL for (int n = 0; n < kFragmentsIn; ++n) {
          MKDEXT_UNROLL for (int q = 0; q < 4; ++q) {
            const int m = at.out / kFragmentsOut + at.group + q / 2 * 8;
            const int c = at.in + n * kFragmentColumns + at.member * 2 + q % 2;
            MKDEXT_UNROLL for (int t = 0; t < kSquare; ++t) {
              shared.sums[m][c * kSquare + t] = registers.sums[f][n][t][q];
            }
          }
        }
      });
      block.barrier();
      block.each_thread([&](int thread, Registers&) {
        MKDEXT_NO_UNROLL for (int m = thread / kLanes; m < kSumRows; m += kThreads / kLanes) {
          const int o = (m / kFragmentRows * kFragmentsOut + f) * kFragmentRows + m % kFragmentRows;
          if (tile.out_channel + o >= arguments.out_channels) continue;
          const int64_t to = (row + o) * pitch + first;
          MKDEXT_UNROLL for (int at = 0; at < kIn * kSquare; at += kLanes) {
            const int column = at + thread % kLanes;
            if (column >= length) break;
            if (arguments.partial == nullptr) {
              arguments.output[to + column] = static_cast<Element>(shared.sums[m][column]);
            } else {
              arguments.partial[to + column] = shared.sums[m][column];
            }
          }
        }
      });
      if (f + 1 < kFragmentsOut) block.barrier();
    }
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
