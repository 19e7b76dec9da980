// Direct per-sample convolution with register tiles. Compiled once per instruction set through
// per_instruction_set.h, hence no include guard and no includes.
//
// Equation       out[o, h, v] = sum_{c,i,j} in[c, h+i-p, v+j-p] w[o, c, i, j]       (correlate)
//                gw[o, c, i, j] = sum_{h,v} g[o, h, v] in[c, h+i-p, v+j-p]          (weight_grad)
//                Both are matrix products in which one matrix is read out of the map through
//                shifted pointers instead of being built.
// Memory layout  Maps are [channel, row, column]; vector lanes are neighbouring columns of one row.
//                Kernel size 1 has no neighbours, so there the rows are joined into a single one.
//                A block of the map is copied first, with zeros around the map, as [channel][row]
//                [column], so that a shifted load needs no test and the block stays in the cache.
//                Weights are packed as [input block][output block][channel][tap][kRows].
// Parallel axis  None in here: a call owns its rows (correlate) or its output channels
//                (weight_grad), so that calls never write to the same address. How the work is cut
//                changes no order of summation: for each output it is channel, row and column of
//                the kernel (correlate), or block, row and column of the map (weight_grad).
// Accumulation   In the type of the data; weight_grad keeps one partial sum per vector lane.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// A register tile is kRows scalars or vectors by kColumns vectors. Loops over it are unrolled by
// pragma: GCC otherwise lays the tile out in memory before it unrolls them.
constexpr int kRows = MKDEXT_VECTOR_COUNT == 32 ? 8 : 4;
constexpr int kColumns = 3;

// `correlate`: vectors of output per block, and bytes of the block's copy, which stays in the L1
// cache beside the weights of kRows output channels.
constexpr int64_t kBlockVectors = 24;
constexpr int64_t kBlockBytes = 20'000;

// `weight_grad`: bytes of kRows channels of the gradient, which stay in the L1 cache beside a few
// channels of the map, and bytes of the map's copy, which stays in the L2 cache.
constexpr int64_t kGradBytes = 16'384;
constexpr int64_t kMapBytes = 200'000;

// Without neighbours the rows of a map are one row.
inline SampleShape joined_rows(const SampleShape& shape) {
  if (shape.kernel_size > 1) return shape;
  return {shape.in_channels, shape.out_channels, 1, shape.height * shape.width, 1};
}

// ---------------------------------------------------------------------------- copies of the map

// A rectangle of the map, `columns` vectors wide, copied with the neighbours that the kernel
// reaches, and for so many channels at a time.
template <typename T>
struct Block {
  int64_t channels;
  int64_t columns;  // vectors
  int64_t rows;
  int64_t row;    // elements of the copy from a row to the next
  int64_t plane;  // elements of the copy from a channel to the next

  Block(const SampleShape& shape, int64_t columns, int64_t rows, int64_t bytes)
      : columns(columns), rows(rows) {
    constexpr int64_t lanes = Simd<T>::kLanes;
    constexpr int64_t line = kLineBytes / sizeof(T);
    row = ceil_div(columns * lanes + shape.kernel_size - 1, lanes) * lanes;
    // An odd number of cache lines, or channels would fall onto a few sets of the cache.
    plane = (ceil_div((rows + shape.kernel_size - 1) * row, line) | 1) * line;
    const int64_t fitting = larger(1, bytes / static_cast<int64_t>(plane * sizeof(T)));
    channels = smaller(shape.in_channels, fitting);
  }

  // Of the copy, and of the mask of its columns.
  int64_t scratch() const { return channels * plane + row; }
};

// Marks the columns of a block's copy, the first of which is column `begin` of the map, that lie
// within the map.
template <typename T>
void mark_columns(const SampleShape& shape, const Block<T>& block, int64_t begin, Mask<T>* inside) {
  for (int64_t v = 0; v < block.row; ++v) {
    inside[v / Simd<T>::kLanes][v % Simd<T>::kLanes] =
        begin + v >= 0 && begin + v < shape.width ? -1 : 0;
  }
}

