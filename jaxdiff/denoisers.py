"""From a network to a denoiser: the one place where what a network predicts is converted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff import parameterization
from jaxdiff.parameterization import Kind, to_prediction
from jaxdiff.processes import Process, noise_left
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no hash, which `jax.jit` asks for
class NetworkDenoiser:
    """A network and its weights as a `Denoiser`. Make one with `denoiser`."""

    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    params: PyTree
    process: Process
    predicts: Kind = dataclasses.field(metadata={"static": True})
    scale_input: bool = dataclasses.field(metadata={"static": True})
    learned_variance: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        schedule, signal, cond = self.process.schedule, self.process.signal, self.process.told(cond)
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
            raise ValueError(
                f"the network returned shape {output.shape} for x of shape {(1, *x_t.shape)}; it must return {rule}"
            )
        output = output[0].astype(t.dtype)
        if not self.learned_variance:
            return to_prediction(self.predicts, output, x_t, t=t, schedule=schedule, signal=signal)
        output, raw = jnp.split(output, 2, axis=-1)
        # 0, what an untrained network says, is the geometric mean of the two variances.
        prediction = to_prediction(self.predicts, output, x_t, t=t, schedule=schedule, signal=signal)
        return prediction._replace(variance_mix=(raw + 1) / 2)


def denoiser(
    apply: Callable[..., Any],
    params: PyTree,
    process: Process,
    *,
    predicts: Kind | None = None,
    scale_input: bool = False,
    learned_variance: bool = False,
) -> NetworkDenoiser:
    """A network as a denoiser: `(x_t, t, cond) -> Prediction(x0, noise)`, for one sample.

    Args:
      apply: the network on a batch: `apply(params, x, t)`, or `apply(params, x, t, cond)` where a condition is given,
        with x of shape (n, *shape), t of shape (n,) in [0, 1], returning (n, *shape). Any library's will do.
        It is called with n = 1; under `jax.vmap` that costs what the batched call costs.
      params: its weights, any pytree.
      process: the process that it was trained for.
      predicts: what it predicts: "eps", "x0", "v", "score" or "velocity" (see `jaxdiff.parameterization`). None is
        "eps", or "x0" where the process perturbs the signal without an inverse.
      scale_input: whether the network is given x_t/√(α_t² + σ_t²) instead of x_t: unit variance at every t for data
        of unit variance. It changes nothing where variance is preserved; a variance-exploding schedule needs it.
      learned_variance: whether the network predicts the variance of the reverse step too. It then returns twice as
        many channels (the last axis), of which the second half r gives log variance = (1 + r)/2 log σ²_{t|s} +
        (1 − r)/2 log β̃ for any jump from t to s (Nichol & Dhariwal 2021, equation 15, with v = (1 + r)/2).

    Returns:
      A denoiser that is a pytree: it passes through `jax.jit` as an argument. Called, it raises a ValueError where
      the network's output has not the shape of its input. The prediction is at least float32.

    Raises:
      ValueError: for an unknown `predicts`, and for one that can't work with the process.
    """
    if predicts is None:
        predicts = parameterization.natural(process.signal)
    parameterization.check(predicts, process.signal, what="predicts")
    return NetworkDenoiser(
        apply=apply,
        params=params,
        process=process,
        predicts=predicts,
        scale_input=scale_input,
        learned_variance=learned_variance,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipped:
    """A denoiser whose x̂_0 is clipped to [low, high] and whose n̂ is made to fit it again."""

    inner: Denoiser
    process: Process
    low: float = dataclasses.field(metadata={"static": True})
    high: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        x0 = jnp.clip(prediction.x0, self.low, self.high)
        return prediction._replace(x0=x0, noise=noise_left(self.process, x0, x_t, t))


def clipped(inner: Denoiser, process: Process, *, low: float = -1.0, high: float = 1.0) -> Clipped:
    """Clip x̂_0 to the range of the data, as the code published with Ho et al. 2020 does for images.

    It biases the sampler: leave it out where exactness matters.

    Raises:
      ValueError: where `low` is not below `high`.
    """
    if not low < high:
        raise ValueError(f"low = {low}, high = {high}; the rule is low < high")
    return Clipped(inner=inner, process=process, low=low, high=high)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholded:
    """A denoiser with dynamic thresholding. Make one with `thresholded`."""

    inner: Denoiser
    process: Process
    quantile: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        reach = jnp.maximum(jnp.quantile(jnp.abs(prediction.x0), self.quantile), 1)
        x0 = jnp.clip(prediction.x0, -reach, reach) / reach
        return prediction._replace(x0=x0, noise=noise_left(self.process, x0, x_t, t))


def thresholded(inner: Denoiser, process: Process, *, quantile: float = 0.995) -> Thresholded:
    """Dynamic thresholding of x̂_0, for data in [−1, 1]: clip it to [−r, r], then divide by r.

    r is the quantile of |x̂_0| over the sample's coordinates, and 1 at least. Where guidance drives x̂_0 beyond the
    range of the data it saturates less than clipping does (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion
    Models with Deep Language Understanding", section 2.3). It biases the sampler, as `clipped` does.

    Raises:
      ValueError: for a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile = {quantile}; the rule is 0 < quantile <= 1")
    return Thresholded(inner=inner, process=process, quantile=quantile)
