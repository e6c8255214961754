"""Noise schedules: the α_t and σ_t of x_t = α_t x_0 + σ_t n, for t in [0, 1].

    λ_t = log(α_t²/σ_t²)      log-SNR, strictly falling in t; t = 0 is data (σ_0 = 0, λ_0 = ∞ unless said otherwise)
    variance preserving       α² + σ² = 1, so that log α = −½ softplus(−λ) and σ² = −expm1(2 log α)

A discrete schedule of T steps (`linear`, `cosine`, `discrete`) puts its step k = 0…T at t = k/T with α = √ᾱ_k and
ᾱ_0 = 1. Between steps log α is interpolated linearly, so that it is a continuous schedule as well: it has a log-SNR,
an inverse and a (one-sided) derivative everywhere, and it is exact at every step.

Every schedule is a pytree: it passes through `jax.jit`, and arrays in it can be learned. It computes in the dtype of
`t` (float32 for a Python number, float64 under x64).

The log-SNR at both ends, with the defaults (T = 1000):

    linear, cosine      ∞        −10.1, −19.8     ᾱ_T = 4.04e-5; `beta_max` keeps that of the cosine above 0
    vp                  ∞        −10.0
    sigmoid             ∞        −20              `log_snr_min`; α_1 = 0 as published
    truncated_cosine    20       −20              `log_snr_max`, `log_snr_min`; ±∞ untruncated
    ve                  ∞        −7.8             −2 log σ_max
    edm                 12.4     −8.8             −2 log σ_min, −2 log σ_max
    flow                ∞        −∞
    learned             13.3     −5               `log_snr_max`, `log_snr_min`, or learned

λ_0 = ∞ is σ_0 = 0: the last jump ends on clean data and training never draws t = 0 (`time_sampling`), but dλ/dt is
infinite there, and a grid in λ must stop at a t > 0. Where λ_0 is finite, the data at t = 0 hold a noise of σ_0 =
4.5e-5 (truncated cosine), 2e-3 (EDM) or 1.3e-3 (learned), and a likelihood must count it. λ_1 = −∞ is α_1 = 0, where
eps and the score say nothing of x_0: predict v or velocity, or take a schedule that ends before. A finite λ_1 leaves
e^{λ_1/2} of the data, relative to the noise, in x_1, and samplers neglect it: 6e-3 for the linear schedule, but 0.08
for the learned one, whose −5 is made for a bound that counts it; lower it to sample. The sigmoid falls from −8 to −20
in the last thousandth of t, the cosine from −13: a sampler's first jump leaps over that.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (linear); Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models" (cosine); Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations" (variance preserving and exploding); Ho & Salimans 2022, "Classifier-Free Diffusion
Guidance" (the truncated cosine); Jabri, Fleet & Chen 2022, "Scalable Adaptive Computation for Iterative Generation",
and Chen 2023, "On the Importance of Noise Scheduling for Diffusion Models" (sigmoid); Karras et al. 2022, "Elucidating
the Design Space of Diffusion-Based Generative Models" (EDM); Liu et al. 2023, "Flow Straight and Fast" (rectified
flow); Kingma et al. 2021, "Variational Diffusion Models" (learned).
"""

from collections.abc import Callable

from jaxdiff.schedules.base import Schedule, Times, Values, VariancePreserving, check_times, log_snr_rate, rates
from jaxdiff.schedules.continuous import EDM, VE, VP, Flow, Sigmoid, TruncatedCosine
from jaxdiff.schedules.network import Learned, learned
from jaxdiff.schedules.tables import Discrete, cosine, discrete, linear

__all__ = [
    "EDM",
    "REGISTRY",
    "VE",
    "VP",
    "Discrete",
    "Flow",
    "Learned",
    "Schedule",
    "Sigmoid",
    "Times",
    "TruncatedCosine",
    "Values",
    "VariancePreserving",
    "check_times",
    "cosine",
    "discrete",
    "learned",
    "linear",
    "log_snr_rate",
    "rates",
]

# Those that plain numbers make; `learned` is drawn, and a config can name it too.
REGISTRY: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "vp": VP,
    "sigmoid": Sigmoid,
    "truncated_cosine": TruncatedCosine,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
}