// Copies what `rows` rows of a block at (h0, v0) read of some channels, zeros outside the map.
// `available` is how many elements follow `input` in memory: rows are read in whole vectors, across
// their ends.
template <typename T>
void copy_block(const SampleShape& shape, const Block<T>& block, const Mask<T>* inside,
                const T* input, int64_t available, int64_t channels, int64_t h0, int64_t v0,
                int64_t rows, T* copy) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t pad = shape.kernel_size / 2;
  for (int64_t c = 0; c < channels; ++c) {
    T* to = copy + c * block.plane;
    for (int64_t h = h0 - pad; h <= h0 + rows - 1 + pad; ++h, to += block.row) {
      if (h < 0 || h >= shape.height) {
        for (int64_t v = 0; v < block.row; v += lanes) store(to + v, Vec<T>{});
        continue;
      }
      const int64_t from = (c * shape.height + h) * shape.width + v0 - pad;
      if (from >= 0 && from + block.row <= available) {
        for (int64_t v = 0; v < block.row; v += lanes) {
          store(to + v, Vec<T>(Mask<T>(load(input + from + v)) & inside[v / lanes]));
        }
      } else {
        for (int64_t v = 0; v < block.row; ++v) {
          to[v] = inside[v / lanes][v % lanes] ? input[from + v] : T(0);
        }
      }
    }
  }
}

// ------------------------------------------------------------------------------------ correlate

template <typename T>
Block<T> correlate_block(const SampleShape& shape) {
  const int64_t vectors = ceil_div(shape.width, Simd<T>::kLanes);
  const int64_t columns = shape.kernel_size == 1 ? smaller(vectors, kBlockVectors)
                                                 : ceil_div(vectors, ceil_div(vectors, kColumns));
  const int64_t rows = smaller(shape.height, larger(1, kBlockVectors / columns));
  return Block<T>(shape, columns, rows, shape.kernel_size == 1 ? 2 * kBlockBytes : kBlockBytes);
}

template <typename T>
int64_t packed_weight_size(const SampleShape& shape) {
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  constexpr int64_t line = kLineBytes / sizeof(T);
  const int64_t size = ceil_div(shape.out_channels, kRows) * kRows * shape.in_channels * taps;
  return ceil_div(size, line) * line;
}

// Elements that hold the offset of every tap of a block's channels.
template <typename T>
int64_t offsets_size(const SampleShape& shape, const Block<T>& block) {
  constexpr int64_t line = kLineBytes / sizeof(T);
  const int64_t count = block.channels * shape.kernel_size * shape.kernel_size;
  return ceil_div(count * sizeof(int64_t), kLineBytes) * line;
}

template <typename T>
int64_t correlate_scratch(const SampleShape& shape) {
  const SampleShape map = joined_rows(shape);
  const Block<T> block = correlate_block<T>(map);
  return packed_weight_size<T>(map) + block.scratch() + offsets_size(map, block);
}

// Packs the weights as [input block][output block][channel][tap][kRows], zeros past the last
// output channel.
template <typename T>
void pack_weight(const SampleShape& shape, int64_t block_channels, WeightOrder order,
                 const T* weight, T* packed) {
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  const bool forward = order == WeightOrder::kForward;
  const int64_t out_step = (forward ? shape.in_channels : 1) * taps;
  const int64_t in_step = (forward ? 1 : shape.out_channels) * taps;
  const int64_t first_tap = forward ? 0 : taps - 1;
  const int64_t tap_step = forward ? 1 : -1;
  for (int64_t c0 = 0; c0 < shape.in_channels; c0 += block_channels) {
    const int64_t c1 = smaller(c0 + block_channels, shape.in_channels);
    for (int64_t o = 0; o < shape.out_channels; o += kRows) {
      const int64_t rows = smaller(kRows, shape.out_channels - o);
      for (int64_t c = c0; c < c1; ++c) {
        const T* from = weight + o * out_step + c * in_step + first_tap;
        for (int64_t t = 0; t < taps; ++t, from += tap_step, packed += kRows) {
          if (rows == kRows) {
            for (int64_t r = 0; r < kRows; ++r) packed[r] = from[r * out_step];
          } else {
            for (int64_t r = 0; r < kRows; ++r) packed[r] = r < rows ? from[r * out_step] : T(0);
          }
        }
      }
    }
  }
}

// Where the vectors of a register tile are read and written.
template <typename T>
struct Tile {
  const T* map[kColumns];
  int64_t output[kColumns];
  int64_t valid[kColumns];  // lanes to store
};

