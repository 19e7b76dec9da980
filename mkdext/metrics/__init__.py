"""How near a super-resolved image is to the true one, and what it was made from."""

from mkdext.metrics.attribution import (
    Window,
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
    "to_uint8",
    "window_detail",
]
