"""The forward process: how a clean sample becomes a noisy one.

    x_t = α_t g_t(x_0) + σ_t n_t,    n_t = h_t(ε),  ε ~ N(0, I)

(Ho et al. 2020, equation 4, for any α and σ, where g and h do nothing.) The prior at t = 1 is

    Gaussian     σ_1 n: the mean that α_1 x_0 leaves (α_1 = 6e-3 for the linear schedule of 1000 steps) is neglected, as
                 it is by every DDPM
    Perturbed    α_1 g_1(x̃_0) + σ_1 n: x̃_0 of a law that was fitted to data, or 0. So an affine g moves the mean of the
                 prior by its shift, and a g_1 that is another image starts from that

Random parameters of g, such as an angle or a mask, belong to one sample. They are drawn with it (`draw`) and stay in
the process, so that no other function has to know of them: `bind` puts them into the denoiser, too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff import perturbations, registry
from jaxdiff.parameterization import noise_from_x0
from jaxdiff.perturbations import IDENTITY, NORMAL, Fitted, Identity, Law, Normal, Transform, check_law
from jaxdiff.schedules import Schedule
from jaxdiff.typing import Denoiser, PyTree, Time


@runtime_checkable
class Process(Protocol):
    """What losses and samplers need to know of a forward process. Everything is for one sample."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def signal(self) -> Transform:
        """g: `signal(x_0, t)` is what of x_0 is in x_t, before α_t."""

    def noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Time = 1.0) -> Float[Array, "*shape"]:
        """Standardised noise of time t: mean 0 and variance 1 in every coordinate."""

    def transport(self, noise: Float[Array, "*shape"], t: Time, s: Time) -> Float[Array, "*shape"]:
        """The noise of time s that stands where this one stands at time t; itself where the law does not change."""

    def corrupt(self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """x_t from x_0 and the noise."""

    def prior(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """Where sampling starts: a draw of x_1."""

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Process":
        """The process of one sample, with its random parameters; itself where nothing is random.

        Raises:
          ValueError: for a process that is none: see `Perturbed`.
        """

    def told(self, cond: PyTree) -> PyTree:
        """The condition of a network: `cond`, with this sample's parameters where the network is to know them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """x_t = α_t x_0 + σ_t n with white Gaussian noise n."""

    schedule: Schedule

    @property
    def signal(self) -> Transform:
        """The identity."""
        return IDENTITY

    def noise(self, key: Key[Array, ""], shape: tuple[int, ...], t: Time = 1.0) -> Float[Array, "*shape"]:
        """N(0, I) in the default float dtype."""
        return jax.random.normal(key, shape)

    def transport(self, noise: Float[Array, "*shape"], t: Time, s: Time) -> Float[Array, "*shape"]:
        """The noise itself."""
        return noise

    def corrupt(self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """α_t x_0 + σ_t n."""
        return self.schedule.alpha(t) * x0 + self.schedule.sigma(t) * noise

    def prior(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """σ_1 n."""
        noise = self.noise(key, shape)
        return self.schedule.sigma(1.0) * noise

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Gaussian":
        """The process itself."""
        return self

    def told(self, cond: PyTree) -> PyTree:
        """The condition itself."""
        return cond

    def log_prior(self, x1: Float[Array, "*shape"]) -> Float[Array, ""]:
        """The log-density of the prior at x_1, in nats."""
        sigma = self.schedule.sigma(1.0)
        return -0.5 * ((x1 / sigma) ** 2).sum() - x1.size * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))


class Told(NamedTuple):
    """The condition of a network that is told the parameters of its sample."""

    signal: Transform
    """The transform of this sample, with the parameters in it: `told.signal.angle`, `told.signal.hidden_from`."""
    cond: PyTree
    """What else it is told."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Perturbed:
    """x_t = α_t g_t(x_0) + σ_t n_t with any transform g of the signal and any law of the noise.

    The network predicts eps, v, score or velocity (with g_t(x_0) in the place of x_0, and g_t held fixed in the
    velocity) where g has an inverse at every t, and x0 where it has none.

    Fields:
      schedule: gives α and σ. Where g is to be undone, not the noise, take one that keeps α_1 and has little noise, as
        `VE(sigma_max=0.3)` does.
      signal: g, of `jaxdiff.perturbations`, or of your own (see docs/perturbations.md).
      noise: h, likewise.
      start: the law of the x_0 that x_1 is made of, `perturbations.fitted(data)`; None: x_0 = 0, right where
        α_1 g_1(x_0) is hidden by the noise, which discrete noise never does, or does not depend on x_0.
      tell: whether networks are told the parameters of g: their condition is then a `Told`.

    Raises:
      ValueError: when a sample is drawn or a loss computed, for a transform that changes the shape or is not the
        identity at t = 0, and for noise that has not mean 0 and variance 1. Not where the process is an argument of a
        `jax.jit` of your own: its numbers are not known there.
    """

    schedule: Schedule
    signal: Transform = dataclasses.field(default=IDENTITY, kw_only=True)
    noise: Law = dataclasses.field(default=NORMAL, kw_only=True)
    start: Fitted | None = dataclasses.field(default=None, kw_only=True)
    tell: bool = dataclasses.field(default=False, kw_only=True, metadata={"static": True})

    def transport(self, noise: Float[Array, "*shape"], t: Time, s: Time) -> Float[Array, "*shape"]:
        """h_s(h_t⁻¹(n))."""
        return self.noise.transport(noise, t, s)

    def corrupt(self, x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
        """α_t g_t(x_0) + σ_t n."""
        return self.schedule.alpha(t) * self.signal(x0, t) + self.schedule.sigma(t) * noise

    def prior(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
        """α_1 g_1(x̃_0) + σ_1 n."""
        x0 = jnp.zeros(shape) if self.start is None else self.start(jax.random.fold_in(key, 1))
        return self.corrupt(x0, self.noise(key, shape), 1.0)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> "Perturbed":
        """The process of one sample.

        Raises:
          ValueError: as the class says; what is computed only when a program runs is not looked at.
        """
        drawn = dataclasses.replace(self, signal=self.signal.draw(key, shape))
        self._check(shape)
        return drawn

    def told(self, cond: PyTree) -> PyTree:
        """The condition, as a `Told` where the network is to know the parameters."""
        return Told(self.signal, cond) if self.tell else cond

    def _check(self, shape: tuple[int, ...]) -> None:
        name = type(self.signal).__name__
        found = jax.eval_shape(lambda: self.signal.draw(jax.random.key(1), shape)(jnp.zeros(shape), 1.0))
        if found.shape != shape:
            raise ValueError(
                f"signal = {name} makes shape {found.shape} of a sample of shape {shape}; the rule is the same "
                "shape at every t: fill up what is cut off, as pixelate does, or give samples the larger shape"
            )
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self.signal, self.noise))):
            return
        with jax.ensure_compile_time_eval():
            if not isinstance(self.signal, Identity):
                x = jax.random.normal(jax.random.key(0), shape)
                error = float(jnp.abs(self.signal.draw(jax.random.key(1), shape)(x, 0.0) - x).max())
                if not error < 1e-3:
                    raise ValueError(
                        f"signal = {name} changes a sample by {error:.3g} at t = 0; the rule is g_0(x) = x, as "
                        "sampling ends there: let what it does grow from nothing with t"
                    )
            if not isinstance(self.noise, Normal):
                check_law(self.noise, shape)


def perturbed(
    schedule: Schedule,
    *,
    signal: Sequence[str] = (),
    noise: str = "normal",
    start: Literal["zeros", "fitted"] = "zeros",
    tell: bool = False,
    examples: Float[np.ndarray, "n *shape"] | None = None,
) -> Perturbed:
    """`Perturbed` by the names of its transforms, in order, and of its law: ("blur:width=4",), "gamma:shape=2".

    Args:
      schedule, tell: as of `Perturbed`.
      signal: names with options, of `perturbations.SIGNALS`, or "overlap": with the examples.
      noise: a name with options, of `perturbations.NOISES`.
      start: the x_0 that x_1 is made of: 0, or a normal law that is fitted to the examples.
      examples: of the data, at least 2, where something is made of them (see `takes_examples`).

    Raises:
      ValueError: for a name or an option that is not known, and where examples are needed but not given.
    """
    known = dict(perturbations.SIGNALS)
    if examples is not None:
        known["overlap"] = functools.partial(perturbations.overlap, examples)
    elif takes_examples({"signal": signal, "start": start}):
        raise ValueError(
            f"signal = {tuple(signal)}, start = {start!r} are made of examples of the data; give examples, n samples"
        )
    parts = [registry.make("signal", text, known) for text in signal]
    return Perturbed(
        schedule,
        signal=perturbations.composed(*parts),
        noise=registry.make("noise", noise, perturbations.NOISES),
        start=perturbations.fitted(examples) if examples is not None and start == "fitted" else None,
        tell=tell,
    )


def takes_examples(section: Mapping[str, Any]) -> bool:
    """Whether a config's `process` is made of examples of the data, and not of numbers alone."""
    return section.get("start") == "fitted" or any(
        text.partition(":")[0] == "overlap" for text in section.get("signal", ())
    )


REGISTRY: dict[str, Callable[..., Process]] = {"gaussian": Gaussian, "perturbed": perturbed}


def bind(denoiser: Denoiser, process: Process) -> Denoiser:
    """The denoiser with the transform of one sample's process in every process that it holds.

    A denoiser that is a plain function holds none: where g has random parameters, make it a pytree.

    Raises:
      ValueError: for a denoiser of a process of another kind: of another law of noise, or of a transform where there is
        none here, or the other way round.
    """

    def bound(node: PyTree) -> PyTree:
        if not isinstance(node, Gaussian | Perturbed):
            return node
        theirs, mine = _kind(node), _kind(process)
        if theirs != mine:
            raise ValueError(
                f"process has {mine}, but the denoiser was made for a process with {theirs}; give both the same"
            )
        return dataclasses.replace(node, signal=process.signal) if isinstance(node, Perturbed) else node

    return jax.tree.map(bound, denoiser, is_leaf=lambda node: isinstance(node, Gaussian | Perturbed))


def _kind(process: Process) -> str:
    noise = type(process.noise).__name__ if isinstance(process, Perturbed) else "Normal"
    signal = "no transform" if isinstance(process.signal, Identity) else "a transform"
    return f"{signal} of the signal and {noise} noise"


def noise_left(
    process: Process, x0: Float[Array, "*shape"], x_t: Float[Array, "*shape"], t: Time
) -> Float[Array, "*shape"]:
    """The noise that x_0 leaves of x_t, (x_t − α_t g_t(x_0))/σ_t; 0 where σ_t = 0."""
    return noise_from_x0(x0, x_t, t, process.schedule, signal=process.signal)


_REVERSED_BY = "sample this one with transported, mixed, fresh, ddim or ddpm"


def gaussian(process: Process, *, what: str = "this sampler", instead: str = _REVERSED_BY) -> Gaussian:
    """The process as a Gaussian one, which it is where g and h do nothing.

    Args:
      process: any.
      what: asks for it, as the message says.
      instead: what would do; empty where nothing would but another process.

    Raises:
      ValueError: for any other, of which no probability-flow ODE, score or likelihood is known here.
    """
    if isinstance(process, Gaussian):
        return process
    nothing = isinstance(process, Perturbed) and isinstance(process.signal, Identity) and process.start is None
    if nothing and isinstance(process.noise, Normal):
        return Gaussian(process.schedule)
    parts = f"{type(process.signal).__name__}, {type(process.noise).__name__}" if isinstance(process, Perturbed) else ""
    raise ValueError(
        f"process = {type(process).__name__}({parts}): {what} needs a Gaussian process, as no other has a "
        f"probability-flow ODE, a score or a likelihood; {instead and f'{instead}, or '}train on "
        "jd.Gaussian(schedule)"
    )
