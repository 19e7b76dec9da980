// Direct per-sample convolution with register tiles. Compiled once per instruction set through
// per_instruction_set.h, hence no include guard and no includes.
//
// Equation       out[o, h, v] = sum_{c,i,j} in[c, h+i-p, v+j-p] w[o, c, i, j]       (correlate)
//                gw[o, c, i, j] = sum_{h,v} g[o, h, v] in[c, h+i-p, v+j-p]          (weight_grad)
//                Both are matrix products in which one matrix is read out of the map through
//                shifted pointers instead of being built.
// Memory layout  Maps are [channel, row, column]; vector lanes are neighbouring columns of one row.
//                What is read of a map is copied first, with zeros around it, as [channel][row]
//                [column], so that a shifted load needs no test and neighbours share cache lines:
//                a rectangle for `correlate`, a band of rows for `weight_grad`. Weights are packed
//                as [input block][output block][channel][tap][kRows].
// Parallel axis  None in here: a call owns its rows (correlate) or its output channels
//                (weight_grad), so that calls never write to the same address. How the work is cut
//                changes no order of summation: for each output it is channel, row and column of
//                the kernel (correlate), or row and column of the map (weight_grad).
// Accumulation   In the type of the data; weight_grad keeps one partial sum per vector lane.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// A register tile is kRows scalars (broadcast) by kColumns vectors.
constexpr int kRows = MKDEXT_VECTOR_COUNT == 32 ? 8 : 4;
constexpr int kColumns = 3;

// Input channels that `correlate` sums in registers before it stores.
constexpr int64_t kInputBlock = 64;

// Vectors of one channel in a band of `weight_grad`: kRows channels of the gradient and one of the
// map stay in the L1 cache.
constexpr int64_t kWeightGradVectors = 96;

// Vectors of output per copy of the map in `correlate`: the copy stays in the L2 cache.
constexpr int64_t kBlockVectors = 24;

// A zero-padded copy of some rows of some channels.
struct PaddedRows {
  int64_t vectors;  // per row
  int64_t row;      // elements from a row to the next
  int64_t plane;    // elements from a channel to the next
};

template <typename T>
PaddedRows padded_rows(const SampleShape& shape, int64_t rows) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  constexpr int64_t line = kLineBytes / sizeof(T);
  PaddedRows layout;
  layout.vectors = ceil_div(shape.width, lanes);
  layout.row = ceil_div(layout.vectors * lanes + shape.kernel_size - 1, lanes) * lanes;
  // An odd number of cache lines, or channels would fall onto a few sets of the cache.
  layout.plane = (ceil_div((rows + shape.kernel_size - 1) * layout.row, line) | 1) * line;
  return layout;
}

// Copies rows [row_begin - p, row_begin - p + rows + k - 1) of the channels, zeros outside the map.
template <typename T>
void copy_padded(const SampleShape& shape, const PaddedRows& layout, const T* input,
                 int64_t channels, int64_t row_begin, int64_t rows, T* buffer) {
  const int64_t pad = shape.kernel_size / 2;
  const int64_t copied = rows + shape.kernel_size - 1;
  for (int64_t c = 0; c < channels; ++c) {
    const T* map = input + c * shape.height * shape.width;
    T* to = buffer + c * layout.plane;
    for (int64_t r = 0; r < copied; ++r, to += layout.row) {
      const int64_t h = row_begin - pad + r;
      if (h < 0 || h >= shape.height) {
        for (int64_t v = 0; v < layout.row; ++v) to[v] = 0;
        continue;
      }
      for (int64_t v = 0; v < pad; ++v) to[v] = 0;
      __builtin_memcpy(to + pad, map + h * shape.width, shape.width * sizeof(T));
      for (int64_t v = pad + shape.width; v < layout.row; ++v) to[v] = 0;
    }
  }
}

// ------------------------------------------------------------------------------------ correlate

// A rectangle of the output, `columns` vectors wide, that is computed for all output channels from
// one copy of the map around it.
template <typename T>
struct Block {
  int64_t columns;  // vectors
  int64_t rows;
  int64_t row;    // elements of the copy from a row to the next
  int64_t plane;  // elements of the copy from a channel to the next

  explicit Block(const SampleShape& shape) {
    constexpr int64_t lanes = Simd<T>::kLanes;
    const int64_t vectors = ceil_div(shape.width, lanes);
    columns = ceil_div(vectors, ceil_div(vectors, kColumns));
    rows = smaller(shape.height, larger(1, kBlockVectors / columns));
    row = ceil_div(columns * lanes + shape.kernel_size - 1, lanes) * lanes;
    plane = (rows + shape.kernel_size - 1) * row;
  }
};

// Where the vectors of a register tile are read and written.
template <typename T>
struct Tile {
  const T* map[kColumns];
  int64_t output[kColumns];
  int64_t valid[kColumns];
};

