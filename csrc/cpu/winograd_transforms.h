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
MKDEXT_INLINED inline Lanes input_end(const Lanes& d0, const Lanes& d2, const Lanes& d4) {
  return d0 - kSum2 * d2 + d4;
}

// For the points +-p; `square` is that of the other pair's point.
MKDEXT_INLINED inline void input_pair(const Lanes& d1, const Lanes& d2, const Lanes& d3,
                                      const Lanes& d4, float p, float square, Lanes& plus,
                                      Lanes& minus) {
  const Lanes even = d4 - square * d2;
  const Lanes odd = d3 - square * d1;
  plus = even + p * odd;
  minus = even - p * odd;
}

MKDEXT_INLINED inline void input_transform(const Lanes (&d)[kWindow], Lanes (&v)[kWindow]) {
  v[0] = input_end(d[0], d[2], d[4]);
  input_pair(d[1], d[2], d[3], d[4], kA, kB2, v[1], v[2]);
  input_pair(d[1], d[2], d[3], d[4], kB, kA2, v[3], v[4]);
  v[5] = input_end(d[1], d[3], d[5]);
}

// G: 3 taps to 6 frequencies.
MKDEXT_INLINED inline void weight_transform(const Lanes& w0, const Lanes& w1, const Lanes& w2,
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
MKDEXT_INLINED inline void output_even(const Lanes& m0, const Lanes& m1, const Lanes& m2,
                                       const Lanes& m3, const Lanes& m4, Lanes& y0, Lanes& y2) {
  const Lanes sum_a = m1 + m2;
  const Lanes sum_b = m3 + m4;
  y0 = m0 + sum_a + sum_b;
  y2 = kA2 * sum_a + kB2 * sum_b;
}

MKDEXT_INLINED inline void output_odd(const Lanes& m1, const Lanes& m2, const Lanes& m3,
                                      const Lanes& m4, const Lanes& m5, Lanes& y1, Lanes& y3) {
  const Lanes gap_a = m1 - m2;
  const Lanes gap_b = m3 - m4;
  y1 = kA * gap_a + kB * gap_b;
  y3 = kA3 * gap_a + kB3 * gap_b + m5;
}

MKDEXT_INLINED inline void output_transform(const Lanes (&m)[kWindow], Lanes (&y)[kTile]) {
  output_even(m[0], m[1], m[2], m[3], m[4], y[0], y[2]);
  output_odd(m[1], m[2], m[3], m[4], m[5], y[1], y[3]);
}

// A: 4 gradients of outputs to 6 frequencies. The first and the last are inputs, the others come in
// pairs for the points +-p.
MKDEXT_INLINED inline void grad_pair(const Lanes& g0, const Lanes& g1, const Lanes& g2,
                                     const Lanes& g3, float p, float square, Lanes& plus,
                                     Lanes& minus) {
  const Lanes even = g0 + square * g2;
  const Lanes odd = g1 + square * g3;
  plus = even + p * odd;
  minus = even - p * odd;
}

MKDEXT_INLINED inline void grad_transform(const Lanes (&g)[kTile], Lanes (&v)[kWindow]) {
  v[0] = g[0];
  grad_pair(g[0], g[1], g[2], g[3], kA, kA2, v[1], v[2]);
  grad_pair(g[0], g[1], g[2], g[3], kB, kB2, v[3], v[4]);
  v[5] = g[3];
}

// G^T: 6 frequencies to 3 taps.
MKDEXT_INLINED inline void weight_grad_transform(const Lanes (&d)[kWindow], Lanes& w0, Lanes& w1,
                                                 Lanes& w2) {
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

// ------------------------------------------------------------------------------------------- maps

// The vectors of channels of a map. Where a map lies in memory as its pixel_shuffle(r), the
// channels of a vector belong to one of the r * r pixels.
struct Channels {
  int64_t pixels;  // r * r
  int64_t each;    // channels of one of them

  Channels(int64_t channels, const MapLayout& layout)
      : pixels(layout.factor * layout.factor), each(pixels == 1 ? channels : channels / pixels) {}

  int64_t vectors() const { return pixels * of_pixel(); }
  int64_t padded() const { return vectors() * kLanes; }
  // Lanes of a vector that hold channels.
  int64_t lanes(int64_t vector) const { return smaller(kLanes, each - block(vector) * kLanes); }
  // The channel of lane l is first(vector) + l * pixels.
  int64_t first(int64_t vector) const { return block(vector) * kLanes * pixels + pixel(vector); }
  // Where the first channel of the vector lies in a map.
  int64_t offset(int64_t vector, const MapLayout& layout) const {
    if (pixels == 1) return vector * kLanes * layout.channel;
    return block(vector) * kLanes * layout.channel +
           pixel(vector) / layout.factor * layout.sub_row +
           pixel(vector) % layout.factor * layout.sub_pixel;
  }

 private:
  int64_t of_pixel() const { return ceil_div(each, kLanes); }
  int64_t block(int64_t vector) const { return pixels == 1 ? vector : vector % of_pixel(); }
  int64_t pixel(int64_t vector) const { return pixels == 1 ? 0 : vector / of_pixel(); }
};

// One vector of channels of a map.
template <typename T>
struct Slice {
  T* data;
  int64_t lanes;  // that hold channels
  MapLayout layout;

  // A pixel's channels are a whole vector in memory.
  bool is_stored() const { return layout.channel == 1 && lanes == kLanes; }
  // And a transform, which needs them several times, may find them there: pixels that are farther
  // apart than a cache line share few sets of the cache.
  bool is_near() const {
    return is_stored() && layout.pixel * int64_t{sizeof(float)} <= kLineBytes;
  }
};

template <typename T>
inline Slice<T> slice(T* map, const MapLayout& layout, const Channels& channels, int64_t vector) {
  return {map + channels.offset(vector, layout), channels.lanes(vector), layout};
}

// Elements of a row of pixels, kLanes channels each; its last vector of columns may reach over.
int64_t pixel_row(int64_t columns) { return (columns + kLanes) * kLanes; }

// memcpy of a number of elements that only run time knows takes longer than all of this.
inline void copy_lanes(const float* from, int64_t lanes, float* to) {
#pragma GCC unroll 16
  for (int64_t size = kLanes / 2; size > 0; size /= 2) {
    if (!(lanes & size)) continue;
    __builtin_memcpy(to, from, size * sizeof(float));
    from += size;
    to += size;
  }
}

// Copies columns [column, column + columns) of row h of a map to pixels; zeros outside the map and
// in lanes that hold no channels.
inline void gather_row(const SampleShape& shape, const Slice<const float>& map, int64_t h,
                       int64_t column, int64_t columns, float* pixels) {
  if (h < 0 || h >= shape.height) {
    for (int64_t v = 0; v < columns; ++v) store(pixels + v * kLanes, Lanes{});
    return;
  }
  const int64_t first = larger(0, column);
  const int64_t last = smaller(shape.width, column + columns);
  const float* const row = map.data + h * map.layout.row;
  for (int64_t v = column; v < first; ++v) store(pixels + (v - column) * kLanes, Lanes{});
  int64_t v = first;
  if (map.layout.channel == 1) {
    for (; v < last; ++v) {
      const float* const from = row + v * map.layout.pixel;
      float* const to = pixels + (v - column) * kLanes;
      if (map.lanes == kLanes) {
        store(to, load(from));
      } else {
        store(to, Lanes{});
        copy_lanes(from, map.lanes, to);
      }
    }
  } else {
    const int64_t area = map.layout.channel;
    for (; v < last; v += kLanes) {
      const int64_t count = smaller(kLanes, shape.width - v);
      const float* from = row + v;
      Lanes values[kLanes];
      if (count == kLanes && map.lanes == kLanes) {
#pragma GCC unroll 16
        for (int c = 0; c < kLanes; ++c) values[c] = load(from + c * area);
      } else {
#pragma GCC unroll 16
        for (int c = 0; c < kLanes; ++c) {
          values[c] = Lanes{};
          if (c < map.lanes) load_some(from + c * area, count, &values[c]);
        }
      }
      transpose<float>(values);
      float* to = pixels + (v - column) * kLanes;
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(to + j * kLanes, values[j]);
    }
  }
  for (; v < column + columns; ++v) store(pixels + (v - column) * kLanes, Lanes{});
}

// Stores rows [row, row + kTile) and columns [column, column + columns) of pixels to a map, where
// they lie within it.
inline void scatter_rows(const SampleShape& shape, const float* pixels, int64_t row, int64_t column,
                         int64_t columns, const Slice<float>& map) {
  const int64_t last = smaller(shape.width, column + columns);
  for (int64_t h = row; h < smaller(row + kTile, shape.height); ++h, pixels += pixel_row(columns)) {
    if (map.layout.channel == 1) {
      for (int64_t v = column; v < last; ++v) {
        const float* const from = pixels + (v - column) * kLanes;
        float* const to = map.data + h * map.layout.row + v * map.layout.pixel;
        if (map.lanes == kLanes) {
          store(to, load(from));
        } else {
          copy_lanes(from, map.lanes, to);
        }
      }
      continue;
    }
    const int64_t area = map.layout.channel;
    for (int64_t v = column; v < last; v += kLanes) {
      const float* from = pixels + (v - column) * kLanes;
      const int64_t count = smaller(kLanes, last - v);
      float* to = map.data + h * map.layout.row + v;
      Lanes values[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) values[j] = load(from + j * kLanes);
      transpose<float>(values);
      if (count == kLanes && map.lanes == kLanes) {
#pragma GCC unroll 16
        for (int c = 0; c < kLanes; ++c) store(to + c * area, values[c]);
      } else {
        for (int64_t c = 0; c < map.lanes; ++c) store_some(to + c * area, count, values[c]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------- transforms

// Elements of scratch memory for the transforms of blocks of this size.
int64_t pixels_scratch(const BlockSize& size) {
  return kWindow * pixel_row(size.columns * kTile + 2);
}

// Calls gathered(begin, end) and stored(begin, end) for the tiles of a row of a block: `stored` for
// those that lie in memory as they are needed, which are tiles [first, last) of the grid.
template <typename Gathered, typename Stored>
inline void split_row(const Block& block, bool is_stored, int64_t first, int64_t last,
                      const Gathered& gathered, const Stored& stored) {
  const int64_t end = block.column_end;
  const int64_t begin = is_stored ? smaller(end, larger(first, block.column_begin)) : end;
  const int64_t stop = is_stored ? larger(begin, smaller(last, end)) : end;
  if (block.column_begin < begin) gathered(block.column_begin, begin);
  if (begin < stop) stored(begin, stop);
  if (stop < end) gathered(stop, end);
}

// In two dimensions a transform takes columns first and then rows. It makes the rows one or two at
// a time, as they come, and loads anew what it needs: storing 36 vectors halfway would take longer.
// Addresses are stepped from column to column and from frequency to frequency: the 36 offsets of a
// tile would not fit in registers, and GCC would load each from memory.

// Keeps GCC from computing all addresses that are a multiple of a step away.
template <typename T>
MKDEXT_INLINED inline T* stepped(T* pointer, int64_t step) {
  pointer += step;
  __asm__("" : "+r"(pointer));
  return pointer;
}

// The vectors of one column, `row` elements apart.
class Column {
 public:
  Column(const float* first, int64_t row)
      : first_(reinterpret_cast<const char*>(first)),
        one_(row * static_cast<int64_t>(sizeof(float))),
        three_(3 * one_),
        five_(5 * one_) {
    __asm__("" : "+r"(one_), "+r"(three_), "+r"(five_));
  }

  MKDEXT_INLINED Lanes operator()(int i) const {
    const int64_t offset = i == 0   ? 0
                           : i == 1 ? one_
                           : i == 2 ? 2 * one_
                           : i == 3 ? three_
                           : i == 4 ? 4 * one_
                                    : five_;
    return load(reinterpret_cast<const float*>(first_ + offset));
  }

  MKDEXT_INLINED void step(int64_t elements) {
    first_ = stepped(first_, elements * static_cast<int64_t>(sizeof(float)));
  }

 private:
  const char* first_;
  int64_t one_, three_, five_;
};

// B^T d B of tiles whose windows begin at `from`; out is [frequency][..][tile][lane].
MKDEXT_OWN_REGISTERS void transform_inputs_at(const float* from, int64_t row, int64_t pixel,
                                              int64_t tiles, int64_t step, float* out) {
  const Column first(from, row);
  for (int64_t t = 0; t < tiles; ++t, out += kLanes) {
    float* to = out;
    const auto put = [&](const Lanes(&halfway)[kWindow]) MKDEXT_INLINED {
      Lanes v[kWindow];
      input_transform(halfway, v);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j, to = stepped(to, step)) store(to, v[j]);
    };
    Lanes one[kWindow], two[kWindow];
    Column d = first;
    d.step(t * kTile * pixel);
    const Column corner = d;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, d.step(pixel)) one[j] = input_end(d(0), d(2), d(4));
    put(one);
    d = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, d.step(pixel))
      input_pair(d(1), d(2), d(3), d(4), kA, kB2, one[j], two[j]);
    put(one);
    put(two);
    d = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, d.step(pixel))
      input_pair(d(1), d(2), d(3), d(4), kB, kA2, one[j], two[j]);
    put(one);
    put(two);
    d = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, d.step(pixel)) one[j] = input_end(d(1), d(3), d(5));
    put(one);
  }
}

// B^T d B of a block's tiles, for one vector of channels.
inline void transform_input(const SampleShape& shape, const Block& block,
                            const Slice<const float>& map, float* pixels, int64_t step,
                            float* out) {
  const int64_t row = pixel_row(block.columns() * kTile + 2);
  bool holds_last_rows = false;
  for (int64_t r = block.row_begin; r < block.row_end; ++r, out += block.columns() * kLanes) {
    const bool inside = r > 0 && r * kTile + kTile < shape.height;
    const auto out_at = [&](int64_t column) {
      return out + (column - block.column_begin) * kLanes;
    };
    const auto gathered = [&](int64_t begin, int64_t end) {
      int i = 0;
      if (holds_last_rows) {
        // The last two rows of a window are the first two of the next.
        i = kWindow - kTile;
        __builtin_memcpy(pixels, pixels + kTile * row, i * row * sizeof(float));
      }
      for (; i < kWindow; ++i)
        gather_row(shape, map, r * kTile - 1 + i, begin * kTile - 1, (end - begin) * kTile + 2,
                   pixels + i * row);
      holds_last_rows = end - begin == block.columns();
      transform_inputs_at(pixels, row, kLanes, end - begin, step, out_at(begin));
    };
    const auto stored = [&](int64_t begin, int64_t end) {
      const float* from =
          map.data + (r * kTile - 1) * map.layout.row + (begin * kTile - 1) * map.layout.pixel;
      transform_inputs_at(from, map.layout.row, map.layout.pixel, end - begin, step, out_at(begin));
    };
    const bool is_near = inside && map.is_near();
    if (is_near) holds_last_rows = false;
    split_row(block, is_near, 1, (shape.width - 1) / kTile, gathered, stored);
  }
}

// A g A^T of tiles whose gradients begin at `from`; adds all of them to `sum`, unless it is null.
MKDEXT_OWN_REGISTERS void transform_grads_at(const float* from, int64_t row, int64_t pixel,
                                             int64_t tiles, int64_t step, float* out, Lanes* sum) {
  const Column first(from, row);
  for (int64_t t = 0; t < tiles; ++t, out += kLanes) {
    float* to = out;
    const auto put = [&](const Lanes(&halfway)[kTile]) MKDEXT_INLINED {
      Lanes v[kWindow];
      grad_transform(halfway, v);
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j, to = stepped(to, step)) store(to, v[j]);
    };
    Lanes one[kTile], two[kTile];
    Column g = first;
    g.step(t * kTile * pixel);
    const Column corner = g;
    if (sum) {
      Lanes of_tile{};
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j, g.step(pixel)) of_tile += (g(0) + g(1)) + (g(2) + g(3));
      *sum += of_tile;
      g = corner;
    }
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j, g.step(pixel)) one[j] = g(0);
    put(one);
    g = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j, g.step(pixel))
      grad_pair(g(0), g(1), g(2), g(3), kA, kA2, one[j], two[j]);
    put(one);
    put(two);
    g = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j, g.step(pixel))
      grad_pair(g(0), g(1), g(2), g(3), kB, kB2, one[j], two[j]);
    put(one);
    put(two);
    g = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j, g.step(pixel)) one[j] = g(3);
    put(one);
  }
}

