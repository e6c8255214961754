"""Samplers that add noise in other ways than the jump: the reverse SDE, Langevin steps, and EDM's churn.

The forward process is the solution of dx = f x dt + g dw with

    f = d log α/dt,    g² = dσ²/dt − 2 f σ²

and with the score s = −n̂/σ the reverse one, by Euler and Maruyama from t to s < t, is

    x_s = x_t − (f x_t − g² s(x_t, t)) (t − s) + g √(t − s) z

A corrector moves x at a fixed time t by Langevin steps towards the law that it should have there,

    x ← x + ε s(x, t) + √(2ε) z,        ε = (r σ_t)²

Predictor–corrector (Song et al. 2021) follows each jump by such steps; annealed Langevin dynamics (Song & Ermon 2019,
for α = 1) has no predictor: x is only rescaled to the new α. Both stay exact only as r → 0, with more steps to match.
At s = 0 there is no score and no correction.

EDM's stochastic sampler (Karras et al. 2022, algorithm 2) takes x from σ/α back to (1 + γ) σ/α with fresh noise before
each step of Heun's method from there.

Sources: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (equations 6 and
29, algorithms 2 to 5; their step is 2 (r |z|/|s|)², which for a score of white noise is 2 (r σ)²); Song & Ermon 2019,
"Generative Modeling by Estimating Gradients of the Data Distribution"; Karras et al. 2022, "Elucidating the Design
Space of Diffusion-Based Generative Models".
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.processes import Process, gaussian
from jaxdiff.samplers.jump import ddim
from jaxdiff.samplers.loop import Sampler
from jaxdiff.samplers.ode import heun
from jaxdiff.schedules import check_times, rates
from jaxdiff.typing import Denoiser, Time


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """Euler–Maruyama on the reverse SDE: one network call a step. Make one with `reverse_sde`."""

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
        schedule = gaussian(process).schedule
        prediction = denoise(x_t, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d_alpha, d_sigma = rates(schedule, t)
        f = d_alpha / alpha
        g2 = 2 * sigma * (d_sigma - f * sigma)
        z = process.noise(key, x_t.shape)
        x_s = x_t - (f * x_t + g2 * prediction.noise / sigma) * (t - s) + jnp.sqrt(g2 * (t - s)) * z
        # At α_t = 0, f is infinite: there x_t is noise alone. To data no noise is added: the estimate is the result.
        x_s = jnp.where(alpha > 0, x_s, process.corrupt(prediction.x0, z, s))
        return jnp.where(s > 0, x_s, schedule.alpha(s) * prediction.x0), None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrected:
    """A predictor, and Langevin steps after it. Make one with `predictor_corrector` or `langevin`."""

    predictor: Sampler | None
    corrections: int
    snr: float

    def init(self, x: Float[Array, "*shape"]) -> Any:
        """The predictor's state."""
        return None if self.predictor is None else self.predictor.init(x)

    def step(
        self,
        key: Key[Array, ""],
        x_t: Float[Array, "*shape"],
        state: Any,
        *,
        t: Time,
        s: Time,
        denoise: Denoiser,
        process: Process,
    ) -> tuple[Float[Array, "*shape"], Any]:
        check_times(t, s)
        schedule = gaussian(process).schedule
        key_predict, key_correct = jax.random.split(key)
        if self.predictor is not None:
            x_s, state = self.predictor.step(key_predict, x_t, state, t=t, s=s, denoise=denoise, process=process)
        else:
            ratio = jnp.where(schedule.alpha(t) > 0, schedule.alpha(s) / schedule.alpha(t), 1.0)
            x_s = jax.lax.cond(s > 0, lambda: ratio * x_t, lambda: schedule.alpha(s) * denoise(x_t, t).x0)

        def correct(x: Float[Array, "*shape"], key: Key[Array, ""]) -> tuple[Float[Array, "*shape"], None]:
            size = self.snr**2 * schedule.sigma(s)
            z = process.noise(key, x.shape)
            return x - size * denoise(x, s).noise + jnp.sqrt(2 * size * schedule.sigma(s)) * z, None

        keys = jax.random.split(key_correct, self.corrections)
        return jax.lax.cond(s > 0, lambda: jax.lax.scan(correct, x_s, keys)[0], lambda: x_s), state


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Churn:
    """EDM's stochastic sampler. Make one with `edm`."""

    gamma: float
    low: float
    high: float
    noise: float

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
        schedule = gaussian(process).schedule
        alpha, ratio = schedule.alpha(t), jnp.exp(-schedule.log_snr(t) / 2)
        raised = ratio * (1 + self.gamma)
        # Not above the noise of t = 1, which is the most that the model knows.
        within = (ratio >= self.low) & (ratio <= self.high) & (raised < jnp.exp(-schedule.log_snr(1.0) / 2))
        earlier = jnp.where(within, schedule.time(-2 * jnp.log(raised)), t)
        z = self.noise * process.noise(key, x_t.shape)
        back = x_t / jnp.where(alpha > 0, alpha, 1) + jnp.sqrt(jnp.where(within, raised**2 - ratio**2, 0)) * z
        x = jnp.where(within, schedule.alpha(earlier) * back, x_t)
        return heun("x0").step(key, x, None, t=earlier, s=s, denoise=denoise, process=process)


