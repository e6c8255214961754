"""Denoisers: made from networks, from functions, from other denoisers, and exact ones of known data distributions."""

from jaxdiff.denoisers import analytic, guidance, inpainting
from jaxdiff.denoisers.network import (
    clip_denoised,
    denoiser,
    dynamic_threshold,
    from_function,
    scales_input,
    without_dropout,
)

__all__ = ["analytic", "clip_denoised", "denoiser", "dynamic_threshold", "from_function", "guidance", "inpainting"]
__all__ += ["scales_input", "without_dropout"]
