"""jaxdiff: diffusion models in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdiff import data, likelihood, losses, samplers, schedules
from jaxdiff.denoisers import analytic, clip_denoised, denoiser, dynamic_threshold, from_function, guidance, inpainting
from jaxdiff.likelihood import continuous_elbo, decode, elbo, encode, log_likelihood, slerp
from jaxdiff.losses import time_sampling, weightings
from jaxdiff.processes import Denoiser, Gaussian, Perturbed, Process, noise, parameterization, transforms
from jaxdiff.samplers import sample, timesteps
from jaxdiff.typing import InputError, Prediction

if TYPE_CHECKING:
    from jaxdiff import evaluation, models
    from jaxdiff.loading import load
    from jaxdiff.run import Run
    from jaxdiff.training.loop import train

__version__ = "0.1.0"

__all__ = ["Denoiser", "Gaussian", "InputError", "Perturbed", "Prediction", "Process", "Run", "data", "evaluation"]
__all__ += ["analytic", "clip_denoised", "denoiser", "dynamic_threshold", "from_function", "guidance", "inpainting"]
__all__ += ["continuous_elbo", "decode", "elbo", "encode", "likelihood", "load", "log_likelihood", "losses", "models"]
__all__ += ["noise", "parameterization", "sample", "samplers", "schedules", "slerp", "time_sampling", "timesteps"]
__all__ += ["train", "transforms", "weightings"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs Flax and Orbax, which take as long to import as JAX."""
    if name in ("evaluation", "models"):
        return importlib.import_module(f"jaxdiff.{name}")
    if name in ("Run", "load"):
        return getattr(importlib.import_module("jaxdiff.run" if name == "Run" else "jaxdiff.loading"), name)
    if name == "train":
        return importlib.import_module("jaxdiff.training.loop").train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
