// Winograd convolution F(4x4, 3x3) of one sample. Compiled once per instruction set through
// per_instruction_set.h, hence no include guard and no includes.
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

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

using Lanes = Vec<float>;
constexpr int kLanes = Simd<float>::kLanes;

constexpr int kTile = 4;    // outputs of a tile along one axis
constexpr int kWindow = 6;  // its inputs
constexpr int kFrequencies = kWindow * kWindow;
constexpr int kTaps = 9;

// Interpolation points, their powers, and the denominators prod_l (p - p_l) of the basis.
constexpr float kA = 2.0 / 3.0;
constexpr float kB = 3.0 / 2.0;
constexpr float kA2 = 4.0 / 9.0;
constexpr float kB2 = 9.0 / 4.0;
constexpr float kA3 = 8.0 / 27.0;
constexpr float kB3 = 27.0 / 8.0;
constexpr float kSum2 = 97.0 / 36.0;  // a^2 + b^2
constexpr double kNormA = 2 * 4.0 / 9.0 * (4.0 / 9.0 - 9.0 / 4.0);
constexpr double kNormB = 2 * 9.0 / 4.0 * (9.0 / 4.0 - 4.0 / 9.0);

// Register tile of `correlate`: tiles (broadcast) by vectors of output channels.
constexpr int kTileRows = MKDEXT_VECTOR_COUNT == 32 ? 12 : 6;
constexpr int kPanel = 2;

// Register tile of `weight_grad`: input channels (broadcast) by vectors of output channels.
constexpr int kInputRows = 4;
constexpr int kGradVectors = MKDEXT_VECTOR_COUNT == 32 ? 4 : 2;

// Transforms of a block of tiles: about the size of the L2 cache. The weight gradient passes over
// its sums, which are larger, once per block and does better with fewer blocks.
constexpr int64_t kCorrelateBytes = 450'000;
constexpr int64_t kWeightGradBytes = 900'000;

inline Lanes broadcast(float value) { return value - Lanes{}; }

inline int64_t round_up(int64_t value, int64_t step) { return ceil_div(value, step) * step; }

// ------------------------------------------------------------------------- one-dimensional maps

// B^T: 6 inputs to 6 frequencies. The first and the last are of one form, the others come in pairs.
inline Lanes input_end(const Lanes& d0, const Lanes& d2, const Lanes& d4) {
  return d0 - kSum2 * d2 + d4;
}

// For the points +-p; `square` is that of the other pair's point.
inline void input_pair(const Lanes& d1, const Lanes& d2, const Lanes& d3, const Lanes& d4, float p,
                       float square, Lanes& plus, Lanes& minus) {
  const Lanes even = d4 - square * d2;
  const Lanes odd = d3 - square * d1;
  plus = even + p * odd;
  minus = even - p * odd;
}

inline void input_transform(const Lanes (&d)[kWindow], Lanes (&v)[kWindow]) {
  v[0] = input_end(d[0], d[2], d[4]);
  input_pair(d[1], d[2], d[3], d[4], kA, kB2, v[1], v[2]);
  input_pair(d[1], d[2], d[3], d[4], kB, kA2, v[3], v[4]);
  v[5] = input_end(d[1], d[3], d[5]);
}

// G: 3 taps to 6 frequencies.
inline void weight_transform(const Lanes& w0, const Lanes& w1, const Lanes& w2,
                             Lanes (&u)[kWindow]) {
  constexpr float a0 = 1 / kNormA, a1 = 2.0 / 3.0 / kNormA, a2 = 4.0 / 9.0 / kNormA;
  constexpr float b0 = 1 / kNormB, b1 = 3.0 / 2.0 / kNormB, b2 = 9.0 / 4.0 / kNormB;
  const Lanes even_a = a0 * w0 + a2 * w2;
  const Lanes odd_a = a1 * w1;
  const Lanes even_b = b0 * w0 + b2 * w2;
  const Lanes odd_b = b1 * w1;
  u[0] = w0;
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = w2;
}

// A^T: 6 frequencies to 4 outputs, of which 0 and 2 are even in the points, 1 and 3 odd.
inline void output_even(const Lanes& m0, const Lanes& m1, const Lanes& m2, const Lanes& m3,
                        const Lanes& m4, Lanes& y0, Lanes& y2) {
  const Lanes sum_a = m1 + m2;
  const Lanes sum_b = m3 + m4;
  y0 = m0 + sum_a + sum_b;
  y2 = kA2 * sum_a + kB2 * sum_b;
}

