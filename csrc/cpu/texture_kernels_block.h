// The arithmetic of texture_kernels.cpp, for one block of channels of one sample on one thread: a
// lane is a channel. Included through per_instruction_set.h, hence no include guard.
//
// A line is [column][lane], a transposed row of kLanes maps. In this form a bin of columns is a
// handful of whole vectors, wherever it begins and ends, and so is an element of a kernel.

#include "transposition.h"

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

// Vectors take whole columns only where a row is as long as one.
template <typename T>
int64_t line_size(int64_t width) {
  return larger(width, Simd<T>::kLanes) * Simd<T>::kLanes;
}

// Calls function(first column) for vectors that cover a row; the last ends with the row.
template <typename T, typename Function>
inline void for_each_vector(int64_t width, const Function& function) {
  for (int64_t v = 0; v < width; v += Simd<T>::kLanes)
    function(larger(0, smaller(v, width - Simd<T>::kLanes)));
}

// line = the sum of the bin's rows. `maps` are those of the lanes. Asks for the rows of the next
// bin early: they arrive while the columns of this one are summed.
template <bool kWhole, typename T>
MKDEXT_OWN_REGISTERS void sum_rows(const T* const (&maps)[Simd<T>::kLanes], const Range& bin,
                                   int64_t width, T* line) {
  constexpr int lanes = Simd<T>::kLanes;
  const int64_t ahead = (bin.end - bin.begin) * width;
  for_each_vector<T>(width, [&](int64_t v) {
    const auto row = [&](int lane, int64_t h) {
      const T* const from = maps[lane] + h * width + v;
      __builtin_prefetch(from + ahead);
      Vec<T> value;
      load_some<T>(from, kWhole ? lanes : width, &value);
      return value;
    };
    Vec<T> sums[lanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) sums[lane] = row(lane, bin.begin);
    for (int64_t h = bin.begin + 1; h < bin.end; ++h) {
#pragma GCC unroll 16
      for (int lane = 0; lane < lanes; ++lane) sums[lane] += row(lane, h);
    }
    transpose<T>(sums);
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) store(line + (v + lane) * lanes, sums[lane]);
  });
}

// The rows = line, in the maps of the first `channels` lanes.
template <bool kWhole, typename T>
MKDEXT_OWN_REGISTERS void fill_rows(const T* line, const Range& rows, int64_t width,
                                    int64_t channels, int64_t map_step, T* maps) {
  constexpr int lanes = Simd<T>::kLanes;
  const int64_t ahead = (rows.end - rows.begin) * width;
  for_each_vector<T>(width, [&](int64_t v) {
    Vec<T> values[lanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) values[lane] = load(line + (v + lane) * lanes);
    transpose<T>(values);
    for (int64_t h = rows.begin; h < rows.end; ++h) {
#pragma GCC unroll 16
      for (int lane = 0; lane < lanes; ++lane) {
        if (lane < channels) {
          T* const to = maps + lane * map_step + h * width + v;
          __builtin_prefetch(to + ahead, 1);
          store_some<T>(to, kWhole ? lanes : width, values[lane]);
        }
      }
    }
  });
}

// kernels[channel][count] = elements [count][lane]. Kernels of other patches lie too far apart for
// the processor to foresee: those `ahead` are asked for here.
template <typename T>
MKDEXT_OWN_REGISTERS void store_kernels(const T* elements, int64_t count, int64_t channels,
                                        int64_t ahead, T* kernels) {
  constexpr int lanes = Simd<T>::kLanes;
  int64_t e = 0;
  for (; e + lanes <= count; e += lanes) {
    Vec<T> values[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) values[i] = load(elements + (e + i) * lanes);
    transpose<T>(values);
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane)
      if (lane < channels) {
        __builtin_prefetch(kernels + lane * count + e + ahead, 1);
        store(kernels + lane * count + e, values[lane]);
      }
  }
  for (; e < count; ++e) {
    for (int64_t c = 0; c < channels; ++c) kernels[c * count + e] = elements[e * lanes + c];
  }
}

// The reverse; lanes beyond `channels` become 0.
template <typename T>
MKDEXT_OWN_REGISTERS void load_kernels(const T* kernels, int64_t count, int64_t channels,
                                       int64_t ahead, T* elements) {
  constexpr int lanes = Simd<T>::kLanes;
  int64_t e = 0;
  for (; e + lanes <= count; e += lanes) {
    Vec<T> values[lanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) {
      __builtin_prefetch(kernels + lane * count + e + ahead);
      values[lane] = lane < channels ? load(kernels + lane * count + e) : Vec<T>{};
    }
    transpose<T>(values);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store(elements + (e + i) * lanes, values[i]);
  }
  for (; e < count; ++e) {
    for (int64_t c = 0; c < lanes; ++c)
      elements[e * lanes + c] = c < channels ? kernels[c * count + e] : 0;
  }
}

template <typename T>
int64_t forward_scratch(const TextureShape& shape) {
  return line_size<T>(shape.width) +
         shape.grid * shape.kernel_size * shape.kernel_size * Simd<T>::kLanes;
}

