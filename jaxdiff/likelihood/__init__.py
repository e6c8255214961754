"""Likelihoods and latents: variational bounds, the probability-flow ODE, and bits/dim from both."""

from jaxdiff.likelihood import bits_per_dim as bits_per_dim
from jaxdiff.likelihood.bits_per_dim import BitsPerDim as BitsPerDim
from jaxdiff.likelihood.bits_per_dim import dequantize as dequantize
from jaxdiff.likelihood.elbo import ContinuousElbo as ContinuousElbo
from jaxdiff.likelihood.elbo import Elbo as Elbo
from jaxdiff.likelihood.elbo import continuous_elbo as continuous_elbo
from jaxdiff.likelihood.elbo import elbo as elbo
from jaxdiff.likelihood.latents import decode as decode
from jaxdiff.likelihood.latents import encode as encode
from jaxdiff.likelihood.latents import slerp as slerp
from jaxdiff.likelihood.ode import Likelihood as Likelihood
from jaxdiff.likelihood.ode import log_likelihood as log_likelihood
from jaxdiff.samplers.probability_flow import Solver as Solver