// A g A^T of a block's tiles, for one vector of channels.
inline void transform_grad(const SampleShape& shape, const Block& block,
                           const Slice<const float>& map, float* pixels, int64_t step, float* out,
                           Lanes* sum) {
  for (int64_t r = block.row_begin; r < block.row_end; ++r, out += block.columns() * kLanes) {
    const bool inside = r * kTile + kTile <= shape.height;
    const auto out_at = [&](int64_t column) {
      return out + (column - block.column_begin) * kLanes;
    };
    const auto gathered = [&](int64_t begin, int64_t end) {
      const int64_t columns = (end - begin) * kTile;
      const int64_t row = pixel_row(columns);
      for (int i = 0; i < kTile; ++i)
        gather_row(shape, map, r * kTile + i, begin * kTile, columns, pixels + i * row);
      transform_grads_at(pixels, row, kLanes, end - begin, step, out_at(begin), sum);
    };
    const auto stored = [&](int64_t begin, int64_t end) {
      const float* from = map.data + r * kTile * map.layout.row + begin * kTile * map.layout.pixel;
      transform_grads_at(from, map.layout.row, map.layout.pixel, end - begin, step, out_at(begin),
                         sum);
    };
    split_row(block, inside && map.is_near(), 0, shape.width / kTile, gathered, stored);
  }
}

