"""The variational bound (ELBO) on −log p(x_0), term by term, in discrete and in continuous time.

For one sample of d numbers and T steps from t = k/T to s = (k − 1)/T,

    −log p(x_0) ≤ L_T + Σ_{k=2}^{T} L_{k−1} + L_0

    L_T      = KL(q(x_1|x_0) ‖ p(x_1)) = α_1² |x_0|²/(2 σ_1²)                     p(x_1) = N(0, σ_1² I), the prior
    L_{k−1}  = KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) = ½ (SNR_s − SNR_t) |x_0 − x̂_0|²    p has the posterior's variance,
                                                                                   or a learned one: `losses.step_kl`
    L_0      = −log p(x_0|x_{1/T}),    p = N(x̂_0, σ²_{t|s} I)

At k = 1 the posterior variance is 0, so L_0 is not a KL but a decoder. For continuous data it is a density, and the
total may be negative. For images of n levels it is the mass of the level's bin, of width 2/(n − 1); the bins of the
lowest and the highest level extend to infinity. Each L_{k−1} is estimated from one draw of x_t.

In continuous time, for a schedule that starts with noise σ_0 > 0,

    −log p(x_0) ≤ prior + diffusion + reconstruction

    prior            L_T, as above
    diffusion        ½ E_t[−λ'(t) |n − n̂|²],  t uniform in (0, 1]
    reconstruction   −E log p(x_0|z_0),  z_0 = α_0 x_0 + σ_0 n

For images of n levels v_k, p(x_0|z_0) has in each coordinate the mass N(z_0; α_0 v_k, σ_0²), normalized over k. For
continuous data it is the density N(x_0; z_0/α_0, σ_0²/α_0²), the limit of the mass divided by the distance of ever
denser levels. With the exact denoiser of data x_0 ~ N(m, v) and SNR = e^λ the three terms are, per coordinate,

    ½ SNR_1 (m² + v),    ½ log((1 + v SNR_0)/(1 + v SNR_1)),    ½ log(2πe/SNR_0)

and their sum tends to the entropy as λ_0 → ∞, λ_1 → −∞. The diffusion term is ½ ∫ |n − n̂|² dλ: if the network depends
on t through λ alone, the term depends on the schedule through its ends only. If σ_0 = 0 there is no such bound: the
integrand diverges for any network that is not exact.

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

from jaxdiff import losses
from jaxdiff.processes import Denoiser, Process, require_gaussian
from jaxdiff.samplers.ancestral import posterior_variances
from jaxdiff.samplers.loop import check_samples, sample_keys
from jaxdiff.schedules import Schedule, known_log_snr
from jaxdiff.typing import (
    InputError,
    Prediction,
    PyTree,
    RandomKey,
    Sample,
    Samples,
    Scalar,
    Time,
    check_whole,
    is_traced,
)

Nats = Float[Array | np.ndarray, " n"]


class Elbo(NamedTuple):
    """The terms of the discrete bound for each of n samples, in nats."""

    prior: Nats  # L_T
    steps: Float[Array | np.ndarray, "n T-1"]  # L_1 … L_{T−1}, the nearest to the data first
    decoder: Nats  # L_0

    def total(self) -> Nats:
        """Return the bound on −log p(x_0)."""
        return self.prior + self.steps.sum(1) + self.decoder


class ContinuousElbo(NamedTuple):
    """The terms of the continuous bound for each of n samples, in nats.

    The last two have noise that is independent for each sample: the usual standard error of a mean includes it.
    """

    prior: Nats
    diffusion: Nats
    reconstruction: Nats

    def total(self) -> Nats:
        """Return the bound on −log p(x_0)."""
        return self.prior + self.diffusion + self.reconstruction


def elbo(key: RandomKey, denoiser: Denoiser, x0: Samples, *, levels: int | None = None, cond: PyTree = None) -> Elbo:
    """Return every term of the bound on −log p(x_0), with T network calls per sample.

    Args:
      key: draws the noise; fold_in(key, i) for sample i.
      denoiser: the model, under a Gaussian process with a discrete schedule.
      x0: clean samples; with `levels`, values −1 + 2k/(levels − 1).
      levels: the number of values of a coordinate; None for continuous data.
      cond: a pytree whose leaves have leading axis n.

    Raises:
      InputError: if the process is not Gaussian, the schedule is not discrete, levels < 2, or x0 holds no finite
        numbers, or with `levels` numbers beyond [-1, 1].
    """
    schedule = require_gaussian(denoiser.process, what="a likelihood bound", instead="").schedule
    if schedule.num_timesteps is None:
        raise InputError(
            f"schedule = {schedule!r} is continuous, but this bound is a sum over timesteps; use a discrete schedule, "
            "or continuous_elbo"
        )
    x0 = _checked(x0, levels, cond)
    return elbo_each(sample_keys(key, jnp.arange(len(x0))), denoiser, x0, cond, levels=levels)


@partial(jax.jit, static_argnames="levels")
def elbo_each(keys: Key[Array, " n"], denoiser: Denoiser, x0: Samples, cond: PyTree, *, levels: int | None) -> Elbo:
    """`elbo` with one key per sample; inputs sharded over devices give a sharded computation."""
    process, schedule = denoiser.process, denoiser.process.schedule
    times = jnp.arange(schedule.num_timesteps + 1, dtype=x0.dtype) / schedule.num_timesteps

    def estimate(x0: Sample, key: RandomKey, cond: PyTree, t: Time) -> Prediction:
        return denoiser(process.corrupt(x0, process.sample_noise(key, x0.shape), t), t, cond)

    def term(index: Array) -> Float[Array, " n"]:
        t, s = times[index], times[index - 1]

        def one(x0: Sample, key: RandomKey, cond: PyTree) -> Scalar:
            prediction = estimate(x0, jax.random.fold_in(key, index), cond, t)
            return losses.step_kl(x0, prediction, t=t, s=s, schedule=schedule).sum()

        return jax.vmap(one)(x0, keys, cond)

    def ends(x0: Sample, key: RandomKey, cond: PyTree) -> tuple[Scalar, Scalar]:
        variance, _ = posterior_variances(schedule, times[1], times[0])
        mean = estimate(x0, jax.random.fold_in(key, 1), cond, times[1]).x0
        return prior_term(schedule, x0), -log_decoder(x0, mean, jnp.sqrt(variance), levels).sum()

    steps = jax.lax.map(term, jnp.arange(2, schedule.num_timesteps + 1))
    prior, decoder = jax.vmap(ends)(x0, keys, cond)
    return Elbo(prior, steps.T, decoder)


def continuous_elbo(
    key: RandomKey, denoiser: Denoiser, x0: Samples, *, levels: int | None = None, draws: int = 64, cond: PyTree = None
) -> ContinuousElbo:
    """Return the three terms of the continuous bound on −log p(x_0), with `draws` network calls per sample.

    Args:
      key: draws times and noise; fold_in(key, i) for sample i.
      denoiser: the model, under a Gaussian process with a schedule whose log-SNR is finite at t = 0.
      x0, levels, cond: as for `elbo`.
      draws: times per sample, equally spaced from a random first one (`time_sampling.antithetic`).

    Raises:
      InputError: if the process is not Gaussian, the schedule has no noise at t = 0, draws < 1, or as `elbo`.
    """
    schedule = require_gaussian(denoiser.process, what="a likelihood bound", instead="").schedule
    if (log_snr := known_log_snr(schedule, 0.0)) is not None and not math.isfinite(log_snr):
        raise InputError(
            f"schedule = {schedule!r} has no noise at t = 0, where the continuous bound starts; use a schedule with a "
            "finite log-SNR there (truncated_cosine, edm, learned), or, if yours is discrete, call jaxdiff.elbo"
        )
    x0 = _checked(x0, levels, cond)
    check_whole("draws", draws)
    keys = sample_keys(key, jnp.arange(len(x0)))
    return continuous_elbo_each(keys, denoiser, x0, cond, levels=levels, draws=draws)


@partial(jax.jit, static_argnames=("levels", "draws"))
def continuous_elbo_each(
    keys: Key[Array, " n"], denoiser: Denoiser, x0: Samples, cond: PyTree, *, levels: int | None, draws: int
) -> ContinuousElbo:
    """`continuous_elbo` with one key per sample; inputs sharded over devices give a sharded computation."""
    process = denoiser.process
    key_start, key_times, key_noise = jax.vmap(partial(jax.random.split, num=3), out_axes=1)(keys)
    times = jax.vmap(partial(losses.time_sampling.antithetic, n=draws))(key_times).astype(x0.dtype)

    def draw(index: Array) -> Float[Array, " n"]:
        def one(x0: Sample, t: Time, key: RandomKey, cond: PyTree) -> Scalar:
            key = jax.random.fold_in(key, index)
            # With target v, weight and error are finite at both ends of any schedule.
            mean = losses.weighted(denoiser, x0, t, key=key, weight=losses.weightings.elbo(), cond=cond, target="v")
            return mean * x0.size

        return jax.vmap(one)(x0, times[:, index], key_noise, cond)

    prior = jax.vmap(partial(prior_term, process.schedule))(x0)
    diffusion = jax.lax.map(draw, jnp.arange(draws)).mean(0)
    reconstruction = jax.vmap(lambda key, x0: reconstruction_term(key, process, x0, levels=levels))(key_start, x0)
    return ContinuousElbo(prior, diffusion, reconstruction)


def prior_term(schedule: Schedule, x0: Sample) -> Scalar:
    """Return KL(q(x_1|x_0) ‖ N(0, σ_1² I)) of one sample, in nats."""
    return jnp.exp(schedule.log_snr(1.0)) * (x0**2).sum() / 2


def reconstruction_term(key: RandomKey, process: Process, x0: Sample, *, levels: int | None) -> Scalar:
    """Return −log p(x_0|z_0) of one sample and one draw of z_0, in nats, for a schedule with σ_0 > 0."""
    noise = process.sample_noise(key, x0.shape).astype(x0.dtype)
    ratio = jnp.exp(-process.schedule.log_snr(0.0) / 2).astype(x0.dtype)  # σ_0/α_0
    if levels is None:
        return -stats.norm.logpdf(noise).sum() + x0.size * jnp.log(ratio)
    values = jnp.linspace(-1, 1, levels, dtype=x0.dtype)
    apart = (x0[..., None] - values.reshape(*[1] * x0.ndim, -1)) / ratio
    # log N(z_0; α_0 v_k, σ_0²) less that of the true level, where `apart` is 0
    return jax.nn.logsumexp(-0.5 * apart * (apart + 2 * noise[..., None]), axis=-1).sum()


def log_decoder(x0: Sample, mean: Sample, std: Scalar, levels: int | None) -> Sample:
    """Return log p(x_0) of each coordinate under N(mean, std²): a density, or the mass of the level's bin.

    The mass is computed in the lower tail, after mirroring: it is exact to rounding wherever it is representable.
    """
    if levels is None:
        return stats.norm.logpdf(x0, mean, std)
    half = 1 / (levels - 1)
    mirrored = jnp.where(x0 > mean, -1.0, 1.0)  # moves a level above the mean to its mirror image below
    upper, lower = ((mirrored * (x0 - mean) + half * side) / std for side in (1.0, -1.0))
    at_edge = jnp.abs(x0) > 1 - half
    outwards = mirrored * x0 < 0  # the edge bin extends to −∞ after mirroring; otherwise to +∞
    lower = jnp.where(at_edge & outwards, -jnp.inf, lower)
    upper = jnp.where(at_edge & ~outwards, jnp.inf, upper)
    big, small = special.log_ndtr(upper), special.log_ndtr(lower)
    return big + jnp.log1p(-jnp.exp(small - big))


def _checked(x0: Samples, levels: int | None, cond: PyTree) -> Samples:
    """The samples in float32 at least; an InputError if they, the levels or the conditions can't be right."""
    x0 = check_samples("x0", x0, cond)
    if levels is not None:
        check_whole("levels", levels, least=2)
        if not is_traced(x0) and jnp.abs(x0).max() > 1 + 1e-5:
            raise InputError(
                f"x0 has values beyond [-1, 1], where {levels} levels lie; scale 0 ... {levels - 1} with "
                f"jaxdiff.data.normalize(x0, {levels})"
            )
    return x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