// output[r * output_step + at[v]] = (or +=, if add) the sum over taps t of
// weight[t][r] * map[v][offsets[t]].
template <typename T>
inline void correlate_tile(const T* const (&map)[kColumns], const int64_t* offsets, int64_t taps,
                           const T* weight, bool add, const int64_t (&at)[kColumns],
                           int64_t output_step, T* output) {
  Vec<T> sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v)
      sums[r][v] = add ? load(output + r * output_step + at[v]) : Vec<T>{};
  for (int64_t t = 0; t < taps; ++t, weight += kRows) {
    Vec<T> values[kColumns];
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      values[v] = load(map[v] + offsets[t]);
      keep_in_register<T>(values[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sums[r][v] += weight[r] * values[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) store(output + r * output_step + at[v], sums[r][v]);
}

// A register tile of which not all lanes or rows are to be stored, by way of a whole one.
template <typename T>
void correlate_partial_tile(const Tile<T>& tile, const int64_t* offsets, int64_t taps,
                            const T* weight, int64_t outputs, bool add, int64_t area, T* output) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  constexpr int64_t step = kColumns * lanes;
  T whole[kRows * step] = {};
  int64_t at[kColumns];
  for (int v = 0; v < kColumns; ++v) at[v] = v * lanes;
  for (int64_t r = 0; add && r < outputs; ++r)
    for (int v = 0; v < kColumns; ++v)
      for (int64_t lane = 0; lane < tile.valid[v]; ++lane)
        whole[r * step + at[v] + lane] = output[r * area + tile.output[v] + lane];
  correlate_tile(tile.map, offsets, taps, weight, add, at, step, whole);
  for (int64_t r = 0; r < outputs; ++r)
    for (int v = 0; v < kColumns; ++v)
      for (int64_t lane = 0; lane < tile.valid[v]; ++lane)
        output[r * area + tile.output[v] + lane] = whole[r * step + at[v] + lane];
}

template <typename T>
void correlate(const SampleShape& shape, WeightOrder order, const T* input, const T* weight,
               int64_t row_begin, int64_t row_end, bool accumulate, T* scratch, T* output) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const SampleShape map = joined_rows(shape);
  const bool joined = map.height != shape.height;
  const int64_t h_begin = joined ? 0 : row_begin;
  const int64_t h_end = joined ? 1 : row_end;
  const int64_t v_begin = joined ? row_begin * shape.width : 0;
  const int64_t v_end = joined ? row_end * shape.width : shape.width;
  const int64_t size = map.kernel_size;
  const int64_t taps = size * size;
  const int64_t area = map.height * map.width;
  const int64_t out_padded = ceil_div(map.out_channels, kRows) * kRows;
  const Block<T> block = correlate_block<T>(map);

  T* const packed = scratch;
  Mask<T>* const inside = reinterpret_cast<Mask<T>*>(packed + packed_weight_size<T>(map));
  T* const copy = packed + packed_weight_size<T>(map) + block.row;
  int64_t* const offsets = reinterpret_cast<int64_t*>(copy + block.channels * block.plane);
  pack_weight(map, block.channels, order, weight, packed);
  for (int64_t t = 0; t < block.channels * taps; ++t) {
    offsets[t] = t / taps * block.plane + t % taps / size * block.row + t % size;
  }

  for (int64_t h0 = h_begin; h0 < h_end; h0 += block.rows) {
    const int64_t rows = smaller(block.rows, h_end - h0);
    for (int64_t v0 = v_begin; v0 < v_end; v0 += block.columns * lanes) {
      const int64_t columns = smaller(block.columns, ceil_div(v_end - v0, lanes));
      mark_columns(map, block, v0 - size / 2, inside);
      // Past the end the last tile repeats a vector, which is computed and not stored.
      const int64_t tiles = ceil_div(rows * columns, kColumns);
      Tile<T> tile[kBlockVectors];
      for (int64_t index = 0; index < tiles * kColumns; ++index) {
        const int64_t row = smaller(index, rows * columns - 1) / columns;
        const int64_t column = smaller(index, rows * columns - 1) % columns * lanes;
        Tile<T>& place = tile[index / kColumns];
        place.map[index % kColumns] = copy + row * block.row + column;
        place.output[index % kColumns] = (h0 + row) * map.width + v0 + column;
        place.valid[index % kColumns] =
            index < rows * columns ? smaller(lanes, v_end - v0 - column) : 0;
      }
      for (int64_t c0 = 0; c0 < map.in_channels; c0 += block.channels) {
        const int64_t channels = smaller(block.channels, map.in_channels - c0);
        const bool add = accumulate || c0 > 0;
        copy_block(map, block, inside, input + c0 * area, (map.in_channels - c0) * area, channels,
                   h0, v0, rows, copy);
        for (int64_t o = 0; o < map.out_channels; o += kRows) {
          const int64_t outputs = smaller(kRows, map.out_channels - o);
          const T* tile_weight = packed + (c0 * out_padded + o * channels) * taps;
          for (int64_t t = 0; t < tiles; ++t) {
            bool whole = outputs == kRows;
            for (int v = 0; v < kColumns; ++v) whole = whole && tile[t].valid[v] == lanes;
            if (whole) {
              correlate_tile(tile[t].map, offsets, channels * taps, tile_weight, add,
                             tile[t].output, area, output + o * area);
            } else {
              correlate_partial_tile(tile[t], offsets, channels * taps, tile_weight, outputs, add,
                                     area, output + o * area);
            }
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------- weight_grad

template <typename T>
Block<T> weight_grad_block(const SampleShape& shape) {
  constexpr int64_t vectors = kGradBytes / (kRows * MKDEXT_VECTOR_BYTES);
  const int64_t width = ceil_div(shape.width, Simd<T>::kLanes);
  const int64_t columns = ceil_div(width, ceil_div(width, vectors));
  const int64_t most = larger(1, vectors / columns);
  const int64_t rows = ceil_div(shape.height, ceil_div(shape.height, most));
  return Block<T>(shape, columns, rows, kMapBytes);
}

template <typename T>
int64_t weight_grad_scratch(const SampleShape& shape) {
  const Block<T> block = weight_grad_block<T>(joined_rows(shape));
  return block.scratch() + kRows * block.rows * block.columns * Simd<T>::kLanes;
}

// In lane j: the lane of two vectors, counted through both, that holds the first or the second
// summand of lane j of their pairwise sums at distance `step`.
constexpr int pair_lane(int lanes, int step, bool second, int j) {
  const int in_first = j & ~step, in_second = lanes + (j & ~step);
  return ((j & step) != 0 ? in_second : in_first) + (second ? step : 0);
}

// In lane j: a[j] + a[j + step], or, if j has the bit `step`, b[j - step] + b[j].
template <typename T, int step, int... lane>
inline Vec<T> add_pairs(const Vec<T>& a, const Vec<T>& b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = Simd<T>::kLanes;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, pair_lane(lanes, step, false, lane)...) +
         __builtin_shufflevector(a, b, pair_lane(lanes, step, true, lane)...);
#else
  return __builtin_shuffle(a, b, Mask<T>{pair_lane(lanes, step, false, lane)...}) +
         __builtin_shuffle(a, b, Mask<T>{pair_lane(lanes, step, true, lane)...});
#endif
}

// to[n] = the sum of the lanes of values[n]; `to` has room for whole vectors.
template <typename T, int count, int step = 1>
inline void sum_lanes(const Vec<T> (&values)[count], T* to) {
  constexpr int lanes = Simd<T>::kLanes;
  if constexpr (step == lanes) {
#pragma GCC unroll 32
    for (int n = 0; n < count; ++n) store(to + n * lanes, values[n]);
  } else {
    constexpr int half = (count + 1) / 2;
    Vec<T> pairs[half];
#pragma GCC unroll 32
    for (int n = 0; n < half; ++n) {
      const int second = 2 * n + 1 < count ? 2 * n + 1 : 2 * n;
      pairs[n] = add_pairs<T, step>(values[2 * n], values[second],
                                    std::make_integer_sequence<int, lanes>{});
    }
    sum_lanes<T, half, 2 * step>(pairs, to);
  }
}

// sums[r * kColumns + n] += grad[r * plane] * map[n], lane by lane.
template <typename T>
inline void multiply_add(const T* grad, int64_t plane, Vec<T> (&values)[kColumns],
                         Vec<T> (&sums)[kRows * kColumns]) {
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; ++n) keep_in_register<T>(values[n]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    Vec<T> g = load(grad + r * plane);
    keep_in_register<T>(g);
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[r * kColumns + n] += g * values[n];
  }
}

// to[r * kColumns + n] = the product of the gradient's channel r with map[n], summed over `rows`
// rows of `columns` vectors. Past the width the gradient's copy holds zeros, and the map is masked:
// what lies there may be infinite. `last` is the mask of a row's last vector, null where no masking
// is needed.
template <typename T>
inline void weight_grad_tile(const T* grad, int64_t grad_plane, const T* const (&map)[kColumns],
                             int64_t map_row, int64_t rows, int64_t columns, const Mask<T>* last,
                             T* to) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t unmasked = columns - (last == nullptr ? 0 : 1);
  Vec<T> sums[kRows * kColumns];
#pragma GCC unroll 32
  for (int n = 0; n < kRows * kColumns; ++n) sums[n] = Vec<T>{};
  for (int64_t h = 0; h < rows; ++h) {
    int64_t offset = h * map_row;
    for (int64_t v = 0; v < unmasked; ++v, offset += lanes, grad += lanes) {
      Vec<T> values[kColumns];
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) values[n] = load(map[n] + offset);
      multiply_add(grad, grad_plane, values, sums);
    }
    if (last != nullptr) {
      Vec<T> values[kColumns];
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) values[n] = Vec<T>(Mask<T>(load(map[n] + offset)) & *last);
      multiply_add(grad, grad_plane, values, sums);
      grad += lanes;
    }
  }
  sum_lanes<T>(sums, to);
}

// Copies rows [h0, h0 + rows) and columns [v0, v0 + width) of `outputs` channels of the gradient,
// zeros past the width and in the channels that fill up the tile.
template <typename T>
void copy_grad(const SampleShape& shape, const T* grad, int64_t outputs, int64_t h0, int64_t rows,
               int64_t v0, int64_t width, int64_t row, int64_t plane, T* copy) {
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t copied = r < outputs ? width : 0;
    for (int64_t h = 0; h < rows; ++h) {
      const T* from = grad + (r * shape.height + h0 + h) * shape.width + v0;
      T* to = copy + r * plane + h * row;
      for (int64_t v = 0; v < copied; ++v) to[v] = from[v];
      for (int64_t v = copied; v < row; ++v) to[v] = 0;
    }
  }
}

