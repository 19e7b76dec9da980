"""Data-free distillation: images to train on that are made, not photographed."""

from mkdext.synthesis.contrastive import InstanceDiscriminator, MemoryBank, contrastive_loss
from mkdext.synthesis.diversity import mean_pairwise_distance
from mkdext.synthesis.generator import Generator
from mkdext.synthesis.growth import carry_over, part_counts
from mkdext.synthesis.inversion import FeatureStatistics
from mkdext.synthesis.losses import Criterion, adversarial_loss, reconstruction_loss
from mkdext.synthesis.procedural import MIXTURE, PROCEDURAL_KINDS, procedural_images
from mkdext.synthesis.views import global_views, local_views

__all__ = [
    "MIXTURE",
    "PROCEDURAL_KINDS",
    "Criterion",
    "FeatureStatistics",
    "Generator",
    "InstanceDiscriminator",
    "MemoryBank",
    "adversarial_loss",
    "carry_over",
    "contrastive_loss",
    "global_views",
    "local_views",
    "mean_pairwise_distance",
    "part_counts",
    "procedural_images",
    "reconstruction_loss",
]
