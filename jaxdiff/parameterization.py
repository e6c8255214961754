"""Network output <-> the pair (x̂_0, n̂). One function each way, for one sample and scalar α, σ.

With x = α x_0 + σ n, α' = dα/dt and σ' = dσ/dt, a network may predict

    eps        n
    x0         x_0
    v          α n − σ x_0                (Salimans & Ho 2022, "Progressive Distillation")
    score      −n/σ = ∇log q(x_t|x_0)     (Song et al. 2021)
    velocity   dx/dt = α' x_0 + σ' n      (Liu et al. 2023; Lipman et al. 2023, "Flow Matching")

At the ends of the path a conversion divides by zero, where x itself does not hold what is asked for. There the
missing half is set to its expectation under centred data:

    α = 0 (pure noise)    eps and score tell n̂ but not x̂_0; x̂_0 = 0
    σ = 0 (pure data)     x0 and score tell x̂_0 but not n̂; n̂ = 0. velocity under an infinite σ' likewise.

v and velocity tell both halves at both ends, apart from that. A score at σ = 0 and a velocity under an infinite σ'
are themselves infinite: in a target the noise's part of them is set to 0 there. Near an end the same division
multiplies the network's error by 1/α or 1/σ; train and sample with a prediction that suits the schedule (v or
velocity where α_1 = 0).
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.schedules import Schedule, rates
from jaxdiff.typing import Prediction, Time

Kind = Literal["eps", "x0", "v", "score", "velocity"]
KINDS: tuple[str, ...] = get_args(Kind)


def to_prediction(
    kind: Kind,
    output: Float[Array, "*shape"],
    x_t: Float[Array, "*shape"],
    *,
    t: Time,
    schedule: Schedule,
) -> Prediction:
    """What a network said about one sample, as (x̂_0, n̂).

    Args:
      kind: what `output` estimates, one of `KINDS`.
      output: the network's output for this sample.
      x_t: the noisy sample.
      t: its time, a scalar in [0, 1].
      schedule: gives α and σ.

    Raises:
      ValueError: for an unknown `kind`.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "x0":
        return Prediction(output, noise_from_x0(output, x_t, t, schedule))
    if kind in ("eps", "score"):
        noise = output if kind == "eps" else -sigma * output
        return Prediction(_divide(x_t - sigma * noise, alpha), noise)
    if kind == "v":
        power = alpha**2 + sigma**2  # 1 where variance is preserved
        return Prediction((alpha * x_t - sigma * output) / power, (sigma * x_t + alpha * output) / power)
    if kind == "velocity":
        d_alpha, d_sigma = rates(schedule, t)
        # σ' may be infinite at σ = 0: there x_0 is x/α, and the noise formula gives 0 by itself.
        det = alpha * d_sigma - sigma * d_alpha
        finite = jnp.where(sigma > 0, d_sigma, 1)
        x0 = (finite * x_t - sigma * output) / jnp.where(sigma > 0, det, alpha)
        return Prediction(x0, (alpha * output - d_alpha * x_t) / det)
    raise ValueError(unknown(kind))


def from_prediction(kind: Kind, prediction: Prediction, *, t: Time, schedule: Schedule) -> Float[Array, "*shape"]:
    """The inverse of `to_prediction`: the output of kind `kind` that stands for this pair at time t.

    With the true (x_0, n) it gives the training target.

    Raises:
      ValueError: for an unknown `kind`.
    """
    x0, noise = prediction.x0, prediction.noise
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "eps":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * noise - sigma * x0
    if kind == "score":
        return -_divide(noise, sigma)
    if kind == "velocity":
        d_alpha, d_sigma = rates(schedule, t)
        return d_alpha * x0 + jnp.where(jnp.isinf(d_sigma), 0, d_sigma) * noise
    raise ValueError(unknown(kind))


def noise_from_x0(
    x0: Float[Array, "*shape"], x_t: Float[Array, "*shape"], t: Time, schedule: Schedule
) -> Float[Array, "*shape"]:
    """The noise that makes x_t out of x_0; 0 where σ_t = 0 and x_t holds none."""
    return _divide(x_t - schedule.alpha(t) * x0, schedule.sigma(t))


def unknown(kind: str) -> str:
    """The message for a kind that is not one of `KINDS`."""
    return f"{kind!r} is no parameterization; the known ones are {', '.join(KINDS)}"


def _divide(numerator: Float[Array, "*shape"], denominator: Float[Array, ""]) -> Float[Array, "*shape"]:
    """numerator/denominator, 0 where the denominator is 0, with a gradient that is finite there too."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