// A^T m A of tiles, plus the bias unless there is none, to pixels or to a map.
template <bool has_bias>
MKDEXT_OWN_REGISTERS void transform_outputs_at(const float* products, int64_t step, int64_t tiles,
                                               const Lanes* bias, int64_t row, int64_t pixel,
                                               float* to) {
  const Column first(products, kWindow * step);
  for (int64_t t = 0; t < tiles; ++t, to += kTile * pixel) {
    const auto put = [&](int i, const Lanes(&halfway)[kWindow]) MKDEXT_INLINED {
      Lanes y[kTile];
      output_transform(halfway, y);
      float* pixels = to + i * row;
#pragma GCC unroll 16
      for (int j = 0; j < kTile; ++j, pixels = stepped(pixels, pixel))
        store(pixels, has_bias ? y[j] + *bias : y[j]);
    };
    Lanes one[kWindow], two[kWindow];
    Column m = first;
    m.step(t * kLanes);
    const Column corner = m;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, m.step(step))
      output_even(m(0), m(1), m(2), m(3), m(4), one[j], two[j]);
    put(0, one);
    put(2, two);
    m = corner;
#pragma GCC unroll 16
    for (int j = 0; j < kWindow; ++j, m.step(step))
      output_odd(m(1), m(2), m(3), m(4), m(5), one[j], two[j]);
    put(1, one);
    put(3, two);
  }
}

