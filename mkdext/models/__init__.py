"""Super-resolution networks, their weights and their feature maps."""

from mkdext.models.blocks import SRNetwork
from mkdext.models.builtin import builtin_teacher
from mkdext.models.edsr import EDSR, EDSRConfig
from mkdext.models.features import (
    WHOLE,
    MapShape,
    check_points,
    default_points,
    features_at,
    forward_with_features,
    resized,
    select_points,
)
from mkdext.models.han import HAN, HANConfig
from mkdext.models.own import AdaptedNetwork, adapt
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.rdn import RDN, RDNConfig
from mkdext.models.registry import MODEL_NAMES, create_model
from mkdext.models.resolve import load_own, resolve_student, resolve_teacher
from mkdext.models.san import SAN, SANConfig
from mkdext.models.user_code import make_own
from mkdext.models.vdsr import VDSR, LumaVDSR, VDSRConfig
from mkdext.models.weights.files import (
    check_comes_back,
    load_model,
    load_weights,
    load_weights_file,
    read_metadata,
    read_weights,
    save_model,
    serialized,
)
from mkdext.models.weights.metadata import WeightsMetadata

__all__ = [
    "EDSR",
    "HAN",
    "MODEL_NAMES",
    "RCAN",
    "RDN",
    "SAN",
    "VDSR",
    "WHOLE",
    "AdaptedNetwork",
    "EDSRConfig",
    "HANConfig",
    "LumaVDSR",
    "MapShape",
    "RCANConfig",
    "RDNConfig",
    "SANConfig",
    "SRNetwork",
    "VDSRConfig",
    "WeightsMetadata",
    "adapt",
    "builtin_teacher",
    "check_comes_back",
    "check_points",
    "create_model",
    "default_points",
    "features_at",
    "forward_with_features",
    "load_model",
    "load_own",
    "load_weights",
    "load_weights_file",
    "make_own",
    "read_metadata",
    "read_weights",
    "resized",
    "resolve_student",
    "resolve_teacher",
    "save_model",
    "select_points",
    "serialized",
]