inline void output_odd(const Lanes& m1, const Lanes& m2, const Lanes& m3, const Lanes& m4,
                       const Lanes& m5, Lanes& y1, Lanes& y3) {
  const Lanes gap_a = m1 - m2;
  const Lanes gap_b = m3 - m4;
  y1 = kA * gap_a + kB * gap_b;
  y3 = kA3 * gap_a + kB3 * gap_b + m5;
}

inline void output_transform(const Lanes (&m)[kWindow], Lanes (&y)[kTile]) {
  output_even(m[0], m[1], m[2], m[3], m[4], y[0], y[2]);
  output_odd(m[1], m[2], m[3], m[4], m[5], y[1], y[3]);
}

// A: 4 gradients of outputs to 6 frequencies. The first and the last are inputs, the others come in
// pairs for the points +-p.
inline void grad_pair(const Lanes& g0, const Lanes& g1, const Lanes& g2, const Lanes& g3, float p,
                      float square, Lanes& plus, Lanes& minus) {
  const Lanes even = g0 + square * g2;
  const Lanes odd = g1 + square * g3;
  plus = even + p * odd;
  minus = even - p * odd;
}

inline void grad_transform(const Lanes (&g)[kTile], Lanes (&v)[kWindow]) {
  v[0] = g[0];
  grad_pair(g[0], g[1], g[2], g[3], kA, kA2, v[1], v[2]);
  grad_pair(g[0], g[1], g[2], g[3], kB, kB2, v[3], v[4]);
  v[5] = g[3];
}

// G^T: 6 frequencies to 3 taps.
inline void weight_grad_transform(const Lanes (&d)[kWindow], Lanes& w0, Lanes& w1, Lanes& w2) {
  constexpr float a0 = 1 / kNormA, a1 = 2.0 / 3.0 / kNormA, a2 = 4.0 / 9.0 / kNormA;
  constexpr float b0 = 1 / kNormB, b1 = 3.0 / 2.0 / kNormB, b2 = 9.0 / 4.0 / kNormB;
  const Lanes sum_a = d[1] + d[2];
  const Lanes sum_b = d[3] + d[4];
  w0 = d[0] + a0 * sum_a + b0 * sum_b;
  w1 = a1 * (d[1] - d[2]) + b1 * (d[3] - d[4]);
  w2 = a2 * sum_a + b2 * sum_b + d[5];
}

// ---------------------------------------------------------------------------------- transposition

enum class Pick { kUnpackLow, kUnpackHigh, kPairLow, kPairHigh, kBlockLow, kBlockHigh };

// Lane j of a shuffle of two vectors: lanes of the second are counted from kLanes on. The first
// four work within 4 lanes each, the blocks exchange groups of `size` lanes.
constexpr int picked(Pick pick, int size, int j) {
  const int base = j & ~3, in = j & 3;
  switch (pick) {
    case Pick::kUnpackLow:
      return base + in / 2 + (in & 1 ? kLanes : 0);
    case Pick::kUnpackHigh:
      return base + 2 + in / 2 + (in & 1 ? kLanes : 0);
    case Pick::kPairLow:
      return base + (in & 1) + (in & 2 ? kLanes : 0);
    case Pick::kPairHigh:
      return base + 2 + (in & 1) + (in & 2 ? kLanes : 0);
    case Pick::kBlockLow:
      return j & size ? kLanes + j - size : j;
    default:
      return j & size ? kLanes + j : j + size;
  }
}

template <Pick pick, int size, int... lane>
inline Lanes shuffle(const Lanes& a, const Lanes& b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, picked(pick, size, lane)...);
#else
  return __builtin_shuffle(a, b, Mask<float>{picked(pick, size, lane)...});
#endif
}

template <Pick pick, int size = 0>
inline Lanes shuffle(const Lanes& a, const Lanes& b) {
  return shuffle<pick, size>(a, b, std::make_integer_sequence<int, kLanes>{});
}

template <int size>
inline void exchange_blocks(Lanes (&rows)[kLanes]) {
  if constexpr (size < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & size) continue;
      const Lanes a = rows[i], b = rows[i + size];
      rows[i] = shuffle<Pick::kBlockLow, size>(a, b);
      rows[i + size] = shuffle<Pick::kBlockHigh, size>(a, b);
    }
    exchange_blocks<2 * size>(rows);
  }
}