// A^T m A of a block's tiles, for one vector of channels, stored to the map.
inline void transform_output(const SampleShape& shape, const Block& block, const float* products,
                             int64_t step, const Lanes* bias, float* pixels,
                             const Slice<float>& map) {
  const auto transform = bias ? &transform_outputs_at<true> : &transform_outputs_at<false>;
  for (int64_t r = block.row_begin; r < block.row_end; ++r, products += block.columns() * kLanes) {
    const bool inside = r * kTile + kTile <= shape.height;
    const auto products_at = [&](int64_t column) {
      return products + (column - block.column_begin) * kLanes;
    };
    const auto gathered = [&](int64_t begin, int64_t end) {
      const int64_t columns = (end - begin) * kTile;
      transform(products_at(begin), step, end - begin, bias, pixel_row(columns), kLanes, pixels);
      scatter_rows(shape, pixels, r * kTile, begin * kTile, columns, map);
    };
    const auto stored = [&](int64_t begin, int64_t end) {
      float* const to = map.data + r * kTile * map.layout.row + begin * kTile * map.layout.pixel;
      transform(products_at(begin), step, end - begin, bias, map.layout.row, map.layout.pixel, to);
    };
    split_row(block, inside && map.is_stored(), 0, shape.width / kTile, gathered, stored);
  }
}