// kernels[patch][channel] of `channels` maps, from the first of them.
template <typename T>
void forward_block(const TextureShape& shape, const AxisBins<T>& rows, const AxisBins<T>& columns,
                   int64_t channels, const T* maps, T* scratch, T* kernels) {
  constexpr int lanes = Simd<T>::kLanes;
  const int64_t k = shape.kernel_size, width = shape.width;
  const T* lane_maps[lanes];
  for (int lane = 0; lane < lanes; ++lane)
    lane_maps[lane] = maps + smaller(lane, channels - 1) * shape.height * width;
  const int64_t ahead = shape.grid * shape.channels * k * k;  // the next row of patches
  T* const line = scratch;
  T* const elements = line + line_size<T>(width);  // [grid][k * k][lane]
  for (int64_t p = 0; p < shape.grid; ++p) {
    for (int64_t i = 0; i < k; ++i) {
      const Range& bin = rows.bins[p * k + i];
      if (width >= lanes) {
        sum_rows<true>(lane_maps, bin, width, line);
      } else {
        sum_rows<false>(lane_maps, bin, width, line);
      }
      const T row_scale = rows.inverse[p * k + i];
      for (int64_t q = 0, t = 0; q < shape.grid; ++q) {
        for (int64_t j = 0; j < k; ++j, ++t) {
          const Range& part = columns.bins[t];
          Vec<T> sum = load(line + part.begin * lanes);
          for (int64_t v = part.begin + 1; v < part.end; ++v) sum += load(line + v * lanes);
          store<T>(elements + ((q * k + i) * k + j) * lanes,
                   sum * (row_scale * columns.inverse[t]));
        }
      }
    }
    for (int64_t q = 0; q < shape.grid; ++q)
      store_kernels(elements + q * k * k * lanes, k * k, channels, ahead,
                    kernels + (p * shape.grid + q) * shape.channels * k * k);
  }
}

template <typename T>
int64_t transpose_scratch(const TextureShape& shape, const AxisBins<T>& rows) {
  const int64_t k = shape.kernel_size;
  return (rows.reach + 1) * line_size<T>(shape.width) + shape.grid * k * (k + 1) * Simd<T>::kLanes;
}

// `channels` maps, from the first of them, of kernels[patch][channel].
template <typename T>
void transpose_block(const TextureShape& shape, const AxisBins<T>& rows, const AxisBins<T>& columns,
                     int64_t channels, const T* kernels, T* scratch, T* maps) {
  constexpr int lanes = Simd<T>::kLanes;
  const int64_t k = shape.kernel_size, width = shape.width, size = line_size<T>(width);
  const int64_t ahead = shape.grid * shape.channels * k * k;  // the next row of patches
  T* const lines = scratch;                                   // of the last `reach` row bins
  T* const total = lines + rows.reach * size;
  T* const elements = total + size;                         // [grid][k * k][lane]
  T* const scaled = elements + shape.grid * k * k * lanes;  // [grid * k][lane]
  const auto line = [&](int64_t s) { return lines + s % rows.reach * size; };

  const auto make_lines = [&](int64_t p) {
    for (int64_t q = 0; q < shape.grid; ++q)
      load_kernels(kernels + (p * shape.grid + q) * shape.channels * k * k, k * k, channels, ahead,
                   elements + q * k * k * lanes);
    for (int64_t i = 0; i < k; ++i) {
      const T row_scale = rows.inverse[p * k + i];
      for (int64_t q = 0, t = 0; q < shape.grid; ++q) {
        for (int64_t j = 0; j < k; ++j, ++t)
          store<T>(scaled + t * lanes, load(elements + ((q * k + i) * k + j) * lanes) *
                                           (row_scale * columns.inverse[t]));
      }
      T* const to = line(p * k + i);
      for (int64_t n = 0; n < columns.segment_count; ++n) {
        const Segment& segment = columns.segments[n];
        Vec<T> sum = load(scaled + segment.bins.begin * lanes);
        for (int64_t t = segment.bins.begin + 1; t < segment.bins.end; ++t)
          sum += load(scaled + t * lanes);
        for (int64_t v = segment.at.begin; v < segment.at.end; ++v) store(to + v * lanes, sum);
      }
    }
  };

  int64_t made = 0;
  for (int64_t n = 0; n < rows.segment_count; ++n) {
    const Segment& segment = rows.segments[n];
    for (; made < segment.bins.end; made += k) make_lines(made / k);
    const T* from = line(segment.bins.begin);
    for (int64_t s = segment.bins.begin + 1; s < segment.bins.end; ++s, from = total) {
      const T* const next = line(s);
      for (int64_t v = 0; v < width; ++v)
        store<T>(total + v * lanes, load(from + v * lanes) + load(next + v * lanes));
    }
    if (width >= lanes) {
      fill_rows<true>(from, segment.at, width, channels, shape.height * width, maps);
    } else {
      fill_rows<false>(from, segment.at, width, channels, shape.height * width, maps);
    }
  }
}

template <typename T>
constexpr BlockKernels<T> kBlockKernels = {Simd<T>::kLanes, forward_scratch<T>, forward_block<T>,
                                           transpose_scratch<T>, transpose_block<T>};

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
