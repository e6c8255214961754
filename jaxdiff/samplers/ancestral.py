"""The general step from any t to any s < t.

    x_s = α_s g_s(x̂_0) + √(σ_s² − δ²) h_s(h_t⁻¹(n̂)) + τ z,    z = h_s(ε'),  ε' ~ N(0, I)

In Gaussian diffusion g and h do nothing:

    x_s = α_s x̂_0 + √(σ_s² − δ²) n̂ + τ z,    z ~ N(0, I)

With α_{t|s} = α_t/α_s, σ²_{t|s} = σ_t² − α²_{t|s} σ_s² (β_t for neighbours) and β̃ = σ²_{t|s} σ_s²/σ_t²:

    DDIM(η)                     δ² = τ² = η² β̃          η = 0 is deterministic
    DDPM, small variance        δ² = τ² = β̃             the ancestral posterior; DDIM(1)
    DDPM, large variance        δ² = β̃, τ² = σ²_{t|s}
    DDPM, between               δ² = β̃, τ² = β̃^{1−v} (σ²_{t|s})^v       v fixed, or predicted by the network
    Interpolated(ρ)             δ² = τ² = ρ² σ_s²        DDIM(η) is ρ = η σ_{t|s}/σ_t
    Renoise                     δ² = τ² = σ_s²           ρ = 1: n̂ is not used
    Deterministic               δ² = τ² = 0              ρ = 0: DDIM(0), for any process

The step to t = 0 adds no noise: it returns the mean. Where α_t = 0, α_{t|s} is 0 for every s.

The residual rule of Bansal et al. 2022, x_s = x_t − D(x̂_0, t) + D(x̂_0, s) with D(x, t) = α_t g_t(x) + σ_t n̂, is the
deterministic step: n̂ inferred from x̂_0 is (x_t − α_t g_t(x̂_0))/σ_t, so that D(x̂_0, t) = x_t. It needs no inverse of
g, nor of h if h is constant in t.

If n̂ has the mean and the variance of the noise, the rows with δ² = τ² keep both. Renoise keeps the distribution of the
noise, as does any ρ if the noise is normal, and ρ = 0 if n̂ is the noise itself.

Sources: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (equations 12 and 16); Ho et al. 2020
(equation 7 and section 3.2); Nichol & Dhariwal 2021 (equation 15); Bansal et al. 2022, "Cold Diffusion: Inverting
Arbitrary Image Transforms Without Noise" (algorithm 2).
"""

from typing import Any

import jax.numpy as jnp

from jaxdiff.processes import Denoiser, Process
from jaxdiff.samplers.base import Stateless, static_dataclass
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, Prediction, RandomKey, Sample, Scalar, Time


def posterior_variances(schedule: Schedule, t: Time, s: Time) -> tuple[Scalar, Scalar]:
    """Return (σ²_{t|s}, β̃), the variances of q(x_t|x_s) and of q(x_s|x_t, x_0), for scalars s < t."""
    variance_t, variance_s = schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
    transition = variance_t - (schedule.alpha(t) / schedule.alpha(s)) ** 2 * variance_s
    transition = jnp.maximum(transition, 0)  # rounding, when s is next to t
    return transition, transition * variance_s / variance_t


def reverse_step(
    prediction: Prediction, process: Process, *, t: Time, s: Time, removed: Scalar, added: Scalar | Sample, z: Sample
) -> Sample:
    """Return x_s by the module's equation, with `removed` for δ², `added` for τ² and z the fresh noise."""
    direction = jnp.sqrt(jnp.maximum(process.schedule.sigma(s) ** 2 - removed, 0))
    kept = process.quantile_map(prediction.noise, t, s)
    mean = process.schedule.alpha(s) * process.transform(prediction.x0, s) + direction * kept
    return mean + jnp.where(s > 0, jnp.sqrt(added), 0) * z


