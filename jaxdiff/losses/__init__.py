"""Training losses of one sample, the weightings of their terms, and the times at which a batch is trained."""

from jaxdiff.losses import time_sampling, weightings
from jaxdiff.losses.objectives import batch, cross_entropy, hybrid, simple, step_kl, weighted

__all__ = ["batch", "cross_entropy", "hybrid", "simple", "step_kl", "time_sampling", "weighted", "weightings"]