def reverse_sde() -> ReverseSDE:
    """Euler–Maruyama on the reverse SDE of Song et al. 2021: slow to converge; the reference for those that aren't."""
    return ReverseSDE()


def predictor_corrector(corrections: int = 1, *, snr: float = 0.16, predictor: Sampler | None = None) -> Corrected:
    """Predictor–corrector of Song et al. 2021: after each jump, Langevin steps at the time reached.

    Args:
      corrections: Langevin steps after each jump, a network call each.
      snr: r in the step size ε = (r σ_s)².
      predictor: the sampler that jumps; `ddim(eta=1)`, ancestral sampling, if left out.

    Raises:
      ValueError: for corrections < 1 and snr not above 0.
    """
    return _corrected(ddim(eta=1.0) if predictor is None else predictor, corrections, snr)


def langevin(corrections: int = 5, *, snr: float = 0.16) -> Corrected:
    """Annealed Langevin dynamics of Song & Ermon 2019: at each time of the grid, Langevin steps alone.

    Made for variance-exploding schedules. The jump to t = 0 returns x̂_0.

    Raises:
      ValueError: for corrections < 1 and snr not above 0.
    """
    return _corrected(None, corrections, snr)


def edm(gamma: float = 0.4, *, low: float = 0.0, high: float = math.inf, noise: float = 1.0) -> Churn:
    """The stochastic sampler of Karras et al. 2022 (algorithm 2): two network calls a step (one in the last).

    Args:
      gamma: σ/α is raised by this share before each step: min(S_churn/N, √2 − 1) there, for N steps.
      low, high: where: S_tmin <= σ/α <= S_tmax.
      noise: the standard deviation of the noise that raises it, S_noise.

    Raises:
      ValueError: for gamma or noise below 0, and for low above high.
    """
    if gamma < 0 or noise < 0:
        raise ValueError(f"gamma = {gamma}, noise = {noise}; both must be at least 0")
    if not 0 <= low <= high:
        raise ValueError(f"low = {low}, high = {high}; the rule is 0 <= low <= high")
    return Churn(gamma=float(gamma), low=float(low), high=float(high), noise=float(noise))


def _corrected(predictor: Sampler | None, corrections: int, snr: float) -> Corrected:
    if corrections < 1:
        raise ValueError(f"corrections = {corrections}; take at least 1 Langevin step, or another sampler")
    if not snr > 0:
        raise ValueError(f"snr = {snr}; the step size (snr·σ)² must be above 0")
    return Corrected(predictor=predictor, corrections=corrections, snr=float(snr))