template <typename T>
int64_t packed_weight_size(const SampleShape& shape) {
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  constexpr int64_t line = kLineBytes / sizeof(T);
  const int64_t size = ceil_div(shape.out_channels, kRows) * kRows * shape.in_channels * taps;
  return ceil_div(size, line) * line;
}

template <typename T>
int64_t correlate_scratch(const SampleShape& shape) {
  return packed_weight_size<T>(shape) + Block<T>(shape).row +
         smaller(shape.in_channels, kInputBlock) * Block<T>(shape).plane;
}

// Marks the columns of a block's copy, the first of which is column `begin` of the map, that lie
// within the map.
template <typename T>
void mark_columns(const SampleShape& shape, const Block<T>& block, int64_t begin, Mask<T>* inside) {
  for (int64_t v = 0; v < block.row; ++v) {
    inside[v / Simd<T>::kLanes][v % Simd<T>::kLanes] =
        begin + v >= 0 && begin + v < shape.width ? -1 : 0;
  }
}

// Copies what a block at (h0, v0) reads of some channels, zeros outside the map. `available` is how
// many elements follow `input` in memory: rows are read in whole vectors, across their ends.
template <typename T>
void copy_block(const SampleShape& shape, const Block<T>& block, const Mask<T>* inside,
                const T* input, int64_t available, int64_t channels, int64_t h0, int64_t v0,
                T* copy) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t pad = shape.kernel_size / 2;
  const int64_t rows = block.rows + shape.kernel_size - 1;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t r = 0; r < rows; ++r, copy += block.row) {
      const int64_t h = h0 - pad + r;
      if (h < 0 || h >= shape.height) {
        for (int64_t v = 0; v < block.row; v += lanes) store(copy + v, Vec<T>{});
        continue;
      }
      const int64_t from = (c * shape.height + h) * shape.width + v0 - pad;
      if (from >= 0 && from + block.row <= available) {
        for (int64_t v = 0; v < block.row; v += lanes) {
          store(copy + v, Vec<T>(Mask<T>(load(input + from + v)) & inside[v / lanes]));
        }
      } else {
        for (int64_t v = 0; v < block.row; ++v) {
          copy[v] = inside[v / lanes][v % lanes] ? input[from + v] : T(0);
        }
      }
    }
  }
}

