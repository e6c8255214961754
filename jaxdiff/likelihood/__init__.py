"""Likelihoods and latents: variational bounds, the probability-flow ODE, and bits/dim from both."""

from jaxdiff.likelihood import bits_per_dim
from jaxdiff.likelihood.bits_per_dim import BitsPerDim, dequantize
from jaxdiff.likelihood.elbo import ContinuousElbo, Elbo, continuous_elbo, elbo
from jaxdiff.likelihood.latents import decode, encode, slerp
from jaxdiff.likelihood.ode import Likelihood, log_likelihood
from jaxdiff.samplers.probability_flow import Solver

__all__ = ["BitsPerDim", "ContinuousElbo", "Elbo", "Likelihood", "Solver", "bits_per_dim", "continuous_elbo"]
__all__ += ["decode", "dequantize", "elbo", "encode", "log_likelihood", "slerp"]
