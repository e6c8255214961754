"""Samplers that add noise in other ways than the ancestral step: the reverse SDE, Langevin steps, and EDM's churn.

The forward process is the solution of dx = f x dt + g dw with

    f = d log α/dt,    g² = dσ²/dt − 2 f σ²

and, with the score s = −n̂/σ, an Euler–Maruyama step of the reverse process from t to s < t is

    x_s = x_t − (f x_t − g² s(x_t, t)) (t − s) + g √(t − s) z

The noise in it falls at the rate g²/σ² = −λ', so that it is unstable where −λ'(t − s) is large: near the noise of a
cosine or sigmoid schedule. Where −λ'(t − s) > 1 the step is the ancestral one instead, which has the exact variance.

A corrector moves x at a fixed time t towards its distribution there by Langevin steps,

    x ← x + ε s(x, t) + √(2ε) z,        ε = (r σ_t)²

Predictor–corrector (Song et al. 2021) makes such corrections after each step. Annealed Langevin dynamics (Song & Ermon
2019, for α = 1) has no predictor: it only rescales x to the new α. Both are exact only as r → 0 with ever more steps.
At s = 0 there is no score and no correction.

Without a predictor m corrections must take away the noise between two times, and shrink what is too much of it by the
factor q = e^{−2 m r²}. If the log-SNR rises by h in every step, the variance of the noise settles at 1 + e times σ_s²,

    e = q (e^h − 1)/(1 − q e^h)         if q e^h < 1; otherwise it grows from step to step

EDM's stochastic sampler (Karras et al. 2022, algorithm 2) adds fresh noise before each step, raising σ/α to
(1 + γ) σ/α, and takes the step of Heun's method from there.

Sources: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (equations 6 and
29, algorithms 2 to 5; their step is 2 (r |z|/|s|)², which for a score of white noise is 2 (r σ)²); Song & Ermon 2019,
"Generative Modeling by Estimating Gradients of the Data Distribution"; Karras et al. 2022, "Elucidating the Design
Space of Diffusion-Based Generative Models".
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.processes import Denoiser, Process, require_gaussian
from jaxdiff.samplers.ancestral import DDIM, posterior_variances, reverse_step
from jaxdiff.samplers.base import Sampler, Stateless, static_dataclass
from jaxdiff.samplers.ode import Heun
from jaxdiff.schedules import check_times, rates
from jaxdiff.typing import AtMost, Extended, InputError, RandomKey, Sample, Time, shown

Corrections = Annotated[int, AtMost(1000)]

_NO_NOISE = 0.01  # σ/α below which too much noise is not seen in data of unit variance


@static_dataclass
class ReverseSDE(Stateless):
    """Euler–Maruyama on the reverse SDE of Song et al. 2021: a slow reference, one network call per step."""

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        process = require_gaussian(denoiser.process)
        schedule, prediction = process.schedule, denoiser(x_t, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d_alpha, d_sigma = rates(schedule, t)
        f = d_alpha / alpha
        g2 = 2 * sigma * (d_sigma - f * sigma)
        z = process.sample_noise(key, x_t.shape)
        x_s = x_t - (f * x_t + g2 * prediction.noise / sigma) * (t - s) + jnp.sqrt(g2 * (t - s)) * z
        # At α_t = 0, f is infinite. The last step returns the estimate and adds no noise.
        stable = (alpha > 0) & (g2 * (t - s) <= sigma**2)
        _, posterior = posterior_variances(schedule, t, s)
        exact = reverse_step(prediction, process, t=t, s=s, removed=posterior, added=posterior, z=z)
        return jnp.where(s > 0, jnp.where(stable, x_s, exact), schedule.alpha(s) * prediction.x0)


@static_dataclass
class PredictorCorrector:
    """Predictor–corrector of Song et al. 2021: after each step of a sampler, Langevin steps at the time reached.

    The predictor is any other sampler. Each of the `corrections` is a network call; `snr` is r in ε = (r σ_s)².
    """

    corrections: Corrections = 1
    snr: float = 0.16
    predictor: Sampler = DDIM(eta=1.0)

    def __post_init__(self) -> None:
        if self.corrections < 1:
            raise InputError(f"corrections = {self.corrections}; take at least 1 Langevin step, or another sampler")
        if not 0 < self.snr < 10:  # Langevin steps diverge from 1 on
            raise InputError(f"snr = {self.snr}; the step size (snr·σ)² must be above 0, and snr below 10")
        if not isinstance(self.predictor, Sampler):
            raise InputError(f"predictor = {shown(self.predictor)}; it must be a sampler, such as DDIM()")

    def init(self, x: Sample) -> Any:
        """Return the state of the predictor."""
        return self.predictor.init(x)

    def step(
        self, key: RandomKey, x_t: Sample, state: Any, *, t: Time, s: Time, denoiser: Denoiser
    ) -> tuple[Sample, Any]:
        check_times(t, s)
        process = require_gaussian(denoiser.process)
        key_predict, key_correct = jax.random.split(key)
        x_s, state = self.predictor.step(key_predict, x_t, state, t=t, s=s, denoiser=denoiser)

        def correct(x: Sample, key: RandomKey) -> tuple[Sample, None]:
            sigma = process.schedule.sigma(s)
            size = self.snr**2 * sigma
            z = process.sample_noise(key, x.shape)
            return x - size * denoiser(x, s).noise + jnp.sqrt(2 * size * sigma) * z, None

        keys = jax.random.split(key_correct, self.corrections)
        return jax.lax.cond(s > 0, lambda: jax.lax.scan(correct, x_s, keys)[0], lambda: x_s), state


@static_dataclass
class Langevin(Stateless):
    """Annealed Langevin dynamics of Song & Ermon 2019: Langevin steps alone, at each of the timesteps.

    It needs many steps, or many corrections, and a schedule on which the log-SNR rises evenly: `jaxdiff.sample` refuses
    timesteps at which e is above 0.05. The step to t = 0 returns x̂_0. The fields are as for `PredictorCorrector`.
    """

    corrections: Corrections = 5
    snr: float = 0.16

    def __post_init__(self) -> None:
        PredictorCorrector(self.corrections, self.snr)  # validates the fields

    def check(self, times: np.ndarray, process: Process) -> None:
        """Raise an InputError if the corrections can't take the noise away as fast as the timesteps ask."""
        schedule = require_gaussian(process).schedule
        log_snr = np.asarray(schedule.log_snr(jnp.asarray(times, float)), np.float64)
        # From α_t = 0 x starts at the noise of s, and x̂_0 at s = 0 does not matter.
        counts = (times[1:] > 0) & (log_snr[1:] < -2 * math.log(_NO_NOISE)) & np.isfinite(log_snr[:-1])
        widest = max(np.diff(log_snr)[counts], default=0.0)
        # e <= 0.05 solved for q, and q for the number of corrections.
        needed = math.log((1.05 * math.exp(min(widest, 700)) - 1) / 0.05) / (2 * self.snr**2)
        if self.corrections < needed:
            raise InputError(
                f"sampler = langevin with corrections = {self.corrections}, snr = {self.snr} leaves too much noise: "
                f"the log-SNR of the schedule rises by {widest:.3g} in one step; use {math.ceil(needed)} corrections, "
                "more steps with timesteps = log_snr, or the sampler predictor_corrector"
            )

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        corrector = PredictorCorrector(self.corrections, self.snr, predictor=_Rescale())
        return corrector.step(key, x_t, None, t=t, s=s, denoiser=denoiser)[0]