// Packs the weights as [input block][output block][channel][tap][kRows], zeros past the last
// output channel.
template <typename T>
void pack_weight(const SampleShape& shape, WeightOrder order, const T* weight, T* packed) {
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  const bool forward = order == WeightOrder::kForward;
  const int64_t out_step = (forward ? shape.in_channels : 1) * taps;
  const int64_t in_step = (forward ? 1 : shape.out_channels) * taps;
  const int64_t first_tap = forward ? 0 : taps - 1;
  const int64_t tap_step = forward ? 1 : -1;
  for (int64_t c0 = 0; c0 < shape.in_channels; c0 += kInputBlock) {
    const int64_t c1 = smaller(c0 + kInputBlock, shape.in_channels);
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

// sums[r][v] += sum over channels and taps of weight[.., r] * map[v][shifted]. K is the kernel size
// where it is known at compile time, else 0.
template <typename T, int K>
inline void correlate_tile(const T* const (&map)[kColumns], const Block<T>& layout,
                           int64_t channels, int64_t kernel_size, const T* weight,
                           Vec<T> (&sums)[kRows][kColumns]) {
  const int64_t size = K > 0 ? K : kernel_size;
  Vec<T> local[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kColumns; ++v) local[r][v] = sums[r][v];
  for (int64_t c = 0; c < channels; ++c) {
#pragma GCC unroll 3
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = c * layout.plane + i * layout.row;
#pragma GCC unroll 3
      for (int64_t j = 0; j < size; ++j, weight += kRows) {
        Vec<T> values[kColumns];
        for (int v = 0; v < kColumns; ++v) {
          values[v] = load(map[v] + offset + j);
          keep_in_register<T>(values[v]);
        }
        for (int r = 0; r < kRows; ++r)
          for (int v = 0; v < kColumns; ++v) local[r][v] += weight[r] * values[v];
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kColumns; ++v) sums[r][v] = local[r][v];
}

// Computes one register tile: from zero, or from the output if `add`. Whole is true where all of
// its vectors and rows are stored in full.
template <typename T, int K, bool Whole>
inline void run_tile(const SampleShape& shape, const Block<T>& block, const Tile<T>& tile,
                     int64_t channels, const T* weight, int64_t outputs, bool add, T* output) {
  const int64_t area = shape.height * shape.width;
  Vec<T> sums[kRows][kColumns] = {};
  if (add) {
    for (int64_t r = 0; r < (Whole ? kRows : outputs); ++r)
      for (int n = 0; n < kColumns; ++n)
        load_some(output + r * area + tile.output[n], Whole ? Simd<T>::kLanes : tile.valid[n],
                  &sums[r][n]);
  }
  correlate_tile<T, K>(tile.map, block, channels, shape.kernel_size, weight, sums);
  for (int64_t r = 0; r < (Whole ? kRows : outputs); ++r)
    for (int n = 0; n < kColumns; ++n)
      store_some(output + r * area + tile.output[n], Whole ? Simd<T>::kLanes : tile.valid[n],
                 sums[r][n]);
}

template <typename T, int K>
void correlate_with(const SampleShape& shape, WeightOrder order, const T* input, const T* weight,
                    int64_t row_begin, int64_t row_end, bool accumulate, T* scratch, T* output) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  const int64_t area = shape.height * shape.width;
  const int64_t out_padded = ceil_div(shape.out_channels, kRows) * kRows;
  const Block<T> block(shape);

  T* const packed = scratch;
  Mask<T>* const inside = reinterpret_cast<Mask<T>*>(packed + packed_weight_size<T>(shape));
  T* const copy = packed + packed_weight_size<T>(shape) + block.row;
  pack_weight(shape, order, weight, packed);

  for (int64_t h0 = row_begin; h0 < row_end; h0 += block.rows) {
    const int64_t rows = smaller(block.rows, row_end - h0);
    for (int64_t v0 = 0; v0 < shape.width; v0 += block.columns * lanes) {
      const int64_t columns = smaller(block.columns, ceil_div(shape.width - v0, lanes));
      mark_columns(shape, block, v0 - shape.kernel_size / 2, inside);
      // Past the end the last tile repeats a vector, which is computed and not stored.
      const int64_t tiles = ceil_div(rows * columns, kColumns);
      Tile<T> tile[kBlockVectors];
      for (int64_t index = 0; index < tiles * kColumns; ++index) {
        const int64_t row = smaller(index, rows * columns - 1) / columns;
        const int64_t column = smaller(index, rows * columns - 1) % columns * lanes;
        Tile<T>& place = tile[index / kColumns];
        place.map[index % kColumns] = copy + row * block.row + column;
        place.output[index % kColumns] = (h0 + row) * shape.width + v0 + column;
        place.valid[index % kColumns] =
            index < rows * columns ? smaller(lanes, shape.width - v0 - column) : 0;
      }
      for (int64_t c0 = 0; c0 < shape.in_channels; c0 += kInputBlock) {
        const int64_t channels = smaller(kInputBlock, shape.in_channels - c0);
        const bool add = accumulate || c0 > 0;
        copy_block(shape, block, inside, input + c0 * area, (shape.in_channels - c0) * area,
                   channels, h0, v0, copy);
        for (int64_t o = 0; o < shape.out_channels; o += kRows) {
          const int64_t outputs = smaller(kRows, shape.out_channels - o);
          const T* tile_weight = packed + c0 * out_padded * taps + o * channels * taps;
          for (int64_t t = 0; t < tiles; ++t) {
            bool whole = outputs == kRows;
            for (int n = 0; n < kColumns; ++n) whole = whole && tile[t].valid[n] == lanes;
            if (whole) {
              run_tile<T, K, true>(shape, block, tile[t], channels, tile_weight, outputs, add,
                                   output + o * area);
            } else {
              run_tile<T, K, false>(shape, block, tile[t], channels, tile_weight, outputs, add,
                                    output + o * area);
            }
          }
        }
      }
    }
  }
}

template <typename T>
void correlate(const SampleShape& shape, WeightOrder order, const T* input, const T* weight,
               int64_t row_begin, int64_t row_end, bool accumulate, T* scratch, T* output) {
  (shape.kernel_size == 3 ? &correlate_with<T, 3>
                          : &correlate_with<T, 0>)(shape, order, input, weight, row_begin, row_end,
                                                   accumulate, scratch, output);
}

// ---------------------------------------------------------------------------------- weight_grad

template <typename T>
int64_t weight_grad_row_block(const SampleShape& shape) {
  const int64_t vectors = ceil_div(shape.width, Simd<T>::kLanes);
  return smaller(shape.height, larger(1, kWeightGradVectors / vectors));
}

template <typename T>
int64_t weight_grad_scratch(const SampleShape& shape) {
  const int64_t rows = weight_grad_row_block<T>(shape);
  const PaddedRows layout = padded_rows<T>(shape, rows);
  return shape.in_channels * layout.plane + kRows * rows * layout.vectors * Simd<T>::kLanes;
}

template <typename T>
inline T sum_lanes(const Vec<T>& value) {
  T sum = value[0];
  for (int64_t lane = 1; lane < Simd<T>::kLanes; ++lane) sum += value[lane];
  return sum;
}

// sums[r][n] += grad[r * plane] * map[n], lane by lane.
template <typename T>
inline void multiply_add(const T* grad, int64_t plane, Vec<T> (&values)[kColumns],
                         Vec<T> (&sums)[kRows][kColumns]) {
  for (int n = 0; n < kColumns; ++n) keep_in_register<T>(values[n]);
  for (int r = 0; r < kRows; ++r) {
    Vec<T> g = load(grad + r * plane);
    keep_in_register<T>(g);
    for (int n = 0; n < kColumns; ++n) sums[r][n] += g * values[n];
  }
}

// sums[r][n] = the products of the gradient's row r with map[n], summed over the rows of a block.
// Past the width the gradient's copy holds zeros, and the map is masked: what lies there may be
// infinite. `last` is the mask of a row's last vector, null where no masking is needed.
template <typename T>
inline void weight_grad_tile(const T* grad, int64_t grad_plane, const T* const (&map)[kColumns],
                             const PaddedRows& layout, int64_t rows, const Mask<T>* last,
                             Vec<T> (&sums)[kRows][kColumns]) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t unmasked = layout.vectors - (last == nullptr ? 0 : 1);
  Vec<T> local[kRows][kColumns] = {};
  for (int64_t h = 0; h < rows; ++h) {
    int64_t offset = h * layout.row;
    for (int64_t v = 0; v < unmasked; ++v, offset += lanes, grad += lanes) {
      Vec<T> values[kColumns];
      for (int n = 0; n < kColumns; ++n) values[n] = load(map[n] + offset);
      multiply_add(grad, grad_plane, values, local);
    }
    if (last != nullptr) {
      Vec<T> values[kColumns];
      for (int n = 0; n < kColumns; ++n) values[n] = Vec<T>(Mask<T>(load(map[n] + offset)) & *last);
      multiply_add(grad, grad_plane, values, local);
      grad += lanes;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < kColumns; ++n) sums[r][n] = local[r][n];
}

// Copies `rows` rows of `outputs` channels of the gradient, zeros past the width and in the
// channels that fill up the tile.
template <typename T>
void copy_grad(const SampleShape& shape, const T* grad, int64_t outputs, int64_t h0, int64_t rows,
               int64_t row_size, int64_t plane, T* copy) {
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t h = 0; h < rows; ++h) {
      const T* from = grad + (r * shape.height + h0 + h) * shape.width;
      T* to = copy + r * plane + h * row_size;
      const int64_t copied = r < outputs ? shape.width : 0;
      for (int64_t v = 0; v < copied; ++v) to[v] = from[v];
      for (int64_t v = copied; v < row_size; ++v) to[v] = 0;
    }
  }
}

