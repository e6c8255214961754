"""Guidance: denoisers made from denoisers, for every sampler.

For a condition c, the null condition ∅ and a weight w,

    classifier-free    x̃_0 = (1 + w) x̂_0(c) − w x̂_0(∅),    ñ = (1 + w) n̂(c) − w n̂(∅)
    classifier         ñ = n̂ − w σ ∇ log p(c|x_t, t),        x̃_0 = x̂_0 + w (σ²/α) ∇ log p(c|x_t, t)
    composed           x̃_0 = Σ_j v_j x̂_0(c_j),               ñ = Σ_j v_j n̂(c_j),        Σ_j v_j = 1

All keep x_t = α x̃_0 + σ ñ. The first has the score −ñ/σ of p(x_t|c) (p(x_t|c)/p(x_t))^w. With exact posteriors the
second agrees, with weight w on the conditional denoiser or 1 + w on the unconditional one. The third has the score of
Π_j p(x_t|c_j)^{v_j}. The "guidance scale" of other libraries is 1 + w.

For w ≠ 0 no data distribution has the guided densities at all t under the forward process, so that the samples depend
on the sampler's noise, too.

Sources: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (equation 6); Dhariwal & Nichol 2021, "Diffusion
Models Beat GANs on Image Synthesis" (algorithm 2); Liu et al. 2022, "Compositional Visual Generation with Composable
Diffusion Models"; Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models"; Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (section
3.4, the rescaling).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.denoisers.conditions import nulled
from jaxdiff.denoisers.network import as_pytree, null_condition
from jaxdiff.processes import Conditioned, Denoiser, Process, Wrapper, check_same, require_gaussian
from jaxdiff.schedules import Schedule, check_time
from jaxdiff.typing import (
    Extended,
    InputError,
    Prediction,
    PyTree,
    Sample,
    Scalar,
    Time,
    is_traced,
    pytree,
    shown,
    static,
)

_PURE_NOISE = -14.0  # a log-SNR at which the data part of x_t is a thousandth of the noise


@pytree(kw_only=False, eq=False)
class Interval:
    """A guidance weight: w where low <= log(α²/σ²) <= high in the denoiser's schedule, low < high, and 0 elsewhere."""

    w: "Weight"
    low: Extended = static(default=-math.inf, kw_only=True)
    high: Extended = static(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(
                f"low = {self.low}, high = {self.high}; must satisfy low < high: log-SNR rises towards the data"
            )
        object.__setattr__(self, "w", as_weight("w", self.w))


Weight = float | np.number | Float[Array | np.ndarray, ""] | Callable[[Time], Scalar] | Interval
LogProb = Callable[[Array, Time, PyTree], Scalar]


@pytree(eq=False)
class _ClassifierFree(Wrapper):
    inner: Denoiser
    w: Weight
    null: PyTree
    rescale: float = static()

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        if cond is None:
            raise InputError("cond is None: classifier-free guidance guides towards a condition; give one per sample")
        null = nulled(cond, self.null)
        both = jax.tree.map(lambda *branches: jnp.stack(branches), cond, null)
        w = weight_at(self.w, t, self.process.schedule)
        conditional, guided = _combine(self.inner, x_t, t, both, jnp.stack([1 + w, -w]))
        if not self.rescale:
            return guided
        std = jnp.std(guided.x0)
        scale = 1 + self.rescale * jnp.where(std > 0, jnp.std(conditional.x0) / jnp.where(std > 0, std, 1) - 1, 0)
        x0 = guided.x0 * scale
        return guided._replace(x0=x0, noise=self.process.infer_noise(x0, x_t, t))


def classifier_free(denoiser: Denoiser, w: Weight, *, null: PyTree = None, rescale: float = 0.0) -> _ClassifierFree:
    """Guide without a classifier: (1 + w) times the conditional prediction less w times the unconditional one.

    Both come from one call of the network on two examples; without a condition it raises an InputError.

    Args:
      denoiser: trained with labels, a share of them dropped.
      w: the weight, a function of t that gives it, or an `Interval`. 0 is the plain conditional denoiser, −1 the
        unconditional one; values between −1 and 0 weaken the condition, and those below −1 turn away from it.
      null: the null condition, a number or a pytree of numbers for the leaves of the condition; parts that it lacks
        are kept. None takes that of the denoiser: −1 for the exact denoisers, and what `jaxdiff.denoiser` was given.
      rescale: the share to undo of the growth of x̂_0's standard deviation, in [0, 1]; 0.7 in the source.

    Raises:
      InputError: if `w` is not finite, `rescale` is outside [0, 1], or the denoiser has no null condition.
    """
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale = {rescale}; must satisfy 0 <= rescale <= 1")
    null = null_condition(denoiser) if null is None else null
    if null is None:
        raise InputError(
            "null = None, but guidance needs the condition that stood for none in training; name it, as in null=-1 for "
            "the labels of jaxdiff.models, here or in jaxdiff.denoiser"
        )
    return _ClassifierFree(inner=denoiser, w=as_weight("w", w), null=null, rescale=rescale)


@pytree(eq=False)
class _Classifier(Wrapper):
    inner: Denoiser
    log_prob: LogProb
    w: Weight

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        schedule = self.process.schedule
        prediction = self.inner(x_t, t, cond)
        # At α = 0 the gradient is 0, but its quotient by α has a limit: take it at a slightly earlier t.
        known = schedule.alpha(t) > 0
        near = jnp.where(known, t, schedule.time(_PURE_NOISE))
        slope = weight_at(self.w, t, schedule) * jax.grad(lambda x: self.log_prob(x, near, cond))(x_t)
        alpha, sigma = schedule.alpha(near), schedule.sigma(near)
        x0 = prediction.x0 + sigma**2 / alpha * slope
        return prediction._replace(x0=x0, noise=prediction.noise - jnp.where(known, sigma, 0) * slope)


def classifier(denoiser: Denoiser, log_prob: LogProb, w: Weight) -> _Classifier:
    """Guide with a classifier: the score of the denoiser plus w times the gradient of log p(c|x_t, t).

    This suits every sampler. Dhariwal & Nichol 2021 shift the ancestral mean by the step's variance times the gradient,
    the same to first order in the step. If the process is not Gaussian n̂ is no score, and an `InputError` is raised.

    Args:
      denoiser: called with the condition; wrap it in `unconditional` if it takes none, or to guide with the classifier
        alone.
      log_prob: `(x_t, t, cond) -> log p(cond|x_t, t)`, a scalar, differentiable in x_t: a classifier trained on noisy
        samples of this process, such as `NetworkClassifier`.
      w: as for `classifier_free` if the denoiser is conditional; 1 + that if it is unconditional.
    """
    require_gaussian(denoiser.process, what="guidance by a classifier", instead="guide it by labels")
    if isinstance(other := getattr(log_prob, "process", None), Process):
        check_same(denoiser.process, other)
    return _Classifier(inner=denoiser, log_prob=as_pytree(log_prob), w=as_weight("w", w))


@pytree(eq=False)
class NetworkClassifier:
    """A network and its weights as a classifier of one noisy sample: `(x_t, t, label) -> log p(label|x_t, t)`.

    The label −1 stands for any label and gives 0; out-of-range labels give NaN.
    """

    apply: Callable[..., Any] = static()
    """The network on a batch: `apply(params, x, t)` for x (n, *shape) and t (n,) gives logits (n, classes)."""
    params: PyTree
    process: Process
    scale_input: bool = static(default=False)  # as for `jaxdiff.denoiser`

    def __call__(self, x_t: Sample, t: Time, label: Int[Array, ""], /) -> Scalar:
        found = self.log_probs(x_t, t).at[label].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(label < 0, 0, found)

    def log_probs(self, x_t: Sample, t: Time) -> Float[Array, " classes"]:
        """Return log p(label|x_t, t) of every label."""
        check_time(t)
        schedule = self.process.schedule
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))
        if self.scale_input:
            x_t = x_t / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        return jax.nn.log_softmax(self.apply(self.params, x_t[None], t[None])[0])

    def with_process(self, process: Process) -> Self:
        """Return this classifier under its process with other parameters of a sample; another process is refused."""
        check_same(self.process, process)
        return dataclasses.replace(self, process=process)