template <typename T>
void weight_grad(const SampleShape& shape, const T* grad, const T* input, int64_t channel_begin,
                 int64_t channel_end, T* scratch, T* grad_weight) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const SampleShape map = joined_rows(shape);
  const int64_t size = map.kernel_size;
  const int64_t taps = size * size;
  const int64_t area = map.height * map.width;
  const Block<T> block = weight_grad_block<T>(map);
  const int64_t grad_plane = block.rows * block.columns * lanes;
  Mask<T>* const inside = reinterpret_cast<Mask<T>*>(scratch);
  T* const copy = scratch + block.row;
  T* const grad_copy = copy + block.channels * block.plane;

  for (int64_t h0 = 0; h0 < map.height; h0 += block.rows) {
    const int64_t rows = smaller(block.rows, map.height - h0);
    for (int64_t v0 = 0; v0 < map.width; v0 += block.columns * lanes) {
      const int64_t width = smaller(block.columns * lanes, map.width - v0);
      const int64_t columns = ceil_div(width, lanes);
      const bool first = h0 == 0 && v0 == 0;
      Mask<T> last = {};
      for (int64_t v = 0; v < width % lanes; ++v) last[v] = -1;
      mark_columns(map, block, v0 - size / 2, inside);
      for (int64_t c0 = 0; c0 < map.in_channels; c0 += block.channels) {
        const int64_t channels = smaller(block.channels, map.in_channels - c0);
        copy_block(map, block, inside, input + c0 * area, (map.in_channels - c0) * area, channels,
                   h0, v0, rows, copy);
        for (int64_t o = channel_begin; o < channel_end; o += kRows) {
          const int64_t outputs = smaller(kRows, channel_end - o);
          copy_grad(map, grad + o * area, outputs, h0, rows, v0, width, columns * lanes, grad_plane,
                    grad_copy);
          for (int64_t t = 0; t < channels * taps; t += kColumns) {
            const T* tile[kColumns];
            for (int n = 0; n < kColumns; ++n) {
              const int64_t index = smaller(t + n, channels * taps - 1);
              const int64_t tap = index % taps;
              tile[n] = copy + index / taps * block.plane + tap / size * block.row + tap % size;
            }
            T sums[ceil_div(kRows * kColumns, lanes) * lanes];
            weight_grad_tile(grad_copy, grad_plane, tile, block.row, rows, columns,
                             width % lanes == 0 ? nullptr : &last, sums);
            const int64_t valid = smaller(kColumns, channels * taps - t);
            for (int64_t r = 0; r < outputs; ++r) {
              T* to = grad_weight + ((o + r) * map.in_channels + c0) * taps + t;
              for (int64_t n = 0; n < valid; ++n) {
                const T sum = sums[r * kColumns + n];
                to[n] = first ? sum : to[n] + sum;
              }
            }
          }
        }
      }
    }
  }
}

template <typename T>
constexpr DirectKernels<T> kDirectKernels{&correlate_scratch<T>, &correlate<T>,
                                          &weight_grad_scratch<T>, &weight_grad<T>};

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
