"""Weights on the squared error, as functions of the log-SNR λ: the same loss for any network and any target.

At a fixed x_t the error of n̂ is −(α/σ) times that of x̂_0, so that a weight w on the squared error of eps is the weight
SNR·w on that of x_0, SNR = e^λ = α²/σ². The objective is E_t[w(t) ‖n − n̂‖²], t uniform:

                   on eps                       on x_0
    simple, snr    1                            SNR                   (Ho et al. 2020; Salimans & Ho 2022, "SNR")
    truncated_snr  max(1, 1/SNR)                max(SNR, 1)           (Salimans & Ho 2022)
    min_snr        min(1, γ/SNR)                min(SNR, γ)           (Hang et al. 2023)
    p2             1/(k + SNR)^γ                SNR/(k + SNR)^γ       (Choi et al. 2022, on L_simple)
    elbo           −½ λ'                        −½ SNR'               (Kingma et al. 2021)
    elbo of T      T/2 (SNR_s/SNR_t − 1)        T/2 (SNR_s − SNR_t)   (the same, s = t − 1/T)
    sigmoid        −½ λ' S(b − λ)               −½ SNR' S(b − λ)      (Kingma & Gao 2023; Hoogeboom et al. 2024)

with ' for d/dt and S the logistic function. The first four are functions of λ alone, so that the loss changes with the
schedule. elbo and sigmoid include the density −λ' of λ: ∫ w dt = ∫ S(b − λ)/2 dλ depends on the schedule only through
its ends. elbo, summed over coordinates, is the integrand of the ELBO's diffusion term, in nats; with the mean over
coordinates, in nats per coordinate. sigmoid tends to elbo as b → ∞.

At α = 0 the weights truncated_snr, elbo and sigmoid are infinite on eps and on the score, which say nothing about x_0
there, and finite on x0, v and velocity. At σ = 0 many are infinite, and there is no noise to estimate: `for_target`
makes them 0. This is t = 0, and any time that float32 rounds to it on a discrete schedule.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; Kingma et al. 2021, "Variational Diffusion Models";
Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"; Choi et al. 2022, "Perception
Prioritized Training of Diffusion Models"; Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
Strategy"; Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation";
Hoogeboom et al. 2024, "Simpler Diffusion".
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.processes.parameterization import canonical
from jaxdiff.schedules import Schedule, rates
from jaxdiff.typing import Count, InputError, Scalar, Time, checked


class Weights(NamedTuple):
    """One weight, for the squared errors of eps and of x0, with x0 = SNR·eps. At an end one may be infinite or 0."""

    eps: Scalar
    x0: Scalar


Weighting = Callable[[Schedule, Time], Weights]


def _of_snr(weigh: Callable[[Scalar], Weights]) -> Weighting:
    return lambda schedule, t: weigh(_snr(schedule, t))


def simple() -> Weighting:
    """Return the weight 1 on eps."""
    return _of_snr(lambda snr: Weights(jnp.ones_like(snr), snr))


def truncated_snr() -> Weighting:
    """Return the weight max(SNR, 1) on x_0, which keeps high noise levels in the loss."""
    return _of_snr(lambda snr: Weights(jnp.maximum(1, 1 / snr), jnp.maximum(snr, 1)))


def min_snr(gamma: float = 5.0) -> Weighting:
    """Return the weight min(SNR, γ) on x_0, which limits low noise levels; 0 < gamma < inf."""
    gamma = _check("min_snr", "gamma", gamma, above=0)
    return _of_snr(lambda snr: Weights(jnp.minimum(1, gamma / snr), jnp.minimum(snr, gamma)))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Return the weight 1/(k + SNR)^γ on eps; gamma and k are above 0 and finite."""
    gamma, k = _check("p2", "gamma", gamma, above=0), _check("p2", "k", k, above=0)

    def weigh(snr: Scalar) -> Weights:
        weight = (k + snr) ** -gamma
        return Weights(weight, weight * snr)

    return _of_snr(weigh)


def elbo(num_timesteps: Count | None = None) -> Weighting:
    """Return the weight of the ELBO's diffusion term.

    The time t is uniform in (0, 1] or, if `num_timesteps` is a number T >= 1, on {1/T, …, 1}. If σ_0 = 0, the term at
    t = 1/T is the likelihood of a decoder and not a squared error, and its weight is 0.
    """
    if num_timesteps is None:
        return _diffusion_term
    T = _check("elbo", "num_timesteps", num_timesteps, above=0, kind=Count)

    def weigh(schedule: Schedule, t: Time) -> Weights:
        s = jnp.where(t * T < 1.01, 0, t - 1 / T)  # 1/T may be rounded
        eps = jnp.expm1(schedule.log_snr(s) - schedule.log_snr(t))
        x0 = _snr(schedule, s) - _snr(schedule, t)
        noiseless = schedule.sigma(s) == 0
        return Weights(*(jnp.where(noiseless, 0, T / 2 * weight) for weight in (eps, x0)))

    return weigh


def sigmoid(bias: float = 2.0) -> Weighting:
    """Return the weight of the ELBO times S(b − λ), which cuts it off above the log-SNR `bias`, b, a finite number."""
    bias = _check("sigmoid", "bias", bias, above=-math.inf)

    def weigh(schedule: Schedule, t: Time) -> Weights:
        share = jax.nn.sigmoid(bias - schedule.log_snr(t))
        eps, x0 = _diffusion_term(schedule, t)
        return Weights(share * eps, share * x0)

    return weigh


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": simple,
    "snr": simple,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr,
    "p2": p2,
    "elbo": elbo,
    "sigmoid": sigmoid,
}


def for_target(target: str, weights: Weights, *, t: Time, schedule: Schedule) -> Scalar:
    """Return the weight on the squared error of a target, 0 where σ = 0; an unknown target raises an `InputError`."""
    target = canonical(target, what="target")
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if target in ("eps", "x0"):
        weight = getattr(weights, target)
    elif target == "score":
        weight = sigma**2 * weights.eps
    else:
        # The error of v is (α² + σ²)/α times that of n̂ and −(α² + σ²)/σ times that of x̂_0; velocity has ασ' − σα' in
        # place of α² + σ². The one with the larger divisor has a finite weight.
        factor = _determinant(schedule, t) if target == "velocity" else alpha**2 + sigma**2
        weight = jnp.where(alpha > sigma, alpha**2 * weights.eps, sigma**2 * weights.x0) / factor**2
    return jnp.where(sigma == 0, 0, weight)


def _diffusion_term(schedule: Schedule, t: Time) -> Weights:
    """Return −½ λ' = σ'/σ − α'/α, and −½ SNR'."""
    alpha, sigma, det = schedule.alpha(t), schedule.sigma(t), _determinant(schedule, t)
    return Weights(det / (alpha * sigma), det * alpha / sigma**3)


def _determinant(schedule: Schedule, t: Time) -> Scalar:
    """Return ασ' − σα'."""
    d_alpha, d_sigma = rates(schedule, t)
    return schedule.alpha(t) * d_sigma - schedule.sigma(t) * d_alpha


def _snr(schedule: Schedule, t: Time) -> Scalar:
    return jnp.exp(schedule.log_snr(t))


def _check(weight: str, option: str, value: float, *, above: float, kind: Any = float) -> Any:
    value = checked(f"weight = {weight!r} with {option}", value, kind)
    if not above < value < math.inf:
        rule = "finite" if above == -math.inf else f"above {above}, and finite"
        raise InputError(f"weight = {weight!r} with {option} = {value}; {option} must be {rule}")
    return value