template <typename T>
void weight_grad(const SampleShape& shape, const T* grad, const T* input, int64_t channel_begin,
                 int64_t channel_end, T* scratch, T* grad_weight) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t size = shape.kernel_size;
  const int64_t taps = size * size;
  const int64_t columns = shape.in_channels * taps;
  const int64_t area = shape.height * shape.width;
  const int64_t row_block = weight_grad_row_block<T>(shape);
  const PaddedRows layout = padded_rows<T>(shape, row_block);
  const int64_t grad_row = layout.vectors * lanes;
  const int64_t grad_plane = row_block * grad_row;
  T* const map_copy = scratch;
  T* const grad_copy = scratch + shape.in_channels * layout.plane;
  Mask<T> last = {};
  for (int64_t v = 0; v < shape.width % lanes; ++v) last[v] = -1;

  for (int64_t h0 = 0; h0 < shape.height; h0 += row_block) {
    const int64_t rows = smaller(row_block, shape.height - h0);
    copy_padded(shape, layout, input, shape.in_channels, h0, rows, map_copy);
    for (int64_t o = channel_begin; o < channel_end; o += kRows) {
      const int64_t outputs = smaller(kRows, channel_end - o);
      copy_grad(shape, grad + o * area, outputs, h0, rows, grad_row, grad_plane, grad_copy);
      for (int64_t t = 0; t < columns; t += kColumns) {
        const T* map[kColumns];
        for (int n = 0; n < kColumns; ++n) {
          const int64_t index = smaller(t + n, columns - 1);
          const int64_t tap = index % taps;
          map[n] = map_copy + index / taps * layout.plane + tap / size * layout.row + tap % size;
        }
        Vec<T> sums[kRows][kColumns];
        weight_grad_tile<T>(grad_copy, grad_plane, map, layout, rows,
                            shape.width % lanes == 0 ? nullptr : &last, sums);
        const int64_t valid = smaller(kColumns, columns - t);
        for (int64_t r = 0; r < outputs; ++r) {
          T* to = grad_weight + (o + r) * columns + t;
          for (int64_t n = 0; n < valid; ++n) {
            const T sum = sum_lanes<T>(sums[r][n]);
            to[n] = h0 == 0 ? sum : to[n] + sum;
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
