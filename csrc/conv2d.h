// 2-D convolution of a batch with one kernel.
//
//   input  x [B, Ci, H, W]      weight w [Co, Ci, 3, 3]      output y [B, Co, H, W]
//
//   forward      y  = F(x, w) + b   y[n,o,h,v]  = b[o] + sum_{c,i,j} x[n,c,h+i-1,v+j-1] w[o,c,i,j]
//   input grad   gx = Gx(g, w)      gx[n,c,h,v]   = sum_{o,i,j} g[n,o,h-i+1,v-j+1] w[o,c,i,j]
//   weight grad  gw = Gw(g, x)      gw[o,c,i,j]   = sum_{n,h,v} g[n,o,h,v] x[n,c,h+i-1,v+j-1]
//   bias grad    gb = S(g)          gb[o]         = sum_{n,h,v} g[n,o,h,v]
//
// The stride is 1 and values outside a map are 0. <g, F(x, w)> is linear in each of g, x and w, and
// the bias enters alone, so every derivative of any order is made of these. Given the cotangents
// ggx of gx, ggw of gw and ggb of gb, the double backward is
//
//   grad_g = F(ggx, w) + F(x, ggw) + ggb      grad_x = Gx(g, ggw)      grad_w = Gw(g, ggx)
//
// With an upscale factor r above 1, y and everything of its shape is read and written as its
// pixel_shuffle(r), [B, Co / r^2, r H, r W].
//
// Maps are float32 on the CPU, with the step between channels or between pixels of a row being 1;
// others are copied. A result of a map's shape is contiguous, or in channels_last if asked for.
// Python checks arguments and words the errors; the checks behind these functions are a backstop.
#pragma once

#include <cstdint>

namespace mkdext {

struct ConvShape {
  int64_t batch;
  int64_t in_channels;
  int64_t out_channels;
  int64_t height;
  int64_t width;
};

}  // namespace mkdext
