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
//                changes no order of summation: for each output it is block of channels, channel,
//                row and column of the kernel (correlate), or block, row and column of the map
//                (weight_grad, which takes the last vectors of rows that they overrun at the end).
// Accumulation   In the type of the data; weight_grad keeps one partial sum per vector lane.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// A register tile is kRows scalars or vectors by kColumns vectors. Loops over it are unrolled by
// pragma: GCC otherwise lays the tile out in memory before it unrolls them.
constexpr int kRows = MKDEXT_VECTOR_COUNT == 32 ? 8 : 4;
constexpr int kColumns = 3;

// `correlate`: vectors of output per block, and bytes of the block's copy, which stays in the L2
// cache.
constexpr int64_t kBlockVectors = 24;
constexpr int64_t kBlockBytes = 80'000;

// `weight_grad`: bytes of kRows channels of the gradient, which stay in the L1 cache beside a few
// channels of the map, and bytes of the map's copy, which stays in the L2 cache.
constexpr int64_t kGradBytes = 12'288;
constexpr int64_t kMapBytes = 200'000;

// Places arrays one after another in scratch memory of elements T, each on its own cache line.
template <typename T>
class Layout {
 public:
  // Returns where an array of `count` elements E begins.
  template <typename E>
  int64_t place(int64_t count) {
    const int64_t begin = size_;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(E));
    size_ += ceil_div(bytes, kLineBytes) * (kLineBytes / static_cast<int64_t>(sizeof(T)));
    return begin;
  }

  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

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
  int64_t kernel_size;
  int64_t channels;
  int64_t columns;  // vectors
  int64_t rows;
  int64_t row;    // elements of the copy from a row to the next
  int64_t plane;  // elements of the copy from a channel to the next

  Block(const SampleShape& shape, int64_t columns, int64_t rows, int64_t bytes)
      : kernel_size(shape.kernel_size), columns(columns), rows(rows) {
    constexpr int64_t lanes = Simd<T>::kLanes;
    constexpr int64_t line = kLineBytes / sizeof(T);
    row = ceil_div(columns * lanes + shape.kernel_size - 1, lanes) * lanes;
    // An odd number of cache lines, or channels would fall onto a few sets of the cache.
    plane = (ceil_div((rows + shape.kernel_size - 1) * row, line) | 1) * line;
    const int64_t fitting = larger(1, bytes / static_cast<int64_t>(plane * sizeof(T)));
    channels = smaller(shape.in_channels, fitting);
  }

  int64_t taps() const { return channels * kernel_size * kernel_size; }

  // Stores, for every channel and tap, how far into the copy the tap reads.
  void tap_offsets(int64_t* offsets) const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < kernel_size; ++i)
        for (int64_t j = 0; j < kernel_size; ++j) *offsets++ = c * plane + i * row + j;
  }
};

