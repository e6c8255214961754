"""Denoisers made from networks and functions, and limits on their x̂_0."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.processes import Denoiser, Process, Wrapper, parameterization
from jaxdiff.typing import InputError, Prediction, PyTree, Sample, Time, pytree, static


@pytree(eq=False)
class _Network(Denoiser):
    """A network and its weights."""

    apply: Callable[..., Any] = static()
    params: PyTree
    process: Process
    predicts: parameterization.Kind = static()
    scale_input: bool = static()
    learned_variance: bool = static()

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        schedule, cond = self.process.schedule, self.process.network_condition(cond)
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))  # k/1000 is lost in bfloat16
        x_in = x_t
        if self.scale_input:
            x_in = x_t / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (x_in, t, cond))
        inputs = batch if cond is not None else batch[:2]
        output = self.apply(self.params, *inputs)
        expected, rule = (1, *x_t.shape), "x's shape"
        if self.learned_variance:
            expected, rule = (*expected[:-1], 2 * expected[-1]), "twice the channels of x, as learned_variance asks"
        if output.shape != expected:
            raise InputError(
                f"the network returned shape {output.shape} for x of shape {(1, *x_t.shape)}; it must return {rule}"
            )
        output = output[0].astype(t.dtype)
        if not self.learned_variance:
            return parameterization.to_prediction(self.predicts, output, x_t, t=t, process=self.process)
        output, raw = jnp.split(output, 2, axis=-1)
        # An untrained network returns 0: the geometric mean of the two variances.
        prediction = parameterization.to_prediction(self.predicts, output, x_t, t=t, process=self.process)
        return prediction._replace(variance_mix=(raw + 1) / 2)


def denoiser(
    apply: Callable[..., Any],
    params: PyTree,
    process: Process,
    *,
    predicts: str | None = None,
    scale_input: bool = False,
    learned_variance: bool = False,
) -> _Network:
    """Return a network as a denoiser of one sample: `(x_t, t, cond) -> Prediction(x0, noise)`.

    Args:
      apply: the network on a batch, of any library: `apply(params, x, t)`, or `apply(params, x, t, cond)` if it is
        called with a condition, with x of shape (n, *shape) and t of shape (n,) in [0, 1], returning (n, *shape). It is
        called with n = 1; under `jax.vmap` that costs the same as one call on the batch.
      params: its weights, any pytree.
      process: the process that it was trained for.
      predicts: "eps", "x0", "v", "score" or "velocity" (see `jaxdiff.parameterization`). None is "eps", or "x0" if the
        transform of the process has no inverse.
      scale_input: whether to give the network x_t/√(α_t² + σ_t²) instead of x_t, which has unit variance at every t
        for data of unit variance. Variance-exploding schedules need it; it changes nothing if variance is preserved.
      learned_variance: whether the network predicts the variance of the reverse step, too. It then returns twice as
        many channels (the last axis). The second half r gives log variance = (1 + r)/2 log σ²_{t|s} +
        (1 − r)/2 log β̃ of any step from t to s (Nichol & Dhariwal 2021, equation 15, with v = (1 + r)/2).

    Returns:
      A denoiser and pytree, an argument of `jax.jit`. Its predictions are at least float32. When called, it raises an
      InputError if the network's output has the wrong shape.

    Raises:
      InputError: if `predicts` is unknown or needs an inverse that the transform of the process does not have.
    """
    transform = process.transform
    kind = parameterization.natural(transform) if predicts is None else parameterization.canonical(predicts)
    parameterization.check(kind, transform, what="predicts")
    return _Network(
        apply=apply,
        params=params,
        process=process,
        predicts=kind,
        scale_input=scale_input,
        learned_variance=learned_variance,
    )


@pytree(eq=False)
class _Function(Denoiser):
    """A function that predicts."""

    function: Callable[..., Prediction]
    process: Process

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        return self.function(x_t, t, cond)


def from_function(function: Callable[..., Prediction], process: Process) -> _Function:
    """Return a function `(x_t, t, cond) -> Prediction(x0, noise)` of one sample as a denoiser.

    The function may be a pytree, whose leaves are then arguments of compiled programs. Anything else is compiled in.
    """
    return _Function(function=as_pytree(function), process=process)


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `jax.jit` accepts as an argument: a plain one becomes part of the program."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


@pytree(eq=False)
class _Clipped(Wrapper):
    """A denoiser with x̂_0 clipped to [low, high]."""

    inner: Denoiser
    low: float = static()
    high: float = static()

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        x0 = jnp.clip(prediction.x0, self.low, self.high)
        return prediction._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def clip_denoised(inner: Denoiser, low: float = -1.0, high: float = 1.0) -> _Clipped:
    """Clip x̂_0 to the range of the data and infer n̂ from it, as the code published with Ho et al. 2020 does for images.

    It biases the sampler: leave it out where exactness matters.

    Raises:
      InputError: unless low < high.
    """
    if not low < high:
        raise InputError(f"low = {low}, high = {high}; the rule is low < high")
    return _Clipped(inner=inner, low=low, high=high)


@pytree(eq=False)
class _Thresholded(Wrapper):
    """A denoiser with dynamic thresholding."""

    inner: Denoiser
    quantile: float = static()

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        limit = jnp.maximum(jnp.quantile(jnp.abs(prediction.x0), self.quantile), 1)
        x0 = jnp.clip(prediction.x0, -limit, limit) / limit
        return prediction._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def dynamic_threshold(inner: Denoiser, quantile: float = 0.995) -> _Thresholded:
    """Threshold x̂_0 dynamically, for data in [−1, 1]: clip it to [−r, r], then divide by r.

    r is the quantile of |x̂_0| over the sample's coordinates, at least 1. Where guidance drives x̂_0 out of the range of
    the data it saturates less than clipping does (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models
    with Deep Language Understanding", section 2.3). It biases the sampler, as `clip_denoised` does.

    Raises:
      InputError: unless 0 < quantile <= 1.
    """
    if not 0 < quantile <= 1:
        raise InputError(f"quantile = {quantile}; the rule is 0 < quantile <= 1")
    return _Thresholded(inner=inner, quantile=quantile)
