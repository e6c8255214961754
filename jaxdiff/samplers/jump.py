"""The general jump from any t to any s < t.

    x_s = α_s g_s(x̂_0) + √(σ_s² − δ²) h_s(h_t⁻¹(n̂)) + τ z,    z = h_s(ε'),  ε' ~ N(0, I)

of which Gaussian diffusion is the case where g and h do nothing:

    x_s = α_s x̂_0 + √(σ_s² − δ²) n̂ + τ z,    z ~ N(0, I)

with, for α_{t|s} = α_t/α_s, σ²_{t|s} = σ_t² − α²_{t|s} σ_s² (β_t for neighbours) and β̃ = σ²_{t|s} σ_s²/σ_t²:

    DDIM(η)                     δ² = τ² = η² β̃          η = 0 is deterministic
    DDPM, small variance        δ² = τ² = β̃             the ancestral posterior; DDIM(1)
    DDPM, large variance        δ² = β̃, τ² = σ²_{t|s}
    DDPM, between               δ² = β̃, τ² = β̃^{1−v} (σ²_{t|s})^v       v fixed, or said by the network
    mixed                       δ² = τ² = ρ² σ_s²        DDIM(η) is this with ρ = η σ_{t|s}/σ_t
    fresh noise                 δ² = τ² = σ_s²           mixed with ρ = 1: no n̂ at all
    transported                 δ² = τ² = 0              mixed with ρ = 0: DDIM(0), for any process

The jump to t = 0 adds no noise: it returns the mean. Where α_t = 0, α_{t|s} is 0 for every s.

The residual rule of Bansal et al. 2022, x_s = x_t − D(x̂_0, t) + D(x̂_0, s) with D(x, t) = α_t g_t(x) + σ_t n̂, is the
transported one: n̂ of an x̂_0 is what x_t leaves over, (x_t − α_t g_t(x̂_0))/σ_t, so that D(x̂_0, t) = x_t. It asks for no
inverse of g. Where h does not change with t, n̂ stays as it is, whether h has an inverse or not.

All rows keep the mean and the variance of the noise, given n̂ with these; its law only fresh noise keeps, any ρ where
it is normal, and ρ = 0 where n̂ is the noise itself.

Sources: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models" (equations 12 and 16); Ho et al. 2020
(equation 7 and section 3.2); Nichol & Dhariwal 2021 (equation 15); Bansal et al. 2022, "Cold Diffusion: Inverting
Arbitrary Image Transforms Without Noise" (algorithm 2).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.processes import Process
from jaxdiff.schedules import Schedule, check_times
from jaxdiff.typing import Denoiser, Prediction, Time


def posterior_variances(schedule: Schedule, t: Time, s: Time) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(σ²_{t|s}, β̃): the variances of q(x_t|x_s) and of q(x_s|x_t, x_0), for scalars s < t."""
    variance_t, variance_s = schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
    transition = variance_t - (schedule.alpha(t) / schedule.alpha(s)) ** 2 * variance_s
    transition = jnp.maximum(transition, 0)  # rounding, when s is next to t
    return transition, transition * variance_s / variance_t


