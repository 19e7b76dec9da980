// The transforms of Winograd convolution and the blocks of tiles they work on; winograd_kernels.h,
// which includes this, tells the equations and the layout.

#include "transposition.h"

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

// With fewer tiles to a block, passing over the transformed weights would take longer than the
// products; with many channels it is better to leave the L2 cache.
constexpr int64_t kLeastTiles = 24;

// The largest block, in tiles, whose transforms of so many channels take up to `limit` bytes.
struct BlockSize {
  int64_t rows;
  int64_t columns;

  BlockSize(const SampleShape& shape, int64_t channels, int64_t limit) {
    const int64_t bytes = kFrequencies * channels * static_cast<int64_t>(sizeof(float));
    const int64_t tiles = larger(kLeastTiles, limit / bytes);
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
    transpose<float>(values);
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
      transpose<float>(values);
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
MKDEXT_OWN_REGISTERS void transform_input(const SampleShape& shape, const Block& block,
                                          const float* map, int64_t channels, float* pixels,
                                          int64_t out_step, float* out) {
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
MKDEXT_OWN_REGISTERS void transform_grad(const SampleShape& shape, const Block& block,
                                         const float* map, int64_t channels, float* pixels,
                                         int64_t out_step, float* out) {
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
MKDEXT_OWN_REGISTERS void transform_output(const SampleShape& shape, const Block& block,
                                           const float* products, int64_t step, int64_t channels,
                                           float* pixels, float* map) {
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

// The same for all channels; a vector of channels of the transform follows after the other.
inline void transform_inputs(const SampleShape& shape, const Block& block, const float* maps,
                             float* pixels, int64_t out_step, float* out) {
  for (int64_t c = 0; c < shape.in_channels; c += kLanes, out += block.tiles() * kLanes)
    transform_input(shape, block, maps + c * shape.height * shape.width,
                    smaller(kLanes, shape.in_channels - c), pixels, out_step, out);
}

inline void transform_grads(const SampleShape& shape, const Block& block, const float* maps,
                            int64_t channels, float* pixels, int64_t out_step, float* out) {
  for (int64_t c = 0; c < channels; c += kLanes, out += block.tiles() * kLanes)
    transform_grad(shape, block, maps + c * shape.height * shape.width,
                   smaller(kLanes, channels - c), pixels, out_step, out);
}

inline void transform_outputs(const SampleShape& shape, const Block& block, const float* products,
                              int64_t step, float* pixels, float* maps) {
  for (int64_t c = 0; c < shape.out_channels; c += kLanes, products += block.tiles() * kLanes)
    transform_output(shape, block, products, step, smaller(kLanes, shape.out_channels - c), pixels,
                     maps + c * shape.height * shape.width);
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
    transpose<float>(rows);
#pragma GCC unroll 16
    for (int j = 0; j < count; ++j) taps[first + j] = rows[j];
  }
}

constexpr int kPanel = 2;

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
MKDEXT_OWN_REGISTERS void transform_taps(const float* weight, WeightOrder order, int64_t row_step,
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

// G^T d G for `outputs` output channels; sums is [frequency][input channel][output channel], padded
// to whole vectors. `taps` is scratch memory for kLanes output channels.
inline void transform_weight_grads(const SampleShape& shape, const float* sums, int64_t step,
                                   int64_t outputs, float* taps, float* grad_weight) {
  const int64_t columns = shape.in_channels * kTaps;
  for (int64_t o = 0; o < outputs; o += kLanes) {
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      const float* from = sums + c * round_up(outputs, kLanes) + o;
      Lanes halfway[3][kWindow];
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j) {
        Lanes d[kWindow];
#pragma GCC unroll 16
        for (int i = 0; i < kWindow; ++i) d[i] = load(from + (i * kWindow + j) * step);
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
    for (int64_t t = 0; t < columns; t += kLanes) {
      Lanes rows[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) rows[j] = load(taps + (t + j) * kLanes);
      transpose<float>(rows);
      for (int64_t r = 0; r < smaller(kLanes, outputs - o); ++r)
        store_some(grad_weight + (o + r) * columns + t, smaller(kLanes, columns - t), rows[r]);
    }
  }
}

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
