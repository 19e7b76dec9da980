"""How near a super-resolved image is to the true one, and what it was made from."""

from mkdext.metrics.attribution import (
    attribution_map,
    blur_path,
    diffusion_index,
    gini,
    path_attribution,
    window_detail,
)
from mkdext.metrics.image_quality import (
    exact_note,
    luma,
    luma_picture,
    mean_psnr,
    psnr_y,
    ssim_y,
    ssim_y_uniform,
    to_uint8,
)
from mkdext.metrics.windows import Window, strongest_window

__all__ = [
    "Window",
    "attribution_map",
    "blur_path",
    "diffusion_index",
    "exact_note",
    "gini",
    "luma",
    "luma_picture",
    "mean_psnr",
    "path_attribution",
    "psnr_y",
    "ssim_y",
    "ssim_y_uniform",
    "strongest_window",
    "to_uint8",
    "window_detail",
]
