"""Super-resolution networks, their weights and their feature maps."""

from mkdext.models.builtin import builtin_teacher
from mkdext.models.checkpoints import load_model, load_weights, read_weights
from mkdext.models.features import (
    check_points,
    default_points,
    features_at,
    forward_with_features,
)
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.registry import MODEL_NAMES, create_model
from mkdext.models.resolve import resolve_teacher

__all__ = [
    "MODEL_NAMES",
    "RCAN",
    "RCANConfig",
    "builtin_teacher",
    "check_points",
    "create_model",
    "default_points",
    "features_at",
    "forward_with_features",
    "load_model",
    "load_weights",
    "read_weights",
    "resolve_teacher",
]
