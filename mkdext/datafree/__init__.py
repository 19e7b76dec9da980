"""Data-free distillation: images to train on that are made, not photographed."""

from collections.abc import Sequence

from mkdext.datafree.contrastive import InstanceDiscriminator, MemoryBank, contrastive_loss
from mkdext.datafree.diversity import mean_pairwise_distance
from mkdext.datafree.generator import Generator
from mkdext.datafree.growth import carry_over, part_counts, with_parts
from mkdext.datafree.inversion import FeatureStatistics
from mkdext.datafree.losses import Criterion, adversarial_loss, reconstruction_loss
from mkdext.datafree.procedural import MIXTURE, PROCEDURAL_KINDS, procedural_images
from mkdext.datafree.views import global_views, local_views

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
    "with_parts",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m mkdext.datafree`.

    Args:
        arguments: Flags; none: those of the process.

    Returns:
        The exit status.
    """
    # The command line's libraries are not for those who import the package.
    from mkdext.datafree.__main__ import main

    return main(arguments)
