"""Differentiable inner loops and their meta-gradient."""

from mkdext.meta.inner_optimizers import InnerAdam, InnerOptimizer, InnerSGD
from mkdext.meta.meta_gradient import MetaGradient, gradient_of, meta_gradient

__all__ = [
    "InnerAdam",
    "InnerOptimizer",
    "InnerSGD",
    "MetaGradient",
    "gradient_of",
    "meta_gradient",
]
