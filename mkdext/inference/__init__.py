"""Using trained networks: pictures as files hold them, tiles, memory."""

from mkdext._system.memory import PeakMemory, resident_bytes
from mkdext.inference.networks import EnlargementError, Network, load_network, load_networks
from mkdext.inference.pictures import Picture, picture_size, read_picture
from mkdext.inference.png import PNGWriter
from mkdext.inference.tiling import (
    GLOBAL_OVERLAP,
    Costs,
    Tiling,
    enlarge_in_tiles,
    enlarge_tile,
    forward_costs,
    plan_tiles,
    reach,
)

__all__ = [
    "GLOBAL_OVERLAP",
    "Costs",
    "EnlargementError",
    "Network",
    "PNGWriter",
    "PeakMemory",
    "Picture",
    "Tiling",
    "enlarge_in_tiles",
    "enlarge_tile",
    "forward_costs",
    "load_network",
    "load_networks",
    "picture_size",
    "plan_tiles",
    "reach",
    "read_picture",
    "resident_bytes",
]
