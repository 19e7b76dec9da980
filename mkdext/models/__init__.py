"""Super-resolution networks, their weights and their feature maps.

A file in this folder that registers a network is all that a network needs.
"""

import importlib
import pkgutil

from mkdext.models.blocks import SRNetwork, SuperResolver
from mkdext.models.builtin import builtin_teacher
from mkdext.models.convolutions import accelerate
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
from mkdext.models.freezing import freeze
from mkdext.models.han import HAN, HANConfig
from mkdext.models.handing_down import hand_down
from mkdext.models.imdn import IMDN, IMDNConfig
from mkdext.models.rcan import RCAN, RCANConfig
from mkdext.models.rdn import RDN, RDNConfig
from mkdext.models.registry import create_model, model_names, register
from mkdext.models.resolve import (
    is_from_elsewhere,
    load_recognised,
    make_from_elsewhere,
    resolve_student,
    resolve_teacher,
)
from mkdext.models.san import SAN, SANConfig
from mkdext.models.scales import at_scales
from mkdext.models.user.adapted import AdaptedNetwork, adapt
from mkdext.models.user.factory import load_own, make_own
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
from mkdext.models.weights.fine_tuning import begin_with
from mkdext.models.weights.metadata import WeightsMetadata

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

MODEL_NAMES = model_names()
"""The networks of this package; `model_names()` has those as well that a program registers."""

__all__ = [
    "EDSR",
    "HAN",
    "IMDN",
    "MODEL_NAMES",
    "RCAN",
    "RDN",
    "SAN",
    "VDSR",
    "WHOLE",
    "AdaptedNetwork",
    "EDSRConfig",
    "HANConfig",
    "IMDNConfig",
    "LumaVDSR",
    "MapShape",
    "RCANConfig",
    "RDNConfig",
    "SANConfig",
    "SRNetwork",
    "SuperResolver",
    "VDSRConfig",
    "WeightsMetadata",
    "accelerate",
    "adapt",
    "at_scales",
    "begin_with",
    "builtin_teacher",
    "check_comes_back",
    "check_points",
    "create_model",
    "default_points",
    "features_at",
    "forward_with_features",
    "freeze",
    "hand_down",
    "is_from_elsewhere",
    "load_model",
    "load_own",
    "load_recognised",
    "load_weights",
    "load_weights_file",
    "make_from_elsewhere",
    "make_own",
    "model_names",
    "read_metadata",
    "read_weights",
    "register",
    "resized",
    "resolve_student",
    "resolve_teacher",
    "save_model",
    "select_points",
    "serialized",
]
