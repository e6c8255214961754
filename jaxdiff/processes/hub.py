"""The interface of a denoiser, through which samplers, losses, guidance and likelihoods see every model.

    (x_t, t, cond) -> Prediction(x0, noise)

A denoiser owns its process. Random parameters of the process, such as an angle or a mask, belong to one sample; only
`for_sample` draws them, into a copy of the denoiser.
"""

import dataclasses
from typing import Any, Protocol, Self, runtime_checkable

import jax
import numpy as np

from jaxdiff.processes.base import Process
from jaxdiff.typing import InputError, Prediction, PyTree, RandomKey, Sample, Shape, Time, check_key, is_traced, pytree


@runtime_checkable
class Denoiser(Protocol):
    """A model of the data under its `process`, a `jaxdiff.processes.Process`.

    A dataclass with a field `process` inherits `with_process`; a `jaxdiff.typing.pytree` passes through `jax.jit`.
    """

    process: Any

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        """Estimate the clean sample and the noise of one noisy sample at time t in [0, 1], given any condition."""

    def with_process(self, process: Process) -> Self:
        """Return this denoiser under its process with other parameters of a sample; another process is refused."""
        check_same(self.process, process)
        return dataclasses.replace(self, process=process)  # type: ignore[type-var]


class Wrapper(Denoiser):
    """A denoiser made from another one, its field `inner`, which owns the process."""

    inner: Denoiser

    @property
    def process(self) -> Process:
        return self.inner.process

    def with_process(self, process: Process) -> Self:
        return dataclasses.replace(self, inner=self.inner.with_process(process))  # type: ignore[type-var]


@pytree(eq=False)
class Conditioned(Wrapper):
    """A denoiser with a fixed condition, which ignores the one it is called with."""

    inner: Denoiser
    cond: PyTree

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        return self.inner(x_t, t, self.cond)


def check_same(process: Process, other: Process) -> None:
    """Raise an InputError if two processes differ in more than the parameters that they draw for each sample."""
    (leaves, kind), (others, other_kind) = (jax.tree.flatten((p.schedule, p.noise)) for p in (process, other))
    alike: bool = isinstance(other, type(process)) and kind == other_kind  # type: ignore[operator]
    if not alike or not all(is_traced(pair) or np.array_equal(*pair) for pair in zip(leaves, others, strict=True)):
        raise InputError(
            f"process = {other!r}, but the model was made for {process!r}; a model is right under its own process only"
        )


def for_sample(denoiser: Any, key: RandomKey, shape: Shape) -> Any:
    """Return the denoiser (or noisy classifier) with the random parameters of one sample drawn; itself if it has none.

    `key` may also draw the sample's noise: 3 is folded in here. A shape that the process can't take is an InputError.
    """
    check_key(key)
    process = denoiser.process.for_sample(jax.random.fold_in(key, 3), shape)
    return denoiser if process is denoiser.process else denoiser.with_process(process)
