"""The likelihood of data under a model, by the change of variables along its probability-flow ODE.

With y = x/r, r² = α² + σ², φ = atan2(σ, α) and dy/dφ = v(y, φ) (see `jaxdiff.samplers.probability_flow`), a sample of d
numbers has

    log p(x_0) = log p_1(x_1) + d log r_1 − d log r_0 + ∫_{φ_0}^{φ_1} div v dφ

where p_1 = N(0, σ_1² I) is the prior. The divergence is exact, from d vector–Jacobian products, or Hutchinson's
estimate: the mean of uᵀ (∂v/∂y) u over probes u with E[u uᵀ] = I that are fixed along the path. The probes share the
path, so their spread gives the standard error of the estimate.

Sources: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (section 4.3 and
appendix D.2); Grathwohl et al. 2019, "FFJORD" (the estimate).
"""

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.processes import Denoiser, require_gaussian
from jaxdiff.samplers.loop import check_samples, sample_keys
from jaxdiff.samplers.probability_flow import Outcome, Solver, check_solver, integrate_state, radius, velocity
from jaxdiff.typing import InputError, PyTree, RandomKey, Sample, Samples, Scalar, check_whole

Probe = Literal["rademacher", "gaussian"]


class Likelihood(NamedTuple):
    """The log-likelihood of each of n samples."""

    log_density: Float[Array, " n"]
    """log p(x_0) in nats."""
    standard_error: Float[Array, " n"]
    """The error of the trace estimate: 0 for the exact trace, NaN for a single probe."""
    latent: Samples
    """x_1, the end of the ODE at pure noise."""
    steps: Int[Array, " n"]
    """The number of steps that the solver took, each of six evaluations with the default solver."""


def log_likelihood(
    denoiser: Denoiser,
    x0: Samples,
    *,
    key: RandomKey | None = None,
    probes: int = 0,
    probe: Probe = "rademacher",
    cond: PyTree = None,
    solver: Solver | None = None,
) -> Likelihood:
    """Return log p(x_0) under the distribution that the probability-flow ODE makes from the prior.

    Args:
      denoiser: the model, under a Gaussian process; of a trained run take `run.network`, which is not clipped.
      key: draws the probes, fold_in(key, i) for sample i; the exact trace needs none.
      probes: the number of Hutchinson probes, or 0 for the exact trace (d products per step, for small d).
      probe: the distribution of the probes; Rademacher has the smaller variance.
      cond: a pytree whose leaves have leading axis n.
      solver: the default has the tolerance 1e-5; if the dtype can't meet the tolerance, there is a UserWarning.

    Raises:
      InputError: if the process is not Gaussian, probes < 0 or given without a key, the distribution of the probes is
        unknown, or the solver gives up; inside your own `jax.jit` the last is a jax.errors.JaxRuntimeError.
    """
    x0 = check_samples("x0", x0, cond)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    probes = check_whole("probes", probes, least=0)
    if probes and key is None:
        raise InputError(f"probes = {probes} need a key, but key is None; give a key, or probes=0 for the exact trace")
    if probe not in get_args(Probe):
        raise InputError(f"probe = {probe!r}; it must be one of {', '.join(get_args(Probe))}")
    keys = sample_keys(jax.random.key(0) if key is None else key, jnp.arange(len(x0)))
    solver = check_solver(solver)
    found, outcome = log_likelihood_each(keys, denoiser, x0, cond, probes=probes, probe=probe, solver=solver)
    solver.check(outcome)
    return found


@partial(jax.jit, static_argnames=("probes", "probe", "solver"))
def log_likelihood_each(
    keys: Key[Array, " n"], denoiser: Denoiser, x0: Samples, cond: PyTree, *, probes: int, probe: Probe, solver: Solver
) -> tuple[Likelihood, Outcome]:
    """`log_likelihood` with one key per sample; inputs sharded over devices give a sharded computation."""
    process = require_gaussian(denoiser.process, what="a likelihood", instead="")
    schedule, d = process.schedule, math.prod(x0.shape[1:])
    r0, r1 = radius(schedule, 0.0), radius(schedule, 1.0)

    def one(x0: Sample, key: RandomKey, cond: PyTree) -> tuple[Likelihood, Outcome]:
        draw = jax.random.rademacher if probe == "rademacher" else jax.random.normal
        vectors = draw(key, (probes, d), x0.dtype) if probes else jnp.eye(d, dtype=x0.dtype)
        vectors = vectors.reshape(-1, *x0.shape)

        def slope(phi: Scalar, state: PyTree) -> PyTree:
            y, _ = state
            v, pull = jax.vjp(lambda y: velocity(denoiser, phi, y, cond), y)
            products = jax.vmap(lambda u: (u * pull(u)[0]).sum())(vectors)
            return v, products if probes else products.sum(keepdims=True)

        start = (x0 / r0, jnp.zeros((max(probes, 1),), x0.dtype))
        (y, gained), outcome = integrate_state(slope, schedule, start, t=0.0, s=1.0, solver=solver)
        log_density = process.log_prior(r1 * y) + d * (jnp.log(r1) - jnp.log(r0)) + gained
        error = jnp.std(gained, ddof=1) / math.sqrt(probes) if probes else jnp.zeros(())
        return Likelihood(log_density.mean(), error, r1 * y, jnp.asarray(outcome.steps)), outcome

    return jax.vmap(one)(x0, keys, cond)