def jump(
    prediction: Prediction,
    process: Process,
    *,
    t: Time,
    s: Time,
    removed: Float[Array, ""],
    added: Float[Array, ""] | Float[Array, "*shape"],
    z: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """x_s from the hub: `removed` is δ² and `added` is τ² in the module's equation, `z` the fresh noise."""
    direction = jnp.sqrt(jnp.maximum(process.schedule.sigma(s) ** 2 - removed, 0))
    kept = process.transport(prediction.noise, t, s)
    mean = process.schedule.alpha(s) * process.signal(prediction.x0, s) + direction * kept
    return mean + jnp.where(s > 0, jnp.sqrt(added), 0) * z


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Jump:
    """δ² = η² β̃, τ² = η² β̃^{1−v} (σ²_{t|s})^v, v the network's where None. Make one with `ddim` or `ddpm`."""

    eta: float
    v: float | None

    def init(self, x: Float[Array, "*shape"]) -> None:
        """It carries no state."""

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: None,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], None]:
        check_times(t, s)
        prediction = denoise(x_t, t)
        transition, posterior = posterior_variances(process.schedule, t, s)
        v = prediction.variance_mix if self.v is None else self.v
        if v is None:
            raise ValueError(
                "variance = 'learned', but this network does not predict it; "
                "train one with learned_variance, or ask for 'small', 'large' or a number in [0, 1]"
            )
        x_s = jump(
            prediction,
            process,
            t=t,
            s=s,
            removed=self.eta**2 * posterior,
            added=self.eta**2 * posterior ** (1 - v) * transition**v,
            z=process.noise(key, x_t.shape, s),
        )
        return x_s, None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """δ² = τ² = ρ² σ_s². Make one with `mixed`, `fresh` or `transported`."""

    rho: float

    def init(self, x: Float[Array, "*shape"]) -> None:
        """It carries no state."""

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: None,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], None]:
        check_times(t, s)
        prediction, z, sigma = denoise(x_t, t), process.noise(key, x_t.shape, s), process.schedule.sigma(s)
        if self.rho == 1:  # nothing of n̂ is kept, so that a law that changes needs no inverse
            mean = process.schedule.alpha(s) * process.signal(prediction.x0, s)
            return mean + jnp.where(s > 0, sigma, 0) * z, None
        variance = (self.rho * sigma) ** 2
        return jump(prediction, process, t=t, s=s, removed=variance, added=variance, z=z), None


def ddim(eta: float = 0.0) -> Jump:
    """DDIM: deterministic at η = 0, the ancestral sampler at η = 1 (Song, Meng & Ermon 2021).

    Raises:
      ValueError: for η outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}; the rule is 0 <= eta <= 1")
    return Jump(eta=float(eta), v=0.0)


def ddpm(variance: str | float = "small") -> Jump:
    """The ancestral sampler of Ho et al. 2020, for any grid of steps.

    Args:
      variance: "small" for β̃, "large" for σ²_{t|s} (β_t for neighbours), v in [0, 1] for β̃^{1−v} (σ²_{t|s})^v, or
        "learned" for a v that the network says for every coordinate. Sampling raises a ValueError where it does not.

    Raises:
      ValueError: for anything else.
    """
    if variance == "learned":
        return Jump(eta=1.0, v=None)
    v = {"small": 0.0, "large": 1.0}.get(variance, variance) if isinstance(variance, str) else variance
    if isinstance(v, str) or not 0 <= v <= 1:
        raise ValueError(f"variance = {variance!r}; give 'small', 'large', 'learned' or a number in [0, 1]")
    return Jump(eta=1.0, v=float(v))


def fresh() -> Mixed:
    """Noise the estimate x̂_0 anew to time s, keeping nothing of n̂.

    It does not sample the data's law: x̂_0 is a posterior mean, narrower than the data, so that what comes out is
    too narrow, however many the steps; with few, means between the modes are left over. It is the rule that needs no
    posterior, for any noise law.
    """
    return Mixed(rho=1.0)


def transported() -> Mixed:
    """Move the estimates x̂_0 and n̂ to time s, adding nothing: deterministic, for any process.

    It is DDIM(0) in general form, and the residual rule of Bansal et al. 2022. Of a g without inverse it gives what the
    start held: see `jaxdiff.Perturbed`.
    """
    return Mixed(rho=0.0)


residual = transported  # by the name of Bansal et al.


def mixed(rho: float = 0.5) -> Mixed:
    """√(1 − ρ²) of the estimated noise and ρ of fresh noise.

    It keeps the law of the noise only where that is normal (and n̂ were the noise itself); of another law the sum is
    nearer to the normal one. Mean and variance it keeps always.

    Args:
      rho: from 0, `transported`, to 1, `fresh`.

    Raises:
      ValueError: for ρ outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho = {rho}; the rule is 0 <= rho <= 1")
    return Mixed(rho=float(rho))
