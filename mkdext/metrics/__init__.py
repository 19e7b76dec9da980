"""How near a super-resolved image is to the true one."""

from mkdext.metrics.image_quality import luma, psnr_y, ssim_y, ssim_y_uniform, to_uint8

__all__ = ["luma", "psnr_y", "ssim_y", "ssim_y_uniform", "to_uint8"]