def unconditional(denoiser: Denoiser, *, null: PyTree = None) -> Conditioned:
    """Return the denoiser without its condition: it is always called with `null`."""
    return Conditioned(inner=denoiser, cond=null)


class Composition(NamedTuple):
    """A weighted combination of m conditions: the condition of a denoiser made by `composed`."""

    conds: PyTree  # the stacked conditions: leaves of shape (m, …)
    weights: Float[Array | np.ndarray, " m"]
    """v_j, which should sum to 1. 0 leaves a condition out, a negative weight turns away from it."""


@pytree(eq=False)
class _Composed(Wrapper):
    inner: Denoiser

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        if not isinstance(cond, Composition):
            raise InputError(f"cond = {cond!r}; a composed denoiser takes a jaxdiff.guidance.Composition")
        return _combine(self.inner, x_t, t, cond.conds, jnp.asarray(cond.weights))[1]


def composed(denoiser: Denoiser) -> _Composed:
    """Return a denoiser whose condition is a `Composition`: several conditions, in one call of the network.

    To guide a composition, compose a guided denoiser: `composed(classifier_free(denoiser, w))`.
    """
    return _Composed(inner=denoiser)


def _combine(
    denoiser: Denoiser, x_t: Sample, t: Time, conds: PyTree, weights: Float[Array, " m"]
) -> tuple[Prediction, Prediction]:
    """Return the prediction under the first condition and the weighted sum over all conditions, in one call."""
    branches = jax.vmap(lambda cond: denoiser(x_t, t, cond))(conds)
    first = jax.tree.map(lambda leaf: leaf[0], branches)
    # Variances do not combine linearly: the variance of the reverse step stays that of the first condition.
    return first, first._replace(
        x0=jnp.tensordot(weights.astype(branches.x0.dtype), branches.x0, 1),
        noise=jnp.tensordot(weights.astype(branches.noise.dtype), branches.noise, 1),
    )


def as_weight(name: str, w: Weight) -> Weight:
    """Return a weight as `jax.jit` takes it: a number in the default dtype, so that every number shares a program.

    Raises an InputError about the argument `name` if it is no finite number, function or `Interval`.
    """
    if callable(w) and not isinstance(w, type):
        return as_pytree(w)
    if isinstance(w, Interval) or is_traced(w):
        return w
    number = np.asarray(w)
    if not number.shape and number.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            number = number.astype(jnp.result_type(float))
        if np.isfinite(number):
            return number
    raise InputError(f"{name} = {shown(w)}; it must be a finite number, a function of t, or an Interval")


def weight_at(w: Weight, t: Time, schedule: Schedule) -> Scalar:
    """Return the weight at time t, a number."""
    if isinstance(w, Interval):
        log_snr = schedule.log_snr(t)
        return jnp.where((log_snr >= w.low) & (log_snr <= w.high), weight_at(w.w, t, schedule), 0)
    return jnp.asarray(w(t) if callable(w) else w, float)