// The same for all channels; a vector of channels of the transform follows after the other.
inline void transform_inputs(const SampleShape& shape, const MapLayout& layout, const Block& block,
                             const float* map, float* pixels, int64_t step, float* out) {
  const Channels channels(shape.in_channels, layout);
  for (int64_t v = 0; v < channels.vectors(); ++v, out += block.tiles() * kLanes)
    transform_input(shape, block, slice(map, layout, channels, v), pixels, step, out);
}

// For the vectors [begin, end) alone. Adds the gradients of each to a vector of `sums`, unless it
// is null.
inline void transform_grads(const SampleShape& shape, const MapLayout& layout, const Block& block,
                            const float* map, int64_t begin, int64_t end, float* pixels,
                            int64_t step, float* out, float* sums) {
  const Channels channels(shape.out_channels, layout);
  for (int64_t v = begin; v < end; ++v, out += block.tiles() * kLanes) {
    Lanes sum{};
    transform_grad(shape, block, slice(map, layout, channels, v), pixels, step, out,
                   sums ? &sum : nullptr);
    if (sums) store(sums + v * kLanes, load(sums + v * kLanes) + sum);
  }
}

inline void transform_outputs(const SampleShape& shape, const MapLayout& layout, const Block& block,
                              const float* products, int64_t step, const float* bias, float* pixels,
                              float* map) {
  const Channels channels(shape.out_channels, layout);
  for (int64_t v = 0; v < channels.vectors(); ++v, products += block.tiles() * kLanes) {
    Lanes added{};
    if (bias)
      for (int64_t l = 0; l < channels.lanes(v); ++l)
        added[l] = bias[channels.first(v) + l * channels.pixels];
    transform_output(shape, block, products, step, bias ? &added : nullptr, pixels,
                     slice(map, layout, channels, v));
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

// G w G^T of one term, whose vectors of input channels begin at `first` among all terms'.
inline void transform_weight(const SampleShape& shape, WeightOrder order, const float* weight,
                             const Channels& inputs, const Channels& outputs, const Panels& panels,
                             int64_t first, int64_t step, float* out) {
  const bool forward = order == WeightOrder::kForward;
  const int64_t out_step = (forward ? shape.in_channels : 1) * kTaps;
  const int64_t in_step = (forward ? 1 : shape.out_channels) * kTaps;
  const auto transform = [&](int64_t vector, int64_t in, int64_t lane) {
    float* const to = out + panels.offset(vector, (first + in) * kLanes + lane);
    if (lane < inputs.lanes(in)) {
      const int64_t c = inputs.first(in) + lane * inputs.pixels;
      transform_taps(weight + outputs.first(vector) * out_step + c * in_step, order,
                     outputs.pixels * out_step, outputs.lanes(vector), step, to);
    } else {
      for (int f = 0; f < kFrequencies; ++f) store(to + f * step, Lanes{});
    }
  };
  // In the order in which the weight lies in memory.
  if (forward) {
    for (int64_t vector = 0; vector < panels.vectors; ++vector)
      for (int64_t in = 0; in < inputs.vectors(); ++in)
        for (int64_t lane = 0; lane < kLanes; ++lane) transform(vector, in, lane);
  } else {
    for (int64_t in = 0; in < inputs.vectors(); ++in)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        for (int64_t vector = 0; vector < panels.vectors; ++vector) transform(vector, in, lane);
  }
}

// G^T d G of one vector of output channels. d is the sum of `groups` results of weight_grad_sums,
// `group_step` elements apart. `taps` is scratch memory for kLanes output channels.
inline void transform_weight_grad(const Channels& inputs, const Channels& outputs, int64_t vector,
                                  const float* sums, int64_t step, int64_t groups,
                                  int64_t group_step, float* taps, float* grad_weight) {
  const int64_t columns = inputs.pixels * inputs.each * kTaps;
  for (int64_t in = 0; in < inputs.vectors(); ++in) {
    for (int64_t lane = 0; lane < inputs.lanes(in); ++lane) {
      const float* from = sums + (in * kLanes + lane) * outputs.padded() + vector * kLanes;
      Lanes halfway[3][kWindow];
#pragma GCC unroll 16
      for (int j = 0; j < kWindow; ++j) {
        Lanes d[kWindow];
#pragma GCC unroll 16
        for (int i = 0; i < kWindow; ++i) {
          d[i] = load(from + (i * kWindow + j) * step);
          for (int64_t g = 1; g < groups; ++g)
            d[i] += load(from + g * group_step + (i * kWindow + j) * step);
        }
        weight_grad_transform(d, halfway[0][j], halfway[1][j], halfway[2][j]);
      }
      float* const to = taps + (inputs.first(in) + lane * inputs.pixels) * kTaps * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i) {
        Lanes w[3];
        weight_grad_transform(halfway[i], w[0], w[1], w[2]);
#pragma GCC unroll 16
        for (int j = 0; j < 3; ++j) store(to + (i * 3 + j) * kLanes, w[j]);
      }
    }
  }
  for (int64_t t = 0; t < columns; t += kLanes) {
    Lanes rows[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) rows[j] = load(taps + (t + j) * kLanes);
    transpose<float>(rows);
    for (int64_t r = 0; r < outputs.lanes(vector); ++r)
      store_some(grad_weight + (outputs.first(vector) + r * outputs.pixels) * columns + t,
                 smaller(kLanes, columns - t), rows[r]);
  }
}

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
