"""The likelihood of data under a model, by the change of variables along its probability-flow ODE.

With y = x/r, r² = α² + σ², φ = atan2(σ, α) and dy/dφ = v(y, φ) (see `jaxdiff.probability_flow`), a sample of d numbers
has

    log p(x_0) = log p_1(x_1) + d log r_1 − d log r_0 + ∫_{φ_0}^{φ_1} div v dφ

p_1 is the prior of the process, N(0, σ_1² I). The divergence is exact, from d vector–Jacobian products, or Hutchinson's
estimate of it: the mean over probes u, with E[u uᵀ] = I and fixed along the path, of uᵀ (∂v/∂y) u. The probes share
the path, so that their spread gives the estimate's standard error.

Images of n levels, −1 + 2k/(n − 1), are dequantised with noise uniform over the width w = 2/(n − 1) of a level, and

    bits/dim = −log₂ p(x)/d − log₂ w        in the mean over the noise at least −log₂ P(k)/d

of which −log₂ w, 7.0 for n = 256, is the offset between a density on [−1, 1] and a mass on levels.

Sources: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (section 4.3 and
appendix D.2); Grathwohl et al. 2019, "FFJORD" (the estimate); Theis, van den Oord & Bethge 2016, "A Note on the
Evaluation of Generative Models" (dequantisation).
"""

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff import probability_flow
from jaxdiff.probability_flow import Outcome, Solver, radius, velocity
from jaxdiff.processes import Gaussian, Process
from jaxdiff.samplers.loop import as_pytree, sample_keys
from jaxdiff.typing import Denoiser, PyTree

Probe = Literal["rademacher", "gaussian"]


class Likelihood(NamedTuple):
    """Of each of n samples, in nats."""

    log_density: Float[Array, " n"]
    standard_error: Float[Array, " n"]  # of the trace's estimate; 0 where it is exact, NaN for a single probe
    latent: Float[Array, "n *shape"]  # x_1
    steps: Int[Array, " n"]  # of the solver


def log_likelihood(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "n *shape"],
    *,
    key: Key[Array, ""] | None = None,
    probes: int = 0,
    probe: Probe = "rademacher",
    cond: PyTree = None,
    solver: Solver | None = None,
) -> Likelihood:
    """log p(x_0) of the law that the model's probability-flow ODE makes of the prior.

    Args:
      denoiser: the model.
      process: its process, which must be Gaussian.
      x0: clean samples, of d numbers each.
      key: draws the probes, of sample i with fold_in(key, i); not needed for the exact trace.
      probes: 0 for the exact trace (d products a step: for small d), else the number of Hutchinson's probes.
      probe: the law of the probes; Rademacher's has the smaller variance.
      cond: a pytree whose leaves have leading axis n; None if there is no condition.
      solver: how the ODE is solved; by default to 1e-5.

    Raises:
      ValueError: for another process, probes < 0 or without a key, and an unknown law of probes.
      ValueError: where the solver gives up, with the time and the tolerance; within a `jax.jit` of the caller's, a
        jax.errors.JaxRuntimeError.

    Warns:
      UserWarning: where the dtype can't meet the tolerance.
    """
    process = probability_flow.gaussian(process, what="a likelihood", instead="")
    if probes < 0:
        raise ValueError(f"probes = {probes}; give 0 for the exact trace, or a number of probes")
    if probes and key is None:
        raise ValueError(f"probes = {probes} are drawn with a key, but key is None: give one, or probes=0 (exact)")
    if probe not in get_args(Probe):
        raise ValueError(f"probe = {probe!r}; the known ones are {', '.join(get_args(Probe))}")
    keys = sample_keys(jax.random.key(0) if key is None else key, jnp.arange(len(x0)))
    denoiser = jax.tree.map(as_pytree, denoiser)
    solver = solver or Solver()
    found, outcome = likelihood_each(keys, denoiser, process, x0, cond, probes=probes, probe=probe, solver=solver)
    solver.check(outcome)
    return found


@partial(jax.jit, static_argnames=("probes", "probe", "solver"))
def likelihood_each(
    keys: Key[Array, " n"],
    denoiser: Denoiser,
    process: Gaussian,
    x0: Float[Array, "n *shape"],
    cond: PyTree,
    *,
    probes: int,
    probe: Probe,
    solver: Solver,
) -> tuple[Likelihood, Outcome]:
    """`log_likelihood` with one key a sample: rows that are spread over devices make a sharded computation."""
    schedule = process.schedule
    shape, d = x0.shape[1:], math.prod(x0.shape[1:])

    def one(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree) -> tuple[Likelihood, Outcome]:
        if not probes:
            vectors = jnp.eye(d, dtype=x0.dtype)
        elif probe == "rademacher":
            vectors = jax.random.rademacher(key, (probes, d), x0.dtype)
        else:
            vectors = jax.random.normal(key, (probes, d), x0.dtype)
        vectors = vectors.reshape(-1, *shape)

        def slope(phi: Float[Array, ""], state: PyTree) -> PyTree:
            y, _ = state
            v, pull = jax.vjp(lambda y: velocity(denoiser, schedule, phi, y, cond), y)
            products = jax.vmap(lambda u: (u * pull(u)[0]).sum())(vectors)
            return v, products if probes else products.sum(keepdims=True)

        start = (x0 / radius(schedule, 0.0), jnp.zeros((max(probes, 1),), x0.dtype))
        (y, gained), outcome = probability_flow.integrate(slope, schedule, start, t=0.0, s=1.0, solver=solver)
        r0, r1 = radius(schedule, 0.0), radius(schedule, 1.0)
        log_density = process.log_prior(r1 * y) + d * (jnp.log(r1) - jnp.log(r0)) + gained
        error = jnp.std(gained, ddof=1) / math.sqrt(probes) if probes else jnp.zeros(())
        return Likelihood(log_density.mean(), error, r1 * y, jnp.asarray(outcome.steps)), outcome

    return jax.vmap(one)(x0, keys, cond)


def dequantise(key: Key[Array, ""], x0: Float[Array, "n *shape"], levels: int) -> Float[Array, "n *shape"]:
    """Samples with values −1 + 2k/(levels − 1), spread uniformly over the width 2/(levels − 1) of a level."""
    return x0 + (2 * jax.random.uniform(key, x0.shape) - 1) / (levels - 1)


def bits_per_dim(log_density: Float[Array | np.ndarray, "*n"], d: int, levels: int) -> Float[Array | np.ndarray, "*n"]:
    """−log₂ p(x)/d − log₂ w of dequantised samples of d numbers, from log p(x) in nats."""
    return -log_density / (d * math.log(2)) - math.log2(2 / (levels - 1))
