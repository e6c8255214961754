"""Training losses, for one sample.

    simple     L = mean over coordinates of (y(x_0, n) − y(x̂_0, n̂))²    at x_t = α_t x_0 + σ_t n
    weighted   L = w(t) · mean over coordinates of (n − n̂)²             w from `jaxdiff.weightings`

where y is the space in which the error is measured, any of `jaxdiff.parameterization.KINDS`. With y = eps this is
L_simple of Ho et al. 2020 (equation 14). Every space is a weight on every other: with e the error of x̂_0 at fixed
x_t, the error of n̂ is −(α/σ) e, of the score (α/σ²) e, of v −((α² + σ²)/σ) e and of the velocity
(α' − σ'α/σ) e. So simple is another loss in every space; weighted is one loss whatever the space in which its error
is measured, up to rounding.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.parameterization import Kind, from_prediction
from jaxdiff.processes import Process
from jaxdiff.schedules import check_times
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time
from jaxdiff.weightings import Weighting, in_space


def simple(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "*shape"],
    t: Time,
    *,
    key: Key[Array, ""],
    cond: PyTree = None,
    space: Kind = "eps",
) -> Float[Array, ""]:
    """The squared error of the denoiser on one noised sample, averaged over coordinates.

    Args:
      denoiser: the model.
      process: the forward process.
      x0: one clean sample.
      t: the time to noise it to, a scalar in (0, 1].
      key: draws the noise.
      cond: the sample's condition, None if there is none.
      space: where the error is measured; "eps" is L_simple.

    Returns:
      A scalar, float32 (float64 under x64).

    Raises:
      ValueError: for t outside [0, 1], where it is known when the loss is traced.
    """
    check_times(t)
    noise = process.noise(key, x0.shape)
    prediction = denoiser(process.corrupt(x0, noise, t), t, cond)
    target = from_prediction(space, Prediction(x0, noise), t=t, schedule=process.schedule)
    output = from_prediction(space, prediction, t=t, schedule=process.schedule)
    return jnp.mean((target - output) ** 2)


def weighted(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "*shape"],
    t: Time,
    *,
    key: Key[Array, ""],
    weight: Weighting,
    cond: PyTree = None,
    space: Kind = "eps",
) -> Float[Array, ""]:
    """The squared error of n̂ on one noised sample, averaged over coordinates, times the weight of t.

    Args:
      denoiser: the model.
      process: the forward process.
      x0: one clean sample.
      t: the time to noise it to, a scalar in (0, 1].
      key: draws the noise.
      weight: of the time: see `jaxdiff.weightings`.
      cond: the sample's condition, None if there is none.
      space: where the error is measured before it is made that of n̂. Only rounding depends on it, and what is infinite
        at the ends of the path: what the network predicts is best.

    Returns:
      A scalar, float32 (float64 under x64).

    Raises:
      ValueError: for t outside [0, 1], where it is known when the loss is traced.
    """
    check_times(t)
    factor = in_space(space, weight(process.schedule, t), t=t, schedule=process.schedule)
    return factor * simple(denoiser, process, x0, t, key=key, cond=cond, space=space)