// rows[i][j] becomes rows[j][i].
inline void transpose(Lanes (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 4) {
    const Lanes low_ab = shuffle<Pick::kUnpackLow>(rows[i], rows[i + 1]);
    const Lanes high_ab = shuffle<Pick::kUnpackHigh>(rows[i], rows[i + 1]);
    const Lanes low_cd = shuffle<Pick::kUnpackLow>(rows[i + 2], rows[i + 3]);
    const Lanes high_cd = shuffle<Pick::kUnpackHigh>(rows[i + 2], rows[i + 3]);
    rows[i] = shuffle<Pick::kPairLow>(low_ab, low_cd);
    rows[i + 1] = shuffle<Pick::kPairHigh>(low_ab, low_cd);
    rows[i + 2] = shuffle<Pick::kPairLow>(high_ab, high_cd);
    rows[i + 3] = shuffle<Pick::kPairHigh>(high_ab, high_cd);
  }
  exchange_blocks<4>(rows);
}

// ----------------------------------------------------------------------------------------- blocks

int64_t tiles_along(int64_t length) { return ceil_div(length, kTile); }

// Tiles [row_begin, row_end) x [column_begin, column_end) of the grid of tiles.
struct Block {
  int64_t row_begin;
  int64_t row_end;
  int64_t column_begin;
  int64_t column_end;

  int64_t columns() const { return column_end - column_begin; }
  int64_t tiles() const { return (row_end - row_begin) * columns(); }
};

// The largest block, in tiles, whose transforms of so many channels take up to `limit` bytes.
struct BlockSize {
  int64_t rows;
  int64_t columns;

  BlockSize(const SampleShape& shape, int64_t channels, int64_t limit) {
    const int64_t bytes = kFrequencies * channels * static_cast<int64_t>(sizeof(float));
    const int64_t tiles = larger(kTileRows, limit / bytes);
    const int64_t all_columns = tiles_along(shape.width), all_rows = tiles_along(shape.height);
    columns = ceil_div(all_columns, ceil_div(all_columns, tiles));
    rows = ceil_div(all_rows, ceil_div(all_rows, larger(1, tiles / columns)));
  }

  int64_t tiles() const { return rows * columns; }
};

// Calls run(block) for the blocks that cover the rows of tiles [begin, end).
template <typename Run>
void for_each_block(const SampleShape& shape, const BlockSize& size, int64_t begin, int64_t end,
                    const Run& run) {
  const int64_t columns = tiles_along(shape.width);
  for (int64_t r = begin; r < end; r += size.rows)
    for (int64_t c = 0; c < columns; c += size.columns)
      run(Block{r, smaller(r + size.rows, end), c, smaller(c + size.columns, columns)});
}

// Elements from one frequency to the next, where `size` are needed.
int64_t frequency_step(int64_t size) {
  constexpr int64_t line = kLineBytes / sizeof(float);
  return (ceil_div(size, line) | 1) * line;
}

// Elements of a row of pixels, kLanes channels each; its last vector of columns may reach over.
int64_t pixel_row(int64_t columns) { return (columns + kLanes) * kLanes; }

// Copies columns [column, column + columns) of row h of kLanes channels, of which `channels` exist,
// to pixels; zeros outside the map.
inline void gather_row(const SampleShape& shape, const float* map, int64_t channels, int64_t h,
                       int64_t column, int64_t columns, float* pixels) {
  if (h < 0 || h >= shape.height) {
    for (int64_t v = 0; v < columns; ++v) store(pixels + v * kLanes, Lanes{});
    return;
  }
  const int64_t area = shape.height * shape.width;
  const int64_t first = larger(0, column);
  const int64_t last = smaller(shape.width, column + columns);
  for (int64_t v = column; v < first; ++v) store(pixels + (v - column) * kLanes, Lanes{});
  int64_t v = first;
  for (; v < last; v += kLanes) {
    const int64_t count = smaller(kLanes, shape.width - v);
    const float* from = map + h * shape.width + v;
    Lanes values[kLanes];
    if (count == kLanes && channels == kLanes) {
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) values[c] = load(from + c * area);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) {
        values[c] = Lanes{};
        if (c < channels) load_some(from + c * area, count, &values[c]);
      }
    }
    transpose(values);
    float* to = pixels + (v - column) * kLanes;
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) store(to + j * kLanes, values[j]);
  }
  for (; v < column + columns; ++v) store(pixels + (v - column) * kLanes, Lanes{});
}

