"""Weights on the squared error, as functions of the log-SNR λ: the same loss for any network and any target.

Let e be the error of x̂_0 at a fixed x_t; that of n̂ is −(α/σ) e. A weight w on the squared error of eps is thus the
weight SNR·w on that of x_0, SNR = e^λ = α²/σ². The objective is E_t[w(t) ‖n − n̂‖²], t uniform:

                   on eps                       on x_0
    simple, snr    1                            SNR                   (Ho et al. 2020; Salimans & Ho 2022, "SNR")
    truncated_snr  max(1, 1/SNR)                max(SNR, 1)           (Salimans & Ho 2022)
    min_snr        min(1, γ/SNR)                min(SNR, γ)           (Hang et al. 2023)
    p2             1/(k + SNR)^γ                SNR/(k + SNR)^γ       (Choi et al. 2022, on L_simple)
    elbo           −½ λ'                        −½ SNR'               (Kingma et al. 2021)
    elbo of T      T/2 (SNR_s/SNR_t − 1)        T/2 (SNR_s − SNR_t)   (the same, s = t − 1/T)
    sigmoid        −½ λ' S(b − λ)               −½ SNR' S(b − λ)      (Kingma & Gao 2023; Hoogeboom et al. 2024)

with ' for d/dt and S the logistic function. The first four are functions of λ alone, so that E_t over a uniform t
gives another loss under another schedule. elbo and sigmoid include the density −λ' of λ: ∫ w dt = ∫ S(b − λ)/2 dλ
depends on the schedule only through its ends. elbo, summed over coordinates, is the integrand of the ELBO's diffusion
term, in nats; as means over coordinates, losses are in nats per coordinate. sigmoid tends to it as b → ∞.

At α = 0 the weights truncated_snr, elbo and sigmoid are infinite on eps and on the score, which say nothing about x_0
there, and finite on x0, v and velocity. At σ = 0 many are infinite, and the error of a noise is meaningless:
`for_target` makes them 0. That is t = 0, and on a discrete schedule in float32 what rounds to its time 0.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; Kingma et al. 2021, "Variational Diffusion Models";
Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"; Choi et al. 2022, "Perception
Prioritized Training of Diffusion Models"; Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
Strategy"; Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation";
Hoogeboom et al. 2024, "Simpler Diffusion".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.processes.parameterization import canonical
from jaxdiff.schedules import Schedule, rates
from jaxdiff.typing import InputError, Scalar, Time


class Weights(NamedTuple):
    """One weight, on two squared errors: x0 = SNR·eps. Both are kept because at an end one may be infinite or 0."""

    eps: Scalar
    x0: Scalar


Weighting = Callable[[Schedule, Time], Weights]


def simple() -> Weighting:
    """Return the weight 1 on eps."""

    def weigh(schedule: Schedule, t: Time) -> Weights:
        snr = _snr(schedule, t)
        return Weights(jnp.ones_like(snr), snr)

    return weigh


def truncated_snr() -> Weighting:
    """Return the weight max(SNR, 1) on x_0, which keeps high noise levels in the loss."""

    def weigh(schedule: Schedule, t: Time) -> Weights:
        snr = _snr(schedule, t)
        return Weights(jnp.maximum(1, 1 / snr), jnp.maximum(snr, 1))

    return weigh


def min_snr(gamma: float = 5.0) -> Weighting:
    """Return the weight min(SNR, γ) on x_0, which limits low noise levels; 0 < gamma < inf."""
    _check("min_snr", "gamma", gamma, above=0)

    def weigh(schedule: Schedule, t: Time) -> Weights:
        snr = _snr(schedule, t)
        return Weights(jnp.minimum(1, gamma / snr), jnp.minimum(snr, gamma))

    return weigh


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Return the weight 1/(k + SNR)^γ on eps; gamma and k are above 0 and finite."""
    _check("p2", "gamma", gamma, above=0)
    _check("p2", "k", k, above=0)

    def weigh(schedule: Schedule, t: Time) -> Weights:
        snr = _snr(schedule, t)
        weight = (k + snr) ** -gamma
        return Weights(weight, weight * snr)

    return weigh


def elbo(num_timesteps: int | None = None) -> Weighting:
    """Return the weight of the ELBO's diffusion term, for t uniform in (0, 1] or in {1/T, …, 1}.

    Args:
      num_timesteps: T >= 1 of an ELBO in discrete time. If σ_0 = 0 its first term has the weight 0: it is a decoder's
        likelihood, not a squared error. None is continuous time.
    """
    if num_timesteps is None:
        return _diffusion_term
    _check("elbo", "num_timesteps", num_timesteps, above=0)
    T = num_timesteps

    def weigh(schedule: Schedule, t: Time) -> Weights:
        s = jnp.where(t * T < 1.01, 0, t - 1 / T)  # 1/T may be rounded
        eps = jnp.expm1(schedule.log_snr(s) - schedule.log_snr(t))
        x0 = _snr(schedule, s) - _snr(schedule, t)
        noiseless = schedule.sigma(s) == 0
        return Weights(jnp.where(noiseless, 0, T / 2 * eps), jnp.where(noiseless, 0, T / 2 * x0))

    return weigh


def sigmoid(bias: float = 2.0) -> Weighting:
    """Return the weight of the ELBO times S(b − λ), with the −λ' that makes it a weight under uniform t.

    Args:
      bias: b, the log-SNR above which the weight of the ELBO is cut off; finite.
    """
    _check("sigmoid", "bias", bias, above=-math.inf)

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
    """Return the weight on the squared error of a target, one of `jaxdiff.parameterization.KINDS`.

    It is 0 where σ = 0, as x_t then holds no noise to estimate.

    Raises:
      InputError: if the target is unknown.
    """
    target = canonical(target, what="target")
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if target == "eps":
        weight = weights.eps
    elif target == "x0":
        weight = weights.x0
    elif target == "score":
        weight = sigma**2 * weights.eps
    else:
        # The error of v is (α² + σ²)/α times that of n̂ and −(α² + σ²)/σ times that of x̂_0; velocity has ασ' − σα' in
        # place of α² + σ². The one with the larger divisor has a finite weight.
        factor = alpha**2 + sigma**2
        if target == "velocity":
            d_alpha, d_sigma = rates(schedule, t)
            factor = alpha * d_sigma - sigma * d_alpha
        weight = jnp.where(alpha > sigma, alpha**2 * weights.eps, sigma**2 * weights.x0) / factor**2
    return jnp.where(sigma == 0, 0, weight)


def _diffusion_term(schedule: Schedule, t: Time) -> Weights:
    """Return −½ λ' = σ'/σ − α'/α, and −½ SNR'."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    d_alpha, d_sigma = rates(schedule, t)
    det = alpha * d_sigma - sigma * d_alpha
    return Weights(det / (alpha * sigma), det * alpha / sigma**3)


def _snr(schedule: Schedule, t: Time) -> Scalar:
    return jnp.exp(schedule.log_snr(t))


def _check(weight: str, option: str, value: float, *, above: float) -> None:
    if not above < value < math.inf:
        rule = "finite" if above == -math.inf else f"above {above}, and finite"
        raise InputError(f"weight = {weight!r} with {option} = {value}; {option} must be {rule}")
