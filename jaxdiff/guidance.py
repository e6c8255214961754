"""Guidance: denoisers made of denoisers, for every sampler alike.

For a condition c, the null condition ∅ and a weight w,

    classifier-free    x̃_0 = (1 + w) x̂_0(c) − w x̂_0(∅),    ñ = (1 + w) n̂(c) − w n̂(∅)
    classifier         ñ = n̂ − w σ ∇ log p(c|x_t, t),        x̃_0 = x̂_0 + w (σ²/α) ∇ log p(c|x_t, t)
    mixed              x̃_0 = Σ_j v_j x̂_0(c_j),               ñ = Σ_j v_j n̂(c_j),        Σ_j v_j = 1

All keep x_t = α x̃_0 + σ ñ. The score −ñ/σ of the first is that of p(x_t|c) (p(x_t|c)/p(x_t))^w, the same as the
second's: with exact posteriors the two agree, as classifier guidance of weight w on the conditional denoiser or 1 + w
on the unconditional one. The third is that of Π_j p(x_t|c_j)^{v_j}.

w = 0 is the plain conditional model. Where other libraries speak of a "guidance scale", it is 1 + w.

No guided law is the forward process of a law of data: for w ≠ 0 what comes out depends on the sampler's noise, too.

Sources: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (equation 6); Dhariwal & Nichol 2021, "Diffusion
Models Beat GANs on Image Synthesis" (algorithm 2); Liu et al. 2022, "Compositional Visual Generation with Composable
Diffusion Models"; Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models"; Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (section
3.4, the rescaling).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.processes import Process, gaussian, noise_left
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time

_FAINT = -14.0  # a log-SNR at which the signal is a thousandth of the noise

Weight = float | Float[Array, ""] | Callable[[Time], Float[Array, ""]]
LogProb = Callable[[Array, Time, PyTree], Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A weight as a function of t: w where low <= log-SNR <= high, else 0. Make one with `interval`."""

    w: Weight
    process: Process
    low: float = dataclasses.field(metadata={"static": True})
    high: float = dataclasses.field(metadata={"static": True})

    def __call__(self, t: Time) -> Float[Array, ""]:
        log_snr = self.process.schedule.log_snr(t)
        return jnp.where((log_snr >= self.low) & (log_snr <= self.high), _at(self.w, t), 0)