// Stores rows [row, row + kTile) and columns [column, column + columns) of pixels to a map, where
// they lie within it.
inline void scatter_rows(const SampleShape& shape, const float* pixels, int64_t channels,
                         int64_t row, int64_t column, int64_t columns, float* map) {
  const int64_t area = shape.height * shape.width;
  const int64_t last = smaller(shape.width, column + columns);
  for (int64_t h = row; h < smaller(row + kTile, shape.height); ++h, pixels += pixel_row(columns)) {
    for (int64_t v = column; v < last; v += kLanes) {
      const float* from = pixels + (v - column) * kLanes;
      const int64_t count = smaller(kLanes, last - v);
      float* to = map + h * shape.width + v;
      Lanes values[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) values[j] = load(from + j * kLanes);
      transpose(values);
      if (count == kLanes && channels == kLanes) {
#pragma GCC unroll 16
        for (int c = 0; c < kLanes; ++c) store(to + c * area, values[c]);
      } else {
        for (int64_t c = 0; c < channels; ++c) store_some(to + c * area, count, values[c]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------- transforms

// Elements of scratch memory for the transforms of blocks of this size.
int64_t pixels_scratch(const BlockSize& size) {
  return kWindow * pixel_row(size.columns * kTile + 2);
}

// In two dimensions a transform takes columns first and then rows. It makes the rows one or two at
// a time, as they come, and loads anew what it needs: storing 36 vectors halfway would take longer.

// B^T d B of a block's tiles, for one vector of channels; out is [frequency][..][tile][lane].
inline void transform_input(const SampleShape& shape, const Block& block, const float* map,
                            int64_t channels, float* pixels, int64_t out_step, float* out) {
  const int64_t columns = block.columns() * kTile + 2;
  const int64_t row = pixel_row(columns);
  for (int64_t r = block.row_begin; r < block.row_end; ++r) {
    const float* rows[kWindow];
    for (int i = 0; i < kWindow; ++i) {
      const int64_t h = r * kTile - 1 + i;
      float* const slot = pixels + (h + 1) % kWindow * row;
      rows[i] = slot;
      // The last two rows of a window are the first two of the next.
      if (i >= kWindow - kTile || r == block.row_begin)
        gather_row(shape, map, channels, h, block.column_begin * kTile - 1, columns, slot);
    }
    for (int64_t c = 0; c < block.columns(); ++c, out += kLanes) {
      const auto d = [&](int i, int j) { return load(rows[i] + (c * kTile + j) * kLanes); };
      const auto put = [&](int i, const Lanes(&halfway)[kWindow]) {
        Lanes v[kWindow];
        input_transform(halfway, v);
#pragma GCC unroll 16
        for (int j = 0; j < kWindow; ++j) store(out + (i * kWindow + j) * out_step, v[j]);
      };
      Lanes one[kWindow], two[kWindow];
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j) one[j] = input_end(d(0, j), d(2, j), d(4, j));
      put(0, one);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j)
        input_pair(d(1, j), d(2, j), d(3, j), d(4, j), kA, kB2, one[j], two[j]);
      put(1, one);
      put(2, two);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j)
        input_pair(d(1, j), d(2, j), d(3, j), d(4, j), kB, kA2, one[j], two[j]);
      put(3, one);
      put(4, two);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j) one[j] = input_end(d(1, j), d(3, j), d(5, j));
      put(5, one);
    }
  }
}

// A g A^T of a block's tiles, for one vector of channels.
inline void transform_grad(const SampleShape& shape, const Block& block, const float* map,
                           int64_t channels, float* pixels, int64_t out_step, float* out) {
  const int64_t columns = block.columns() * kTile;
  const int64_t row = pixel_row(columns);
  for (int64_t r = block.row_begin; r < block.row_end; ++r) {
    for (int i = 0; i < kTile; ++i)
      gather_row(shape, map, channels, r * kTile + i, block.column_begin * kTile, columns,
                 pixels + i * row);
    for (int64_t c = 0; c < block.columns(); ++c, out += kLanes) {
      const auto g = [&](int i, int j) {
        return load(pixels + i * row + (c * kTile + j) * kLanes);
      };
      const auto put = [&](int i, const Lanes(&halfway)[kTile]) {
        Lanes v[kWindow];
        grad_transform(halfway, v);
#pragma GCC unroll 16
        for (int j = 0; j < kWindow; ++j) store(out + (i * kWindow + j) * out_step, v[j]);
      };
      Lanes one[kTile], two[kTile];
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j) one[j] = g(0, j);
      put(0, one);
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j)
        grad_pair(g(0, j), g(1, j), g(2, j), g(3, j), kA, kA2, one[j], two[j]);
      put(1, one);
      put(2, two);
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j)
        grad_pair(g(0, j), g(1, j), g(2, j), g(3, j), kB, kB2, one[j], two[j]);
      put(3, one);
      put(4, two);
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j) one[j] = g(3, j);
      put(5, one);
    }
  }
}