@static_dataclass
class _Rescale(Stateless):
    """Rescale x to the new α, and return x̂_0 at s = 0."""

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        schedule = denoiser.process.schedule
        ratio = jnp.where(schedule.alpha(t) > 0, schedule.alpha(s) / schedule.alpha(t), 1.0)
        return jax.lax.cond(s > 0, lambda: ratio * x_t, lambda: schedule.alpha(s) * denoiser(x_t, t).x0)


@static_dataclass
class EDM(Stateless):
    """The stochastic sampler of Karras et al. 2022 (algorithm 2): two network calls per step (one in the last).

    Args:
      gamma: the factor 1 + gamma raises σ/α before each step; min(S_churn/N, √2 − 1) in the source, for N steps.
      low, high: S_tmin and S_tmax: σ/α is raised where low <= σ/α <= high.
      noise: S_noise, the standard deviation of the added noise.
    """

    gamma: float = 0.4
    low: Extended = 0.0
    high: Extended = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.noise < 0:
            raise InputError(f"gamma = {self.gamma}, noise = {self.noise}; both must be at least 0")
        if not 0 <= self.low <= self.high:
            raise InputError(f"low = {self.low}, high = {self.high}; must satisfy 0 <= low <= high")

    def advance(self, key: RandomKey, x_t: Sample, *, t: Time, s: Time, denoiser: Denoiser) -> Sample:
        process = require_gaussian(denoiser.process)
        schedule = process.schedule
        alpha, ratio = schedule.alpha(t), jnp.exp(-schedule.log_snr(t) / 2)
        raised = ratio * (1 + self.gamma)
        # No more noise than at t = 1: the model was trained with no more.
        within = (ratio >= self.low) & (ratio <= self.high) & (raised < jnp.exp(-schedule.log_snr(1.0) / 2))
        earlier = jnp.where(within, schedule.time(-2 * jnp.log(raised)), t)
        z = self.noise * process.sample_noise(key, x_t.shape)
        back = x_t / jnp.where(alpha > 0, alpha, 1) + jnp.sqrt(jnp.where(within, raised**2 - ratio**2, 0)) * z
        x = jnp.where(within, schedule.alpha(earlier) * back, x_t)
        return Heun().advance(key, x, t=earlier, s=s, denoiser=denoiser)
