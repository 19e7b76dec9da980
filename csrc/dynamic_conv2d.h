// Per-sample ("dynamic") 2-D convolution: every sample has its own kernel.
//
//   input  x [B, Ci, H, W]      weight w [B, Co, Ci, k, k]      output y [B, Co, H, W]
//
//   forward      y  = F(x, w)    y[b,o,h,v]    = sum_{c,i,j} x[b,c,h+i-p,v+j-p] w[b,o,c,i,j]
//   input grad   gx = Gx(g, w)   gx[b,c,h,v]   = sum_{o,i,j} g[b,o,h-i+p,v-j+p] w[b,o,c,i,j]
//   weight grad  gw = Gw(g, x)   gw[b,o,c,i,j] = sum_{h,v}   g[b,o,h,v] x[b,c,h+i-p,v+j-p]
//
// k is odd, p = k / 2, the stride is 1, and values outside a map are 0. The map is the same on both
// sides ("same" padding), and F.conv2d's orientation (cross-correlation) is used.
//
// The three are the faces of one trilinear form <g, F(x, w)>, so every derivative of any order is
// made of them. Given the cotangents ggx of gx and ggw of gw, the double backward is
//
//   grad_g = F(ggx, w) + F(x, ggw)      grad_x = Gx(g, ggw)      grad_w = Gw(g, ggx)
//
// Tensors are contiguous and of one dtype: float32 or float64, on CUDA also float16 and bfloat16. B
// may be 0, all other sizes are at least 1. Python checks arguments and words the errors; the
// checks behind these functions are a backstop.
#pragma once

#include <cstdint>

namespace mkdext {

struct DynamicConvShape {
  int64_t batch;
  int64_t in_channels;
  int64_t out_channels;
  int64_t height;
  int64_t width;
  int64_t kernel_size;
};

enum class Primitive { kForward, kInputGrad, kWeightGrad };

// One of the correlations whose sum is an output. `map` is x, or g for the input gradient.
template <typename T>
struct Term {
  const T* map;
  const T* weight;
};

}  // namespace mkdext
