"""Forward processes: x_t = α_t g_t(x_0) + σ_t n_t, with a schedule, a transform g and a noise distribution."""

from jaxdiff.processes import noise, parameterization, transforms
from jaxdiff.processes.base import Gaussian, Perturbed, Process, TransformCondition, require_gaussian
from jaxdiff.processes.hub import Conditioned, Denoiser, Wrapper, check_same, for_sample
from jaxdiff.processes.prior import FittedNormal

__all__ = ["Conditioned", "Denoiser", "FittedNormal", "Gaussian", "Perturbed", "Process", "TransformCondition"]
__all__ += ["Wrapper", "check_same", "for_sample", "noise", "parameterization", "require_gaussian", "transforms"]
