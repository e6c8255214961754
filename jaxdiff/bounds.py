"""The variational bound of a diffusion model, term by term, in discrete and in continuous time.

For one sample of d numbers and the steps k = 1 … T at t = k/T, s = (k − 1)/T

    −log p(x_0) ≤ L_T + Σ_{k=2}^{T} L_{k−1} + L_0

    L_T      = KL(q(x_1|x_0) ‖ p(x_1)) = α_1² |x_0|²/(2 σ_1²)                     p(x_1) = N(0, σ_1² I), the prior
    L_{k−1}  = KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) = ½ (SNR_s − SNR_t) |x_0 − x̂_0|²    p has the posterior's variance,
                                                                                   or a learned one: `losses.step_kl`
    L_0      = −log p(x_0|x_{1/T}),    p = N(x̂_0, σ²_{t|s} I)

At k = 1 the posterior's variance is 0, so that this term is no KL but a decoder: for data of continuous values its
density; for images of n levels the mass that it gives to the bin of the level, of width 2/(n − 1), where the bins of
the lowest and the highest level reach to infinity. Without levels the bound is on a density, and may be negative.

Each L_{k−1} is estimated with one draw of x_t.

In continuous time, for a path that starts with a noise σ_0 > 0,

    −log p(x_0) ≤ prior + diffusion + reconstruction

    prior            L_T, as above
    diffusion        ½ E_t[−λ'(t) |n − n̂|²],  t uniform in (0, 1]
    reconstruction   −E log p(x_0|z_0),  z_0 = α_0 x_0 + σ_0 n

For images of n levels v_k, p(x_0|z_0) has in each coordinate the mass N(z_0; α_0 v_k, σ_0²), normalised over k. For
data of continuous values it is the density N(x_0; z_0/α_0, σ_0²/α_0²): the limit of that, over the levels' distance, as
they become many. With the exact denoiser of data x_0 ~ N(m, v) and SNR = e^λ the three are, a coordinate,

    ½ SNR_1 (m² + v),    ½ log((1 + v SNR_0)/(1 + v SNR_1)),    ½ log(2πe/SNR_0)

and their sum tends to the entropy as λ_0 → ∞, λ_1 → −∞. The diffusion term is an integral over λ,
½ ∫ |n − n̂|² dλ, and depends on the schedule only through its ends, if the network depends on t through λ alone.
Where σ_0 = 0 there is no such bound: its integrand rises without limit for any network that is not exact.

Divided by d log 2 a bound is in bits/dim.

Sources: Sohl-Dickstein et al. 2015, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics"; Ho, Jain & Abbeel
2020, "Denoising Diffusion Probabilistic Models" (equations 5 and 13; their prior is N(0, I), which adds
½ (σ_1² − 1 − log σ_1²) d); Kingma et al. 2021, "Variational Diffusion Models" (the form in SNR, and continuous time).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special, stats
from jaxtyping import Array, Float, Key

from jaxdiff import losses, probability_flow, weightings
from jaxdiff.processes import Gaussian, Process
from jaxdiff.samplers.jump import posterior_variances
from jaxdiff.samplers.loop import as_pytree, sample_keys
from jaxdiff.schedules import Schedule
from jaxdiff.time_sampling import antithetic
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time


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
    process = probability_flow.gaussian(process, what="a bound of the likelihood", instead="")
    if process.schedule.steps is None:
        raise ValueError(
            f"schedule = {process.schedule!r} has no steps, of which this bound is a sum; take a discrete one, or "
            "continuous_bound"
        )
    _check_levels(levels)
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

    def estimate(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree, t: Time) -> Prediction:
        return denoiser(process.corrupt(x0, process.noise(key, x0.shape), t), t, cond)

    def term(index: Array) -> Float[Array, " n"]:
        t, s = times[index], times[index - 1]

        def one(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree) -> Float[Array, ""]:
            prediction = estimate(x0, jax.random.fold_in(key, index), cond, t)
            return losses.step_kl(x0, prediction, t=t, s=s, schedule=schedule).sum()

        return jax.vmap(one)(x0, keys, cond)

    def ends(x0: Float[Array, "*shape"], key: Key[Array, ""], cond: PyTree) -> tuple[Array, Array]:
        variance, _ = posterior_variances(schedule, times[1], times[0])
        mean = estimate(x0, jax.random.fold_in(key, 1), cond, times[1]).x0
        return prior_term(schedule, x0), -log_decoder(x0, mean, jnp.sqrt(variance), levels).sum()

    steps = jax.lax.map(term, jnp.arange(2, schedule.steps + 1))
    prior, decoder = jax.vmap(ends)(x0, keys, cond)
    return Bound(prior, steps.T, decoder)


class ContinuousBound(NamedTuple):
    """The terms of the continuous bound for each of n samples, in nats.

    The last two are estimates, with noise of their own for each sample: the standard error of a mean over samples is
    the usual one, and counts their noise too.
    """

    prior: Float[Array | np.ndarray, " n"]
    diffusion: Float[Array | np.ndarray, " n"]
    reconstruction: Float[Array | np.ndarray, " n"]

    def total(self) -> Float[Array | np.ndarray, " n"]:
        """The bound on −log p(x_0)."""
        return self.prior + self.diffusion + self.reconstruction


def continuous_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "n *shape"],
    *,
    levels: int | None = None,
    draws: int = 64,
    cond: PyTree = None,
) -> ContinuousBound:
    """The three terms of the continuous bound on −log p(x_0), with `draws` calls of the network a sample.

    Args:
      key: draws times and noise; those of sample i depend on fold_in(key, i) alone.
      denoiser: the model.
      process: its process: Gaussian, with a schedule whose log-SNR is finite at t = 0.
      x0: clean samples; with `levels`, values −1 + 2k/(levels − 1).
      levels: the number of values that a coordinate can take; None for continuous data, whose bound is on a density.
      draws: times for each sample, at equal distances from a random one (`time_sampling.antithetic`).
      cond: a pytree whose leaves have leading axis n; None if there is no condition.

    Raises:
      ValueError: for a process that is not Gaussian, a schedule without noise at t = 0, fewer than 2 levels, and
        draws < 1.
    """
    process = probability_flow.gaussian(process, what="a bound of the likelihood", instead="")
    if not math.isfinite(process.schedule.log_snr(0.0)):
        raise ValueError(
            f"schedule = {process.schedule!r} has no noise at t = 0, where this bound starts; take one with a finite "
            "log-SNR there (truncated_cosine, edm, learned), or for a discrete one variational_bound"
        )
    _check_levels(levels)
    if draws < 1:
        raise ValueError(f"draws = {draws}; the rule is 1 or more")
    keys = sample_keys(key, jnp.arange(len(x0)))
    return continuous_bound_each(keys, jax.tree.map(as_pytree, denoiser), process, x0, cond, levels=levels, draws=draws)


@partial(jax.jit, static_argnames=("levels", "draws"))
def continuous_bound_each(
    keys: Key[Array, " n"],
    denoiser: Denoiser,
    process: Gaussian,
    x0: Float[Array, "n *shape"],
    cond: PyTree,
    *,
    levels: int | None,
    draws: int,
) -> ContinuousBound:
    key_start, key_times, key_noise = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)
    times = jax.vmap(partial(antithetic, n=draws))(key_times).astype(x0.dtype)

    def draw(index: Array) -> Float[Array, " n"]:
        def one(x0: Float[Array, "*shape"], t: Time, key: Key[Array, ""], cond: PyTree) -> Float[Array, ""]:
            key = jax.random.fold_in(key, index)
            # In the space of v weight and error are finite at both ends of any path.
            mean = losses.weighted(denoiser, process, x0, t, key=key, weight=weightings.elbo(), cond=cond, space="v")
            return mean * x0.size

        return jax.vmap(one)(x0, times[:, index], key_noise, cond)

    def ends(x0: Float[Array, "*shape"], key: Key[Array, ""]) -> tuple[Array, Array]:
        return prior_term(process.schedule, x0), reconstruction_term(key, process, x0, levels=levels)

    diffusion = jax.lax.map(draw, jnp.arange(draws)).mean(0)
    prior, reconstruction = jax.vmap(ends)(x0, key_start)
    return ContinuousBound(prior, diffusion, reconstruction)


def prior_term(schedule: Schedule, x0: Float[Array, "*shape"]) -> Float[Array, ""]:
    """KL(q(x_1|x_0) ‖ N(0, σ_1² I)) of one sample, in nats."""
    return jnp.exp(schedule.log_snr(1.0)) * (x0**2).sum() / 2


def reconstruction_term(
    key: Key[Array, ""], process: Process, x0: Float[Array, "*shape"], *, levels: int | None
) -> Float[Array, ""]:
    """−log p(x_0|z_0) of one sample and one draw of z_0, in nats, for a schedule with σ_0 > 0."""
    noise = process.noise(key, x0.shape).astype(x0.dtype)
    ratio = jnp.exp(-process.schedule.log_snr(0.0) / 2).astype(x0.dtype)  # σ_0/α_0
    if levels is None:
        return -stats.norm.logpdf(noise).sum() + x0.size * jnp.log(ratio)
    values = jnp.linspace(-1, 1, levels, dtype=x0.dtype)
    apart = (x0[..., None] - values.reshape(*[1] * x0.ndim, -1)) / ratio
    # log N(z_0; α_0 v_k, σ_0²) less that of the true level, where `apart` is 0
    return jax.nn.logsumexp(-0.5 * apart * (apart + 2 * noise[..., None]), axis=-1).sum()


def _check_levels(levels: int | None) -> None:
    if levels is not None and levels < 2:
        raise ValueError(f"levels = {levels}; the rule is 2 or more, or None for continuous data")


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
