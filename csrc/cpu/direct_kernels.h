// Direct per-sample convolution with register tiles. Compiled once per instruction set through
// per_instruction_set.h, hence no include guard and no includes.
//
// Equation       out[o, h, v] = sum_{c,i,j} in[c, h+i-p, v+j-p] w[o, c, i, j]       (correlate)
//                gw[o, c, i, j] = sum_{h,v} g[o, h, v] in[c, h+i-p, v+j-p]          (weight_grad)
//                Both are matrix products in which one matrix is read out of the map through
//                shifted pointers instead of being built.
// Memory layout  Maps are [channel, row, column]. Rows are copied into a zero-padded buffer
//                [channel][row][column], so that a shifted load needs no test. Vector lanes are
//                neighbouring columns of one row. Weights are packed
//                [input block][output block of kRows][channel][tap][kRows].
// Parallel axis  None in here: a call owns its rows (correlate) or its output channels
//                (weight_grad), so that calls never write to the same address. How the work is cut
//                changes no order of summation: for each output it is input channel block, channel,
//                tap (correlate) or row block, row, column (weight_grad).
// Accumulation   In the type of the data; weight_grad keeps one partial sum per vector lane.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(MKDEXT_VECTOR_BYTES)));
  static constexpr int64_t kLanes = MKDEXT_VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vec = typename Simd<T>::Vec;

// A register tile is kRows scalars (broadcast) by kColumns vectors.
constexpr int kRows = MKDEXT_VECTOR_COUNT == 32 ? 8 : 4;
constexpr int kColumns = 3;

// Input channels per pass of `correlate`: the tile's piece of the map stays in the L1 cache.
constexpr int64_t kInputBlock = 32;

// Vectors of one row block of `weight_grad`: kRows times as many stay in the L1 cache.
constexpr int64_t kWeightGradVectors = 96;

// Bytes of padded map that `correlate` prepares at a time, about a third of a small L2 cache.
constexpr int64_t kMapBytes = 128 * 1024;

constexpr int64_t kLineBytes = 64;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline void store(T* to, const Vec<T>& value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// The first `count` lanes only; the others become 0.
template <typename T>
inline void load_some(const T* from, int64_t count, Vec<T>* value) {
  if (count == Simd<T>::kLanes) {
    *value = load(from);
  } else {
    *value = Vec<T>{};
    __builtin_memcpy(value, from, count * sizeof(T));
  }
}

template <typename T>
inline void store_some(T* to, int64_t count, const Vec<T>& value) {
  if (count == Simd<T>::kLanes) {
    store(to, value);
  } else {
    __builtin_memcpy(to, &value, count * sizeof(T));
  }
}

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

template <typename T>
int64_t correlate_row_block(const SampleShape& shape) {
  const PaddedRows one = padded_rows<T>(shape, 1);
  const int64_t channels = smaller(shape.in_channels, kInputBlock);
  const int64_t rows = kMapBytes / int64_t(sizeof(T)) / (channels * one.row);
  return smaller(shape.height, larger(1, rows - (shape.kernel_size - 1)));
}

template <typename T>
int64_t packed_weight_size(const SampleShape& shape) {
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  constexpr int64_t line = kLineBytes / sizeof(T);
  const int64_t size = ceil_div(shape.out_channels, kRows) * kRows * shape.in_channels * taps;
  return ceil_div(size, line) * line;
}

template <typename T>
int64_t correlate_scratch(const SampleShape& shape) {
  const PaddedRows layout = padded_rows<T>(shape, correlate_row_block<T>(shape));
  return packed_weight_size<T>(shape) +
         smaller(shape.in_channels, kInputBlock) * layout.plane;
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
        for (int64_t t = 0; t < taps; ++t, from += tap_step) {
          for (int64_t r = 0; r < kRows; ++r) *packed++ = r < rows ? from[r * out_step] : T(0);
        }
      }
    }
  }
}

// accumulators[r][v] += sum over channels and taps of weight[.., r] * map[v][shifted]. K is the
// kernel size when it is known at compile time, else 0.
template <typename T, int K>
inline __attribute__((always_inline)) void correlate_tile(
    const T* const (&map)[kColumns], const PaddedRows& layout, int64_t channels,
    int64_t kernel_size, const T* weight, Vec<T> (&accumulators)[kRows][kColumns]) {
  const int64_t size = K > 0 ? K : kernel_size;
  Vec<T> sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kColumns; ++v) sums[r][v] = accumulators[r][v];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < size; ++i) {
      const int64_t offset = c * layout.plane + i * layout.row;
      for (int64_t j = 0; j < size; ++j, weight += kRows) {
        Vec<T> values[kColumns];
        for (int v = 0; v < kColumns; ++v) values[v] = load(map[v] + offset + j);
        for (int r = 0; r < kRows; ++r)
          for (int v = 0; v < kColumns; ++v) sums[r][v] += weight[r] * values[v];
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kColumns; ++v) accumulators[r][v] = sums[r][v];
}

