"""jaxdiff: diffusion models in JAX and Flax."""

from jaxdiff import (
    data,
    evaluation,
    guidance,
    inpainting,
    likelihood,
    losses,
    oracles,
    parameterization,
    perturbations,
    samplers,
    schedules,
    time_sampling,
    weightings,
)
from jaxdiff.bounds import continuous_bound, variational_bound
from jaxdiff.denoisers import clipped, denoiser, thresholded
from jaxdiff.encoding import decode, encode, slerp
from jaxdiff.likelihood import log_likelihood
from jaxdiff.processes import Gaussian, Perturbed, Process
from jaxdiff.run import Run, load
from jaxdiff.samplers import sample
from jaxdiff.typing import Denoiser, Prediction

__all__ = [
    "Denoiser",
    "Gaussian",
    "Perturbed",
    "Prediction",
    "Process",
    "Run",
    "clipped",
    "continuous_bound",
    "data",
    "decode",
    "denoiser",
    "encode",
    "evaluation",
    "guidance",
    "inpainting",
    "likelihood",
    "load",
    "log_likelihood",
    "losses",
    "oracles",
    "parameterization",
    "perturbations",
    "sample",
    "samplers",
    "schedules",
    "slerp",
    "thresholded",
    "time_sampling",
    "variational_bound",
    "weightings",
]