// A^T m A of a block's tiles, for one vector of channels, stored to the map.
inline void transform_output(const SampleShape& shape, const Block& block, const float* products,
                             int64_t step, int64_t channels, float* pixels, float* map) {
  const int64_t columns = block.columns() * kTile;
  const int64_t row = pixel_row(columns);
  for (int64_t r = block.row_begin; r < block.row_end; ++r) {
    for (int64_t c = 0; c < block.columns(); ++c, products += kLanes) {
      const auto m = [&](int i, int j) { return load(products + (i * kWindow + j) * step); };
      const auto put = [&](int i, const Lanes(&halfway)[kWindow]) {
        Lanes y[kTile];
        output_transform(halfway, y);
#pragma GCC unroll 16
        for (int j = 0; j < kTile; ++j) store(pixels + i * row + (c * kTile + j) * kLanes, y[j]);
      };
      Lanes one[kWindow], two[kWindow];
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j)
        output_even(m(0, j), m(1, j), m(2, j), m(3, j), m(4, j), one[j], two[j]);
      put(0, one);
      put(2, two);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j)
        output_odd(m(1, j), m(2, j), m(3, j), m(4, j), m(5, j), one[j], two[j]);
      put(1, one);
      put(3, two);
    }
    scatter_rows(shape, pixels, channels, r * kTile, block.column_begin * kTile, columns, map);
  }
}

// The taps of kLanes output channels, of which `outputs` exist, for one input channel. The rows of
// 9 taps lie `row_step` apart.
inline void load_taps(const float* weight, int64_t row_step, int64_t outputs,
                      Lanes (&taps)[kTaps]) {
  for (int first = 0; first < kTaps; first += kLanes) {
    const int count = kTaps - first < kLanes ? kTaps - first : kLanes;
    if (count == 1) {
      taps[first] = Lanes{};
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        if (r < outputs) taps[first][r] = weight[r * row_step + first];
      continue;
    }
    Lanes rows[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) {
      rows[r] = Lanes{};
      if (r < outputs) load_some(weight + r * row_step + first, count, &rows[r]);
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int j = 0; j < count; ++j) taps[first + j] = rows[j];
  }
}

// Output channels in panels of kPanel vectors; the last may hold one.
struct Panels {
  int64_t vectors;
  int64_t inputs;  // padded input channels of all terms

  int64_t size() const { return vectors * inputs * kLanes; }
  int64_t width(int64_t vector) const {
    return vector / kPanel * kPanel + kPanel <= vectors ? kPanel : 1;
  }
  // Where vector `vector` of input channel c lies.
  int64_t offset(int64_t vector, int64_t c) const {
    return (vector / kPanel * kPanel * inputs + c * width(vector) + vector % kPanel) * kLanes;
  }
};

// G w G^T of kLanes output channels, of which `outputs` exist, and one input channel.
inline void transform_taps(const float* weight, WeightOrder order, int64_t row_step,
                           int64_t outputs, int64_t step, float* out) {
  Lanes taps[kTaps];
  load_taps(weight, row_step, outputs, taps);
  if (order == WeightOrder::kInputGrad) {
#pragma GCC unroll 16
    for (int t = 0; t < kTaps / 2; ++t) {
      const Lanes swapped = taps[t];
      taps[t] = taps[kTaps - 1 - t];
      taps[kTaps - 1 - t] = swapped;
    }
  }
  Lanes halfway[3][kWindow];
#pragma GCC unroll 16
  for (int j = 0; j < 3; ++j) weight_transform(taps[j], taps[3 + j], taps[6 + j], halfway[j]);
#pragma GCC unroll 16
  for (int i = 0; i < kWindow; ++i) {
    Lanes u[kWindow];
    weight_transform(halfway[0][i], halfway[1][i], halfway[2][i], u);
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j) store(out + (i * kWindow + j) * step, u[j]);
  }
}

