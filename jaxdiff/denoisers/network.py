"""Denoisers made from networks and functions, and limits on their x̂_0."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.processes import Denoiser, Process, Wrapper, parameterization
from jaxdiff.schedules import Discrete, Schedule, VariancePreserving, check_time
from jaxdiff.typing import (
    Extended,
    InputError,
    Prediction,
    PyTree,
    RandomKey,
    Sample,
    Time,
    is_traced,
    pytree,
    shown,
    static,
)


@pytree(eq=False)
class _Network(Denoiser):
    apply: Callable[..., Any] = static()
    params: PyTree = dataclasses.field(repr=False)
    process: Process
    predicts: parameterization.Kind = static()
    scale_input: bool = static()
    learned_variance: bool = static()
    null: PyTree = None
    dropout: RandomKey | None = None  # for the network's own randomness in training: see `in_training`

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        check_time(t)
        schedule, cond = self.process.schedule, self.process.network_condition(cond)
        options = {} if self.dropout is None else {"rngs": {"dropout": self.dropout}}
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))  # k/1000 is lost in bfloat16
        x_in = x_t / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) if self.scale_input else x_t
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (x_in, t, cond))
        try:
            output = self.apply(self.params, *(batch if cond is not None else batch[:2]), **options)
        except Exception as error:
            seen = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(batch))
            error.add_note(
                f"The network was called on a batch of one, with arrays of the shapes {seen}. A denoiser and a loss "
                "take one sample: jax.vmap them over a batch."
            )
            raise
        expected, rule = (1, *x_t.shape), "x's shape"
        if self.learned_variance:
            expected, rule = (*expected[:-1], 2 * expected[-1]), "twice the channels of x, as learned_variance asks"
        if getattr(output, "shape", None) != expected or not jnp.issubdtype(output.dtype, jnp.floating):
            is_array = hasattr(output, "shape") and hasattr(output, "dtype")
            found = f"{output.dtype} of shape {output.shape}" if is_array else f"a {type(output).__name__}"
            raise InputError(
                f"the network returned {found} for x of shape {(1, *x_t.shape)}; it must return floats of {rule}"
            )
        output, mix = output[0].astype(t.dtype), None
        if self.learned_variance:
            output, raw = jnp.split(output, 2, axis=-1)
            mix = (raw + 1) / 2  # an untrained network returns 0: the geometric mean of the two variances
        prediction = parameterization.to_prediction(self.predicts, output, x_t, t=t, process=self.process)
        return prediction._replace(variance_mix=mix)


def denoiser(
    apply: Callable[..., Any],
    params: PyTree,
    process: Process,
    *,
    predicts: str | None = None,
    scale_input: bool | None = None,
    learned_variance: bool = False,
    null: PyTree = None,
) -> _Network:
    """Return a network as a denoiser of one sample: `(x_t, t, cond) -> Prediction(x0, noise)`, at least float32.

    It is a pytree, and raises an InputError if the network's output has the wrong shape.

    Args:
      apply: the network on a batch, of any library: `apply(params, x, t)`, or `apply(params, x, t, cond)` if there is a
        condition, from x of shape (n, *shape) and t of shape (n,) in [0, 1] to (n, *shape). It is called with n = 1;
        under `jax.vmap` that costs the same as one call on the batch. If it has a parameter `rngs`, as Flax's has, the
        losses give it rngs={"dropout": key} with a key of the example's own; samplers give none.
      params, process: its weights, any pytree, and the process that it was trained for.
      predicts: "eps", "x0", "v", "score" or "velocity" (see `jaxdiff.parameterization`). None is "eps", or "x0" if the
        transform of the process has no inverse.
      scale_input: whether to give the network x_t/√(α_t² + σ_t²) instead of x_t: unit variance for data of unit
        variance. It changes nothing if variance is preserved. None does it if α_1² + σ_1² > 4, as for VE and EDM.
      learned_variance: whether the network predicts the variance of the reverse step, too, in a second half r of its
        channels (the last axis): log variance = (1 + r)/2 log σ²_{t|s} + (1 − r)/2 log β̃ of any step from t to s
        (Nichol & Dhariwal 2021, equation 15, with v = (1 + r)/2).
      null: the condition that stood for none in training, for `jaxdiff.guidance.classifier_free`: a number, or a pytree
        of numbers for the leaves of the condition. The networks of `jaxdiff.models` take the label −1.

    Raises:
      InputError: if apply is not callable, the process is not one, or `predicts` is unknown, needs an inverse that the
        transform of the process does not have, or is eps or score under a discrete schedule with α_1 = 0, where neither
        determines x_0.
    """
    if not callable(apply):
        raise InputError(f"apply = {shown(apply)}; it must be the function apply(params, x, t), and params come second")
    if not isinstance(process, Process):
        raise InputError(
            f"process = {shown(process)}; give a process, as jaxdiff.Gaussian(schedule) makes of a schedule"
        )
    transform = process.transform
    kind = parameterization.natural(transform) if predicts is None else parameterization.canonical(predicts)
    parameterization.check(kind, transform, what="predicts")
    if kind in ("eps", "score") and isinstance(process.schedule, Discrete) and process.schedule.ends_in_noise:
        raise InputError(
            f"predicts = {kind!r}, but α_1 = 0 under this schedule, whose last β is 1: {kind} does not determine x_0 "
            "at t = 1; set predicts to v, x0 or velocity"
        )
    scales = scales_input(process.schedule) if scale_input is None else scale_input
    options: dict[str, Any] = {"predicts": kind, "scale_input": scales, "learned_variance": learned_variance}
    return _Network(apply=by_value(apply), params=params, process=process, null=null, **options)


def in_training(denoiser: Denoiser, key: RandomKey) -> Denoiser:
    """Return the denoiser with a key for the randomness of its network, such as dropout; itself if it takes none."""
    if isinstance(denoiser, Wrapper):
        return dataclasses.replace(denoiser, inner=in_training(denoiser.inner, key))  # type: ignore[type-var]
    if not isinstance(denoiser, _Network) or not _takes_rngs(denoiser.apply):
        return denoiser
    return dataclasses.replace(denoiser, dropout=jax.random.fold_in(key, 4))


@dataclasses.dataclass(frozen=True)
class _WithoutRngs:
    """A network without its parameter `rngs`."""

    apply: Callable[..., Any]

    def __call__(self, params: PyTree, *batch: PyTree) -> Any:
        return self.apply(params, *batch)


def without_dropout(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser of a network so that losses, too, give it no key for its randomness."""
    if not isinstance(denoiser, _Network):
        return denoiser
    return dataclasses.replace(denoiser, apply=_WithoutRngs(denoiser.apply))


