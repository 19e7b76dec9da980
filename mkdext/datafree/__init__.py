"""Data-free distillation: images to train on that are made, not photographed."""

from mkdext.datafree.procedural import MIXTURE, PROCEDURAL_KINDS, procedural_images

__all__ = ["MIXTURE", "PROCEDURAL_KINDS", "procedural_images"]