template <typename T>
void correlate(const SampleShape& shape, WeightOrder order, const T* input, const T* weight,
               int64_t row_begin, int64_t row_end, bool accumulate, T* scratch, T* output) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t taps = shape.kernel_size * shape.kernel_size;
  const int64_t area = shape.height * shape.width;
  const int64_t row_block = correlate_row_block<T>(shape);
  const int64_t out_padded = ceil_div(shape.out_channels, kRows) * kRows;
  const PaddedRows layout = padded_rows<T>(shape, row_block);

  T* const packed = scratch;
  T* const rows_buffer = scratch + packed_weight_size<T>(shape);
  pack_weight(shape, order, weight, packed);

  for (int64_t h0 = row_begin; h0 < row_end; h0 += row_block) {
    const int64_t rows = smaller(row_block, row_end - h0);
    const int64_t vectors = rows * layout.vectors;
    for (int64_t c0 = 0; c0 < shape.in_channels; c0 += kInputBlock) {
      const int64_t channels = smaller(kInputBlock, shape.in_channels - c0);
      const bool add = accumulate || c0 > 0;
      copy_padded(shape, layout, input + c0 * area, channels, h0, rows, rows_buffer);

      for (int64_t first = 0; first < vectors; first += kColumns) {
        // Past the end a tile repeats its last vector, which is computed and not stored.
        const T* map[kColumns];
        int64_t offset[kColumns];
        int64_t valid[kColumns];
        for (int v = 0; v < kColumns; ++v) {
          const int64_t index = smaller(first + v, vectors - 1);
          const int64_t row = index / layout.vectors;
          const int64_t column = index % layout.vectors * lanes;
          map[v] = rows_buffer + row * layout.row + column;
          offset[v] = (h0 + row) * shape.width + column;
          valid[v] = first + v < vectors ? smaller(lanes, shape.width - column) : 0;
        }

        for (int64_t o = 0; o < shape.out_channels; o += kRows) {
          const int64_t outputs = smaller(kRows, shape.out_channels - o);
          const T* tile_weight = packed + c0 * out_padded * taps + o * channels * taps;
          Vec<T> sums[kRows][kColumns] = {};
          if (add) {
            for (int64_t r = 0; r < outputs; ++r) {
              for (int v = 0; v < kColumns; ++v) {
                load_some(output + (o + r) * area + offset[v], valid[v], &sums[r][v]);
              }
            }
          }
          if (shape.kernel_size == 3) {
            correlate_tile<T, 3>(map, layout, channels, 3, tile_weight, sums);
          } else {
            correlate_tile<T, 0>(map, layout, channels, shape.kernel_size, tile_weight, sums);
          }
          for (int64_t r = 0; r < outputs; ++r) {
            for (int v = 0; v < kColumns; ++v) {
              store_some(output + (o + r) * area + offset[v], valid[v], sums[r][v]);
            }
          }
        }
      }
    }
  }
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
  return shape.in_channels * layout.plane +
         kRows * rows * layout.vectors * Simd<T>::kLanes;
}

template <typename T>
inline T sum_lanes(const Vec<T>& value) {
  T sum = value[0];
  for (int64_t lane = 1; lane < Simd<T>::kLanes; ++lane) sum += value[lane];
  return sum;
}

// sums[r][v] = sum over the row block of grad[r] * map[v]; grad rows hold zeros past the width, and
// so does what is read of the map there (a NaN beyond the edge must not enter the sum).
template <typename T>
inline __attribute__((always_inline)) void weight_grad_tile(
    const T* grad, int64_t grad_plane, const T* const (&map)[kColumns], const PaddedRows& layout,
    int64_t rows, const Vec<T>& last_mask, Vec<T> (&result)[kRows][kColumns]) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  Vec<T> sums[kRows][kColumns] = {};
  for (int64_t h = 0; h < rows; ++h) {
    const T* grad_row = grad + h * layout.vectors * lanes;
    const int64_t offset = h * layout.row;
    for (int64_t v = 0; v < layout.vectors; ++v) {
      Vec<T> values[kColumns];
      for (int n = 0; n < kColumns; ++n) values[n] = load(map[n] + offset + v * lanes);
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> g = load(grad_row + r * grad_plane + v * lanes);
        for (int n = 0; n < kColumns; ++n) sums[r][n] += g * values[n];
      }
    }
  }
  (void)last_mask;
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < kColumns; ++n) result[r][n] = sums[r][n];
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
  T* const rows_buffer = scratch;
  T* const grad_buffer = scratch + shape.in_channels * layout.plane;
  Vec<T> mask = {};

  for (int64_t h0 = 0; h0 < shape.height; h0 += row_block) {
    const int64_t rows = smaller(row_block, shape.height - h0);
    copy_padded(shape, layout, input, shape.in_channels, h0, rows, rows_buffer);
    for (int64_t o = channel_begin; o < channel_end; o += kRows) {
      const int64_t outputs = smaller(kRows, channel_end - o);
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t h = 0; h < rows; ++h) {
          T* to = grad_buffer + r * grad_plane + h * grad_row;
          if (r < outputs) {
            __builtin_memcpy(to, grad + (o + r) * area + (h0 + h) * shape.width,
                             shape.width * sizeof(T));
          }
          for (int64_t v = r < outputs ? shape.width : 0; v < grad_row; ++v) to[v] = 0;
        }
      }
      for (int64_t t = 0; t < columns; t += kColumns) {
        const T* map[kColumns];
        for (int n = 0; n < kColumns; ++n) {
          const int64_t index = smaller(t + n, columns - 1);
          const int64_t tap = index % taps;
          map[n] = rows_buffer + index / taps * layout.plane + tap / size * layout.row + tap % size;
        }
        Vec<T> sums[kRows][kColumns];
        weight_grad_tile<T>(grad_buffer, grad_plane, map, layout, rows, mask, sums);
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
