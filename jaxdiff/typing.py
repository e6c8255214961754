"""The types that every part of the house shares.

Everything is written for one sample: `x_t` has the sample's own shape and `t` is a scalar. Batches are `jax.vmap`.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

PyTree = Any
Time = Float[Array, ""] | float


class Prediction(NamedTuple):
    """The hub: what any network's output is converted into, once.

    `x0` estimates the clean sample and `noise` the standardised noise, so that
    x_t = α_t·x0 + σ_t·noise holds wherever the path lets both be known. A network that learns the variance of the
    reverse step says with `variance_mix` where it lies, in logarithms, between the smallest (0, the posterior's) and
    the largest (1, the transition's): see `jaxdiff.samplers.jump`.
    """

    x0: Float[Array, "*shape"]
    noise: Float[Array, "*shape"]
    variance_mix: Float[Array, "*shape"] | None = None


@runtime_checkable
class Denoiser(Protocol):
    """What samplers, losses, guidance and likelihoods see of a model.

    Takes one sample `x_t` of any shape, its time `t` (scalar in [0, 1], 0 is data) and an optional condition
    (a pytree, None if there is none). For use under `jax.jit` without recompilation, make it a pytree
    (`jax.tree_util.register_dataclass`) or a function that is defined once.
    """

    def __call__(self, x_t: Float[Array, "*shape"], t: Time, cond: PyTree = None, /) -> Prediction: ...