// Marks the columns of a block's copy, the first of which is column `begin` of the map, that lie
// within the map.
template <typename T>
void mark_columns(const SampleShape& shape, const Block<T>& block, int64_t begin, Mask<T>* inside) {
  constexpr int lanes = Simd<T>::kLanes;
  const int64_t first = smaller(larger(-begin, 0), block.row);
  const int64_t end = smaller(larger(shape.width - begin, 0), block.row);
  Mask<T> after_first, before_end;
#pragma GCC unroll 16
  for (int lane = 0; lane < lanes; ++lane) {
    after_first[lane] = lane - first;
    before_end[lane] = end - lane;
  }
  for (int64_t v = 0; v < block.row; v += lanes) {
    inside[v / lanes] = (after_first >= 0) & (before_end > 0);
    after_first += lanes;
    before_end -= lanes;
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

// How a correlation goes through the map, and what lies where in its scratch memory.
template <typename T>
struct CorrelatePlan {
  SampleShape map;
  Block<T> block;
  int64_t weight, copy, inside, offsets, size;

  explicit CorrelatePlan(const SampleShape& shape)
      : map(joined_rows(shape)), block(make_block(map)) {
    constexpr int64_t lanes = Simd<T>::kLanes;
    const int64_t padded_outputs = ceil_div(map.out_channels, kRows) * kRows;
    Layout<T> layout;
    weight = layout.template place<T>(padded_outputs * map.in_channels * block.kernel_size *
                                      block.kernel_size);
    copy = layout.template place<T>(block.channels * block.plane);
    inside = layout.template place<Mask<T>>(block.row / lanes);
    offsets = layout.template place<int64_t>(block.taps());
    size = layout.size();
  }

  static Block<T> make_block(const SampleShape& map) {
    const bool joined = map.kernel_size == 1;
    const int64_t vectors = ceil_div(map.width, Simd<T>::kLanes);
    const int64_t columns =
        joined ? smaller(vectors, kBlockVectors) : ceil_div(vectors, ceil_div(vectors, kColumns));
    const int64_t rows = smaller(map.height, larger(1, kBlockVectors / columns));
    return Block<T>(map, columns, rows, kBlockBytes);
  }
};

template <typename T>
int64_t correlate_scratch(const SampleShape& shape) {
  return CorrelatePlan<T>(shape).size;
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
__attribute__((noinline)) void correlate_tile(const T* const (&map)[kColumns],
                                              const int64_t* offsets, int64_t taps, const T* weight,
                                              bool add, const int64_t (&at)[kColumns],
                                              int64_t output_step, T* output) {
  Vec<T> sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[r][v] = Vec<T>{};
  int64_t t = 0;
  do {
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
    weight += kRows;
  } while (++t < taps);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      T* to = output + r * output_step + at[v];
      store(to, add ? load(to) + sums[r][v] : sums[r][v]);
    }
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
  const CorrelatePlan<T> plan(shape);
  const SampleShape& map = plan.map;
  const Block<T>& block = plan.block;
  const bool joined = map.kernel_size == 1;
  const int64_t h_begin = joined ? 0 : row_begin;
  const int64_t h_end = joined ? 1 : row_end;
  const int64_t v_begin = joined ? row_begin * shape.width : 0;
  const int64_t v_end = joined ? row_end * shape.width : shape.width;
  const int64_t taps = map.kernel_size * map.kernel_size;
  const int64_t area = map.height * map.width;
  const int64_t padded_outputs = ceil_div(map.out_channels, kRows) * kRows;

  T* const packed = scratch + plan.weight;
  T* const copy = scratch + plan.copy;
  Mask<T>* const inside = reinterpret_cast<Mask<T>*>(scratch + plan.inside);
  int64_t* const offsets = reinterpret_cast<int64_t*>(scratch + plan.offsets);
  pack_weight(map, block.channels, order, weight, packed);
  block.tap_offsets(offsets);

  for (int64_t h0 = h_begin; h0 < h_end; h0 += block.rows) {
    const int64_t rows = smaller(block.rows, h_end - h0);
    for (int64_t v0 = v_begin; v0 < v_end; v0 += block.columns * lanes) {
      const int64_t columns = smaller(block.columns, ceil_div(v_end - v0, lanes));
      mark_columns(map, block, v0 - map.kernel_size / 2, inside);
      // Past the end the last tile repeats a vector, which is computed and not stored.
      const int64_t tiles = ceil_div(rows * columns, kColumns);
      Tile<T> tile[kBlockVectors];
      int64_t row = 0, column = 0, left = rows * columns;
      for (int64_t t = 0; t < tiles; ++t) {
        for (int v = 0; v < kColumns; ++v) {
          tile[t].map[v] = copy + row * block.row + column * lanes;
          tile[t].output[v] = (h0 + row) * map.width + v0 + column * lanes;
          tile[t].valid[v] = left > 0 ? smaller(lanes, v_end - v0 - column * lanes) : 0;
          if (--left > 0 && ++column == columns) {
            column = 0;
            ++row;
          }
        }
      }
      for (int64_t c0 = 0; c0 < map.in_channels; c0 += block.channels) {
        const int64_t channels = smaller(block.channels, map.in_channels - c0);
        const bool add = accumulate || c0 > 0;
        copy_block(map, block, inside, input + c0 * area, (map.in_channels - c0) * area, channels,
                   h0, v0, rows, copy);
        for (int64_t o = 0; o < map.out_channels; o += kRows) {
          const int64_t outputs = smaller(kRows, map.out_channels - o);
          const T* tile_weight = packed + (c0 * padded_outputs + o * channels) * taps;
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

// How a weight gradient goes through the map, and what lies where in its scratch memory.
template <typename T>
struct WeightGradPlan {
  SampleShape map;
  Block<T> block;
  int64_t grad_plane;  // elements of the gradient's copy from a channel to the next
  int64_t grad, copy, inside, offsets, taps, size;

  explicit WeightGradPlan(const SampleShape& shape)
      : map(joined_rows(shape)), block(make_block(map)) {
    constexpr int64_t lanes = Simd<T>::kLanes;
    grad_plane = block.rows * block.columns * lanes;
    Layout<T> layout;
    grad = layout.template place<T>(kRows * grad_plane);
    copy = layout.template place<T>(block.channels * block.plane);
    inside = layout.template place<Mask<T>>(block.row / lanes);
    offsets = layout.template place<int64_t>(block.rows * block.columns);
    taps = layout.template place<int64_t>(block.taps());
    size = layout.size();
  }

  static Block<T> make_block(const SampleShape& map) {
    constexpr int64_t vectors = kGradBytes / (kRows * MKDEXT_VECTOR_BYTES);
    const int64_t width = ceil_div(map.width, Simd<T>::kLanes);
    const int64_t columns = ceil_div(width, ceil_div(width, vectors));
    const int64_t most = larger(1, vectors / columns);
    const int64_t rows = ceil_div(map.height, ceil_div(map.height, most));
    return Block<T>(map, columns, rows, kMapBytes);
  }
};

template <typename T>
int64_t weight_grad_scratch(const SampleShape& shape) {
  return WeightGradPlan<T>(shape).size;
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

// The vectors of a block in the order in which they are summed: first those that lie within the
// width, then the last ones of the rows if they reach past it.
template <typename T>
struct Vectors {
  int64_t whole;
  int64_t all;
  Mask<T> last;  // the columns of a last vector that lie within the width

  // Also stores where each vector begins in the copy of the map.
  Vectors(const Block<T>& block, int64_t rows, int64_t width, int64_t* offsets) : last{} {
    constexpr int64_t lanes = Simd<T>::kLanes;
    whole = width / lanes * rows;
    all = ceil_div(width, lanes) * rows;
    for (int64_t lane = 0; lane < width % lanes; ++lane) last[lane] = -1;
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t v = 0; v < width / lanes; ++v) *offsets++ = h * block.row + v * lanes;
    for (int64_t h = 0; h < all - whole; ++h) *offsets++ = h * block.row + width / lanes * lanes;
  }
};

// Copies a block at (h0, v0) of `outputs` channels of the gradient in the order of `Vectors`, zeros
// past the width and in the channels that fill up the tile.
template <typename T>
void copy_grad(const SampleShape& shape, const T* grad, int64_t outputs, int64_t h0, int64_t rows,
               int64_t v0, int64_t width, int64_t plane, T* copy) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const int64_t whole = width / lanes * lanes;
  for (int64_t r = 0; r < kRows; ++r) {
    T* to = copy + r * plane;
    if (r >= outputs) {
      for (int64_t v = 0; v < plane; v += lanes) store(to + v, Vec<T>{});
      continue;
    }
    const T* from = grad + (r * shape.height + h0) * shape.width + v0;
    for (int64_t h = 0; h < rows; ++h, to += whole) {
      __builtin_memcpy(to, from + h * shape.width, whole * sizeof(T));
    }
    for (int64_t h = 0; whole < width && h < rows; ++h, to += lanes) {
      for (int64_t v = 0; v < lanes; ++v) {
        to[v] = whole + v < width ? from[h * shape.width + whole + v] : T(0);
      }
    }
  }
}

// to[r * kColumns + n] = the product of the gradient's channel r with map[n], summed over the
// vectors. Past the width the gradient's copy holds zeros, and the map is masked: what lies there
// may be infinite.
template <typename T>
__attribute__((noinline)) void weight_grad_tile(const T* grad, int64_t grad_plane,
                                                const T* const (&map)[kColumns],
                                                const Vectors<T>& vectors, const int64_t* offsets,
                                                T* to) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  Vec<T> sums[kRows * kColumns];
#pragma GCC unroll 32
  for (int n = 0; n < kRows * kColumns; ++n) sums[n] = Vec<T>{};
  int64_t t = 0;
  for (; t < vectors.whole; ++t, grad += lanes) {
    Vec<T> values[kColumns];
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) values[n] = load(map[n] + offsets[t]);
    multiply_add(grad, grad_plane, values, sums);
  }
  for (; t < vectors.all; ++t, grad += lanes) {
    Vec<T> values[kColumns];
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n)
      values[n] = Vec<T>(Mask<T>(load(map[n] + offsets[t])) & vectors.last);
    multiply_add(grad, grad_plane, values, sums);
  }
  sum_lanes<T>(sums, to);
}

template <typename T>
void weight_grad(const SampleShape& shape, const T* grad, const T* input, int64_t channel_begin,
                 int64_t channel_end, T* scratch, T* grad_weight) {
  constexpr int64_t lanes = Simd<T>::kLanes;
  const WeightGradPlan<T> plan(shape);
  const SampleShape& map = plan.map;
  const Block<T>& block = plan.block;
  const int64_t taps = map.kernel_size * map.kernel_size;
  const int64_t area = map.height * map.width;
  T* const grad_copy = scratch + plan.grad;
  T* const copy = scratch + plan.copy;
  Mask<T>* const inside = reinterpret_cast<Mask<T>*>(scratch + plan.inside);
  int64_t* const offsets = reinterpret_cast<int64_t*>(scratch + plan.offsets);
  int64_t* const tap_offsets = reinterpret_cast<int64_t*>(scratch + plan.taps);
  block.tap_offsets(tap_offsets);

  for (int64_t h0 = 0; h0 < map.height; h0 += block.rows) {
    const int64_t rows = smaller(block.rows, map.height - h0);
    for (int64_t v0 = 0; v0 < map.width; v0 += block.columns * lanes) {
      const int64_t width = smaller(block.columns * lanes, map.width - v0);
      const bool first = h0 == 0 && v0 == 0;
      const Vectors<T> vectors(block, rows, width, offsets);
      mark_columns(map, block, v0 - map.kernel_size / 2, inside);
      for (int64_t c0 = 0; c0 < map.in_channels; c0 += block.channels) {
        const int64_t channels = smaller(block.channels, map.in_channels - c0);
        copy_block(map, block, inside, input + c0 * area, (map.in_channels - c0) * area, channels,
                   h0, v0, rows, copy);
        for (int64_t o = channel_begin; o < channel_end; o += kRows) {
          const int64_t outputs = smaller(kRows, channel_end - o);
          // Whole rows of whole vectors lie in the order of `Vectors` already.
          const bool in_order = (width == map.width || rows == 1) && width % lanes == 0;
          const T* rows_of_grad = grad + o * area + h0 * map.width + v0;
          int64_t grad_plane = area;
          if (!in_order || outputs < kRows) {
            copy_grad(map, grad + o * area, outputs, h0, rows, v0, width, plan.grad_plane,
                      grad_copy);
            rows_of_grad = grad_copy;
            grad_plane = plan.grad_plane;
          }
          for (int64_t t = 0; t < channels * taps; t += kColumns) {
            const T* tile[kColumns];
            for (int64_t n = 0; n < kColumns; ++n) {
              tile[n] = copy + tap_offsets[smaller(t + n, channels * taps - 1)];
            }
            T sums[ceil_div(kRows * kColumns, lanes) * lanes];
            weight_grad_tile(rows_of_grad, grad_plane, tile, vectors, offsets, sums);
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
