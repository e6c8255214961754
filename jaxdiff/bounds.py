"""The variational bound of a discrete diffusion model, term by term.

For one sample of d numbers and the steps k = 1 … T at t = k/T, s = (k − 1)/T

    −log p(x_0) ≤ L_T + Σ_{k=2}^{T} L_{k−1} + L_0

    L_T      = KL(q(x_1|x_0) ‖ p(x_1)) = α_1² |x_0|²/(2 σ_1²)                     p(x_1) = N(0, σ_1² I), the prior
    L_{k−1}  = KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) = ½ (SNR_s − SNR_t) |x_0 − x̂_0|²    p has the posterior's variance
    L_0      = −log p(x_0|x_{1/T}),    p = N(x̂_0, σ²_{t|s} I)

At k = 1 the posterior's variance is 0, so that this term is no KL but a decoder: for data of continuous values its
density; for images of n levels the mass that it gives to the bin of the level, of width 2/(n − 1), where the bins of
the lowest and the highest level reach to infinity. Without levels the bound is on a density, and may be negative.

Divided by d log 2 it is in bits/dim. Each L_{k−1} is estimated with one draw of x_t.

Sources: Sohl-Dickstein et al. 2015, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics"; Ho, Jain & Abbeel
2020, "Denoising Diffusion Probabilistic Models" (equations 5 and 13; their prior is N(0, I), which adds
½ (σ_1² − 1 − log σ_1²) d); Kingma et al. 2021, "Variational Diffusion Models" (the form in SNR).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special, stats
from jaxtyping import Array, Float, Key

from jaxdiff import probability_flow
from jaxdiff.processes import Gaussian, Process
from jaxdiff.samplers.jump import posterior_variances
from jaxdiff.samplers.loop import as_pytree, sample_keys
from jaxdiff.typing import Denoiser, PyTree, Time


class Bound(NamedTuple):
    """The terms of the bound for each of n samples, in nats."""

    prior: Float[Array | np.ndarray, " n"]  # L_T
    steps: Float[Array | np.ndarray, "n T-1"]  # L_1 … L_{T−1}, the nearest to the data first
    decoder: Float[Array | np.ndarray, " n"]  # L_0

    def total(self) -> Float[Array | np.ndarray, " n"]:
        """The bound on −log p(x_0)."""
        return self.prior + self.steps.sum(1) + self.decoder


def variational_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "n *shape"],
    *,
    levels: int | None = None,
    cond: PyTree = None,
) -> Bound:
    """Every term of the bound on −log p(x_0), with T calls of the network a sample.

    Args:
      key: draws the noise; that of sample i depends on fold_in(key, i) alone.
      denoiser: the model.
      process: its process: Gaussian, with a discrete schedule.
      x0: clean samples; with `levels`, values −1 + 2k/(levels − 1).
      levels: the number of values that a coordinate can take; None for continuous data.
      cond: a pytree whose leaves have leading axis n; None if there is no condition.

    Raises:
      ValueError: for a process that is not Gaussian, a schedule without steps, and fewer than 2 levels.
    """
    process = probability_flow.gaussian(process)
    if process.schedule.steps is None:
        raise ValueError(
            f"schedule = {process.schedule!r} has no steps, of which this bound is a sum; take a discrete one"
        )
    if levels is not None and levels < 2:
        raise ValueError(f"levels = {levels}; the rule is 2 or more, or None for continuous data")
    keys = sample_keys(key, jnp.arange(len(x0)))
    return bound_each(keys, jax.tree.map(as_pytree, denoiser), process, x0, cond, levels=levels)


@partial(jax.jit, static_argnames="levels")
def bound_each(
    keys: Key[Array, " n"],
    denoiser: Denoiser,
    process: Gaussian,
    x0: Float[Array, "n *shape"],
    cond: PyTree,
    *,
    levels: int | None,
) -> Bound:
    """`variational_bound` with one key a sample: rows that are spread over devices make a sharded computation."""
    schedule = process.schedule
    assert schedule.steps is not None
    times = jnp.arange(schedule.steps + 1, dtype=x0.dtype) / schedule.steps

    def estimate(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree, t: Time) -> Float[Array, "*shape"]:
        return denoiser(process.corrupt(x0, process.noise(key, x0.shape), t), t, cond).x0

    def term(index: Array) -> Float[Array, " n"]:
        t, s = times[index], times[index - 1]
        weight = (jnp.exp(schedule.log_snr(s)) - jnp.exp(schedule.log_snr(t))) / 2

        def one(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree) -> Float[Array, ""]:
            return weight * ((x0 - estimate(x0, jax.random.fold_in(key, index), cond, t)) ** 2).sum()

        return jax.vmap(one)(x0, keys, cond)

    def ends(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree) -> tuple[Array, Array]:
        variance, _ = posterior_variances(schedule, times[1], times[0])
        mean = estimate(x0, jax.random.fold_in(key, 1), cond, times[1])
        prior = jnp.exp(schedule.log_snr(1.0)) * (x0**2).sum() / 2
        return prior, -log_decoder(x0, mean, jnp.sqrt(variance), levels).sum()

    steps = jax.lax.map(term, jnp.arange(2, schedule.steps + 1))
    prior, decoder = jax.vmap(ends)(x0, keys, cond)
    return Bound(prior, steps.T, decoder)


def log_decoder(
    x0: Float[Array, "*shape"], mean: Float[Array, "*shape"], std: Float[Array, ""], levels: int | None
) -> Float[Array, "*shape"]:
    """log p(x_0) of each coordinate under N(mean, std²): a density, or the mass of the level's bin.

    The mass is taken on the side of the mean where the distribution function is small, so that it is exact to rounding
    as far out as it can be represented.
    """
    if levels is None:
        return stats.norm.logpdf(x0, mean, std)
    half = 1 / (levels - 1)
    mirrored = jnp.where(x0 > mean, -1.0, 1.0)  # of a level above the mean, the mirror image below it
    upper, lower = ((mirrored * (x0 - mean) + half * side) / std for side in (1.0, -1.0))
    at_edge = jnp.abs(x0) > 1 - half
    outwards = mirrored * x0 < 0  # the bin that reaches to −∞ after mirroring; else to +∞
    lower = jnp.where(at_edge & outwards, -jnp.inf, lower)
    upper = jnp.where(at_edge & ~outwards, jnp.inf, upper)
    big, small = special.log_ndtr(upper), special.log_ndtr(lower)
    return big + jnp.log1p(-jnp.exp(small - big))
