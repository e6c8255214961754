"""The interface of a denoiser, through which samplers, losses, guidance and likelihoods see every model.

    (x_t, t, cond) -> Prediction(x0, noise)

A denoiser owns its process. Random parameters of the process, such as an angle or a mask, belong to one sample:
`for_sample` draws them into a copy of the denoiser, and nothing else does.
"""

import dataclasses
from typing import Any, Protocol, Self, runtime_checkable

import jax

from jaxdiff.processes.base import Process
from jaxdiff.typing import Prediction, PyTree, RandomKey, Sample, Shape, Time, pytree

_PARAMS = 3  # folded into a sample's key to draw the parameters of its transform


@runtime_checkable
class Denoiser(Protocol):
    """A model of the data under a process.

    Derive from this class to get `with_process`, which needs a dataclass with a field `process`. To pass a denoiser
    through `jax.jit`, make it a pytree (`jaxdiff.typing.pytree`).
    """

    process: Any
    """The process that it denoises, a `jaxdiff.processes.Process`."""

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        """Estimate the clean sample and the noise of one noisy sample.

        Args:
          x_t: one noisy sample.
          t: its time, a scalar in [0, 1]; 0 is data.
          cond: the condition, any pytree; None for no condition.
        """

    def with_process(self, process: Process) -> Self:
        """Return this denoiser under another process of the same kind."""
        return dataclasses.replace(self, process=process)  # type: ignore[type-var]


class Wrapper(Denoiser):
    """A denoiser made from another one, its field `inner`, which owns the process."""

    inner: Denoiser

    @property
    def process(self) -> Process:
        """The process of the inner denoiser."""
        return self.inner.process

    def with_process(self, process: Process) -> Self:
        """Return this denoiser with the inner one under another process."""
        return dataclasses.replace(self, inner=self.inner.with_process(process))  # type: ignore[type-var]


@pytree(eq=False)
class Conditioned(Wrapper):
    """A denoiser with a fixed condition; the one it is called with is ignored."""

    inner: Denoiser
    cond: PyTree

    def __call__(self, x_t: Sample, t: Time, cond: PyTree = None, /) -> Prediction:
        return self.inner(x_t, t, self.cond)


def for_sample(denoiser: Any, key: RandomKey, shape: Shape) -> Any:
    """Return the denoiser (or noisy classifier) with the random parameters of one sample drawn.

    Args:
      denoiser: has `process` and `with_process`; returned as it is if nothing in its process is random.
      key: the key of the sample, as for its noise: fold_in(key, 3) draws the parameters.
      shape: of the sample.

    Raises:
      InputError: if the process can't take samples of this shape.
    """
    process = denoiser.process.for_sample(jax.random.fold_in(key, _PARAMS), shape)
    return denoiser if process is denoiser.process else denoiser.with_process(process)
