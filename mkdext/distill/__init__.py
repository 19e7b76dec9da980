"""Distillation methods, one file each."""

from mkdext.distill.base import DistillationMethod
from mkdext.distill.mkd import MKD, KRNet, MKDOptions

__all__ = ["MKD", "DistillationMethod", "KRNet", "MKDOptions"]