@static_dataclass
class DDIM(Stateless):
    """DDIM: deterministic at η = 0, the ancestral sampler at η = 1 (Song, Meng & Ermon 2021)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta = {self.eta}; must satisfy 0 <= eta <= 1")

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        return _ancestral(key, denoiser(x_t, t), denoiser.process, t=t, s=s, eta=self.eta, v=0.0)


_VARIANCES = {"small": 0.0, "large": 1.0}


@static_dataclass
class DDPM(Stateless):
    """The ancestral sampler of Ho et al. 2020, for any timesteps.

    Args:
      variance: "small" for β̃, "large" for σ²_{t|s} (β_t for neighbours), v in [0, 1] for β̃^{1−v} (σ²_{t|s})^v, or
        "learned" for the v that the network predicts for every coordinate; a network that predicts none is refused.
    """

    variance: str | float = "small"

    def __post_init__(self) -> None:
        v = self.variance
        if not (v in ("learned", *_VARIANCES) if isinstance(v, str) else 0 <= v <= 1):
            raise InputError(f"variance = {v!r}; give 'small', 'large', 'learned' or a number in [0, 1]")

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        prediction = denoiser(x_t, t)
        learned: Any = prediction.variance_mix
        v = _VARIANCES.get(self.variance, learned) if isinstance(self.variance, str) else self.variance
        if v is None:
            raise InputError(
                "variance = 'learned', but this network does not predict it; "
                "train one with learned_variance, or use 'small', 'large' or a number in [0, 1]"
            )
        return _ancestral(key, prediction, denoiser.process, t=t, s=s, eta=1.0, v=v)


def _ancestral(
    key: RandomKey, prediction: Prediction, process: Process, *, t: Time, s: Time, eta: float, v: float | Sample
) -> Sample:
    """Return x_s for δ² = η² β̃, τ² = η² β̃^{1−v} (σ²_{t|s})^v."""
    transition, posterior = posterior_variances(process.schedule, t, s)
    removed, added = eta**2 * posterior, eta**2 * posterior ** (1 - v) * transition**v
    z = process.sample_noise(key, prediction.x0.shape, s)
    return reverse_step(prediction, process, t=t, s=s, removed=removed, added=added, z=z)


@static_dataclass
class Interpolated(Stateless):
    """Keep √(1 − ρ²) of the estimated noise and add ρ of fresh noise, for ρ from 0 (`Deterministic`) to 1 (`Renoise`).

    The sum has the mean and the variance of the noise, but is nearer to normal unless the noise is normal.
    """

    rho: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise InputError(f"rho = {self.rho}; must satisfy 0 <= rho <= 1")

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        process = denoiser.process
        prediction, z = denoiser(x_t, t), process.sample_noise(key, x_t.shape, s)
        sigma = process.schedule.sigma(s)
        if self.rho == 1:  # no n̂ is kept, so that time-dependent noise needs no inverse
            mean = process.schedule.alpha(s) * process.transform(prediction.x0, s)
            return mean + jnp.where(s > 0, sigma, 0) * z
        variance = (self.rho * sigma) ** 2
        return reverse_step(prediction, process, t=t, s=s, removed=variance, added=variance, z=z)


@static_dataclass
class Renoise(Stateless):
    """Add fresh noise of time s to the estimate x̂_0; n̂ is not used.

    It works for any noise and needs no posterior, but does not sample the distribution of the data: x̂_0 is a posterior
    mean, so that the samples are too narrow for any number of steps, and a few steps leave means between modes.
    """

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        return Interpolated(1.0).advance(key, x_t, t=t, s=s, denoiser=denoiser)


@static_dataclass
class Deterministic(Stateless):
    """Map the estimates x̂_0 and n̂ to time s and add nothing: deterministic, for any process.

    It is DDIM(0) in general form, and the residual rule of Bansal et al. 2022. If g has no inverse, the samples depend
    on the start that is drawn: see `jaxdiff.Perturbed`.
    """

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        return Interpolated(0.0).advance(key, x_t, t=t, s=s, denoiser=denoiser)
