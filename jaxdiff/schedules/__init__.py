"""Noise schedules: the α_t and σ_t of x_t = α_t x_0 + σ_t n, for t in [0, 1].

    λ_t = log(α_t²/σ_t²)      log-SNR, strictly falling in t; t = 0 is data (σ_0 = 0, λ_0 = ∞ unless noted below)
    variance preserving       α² + σ² = 1, so that log α = −½ softplus(−λ) and σ² = −expm1(2 log α)

A discrete schedule (`Linear`, `Cosine`, `Discrete`) has step k = 0…T at t = k/T with α = √ᾱ_k and ᾱ_0 = 1. Linear
interpolation of log α makes it continuous too: exact at steps, with an inverse and one-sided derivatives everywhere.

Every schedule is a pytree and passes through `jax.jit`. The arrays of `Learned` are its leaves; all other numbers are
compiled in. Results have the dtype of `t` (float32 for a Python number, float64 under x64).

The log-SNR at both ends, with the defaults (T = 1000):

    linear, cosine      ∞        −10.1, −19.8     ᾱ_T = 4.04e-5; `beta_max` keeps the cosine's above 0
    vp                  ∞        −10.0
    sigmoid             ∞        −20              `log_snr_min`; published with α_1 = 0
    truncated_cosine    20       −20              `log_snr_max`, `log_snr_min`; ±∞ untruncated
    ve                  ∞        −7.8             −2 log σ_max
    edm                 12.4     −8.8             −2 log σ_min, −2 log σ_max
    flow                ∞        −∞
    learned             13.3     −5               `log_snr_max`, `log_snr_min`, or learned

λ_0 = ∞ means σ_0 = 0: the last sampling step ends on clean data, training never draws t = 0 (`time_sampling`), dλ/dt is
infinite at 0, and timesteps uniform in λ must stop at a t > 0. If λ_0 is finite, likelihoods must account for the noise
left at t = 0: σ_0 is 4.5e-5 (truncated cosine), 2e-3 (EDM) or 1.3e-3 (learned).

λ_1 = −∞ means α_1 = 0, where eps and the score do not determine x_0: predict v or velocity, or use a schedule with
α_1 > 0. If λ_1 is finite, samplers neglect the data left in x_1, relative to the noise e^{λ_1/2}: 6e-3 for the linear
schedule but 0.08 for the learned one. Its −5 is meant for a bound that accounts for it; lower it for sampling. Within
the last thousandth of t, which a sampler crosses in its first step, λ falls from −8 (sigmoid) or −13 (cosine) to −20.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (linear); Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models" (cosine); Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations" (variance preserving and exploding); Ho & Salimans 2022, "Classifier-Free Diffusion
Guidance" (the truncated cosine); Jabri, Fleet & Chen 2022, "Scalable Adaptive Computation for Iterative Generation",
and Chen 2023, "On the Importance of Noise Scheduling for Diffusion Models" (sigmoid); Karras et al. 2022, "Elucidating
the Design Space of Diffusion-Based Generative Models" (EDM); Liu et al. 2023, "Flow Straight and Fast" (rectified
flow); Kingma et al. 2021, "Variational Diffusion Models" (learned).
"""

from collections.abc import Callable

from jaxdiff.schedules.base import (
    Schedule,
    Times,
    Values,
    VariancePreserving,
    as_time,
    check_time,
    check_times,
    known_log_snr,
    log_snr_rate,
    rates,
)
from jaxdiff.schedules.continuous import EDM, VE, VP, Flow, Sigmoid, TruncatedCosine
from jaxdiff.schedules.discrete import Cosine, Discrete, Linear
from jaxdiff.schedules.learned import Learned

__all__ = ["SCHEDULES", "Schedule", "Times", "Values", "VariancePreserving", "as_time"]
__all__ += ["check_time", "check_times"]
__all__ += ["known_log_snr", "log_snr_rate", "rates"]
__all__ += ["EDM", "VE", "VP", "Cosine", "Discrete", "Flow", "Learned", "Linear", "Sigmoid", "TruncatedCosine"]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "vp": VP,
    "sigmoid": Sigmoid,
    "truncated_cosine": TruncatedCosine,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "learned": Learned.init,
}
