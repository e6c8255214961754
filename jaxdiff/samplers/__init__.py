"""Samplers: one step of one sample from t to s < t, and the loop that runs the steps."""

from jaxdiff.samplers import probability_flow, timesteps
from jaxdiff.samplers.adaptive import Adaptive
from jaxdiff.samplers.ancestral import DDIM, DDPM, Deterministic, Interpolated, Renoise
from jaxdiff.samplers.base import Sampler, Stateless
from jaxdiff.samplers.batching import Sampling, sample_in_batches
from jaxdiff.samplers.loop import sample
from jaxdiff.samplers.multistep import DPMSolver, UniPC
from jaxdiff.samplers.names import SAMPLERS, make
from jaxdiff.samplers.ode import RK4, Euler, Heun, Midpoint, RungeKutta
from jaxdiff.samplers.repaint import RePaint
from jaxdiff.samplers.sde import EDM, Langevin, PredictorCorrector, ReverseSDE

__all__ = ["DDIM", "DDPM", "Adaptive", "DPMSolver", "Deterministic", "Interpolated", "RePaint", "Renoise", "UniPC"]
__all__ += ["EDM", "RK4", "Euler", "Heun", "Langevin", "Midpoint", "PredictorCorrector", "ReverseSDE", "RungeKutta"]
__all__ += ["SAMPLERS", "Sampler", "Sampling", "Stateless", "make", "probability_flow", "sample", "sample_in_batches"]
__all__ += ["timesteps"]