// G w G^T of one term, whose channels begin at `first` among all terms'.
inline void transform_weight(const SampleShape& shape, WeightOrder order, const float* weight,
                             const Panels& panels, int64_t first, int64_t step, float* out) {
  const auto transform = [&](int64_t vector, int64_t c) {
    const bool forward = order == WeightOrder::kForward;
    const int64_t out_step = (forward ? shape.in_channels : 1) * kTaps;
    const int64_t in_step = (forward ? 1 : shape.out_channels) * kTaps;
    transform_taps(weight + vector * kLanes * out_step + c * in_step, order, out_step,
                   smaller(kLanes, shape.out_channels - vector * kLanes), step,
                   out + panels.offset(vector, first + c));
  };
  // In the order in which the weight lies in memory.
  if (order == WeightOrder::kForward) {
    for (int64_t vector = 0; vector < panels.vectors; ++vector)
      for (int64_t c = 0; c < shape.in_channels; ++c) transform(vector, c);
  } else {
    for (int64_t c = 0; c < shape.in_channels; ++c)
      for (int64_t vector = 0; vector < panels.vectors; ++vector) transform(vector, c);
  }
  for (int64_t c = shape.in_channels; c < round_up(shape.in_channels, kLanes); ++c)
    for (int64_t vector = 0; vector < panels.vectors; ++vector)
      for (int f = 0; f < kFrequencies; ++f)
        store(out + panels.offset(vector, first + c) + f * step, Lanes{});
}

// --------------------------------------------------------------------------------------- products

// out[vector][t][lane] = sum over c of input[c / kLanes][t][c % kLanes] weight[c][vector][lane] for
// `rows` tiles; `step` is the number of elements from a vector of channels to the next.
template <int rows, int vectors>
inline void multiply(const float* input, const float* weight, int64_t inputs, int64_t step,
                     float* out) {
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
        w[v] = load(weight + v * kLanes);
        keep_in_register<float>(w[v]);
      }
