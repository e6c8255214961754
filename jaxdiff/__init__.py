"""jaxdiff: diffusion models in JAX and Flax."""

from jaxdiff import data, evaluation, likelihood, losses, samplers, schedules
from jaxdiff.denoisers import analytic, clip_denoised, denoiser, dynamic_threshold, from_function, guidance, inpainting
from jaxdiff.likelihood import continuous_elbo, decode, elbo, encode, log_likelihood, slerp
from jaxdiff.losses import time_sampling, weightings
from jaxdiff.processes import Denoiser, Gaussian, Perturbed, Process, noise, parameterization, transforms
from jaxdiff.run import Run, load
from jaxdiff.samplers import sample, timesteps
from jaxdiff.typing import InputError, Prediction

__all__ = ["Denoiser", "Gaussian", "InputError", "Perturbed", "Prediction", "Process", "Run", "data", "evaluation"]
__all__ += ["analytic", "clip_denoised", "denoiser", "dynamic_threshold", "from_function", "guidance", "inpainting"]
__all__ += ["continuous_elbo", "decode", "elbo", "encode", "likelihood", "load", "log_likelihood", "losses", "noise"]
__all__ += ["parameterization", "sample", "samplers", "schedules", "slerp", "time_sampling", "timesteps"]
__all__ += ["transforms", "weightings"]
