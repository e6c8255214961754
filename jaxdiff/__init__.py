"""jaxdiff: diffusion models in JAX and Flax."""

from jaxdiff import data, losses, parameterization, samplers, schedules
from jaxdiff.denoisers import clipped, denoiser
from jaxdiff.processes import Gaussian, Process
from jaxdiff.run import Run, load
from jaxdiff.samplers import sample
from jaxdiff.typing import Denoiser, Prediction

__all__ = [
    "Denoiser",
    "Gaussian",
    "Prediction",
    "Process",
    "Run",
    "clipped",
    "data",
    "denoiser",
    "load",
    "losses",
    "parameterization",
    "sample",
    "samplers",
    "schedules",
]