def _takes_rngs(apply: Any) -> bool:
    """Return whether a network, or the function that it wraps, has a parameter `rngs`."""
    try:
        return "rngs" in inspect.signature(apply).parameters
    except (TypeError, ValueError):  # one without a signature
        return False


def scales_input(schedule: Schedule) -> bool:
    """Return whether a network needs x_t scaled to unit variance under this schedule: α_1² + σ_1² > 4."""
    if isinstance(schedule, VariancePreserving) or is_traced(schedule):
        return False
    with jax.ensure_compile_time_eval():
        return bool(schedule.alpha(1.0) ** 2 + schedule.sigma(1.0) ** 2 > 4)


@dataclasses.dataclass(frozen=True)
class _Method:
    function: Callable[..., Any]
    owner: Any

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # where `inspect.signature` looks
        return self.function

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(self.owner, *args, **options)


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls this one and, if it is a method, is equal to that of an equal object.

    Methods are equal only if they belong to the same object, but two equal networks can share a compiled program.
    """
    owner = getattr(function, "__self__", None)
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return function
    try:
        hash(owner)
    except TypeError:  # a field is not hashable
        return function
    return _Method(function.__func__, owner)  # type: ignore[attr-defined]


@pytree(eq=False)
class _Function(Denoiser):
    function: Callable[..., Prediction]
    process: Process
    null: PyTree = None

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        check_time(t)
        prediction = self.function(x_t, t, cond)
        if not isinstance(prediction, Prediction) or {jnp.shape(part) for part in prediction[:2]} != {x_t.shape}:
            found = jax.tree.map(jnp.shape, prediction)
            raise InputError(
                f"the function returns {found} for x_t of shape {x_t.shape}; return a Prediction(x0, noise)"
                " of two arrays of that shape"
            )
        return prediction


def from_function(function: Callable[..., Prediction], process: Process, *, null: PyTree = None) -> _Function:
    """Return a function `(x_t, t, cond) -> Prediction(x0, noise)` of one sample as a denoiser.

    A function that is a pytree passes its leaves to compiled programs as arguments. Anything else is compiled in.
    `null` is as for `denoiser`.
    """
    return _Function(function=as_pytree(function), process=process, null=null)


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that `jax.jit` accepts as an argument: a plain one becomes part of the program."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


@pytree(eq=False)
class _Limited(Wrapper):
    """A denoiser with x̂_0 clipped to `limits` or, if these are None, to a quantile of its size that is scaled to 1."""

    inner: Denoiser
    limits: tuple[Extended, Extended] | None = static(default=None)
    quantile: float = static(default=1.0)

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        prediction = self.inner(x_t, t, cond)
        if self.limits is not None:
            x0 = jnp.clip(prediction.x0, *self.limits)
        else:
            limit = jnp.maximum(jnp.quantile(jnp.abs(prediction.x0), self.quantile), 1)
            x0 = jnp.clip(prediction.x0, -limit, limit) / limit
        return prediction._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def null_condition(denoiser: Denoiser) -> PyTree:
    """Return the condition that stands for none, of a denoiser or of the one that it clips; None if it has none."""
    return null_condition(denoiser.inner) if isinstance(denoiser, _Limited) else getattr(denoiser, "null", None)


def clip_denoised(inner: Denoiser, low: float = -1.0, high: float = 1.0) -> _Limited:
    """Clip x̂_0 to the range of the data, low < high, and infer n̂ from it, as the code of Ho et al. 2020 does.

    This biases the sampler: leave it out where exactness matters.
    """
    if not low < high:
        raise InputError(f"low = {low}, high = {high}; must satisfy low < high")
    return _Limited(inner=inner, limits=(low, high))


def dynamic_threshold(inner: Denoiser, quantile: float = 0.995) -> _Limited:
    """Threshold x̂_0 dynamically, for data in [−1, 1]: clip it to [−r, r], then divide by r.

    r is the quantile, in (0, 1], of |x̂_0| over the sample's coordinates, at least 1. Where guidance drives x̂_0 out of
    the range of the data this saturates less than clipping (Saharia et al. 2022, "Photorealistic Text-to-Image
    Diffusion Models with Deep Language Understanding", section 2.3). It biases the sampler, too.
    """
    if not 0 < quantile <= 1:
        raise InputError(f"quantile = {quantile}; must satisfy 0 < quantile <= 1")
    return _Limited(inner=inner, quantile=quantile)