#pragma GCC unroll 16
      for (int t = 0; t < rows; ++t) {
        Lanes in = broadcast(input[t * kLanes + lane]);
        keep_in_register<float>(in);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
          sums[t][v] += in * w[v];
          keep_in_register<float>(sums[t][v]);
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
inline void multiply_grad(const float* input, const float* grad, int64_t step, int64_t tiles,
                          bool add, int64_t sums_step, float* sums) {
  Lanes local[kInputRows][vectors];
#pragma GCC unroll 16
  for (int c = 0; c < kInputRows; ++c)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) local[c][v] = Lanes{};
  for (int64_t t = 0; t < tiles; ++t, input += kLanes, grad += kLanes) {
    Lanes g[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      g[v] = load(grad + v * step);
      keep_in_register<float>(g[v]);
    }
#pragma GCC unroll 16
    for (int c = 0; c < kInputRows; ++c) {
      Lanes in = broadcast(input[c]);
      keep_in_register<float>(in);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) local[c][v] += in * g[v];
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

int64_t correlate_parts(const SampleShape& shape) { return tiles_along(shape.height); }

int64_t correlate_scratch(const SampleShape& shape, int64_t terms) {
  return CorrelatePlan(shape, terms).scratch();
}

void correlate(const SampleShape& shape, WeightOrder order, const Term<float>* terms,
               int64_t term_count, int64_t begin, int64_t end, float* scratch, float* output) {
  const CorrelatePlan plan(shape, term_count);
  const int64_t area = shape.height * shape.width;
  float* const weights = scratch;
  float* const inputs = weights + kFrequencies * plan.weight_step;
  float* const products = inputs + kFrequencies * plan.input_step;
  float* const pixels = products + kFrequencies * plan.product_step;
  for (int64_t n = 0; n < term_count; ++n)
    transform_weight(shape, order, terms[n].weight, plan.panels, n * plan.padded, plan.weight_step,
                     weights);

  for_each_block(shape, plan.block, begin, end, [&](const Block& block) {
    const int64_t step = block.tiles() * kLanes;
    for (int64_t n = 0; n < term_count; ++n) {
      for (int64_t c = 0; c < shape.in_channels; c += kLanes)
        transform_input(shape, block, terms[n].input + c * area,
                        smaller(kLanes, shape.in_channels - c), pixels, plan.input_step,
                        inputs + (n * plan.padded + c) / kLanes * step);
    }
    for (int f = 0; f < kFrequencies; ++f) {
      const float* input = inputs + f * plan.input_step;
      const float* weight = weights + f * plan.weight_step;
      float* product = products + f * plan.product_step;
      for (int64_t v = 0; v < plan.panels.vectors; v += plan.panels.width(v)) {
        (plan.panels.width(v) == kPanel
             ? &multiply_tiles<kTileRows, kPanel>
             : &multiply_tiles<kTileRows, 1>)(input, weight + plan.panels.offset(v, 0),
                                              plan.panels.inputs, step, block.tiles(),
                                              product + v * step);
      }
    }
    for (int64_t v = 0; v < plan.panels.vectors; ++v)
      transform_output(shape, block, products + v * step, plan.product_step,
                       smaller(kLanes, shape.out_channels - v * kLanes), pixels,
                       output + v * kLanes * area);
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
           round_up(shape_rows(), kLanes) * kLanes;
  }

  // Taps of all input channels.
  int64_t shape_rows() const { return inputs * kTaps; }
};

int64_t weight_grad_parts(int64_t out_channels) { return ceil_div(out_channels, kLanes); }

int64_t weight_grad_scratch(const SampleShape& shape) { return WeightGradPlan(shape).scratch(); }

void weight_grad(const SampleShape& shape, const float* grad, const float* input, int64_t begin,
                 int64_t end, float* scratch, float* grad_weight) {
  const WeightGradPlan plan(shape);
  const int64_t area = shape.height * shape.width;
  const int64_t vectors = end - begin;
  float* const inputs = scratch;
  float* const grads = inputs + kFrequencies * plan.input_step;
  float* const sums = grads + kFrequencies * plan.grad_step;
  float* const pixels = sums + kFrequencies * plan.sums_step;
  float* const taps = pixels + pixels_scratch(plan.block);

  bool add = false;
  for_each_block(shape, plan.block, 0, tiles_along(shape.height), [&](const Block& block) {
    const int64_t step = block.tiles() * kLanes;
    for (int64_t c = 0; c < shape.in_channels; c += kLanes)
      transform_input(shape, block, input + c * area, smaller(kLanes, shape.in_channels - c),
                      pixels, plan.input_step, inputs + c / kLanes * step);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t o = (begin + v) * kLanes;
      transform_grad(shape, block, grad + o * area, smaller(kLanes, shape.out_channels - o), pixels,
                     plan.grad_step, grads + v * step);
    }
    for (int f = 0; f < kFrequencies; ++f)
      multiply_grads<kGradVectors>(inputs + f * plan.input_step, grads + f * plan.grad_step, step,
                                   block.tiles(), add, plan.inputs, vectors, vectors * kLanes,
                                   sums + f * plan.sums_step);
    add = true;
  });

  const int64_t columns = shape.in_channels * kTaps;
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      const float* from = sums + (c * vectors + v) * kLanes;
      Lanes halfway[3][kWindow];
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j) {
        Lanes d[kWindow];
#pragma GCC unroll 16
        for (int i = 0; i < kWindow; ++i) d[i] = load(from + (i * kWindow + j) * plan.sums_step);
        weight_grad_transform(d, halfway[0][j], halfway[1][j], halfway[2][j]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i) {
        Lanes w[3];
        weight_grad_transform(halfway[i], w[0], w[1], w[2]);
#pragma GCC unroll 16
        for (int j = 0; j < 3; ++j) store(taps + (c * kTaps + i * 3 + j) * kLanes, w[j]);
      }
    }
    const int64_t o = (begin + v) * kLanes;
    const int64_t outputs = smaller(kLanes, shape.out_channels - o);
    for (int64_t t = 0; t < columns; t += kLanes) {
      Lanes rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) rows[j] = load(taps + (t + j) * kLanes);
      transpose(rows);
      for (int64_t r = 0; r < outputs; ++r)
        store_some(grad_weight + (o + r) * columns + t, smaller(kLanes, columns - t), rows[r]);
    }
  }
}

constexpr WinogradKernels kWinogradKernels{&correlate_parts,   &correlate_scratch,   &correlate,
                                           &weight_grad_parts, &weight_grad_scratch, &weight_grad};

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
