"""Training losses, for one sample.

    simple     L = mean over coordinates of (y(x_0, n) − y(x̂_0, n̂))²    at x_t = α_t g_t(x_0) + σ_t n
    weighted   L = w(t) · mean over coordinates of (n − n̂)²             w from `jaxdiff.weightings`
    hybrid     L = simple or weighted + κ T · mean over coordinates of KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)),  s = t − 1/T

where y is the space in which the error is measured, any of `jaxdiff.parameterization.KINDS`. With y = eps this is
L_simple of Ho et al. 2020 (equation 14). Every space is a weight on every other: with e the error of x̂_0 at fixed
x_t, the error of n̂ is −(α/σ) e, of the score (α/σ²) e, of v −((α² + σ²)/σ) e and of the velocity
(α' − σ'α/σ) e. So simple is another loss in every space; weighted is one loss whatever the space in which its error
is measured, up to rounding. (Where g does something, the error of g_t(x̂_0) is in the place of e, and where g has no
inverse that is blind to what g leaves out: the space must be x0, where the weight is then one on the error of x̂_0.)

hybrid teaches the variance of the reverse step (Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic
Models", section 3.1): p has variance β̃^{1−v} (σ²_{t|s})^v with the network's v, no gradient reaches x̂_0 through the KL,
and κ is small. With ρ = σ²_{t|s}/β̃ = σ_t²/σ_s² each coordinate has

    KL = ½ [(SNR_s − SNR_t) (x_0 − x̂_0)² ρ^{−v} + v log ρ + ρ^{−v} − 1]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.parameterization import Kind, check, from_prediction, natural
from jaxdiff.processes import Process, bind, gaussian
from jaxdiff.schedules import Schedule, check_times
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
    space: Kind | None = None,
) -> Float[Array, ""]:
    """The squared error of the denoiser on one noised sample, averaged over coordinates.

    Args:
      denoiser: the model.
      process: the forward process.
      x0: one clean sample.
      t: the time to noise it to, a scalar in (0, 1].
      key: draws the noise.
      cond: the sample's condition, None if there is none.
      space: where the error is measured; "eps" is L_simple. None is that, or "x0" where g has no inverse.

    Returns:
      A scalar, float32 (float64 under x64).

    Raises:
      ValueError: for t outside [0, 1], where it is known when the loss is traced, for a process that is none (see
        `jaxdiff.Perturbed`) and for a space that can't work with it.
    """
    return _error(*_true_and_predicted(denoiser, process, x0, t, key=key, cond=cond), space=space, t=t)


def weighted(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "*shape"],
    t: Time,
    *,
    key: Key[Array, ""],
    weight: Weighting,
    cond: PyTree = None,
    space: Kind | None = None,
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
      ValueError: for t outside [0, 1], where it is known when the loss is traced, for a process that is none (see
        `jaxdiff.Perturbed`) and for a space that can't work with it.
    """
    return _error(*_true_and_predicted(denoiser, process, x0, t, key=key, cond=cond), space=space, t=t, weight=weight)


def hybrid(
    denoiser: Denoiser,
    process: Process,
    x0: Float[Array, "*shape"],
    t: Time,
    *,
    key: Key[Array, ""],
    weight: Weighting | None = None,
    cond: PyTree = None,
    space: Kind | None = None,
    share: float = 1e-3,
) -> Float[Array, ""]:
    """`simple` or, with a weight, `weighted`, and a share of the bound that teaches the network its variance.

    Args:
      denoiser: the model, one that learns its variance.
      process: the forward process, Gaussian and of a discrete schedule.
      x0: one clean sample.
      t: the time to noise it to, a scalar in (0, 1]; where t − 1/T is not above 0 the step has no KL.
      key: draws the noise.
      weight: as for `weighted`; None is `simple`.
      cond: the sample's condition, None if there is none.
      space: where the error of `simple` or `weighted` is measured.
      share: κ, of the bound in nats a coordinate.

    Returns:
      A scalar, float32 (float64 under x64).

    Raises:
      ValueError: for a denoiser that predicts no variance, a process that is not Gaussian, a schedule without steps,
        and t as for `simple`.
    """
    schedule = gaussian(process, what="learned_variance", instead="set it to False").schedule
    if schedule.steps is None:
        raise ValueError(f"schedule = {schedule!r} has no steps, of which the variance is learned; take a discrete one")
    true, predicted, process = _true_and_predicted(denoiser, process, x0, t, key=key, cond=cond)
    if predicted.variance_mix is None:
        raise ValueError("the denoiser predicts no variance for this loss to teach; make it with learned_variance=True")
    loss = _error(true, predicted, process, space=space, t=t, weight=weight)
    fixed = predicted._replace(x0=jax.lax.stop_gradient(predicted.x0))
    s = jnp.maximum(t - 1 / schedule.steps, 0)
    first = s * schedule.steps < 0.01  # t − 1/T is rounded
    kl = step_kl(x0, fixed, t=t, s=jnp.where(first, t, s), schedule=schedule)
    return loss + share * schedule.steps * jnp.where(first, 0, kl.mean())


def cross_entropy(
    log_prob: Callable[[Array, Time, Array], Float[Array, ""]],
    process: Process,
    x0: Float[Array, "*shape"],
    label: Int[Array, ""],
    t: Time,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """−log p(label|x_t, t) of a classifier `(x_t, t, label) -> log p` of noisy samples, for one of them, in nats.

    x_t is drawn from x_0 by the key. At its least over all classifiers it is the entropy of the label given x_t.
    """
    process = process.draw(jax.random.fold_in(key, 3), x0.shape)
    return -log_prob(process.corrupt(x0, process.noise(key, x0.shape, t), t), t, label)


def step_kl(
    x0: Float[Array, "*shape"], prediction: Prediction, *, t: Time, s: Time, schedule: Schedule
) -> Float[Array, "*shape"]:
    """KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) of each coordinate, in nats, for 0 < s <= t.

    Without a predicted variance p has that of q.
    """
    gap = jnp.exp(schedule.log_snr(s)) - jnp.exp(schedule.log_snr(t))
    error = gap * (x0 - prediction.x0) ** 2
    if prediction.variance_mix is None:
        return error / 2
    excess = prediction.variance_mix * 2 * jnp.log(schedule.sigma(t) / schedule.sigma(s))
    return (error * jnp.exp(-excess) + excess + jnp.expm1(-excess)) / 2


def _true_and_predicted(
    denoiser: Denoiser, process: Process, x0: Float[Array, "*shape"], t: Time, *, key: Key[Array, ""], cond: PyTree
) -> tuple[Prediction, Prediction, Process]:
    """The pair, what the denoiser makes of it, and the process of this sample."""
    check_times(t)
    process = process.draw(jax.random.fold_in(key, 3), x0.shape)
    noise = process.noise(key, x0.shape, t)
    return Prediction(x0, noise), bind(denoiser, process)(process.corrupt(x0, noise, t), t, cond), process


def _error(
    true: Prediction,
    predicted: Prediction,
    process: Process,
    *,
    space: Kind | None,
    t: Time,
    weight: Weighting | None = None,
) -> Float[Array, ""]:
    schedule, signal = process.schedule, process.signal
    space = natural(signal) if space is None else space
    check(space, signal, what="space")
    target, output = (from_prediction(space, pair, t=t, schedule=schedule, signal=signal) for pair in (true, predicted))
    error = jnp.mean((target - output) ** 2)
    return error if weight is None else in_space(space, weight(schedule, t), t=t, schedule=schedule) * error
