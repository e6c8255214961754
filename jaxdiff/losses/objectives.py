"""Training losses, for one sample: float32 scalars (float64 under x64). `batch` averages one over a batch.

    simple     L = mean over coordinates of (y(x_0, n) − y(x̂_0, n̂))²    at x_t = α_t g_t(x_0) + σ_t n
    weighted   L = w(t) · mean over coordinates of (n − n̂)²             w from `jaxdiff.weightings`
    hybrid     L = simple or weighted + κ T · mean over coordinates of KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)),  s = t − 1/T

where the target y is any of `jaxdiff.parameterization.KINDS`. y = eps gives L_simple of Ho et al. 2020 (equation 14).
The errors of all targets are multiples of e, the error of x̂_0 at fixed x_t: that of n̂ is −(α/σ) e, of the score
(α/σ²) e, of v −((α² + σ²)/σ) e and of the velocity (α' − σ'α/σ) e. So simple is another loss for every target, and
weighted the same for all of them, up to rounding. (With a transform, e is the error of g_t(x̂_0). If g has no inverse,
this misses what g discards: the target must be x0, and the weight then applies to the error of x̂_0.)

hybrid teaches the variance of the reverse step (Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic
Models", section 3.1): p has variance β̃^{1−v} (σ²_{t|s})^v with the network's v, no gradient reaches x̂_0 through the KL,
and κ is small. With ρ = σ²_{t|s}/β̃ = σ_t²/σ_s² each coordinate has

    KL = ½ [(SNR_s − SNR_t) (x_0 − x̂_0)² ρ^{−v} + v log ρ + ρ^{−v} − 1]
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff import registry
from jaxdiff.denoisers.conditions import drop
from jaxdiff.denoisers.network import in_training, null_condition
from jaxdiff.losses.time_sampling import Times, TimeSampler, time_sampler
from jaxdiff.losses.weightings import WEIGHTINGS, Weighting, for_target
from jaxdiff.processes import Denoiser, Process, Wrapper, for_sample, require_gaussian
from jaxdiff.processes.parameterization import canonical, check, from_prediction, natural
from jaxdiff.schedules import Schedule, check_time
from jaxdiff.typing import InputError, Prediction, PyTree, RandomKey, Sample, Samples, Scalar, Time, elementwise


def simple(
    denoiser: Denoiser, x0: Sample, t: Time, *, key: RandomKey, cond: PyTree = None, target: str | None = None
) -> Scalar:
    """Return the squared error of the denoiser on one noised sample, averaged over coordinates.

    Args:
      x0: one clean sample.
      t: the time to noise it to, a scalar in (0, 1].
      key: draws the noise and the random parameters of the process.
      target: y; "eps" gives L_simple. None is what the network predicts; for a denoiser without a network it is "eps",
        or "x0" if the transform of the process has no inverse.

    Raises:
      InputError: if t is known at tracing and outside [0, 1], the process can't take this sample (see
        `jaxdiff.Perturbed`), or the target is unknown or needs an inverse.
    """
    return _error(*_true_and_predicted(denoiser, x0, t, key=key, cond=cond), target or _predicted_by(denoiser), t, None)


def weighted(
    denoiser: Denoiser,
    x0: Sample,
    t: Time,
    *,
    key: RandomKey,
    weight: Weighting | str,
    cond: PyTree = None,
    target: str | None = None,
) -> Scalar:
    """Return the squared error of n̂ on one noised sample, averaged over coordinates, times the weight of t.

    `weight` is from `jaxdiff.weightings`, or its name, as "min_snr:gamma=3"; other arguments and errors are those of
    `simple`. The target changes only rounding and infinities at the ends of the path: take what the network predicts.
    """
    pairs = _true_and_predicted(denoiser, x0, t, key=key, cond=cond)
    return _error(*pairs, target or _predicted_by(denoiser), t, weight)


def hybrid(
    denoiser: Denoiser,
    x0: Sample,
    t: Time,
    *,
    key: RandomKey,
    weight: Weighting | str | None = None,
    cond: PyTree = None,
    target: str | None = None,
    share: float = 1e-3,
) -> Scalar:
    """Return `simple` or, with a weight, `weighted`, plus a share of the ELBO that teaches the network its variance.

    Args:
      denoiser: must learn its variance, under a Gaussian process with a discrete schedule, or an InputError is raised.
      x0, t, key, cond, target: as for `simple`; the step from t = 1/T to 0 has no KL.
      weight: as for `weighted`; None is `simple`.
      share: κ, for the ELBO in nats per coordinate.
    """
    schedule = require_gaussian(denoiser.process, what="learned_variance", instead="set it to False").schedule
    if schedule.num_timesteps is None:
        raise InputError(
            f"schedule = {schedule!r}; learned_variance needs a discrete schedule, such as Linear or Cosine"
        )
    true, predicted, process = _true_and_predicted(denoiser, x0, t, key=key, cond=cond)
    if predicted.variance_mix is None:
        raise InputError(
            "the denoiser does not predict a variance, which this loss trains; make it with learned_variance=True"
        )
    loss = _error(true, predicted, process, target or _predicted_by(denoiser), t, weight)
    fixed = predicted._replace(x0=jax.lax.stop_gradient(predicted.x0))
    s = jnp.maximum(t - 1 / schedule.num_timesteps, 0)
    first = s * schedule.num_timesteps < 0.01  # t − 1/T is rounded
    kl = step_kl(x0, fixed, t=t, s=jnp.where(first, t, s), schedule=schedule)
    return loss + share * schedule.num_timesteps * jnp.where(first, 0, kl.mean())


def batch(
    denoiser: Denoiser,
    x0: Samples,
    *,
    key: RandomKey,
    cond: PyTree = None,
    p_uncond: float = 0.0,
    times: Times | TimeSampler = "auto",
    loss: Callable[..., Scalar] = simple,
) -> Scalar:
    """Return the mean loss of a batch at random times: what a training loop differentiates.

    Args:
      x0: clean samples (n, *shape).
      key: draws the times, and for each example its noise, dropout and random parameters of the process.
      cond: the conditions of the examples, a pytree whose leaves have leading axis n.
      p_uncond: the probability of replacing an example's condition by the denoiser's null condition.
      times: how times are drawn, a name as in a config's `loss.times` (but importance, which needs a history), or a
        function (key, n) -> t from `jaxdiff.time_sampling`.
      loss: a loss of one sample, such as `simple`, or `functools.partial(weighted, weight="min_snr")`.

    Raises:
      InputError: as the loss; if the times are unknown, or p_uncond is outside [0, 1] or needs a null condition that
        the denoiser lacks.
    """
    null = null_condition(denoiser)
    if not 0 <= p_uncond <= 1 or (p_uncond and (cond is None or null is None)):
        raise InputError(
            f"p_uncond = {p_uncond}; it must be in [0, 1], and 0 without conditions or without a null condition: see "
            "null in jaxdiff.denoiser"
        )
    if times == "importance":
        raise InputError("times = 'importance' needs a history of losses; see jaxdiff.time_sampling.LossHistory")
    if not x0.ndim or any(jnp.shape(leaf)[:1] != x0.shape[:1] for leaf in jax.tree.leaves(cond)):
        shapes = jax.tree.map(jnp.shape, cond)
        raise InputError(f"x0 has shape {x0.shape} and cond {shapes}; give n samples, and n conditions or none")
    key_times, key_noise = jax.random.split(elementwise(key))
    draw = time_sampler(times, denoiser.process.schedule) if isinstance(times, str) else times

    def one(x0: Sample, t: Time, key: RandomKey, cond: PyTree) -> Scalar:
        kept = drop(jax.random.fold_in(key, 2), cond, null, p_uncond) if p_uncond else cond
        return loss(denoiser, x0, t, key=key, cond=kept)

    return jnp.mean(jax.vmap(one)(x0, draw(key_times, len(x0)), jax.random.split(key_noise, len(x0)), cond))


def cross_entropy(classifier: Any, x0: Sample, label: Int[Array, ""], t: Time, *, key: RandomKey) -> Scalar:
    """Return −log p(label|x_t, t), in nats, of one noised sample; at best the entropy of the label given x_t.

    The classifier is `(x_t, t, label) -> log p` with a `process`, such as `jaxdiff.guidance.NetworkClassifier`; x0, t
    and key are as for `simple`.
    """
    if not hasattr(classifier, "process"):
        raise InputError(f"classifier = {classifier!r} has no process; use one such as guidance.NetworkClassifier")
    classifier = for_sample(classifier, key, x0.shape)
    process = classifier.process
    return -classifier(process.corrupt(x0, process.sample_noise(key, x0.shape, t), t), t, label)


def step_kl(x0: Sample, prediction: Prediction, *, t: Time, s: Time, schedule: Schedule) -> Sample:
    """Return KL(q ‖ p) of each coordinate, in nats, for 0 < s <= t; p has the variance of q unless one is predicted."""
    gap = jnp.exp(schedule.log_snr(s)) - jnp.exp(schedule.log_snr(t))
    error = gap * (x0 - prediction.x0) ** 2
    if prediction.variance_mix is None:
        return error / 2
    excess = prediction.variance_mix * 2 * jnp.log(schedule.sigma(t) / schedule.sigma(s))
    return (error * jnp.exp(-excess) + excess + jnp.expm1(-excess)) / 2


def _true_and_predicted(
    denoiser: Denoiser, x0: Sample, t: Time, *, key: RandomKey, cond: PyTree
) -> tuple[Prediction, Prediction, Process]:
    """Return the true pair, the predicted pair, and the process of this sample."""
    check_time(t)
    denoiser = in_training(for_sample(denoiser, key, x0.shape), key)
    process = denoiser.process
    noise = process.sample_noise(key, x0.shape, t)
    return Prediction(x0, noise), denoiser(process.corrupt(x0, noise, t), t, cond), process


def _predicted_by(denoiser: Any) -> str | None:
    """Return the parameterization of the network in a denoiser; None if there is no network."""
    while isinstance(denoiser, Wrapper):
        denoiser = denoiser.inner
    return getattr(denoiser, "predicts", None)


def _error(
    true: Prediction,
    predicted: Prediction,
    process: Process,
    target: str | None,
    t: Time,
    weight: Weighting | str | None,
) -> Scalar:
    """Return the squared error in the target, with the weight of t if there is one."""
    kind = natural(process.transform) if target is None else canonical(target, what="target")
    check(kind, process.transform, what="target")
    wanted, output = (from_prediction(kind, pair, t=t, process=process) for pair in (true, predicted))
    error = jnp.mean((wanted - output) ** 2)
    if weight is None:
        return error
    built: Weighting = registry.make("weight", weight, WEIGHTINGS)
    return for_target(kind, built(process.schedule, t), t=t, schedule=process.schedule) * error
