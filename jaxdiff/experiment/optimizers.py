"""Optimizers and decays of the learning rate, by name.

    rate(n) = learning_rate (n + 1)/w     at the steps n = 0 … w − 1 of a warm-up of w steps
    rate(n) = decay(n − w)                at the steps n = w … N − 1 after it

With r = learning_rate, m = N − w steps after the warm-up, and e = `end`:

    constant    r
    linear      r (1 − (1 − e) n/m)
    cosine      r (e + (1 − e) (1 + cos(π n/m))/2)
    rsqrt       r √(s/(s + n)),  s = `timescale`, by default w: then r √(w/(w + n)), of Vaswani et al. 2017

A component is called with those of the arguments named here that it has as parameters:

    optimizer   learning_rate, the function rate; weight_decay; mask, which says what of the parameters decays
    decay       learning_rate, r; steps, m; warmup_steps, w. It returns a function of n
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxdiff import registry
from jaxdiff.typing import Count, Extended, InputError, Layers, PyTree, shown

Rate = Callable[[Any], Any]  # from the number of a step, which may be traced, to a learning rate


def _constant(learning_rate: float) -> Rate:
    return optax.constant_schedule(learning_rate)


def _linear(learning_rate: float, steps: int, *, end: float = 0.0) -> Rate:
    return optax.linear_schedule(learning_rate, end * learning_rate, steps)


def _cosine(learning_rate: float, steps: int, *, end: float = 0.0) -> Rate:
    return optax.cosine_decay_schedule(learning_rate, steps, end)


def _rsqrt(learning_rate: float, warmup_steps: int, *, timescale: Count | None = None) -> Rate:
    s = max(warmup_steps, 1) if timescale is None else timescale
    if s < 1:
        raise InputError(f"timescale = {s}; it must be at least 1")
    return lambda n: learning_rate * jnp.sqrt(s / (s + jnp.maximum(n, 0)))


def _muon(
    learning_rate: Rate,
    weight_decay: float = 0.0,
    mask: Callable[[PyTree], PyTree] | None = None,
    *,
    beta: float = 0.95,
    ns_steps: Layers = 5,
    nesterov: bool = True,
    consistent_rms: float | None = 0.2,
) -> optax.GradientTransformation:
    """Return Muon for the kernels of a network, as matrices from all inputs to the outputs, and Adam for the rest.

    `nesterov` is the kind of momentum of both. A kernel is an array named `kernel` of at least two axes, of which the
    last one counts outputs, as in Flax. With `consistent_rms` = 0.2 its updates are as large as those of AdamW, so that
    the learning rates of AdamW fit; None scales them by √max(1, outputs/inputs).

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training" (the scale).
    """

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name.rpartition("/")[2] != "kernel" or leaf.ndim < 2:  # the last part, where the weights are a flat mapping
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    def numbers(params: PyTree) -> PyTree:
        found = jax.tree_util.tree_map_with_path(axes, params)
        if not jax.tree.leaves(found):
            raise InputError(
                "optimizer.name = 'muon', but no array of the network is called kernel and has two axes or more; use "
                "another optimizer, or package.module:function"
            )
        return found

    options: Any = {"beta": beta, "ns_steps": ns_steps, "nesterov": nesterov, "consistent_rms": consistent_rms}
    # Optax decays the kernels alone. Here weight decay is that of AdamW, which decays what the mask says.
    return optax.chain(
        optax.contrib.muon(1.0, **options, muon_weight_dimension_numbers=numbers),
        optax.add_decayed_weights(-weight_decay, mask),
        optax.scale_by_schedule(learning_rate),
    )


OPTIMIZERS: registry.Names = {
    "adamw": optax.adamw,
    "adam": optax.adam,
    "sgd": optax.sgd,
    "lion": optax.lion,
    "muon": _muon,
}
DECAYS: registry.Names = {"constant": _constant, "linear": _linear, "cosine": _cosine, "rsqrt": _rsqrt}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer with gradient clipping, and a learning rate with linear warm-up and optional decay."""

    name: str = "adamw"  # or adam, sgd, lion, muon, package.module:function; with options, as in "adamw:b2=0.95"
    learning_rate: Extended = 1e-3  # the greatest one, after the warm-up
    warmup_steps: int = 0  # over which the learning rate rises linearly from 0
    decay: str = "constant"  # or linear, cosine, rsqrt, package.module:function; with options, as in "cosine:end=0.1"
    weight_decay: float = 0.0  # the share of each weight, times the learning rate, that a step takes off
    clip_norm: float | None = 1.0  # the greatest global norm of the gradient; None for any

    def __post_init__(self) -> None:
        registry.check_types(self)
        registry.at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm = {self.clip_norm}; it must be above 0, or None to clip nothing")
        self.build(1)

    def rate(self, steps: int) -> Rate:
        """Return the learning rate of a run of so many steps, as a function of the step's number, from 0 on."""
        given = {
            "learning_rate": self.learning_rate,
            "steps": max(steps - self.warmup_steps, 1),
            "warmup_steps": self.warmup_steps,
        }
        after = _make("decay", self.decay, DECAYS, given)
        if not callable(after):
            raise InputError(f"decay = {self.decay!r} returns {shown(after)}; it must return a function of the step")
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        # The first step has count 0: a warm-up must not spend it on a rate of 0.
        return optax.join_schedules([lambda n: warmup(n + 1), after], [self.warmup_steps])

    def build(
        self, steps: int, mask: Callable[[PyTree], PyTree] | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of a run of so many steps, after clipping by the global norm.

        `mask` maps parameters to a tree of that structure, or the beginning of it. What is False there is neither
        decayed nor part of the norm.

        Raises:
          InputError: if weight decay, or its mask, has no place in the optimizer.
        """
        for option, value in {"weight_decay": self.weight_decay, "mask": self.weight_decay and mask}.items():
            if value and not registry.takes("name", self.name, OPTIMIZERS, option):
                takers = ", ".join(name for name in OPTIMIZERS if registry.takes("name", name, OPTIMIZERS, option))
                raise InputError(
                    f"weight_decay = {self.weight_decay}, but name = {self.name!r} has no parameter {option}; set "
                    f"weight_decay to 0, or name to one of {takers}"
                )
        given = {"learning_rate": self.rate(steps), "weight_decay": self.weight_decay, "mask": mask}
        optimizer = _make("name", self.name, OPTIMIZERS, given)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise InputError(
                f"name = {self.name!r} returns {shown(optimizer)}; it must return an optax.GradientTransformation"
            )
        if self.clip_norm is None:
            return optimizer
        clip = optax.clip_by_global_norm(self.clip_norm)
        return optax.chain(optax.masked(clip, mask) if mask else clip, optimizer)


def _make(what: str, text: str, names: registry.Names, given: Mapping[str, Any]) -> Any:
    """The component that a text names, made with those of the given arguments that it takes."""
    taken = {key: value for key, value in given.items() if registry.takes(what, text, names, key)}
    if "learning_rate" not in taken:
        raise InputError(f"{what} = {shown(text)} has no parameter learning_rate; name a function that has")
    try:
        return registry.make(what, text, names, given=tuple(given), **taken)
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # Optax checks values by these
        raise InputError(f"{what} = {shown(text)}: {error}") from error


def all_but_schedule(params: PyTree) -> PyTree:
    """Return a mask of parameters that leaves out a learned noise schedule."""
    return {name: name != "schedule" for name in params}
