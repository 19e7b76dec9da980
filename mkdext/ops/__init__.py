"""Stateless operators: validated, differentiable to any order, compiled where a kernel exists."""

from mkdext.ops.conv2d import conv2d, conv2d_algorithm, stock_convolutions
from mkdext.ops.dynamic_conv2d import dynamic_conv2d, dynamic_conv2d_algorithms
from mkdext.ops.spatial_affinity import spatial_affinity_gap
from mkdext.ops.texture_kernels import texture_kernels

__all__ = [
    "conv2d",
    "conv2d_algorithm",
    "dynamic_conv2d",
    "dynamic_conv2d_algorithms",
    "spatial_affinity_gap",
    "stock_convolutions",
    "texture_kernels",
]
