"""Super-resolution networks, their weights and their feature maps."""

from mkdext.models.features import check_points, default_points, forward_with_features
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.registry import MODEL_NAMES, create_model

__all__ = [
    "MODEL_NAMES",
    "RCAN",
    "RCANConfig",
    "check_points",
    "create_model",
    "default_points",
    "forward_with_features",
]