def interval(w: Weight, process: Process, *, low: float = -jnp.inf, high: float = jnp.inf) -> Interval:
    """Guidance at some noise levels only: the weight w within an interval of log-SNR, 0 outside.

    Args:
      w: the weight, or itself a function of t.
      process: the process; its schedule gives the log-SNR.
      low, high: the interval's ends, in nats: log(α²/σ²).

    Raises:
      ValueError: where low is not below high.
    """
    if not low < high:
        raise ValueError(f"low = {low}, high = {high}; the rule is low < high: log-SNR rises towards the data")
    return Interval(w=w, process=process, low=low, high=high)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Make one with `classifier_free`."""

    inner: Denoiser
    w: Weight
    null: PyTree
    process: Process | None
    rescale: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        if cond is None:
            raise ValueError("cond is None: classifier-free guidance guides towards a condition; give one a sample")
        null = jax.tree.map(jnp.full_like, cond, _prefix(self.null, cond))
        both = jax.tree.map(lambda *branches: jnp.stack(branches), cond, null)
        # One call of the network on two examples.
        conditional, guided = _combine(self.inner, x_t, t, both, jnp.stack([1 + _at(self.w, t), -_at(self.w, t)]))
        if self.process is None:
            return guided
        std = jnp.std(guided.x0)
        scale = 1 + self.rescale * jnp.where(std > 0, jnp.std(conditional.x0) / jnp.where(std > 0, std, 1) - 1, 0)
        x0 = guided.x0 * scale
        return guided._replace(x0=x0, noise=noise_left(self.process, x0, x_t, t))


def classifier_free(
    denoiser: Denoiser, w: Weight, *, null: PyTree = -1, rescale: float = 0.0, process: Process | None = None
) -> ClassifierFree:
    """Classifier-free guidance: (1 + w) times the conditional prediction less w times the unconditional one.

    Both come of one call of the network on two examples. Other libraries' "guidance scale" is 1 + w.

    Args:
      denoiser: one trained with labels and with a share of them dropped; it is called with conditions only.
      w: the weight, or a function of t that gives it (see `interval`). 0 is the plain conditional denoiser, −1 the
        unconditional one; values between −1 and 0 weaken the condition, and those below −1 turn away from it.
      null: the condition that stands for none, a number or a pytree of numbers for the leaves of the condition. The
        networks of `jaxdiff.models` and the oracles take a label of −1 so.
      rescale: how much of the growth of x̂_0's standard deviation is taken back, from 0 (nothing) to 1 (all); 0.7 in
        the source.
      process: the process, which rescaling needs.

    Returns:
      A denoiser. Without a condition it raises a ValueError.

    Raises:
      ValueError: for a rescale outside [0, 1], or above 0 without the process.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale = {rescale}; the rule is 0 <= rescale <= 1")
    if rescale > 0 and process is None:
        raise ValueError(f"rescale = {rescale} changes x̂_0, and n̂ with it; give process too")
    return ClassifierFree(inner=denoiser, w=w, null=null, rescale=rescale, process=process if rescale > 0 else None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """Make one with `classifier`."""

    inner: Denoiser
    log_prob: LogProb
    w: Weight
    process: Process

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        schedule = self.process.schedule
        prediction = self.inner(x_t, t, cond)
        # At α = 0 x_t tells no class, but the gradient over α has a limit: it is taken a little earlier.
        known = schedule.alpha(t) > 0
        near = jnp.where(known, t, schedule.time(_FAINT))
        slope = _at(self.w, t) * jax.grad(lambda x: self.log_prob(x, near, cond))(x_t)
        alpha, sigma = schedule.alpha(near), schedule.sigma(near)
        return prediction._replace(
            x0=prediction.x0 + sigma**2 / alpha * slope,
            noise=prediction.noise - jnp.where(known, sigma, 0) * slope,
        )


def classifier(denoiser: Denoiser, log_prob: LogProb, w: Weight, *, process: Process) -> Classifier:
    """Classifier guidance: the score of the denoiser plus w times the gradient of log p(c|x_t, t).

    On the score, so that every sampler takes it (Dhariwal & Nichol 2021 shift the ancestral mean by the step's variance
    times the gradient, which is the same to first order in the step).

    Args:
      denoiser: called with the condition; wrap it in `unconditional` where it takes none, or to guide by the
        classifier alone. w on a conditional denoiser is the w of `classifier_free`; on an unconditional one 1 + w is.
      log_prob: `(x_t, t, cond) -> log p(cond|x_t, t)`, a scalar, differentiable in x_t: that of a classifier trained on
        noisy samples of this process.
      w: the weight, or a function of t that gives it.
      process: the process, which must be Gaussian: elsewhere n̂ is no score.

    Raises:
      ValueError: for another process.
    """
    return Classifier(
        inner=denoiser,
        log_prob=log_prob,
        w=w,
        process=gaussian(process, what="guidance by a classifier", instead="guide it by labels"),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no hash, which `jax.jit` asks for
class NetworkClassifier:
    """A network and its weights as a classifier of noisy samples: `(x_t, t, label) -> log p(label|x_t, t)`.

    For one sample; `log_probs` gives those of all labels. A label of −1 is any: its log p is 0. One that there is not
    has NaN.
    """

    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    """The network on a batch: `apply(params, x, t)` for x (n, *shape) and t (n,) gives logits (n, classes)."""
    params: PyTree
    process: Process
    scale_input: bool = dataclasses.field(metadata={"static": True}, default=False)
    """As for `jaxdiff.denoiser`."""

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, label: Int[Array, ""], /) -> Float[Array, ""]:
        found = self.log_probs(x_t, t).at[label].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(label < 0, 0, found)

    def log_probs(self, x_t: Float[Array, "*shape"], t: Time) -> Float[Array, " classes"]:
        """log p(label|x_t, t) of every label."""
        schedule = self.process.schedule
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))
        if self.scale_input:
            x_t = x_t / jnp.sqrt(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        return jax.nn.log_softmax(self.apply(self.params, x_t[None], t[None])[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconditional:
    """Make one with `unconditional`."""

    inner: Denoiser
    null: PyTree

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        return self.inner(x_t, t, self.null)


def unconditional(denoiser: Denoiser, *, null: PyTree = None) -> Unconditional:
    """The denoiser without its condition, whatever it is given: it is called with `null` instead."""
    return Unconditional(inner=denoiser, null=null)


class Blend(NamedTuple):
    """A mixture of m conditions: a condition for the denoiser that `mixed` makes."""

    conds: PyTree
    """A pytree of the conditions, stacked: leaves of shape (m, …)."""
    weights: Float[Array | np.ndarray, " m"]
    """v_j; they should sum to 1. 0 leaves a condition out, a negative one turns away from it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """Make one with `mixed`."""

    inner: Denoiser

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction:
        if not isinstance(cond, Blend):
            raise ValueError(f"cond = {cond!r}; a mixed denoiser takes a jaxdiff.guidance.Blend")
        return _combine(self.inner, x_t, t, cond.conds, jnp.asarray(cond.weights))[1]


def mixed(denoiser: Denoiser) -> Mixed:
    """Several conditions at once, weighted: a denoiser whose condition is a `Blend`.

    To guide a blend, mix a guided denoiser: `mixed(classifier_free(denoiser, w))`. All branches are one call of the
    network.
    """
    return Mixed(inner=denoiser)


def _combine(
    denoiser: Denoiser, x_t: Float[Array, "*shape"], t: Time, conds: PyTree, weights: Float[Array, " m"]
) -> tuple[Prediction, Prediction]:
    """The prediction under the first condition, and the weighted sum of those under all, in one call."""
    branches = jax.vmap(lambda cond: denoiser(x_t, t, cond))(conds)
    first = jax.tree.map(lambda leaf: leaf[0], branches)
    # The variance of the reverse step is no linear thing: it stays that of the first condition.
    return first, first._replace(
        x0=jnp.tensordot(weights.astype(branches.x0.dtype), branches.x0, 1),
        noise=jnp.tensordot(weights.astype(branches.noise.dtype), branches.noise, 1),
    )


def _at(w: Weight, t: Time) -> Float[Array, ""]:
    return jnp.asarray(w(t) if callable(w) else w, float)


def _prefix(null: PyTree, cond: PyTree) -> PyTree:
    """The null condition with the structure of the condition: one number stands for all its leaves."""
    return jax.tree.map(lambda _: null, cond) if jax.tree_util.all_leaves([null]) else null
