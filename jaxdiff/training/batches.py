"""Which examples each step sees, and how they reach the devices.

The order is a function of (seed, step) alone: position p = step·batch + j of the endless stream is example
permutation(seed, p // N)[p mod N] of N. So a resumed run needs no iterator state, on any number of hosts.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32, Num

from jaxdiff.data import Dataset
from jaxdiff.training.sharding import batch_spec, place


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32)


def indices(seed: int, first_step: int, shape: tuple[int, int], n: int) -> Int[np.ndarray, "steps batch"]:
    """Return which of n examples the steps from `first_step` on see: int32 of the shape (steps, batch)."""
    position = first_step * shape[1] + np.arange(shape[0] * shape[1])
    epochs, offsets = np.divmod(position, n)
    chosen = np.empty(len(position), np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = _permutation(seed, int(epoch), n)[offsets[here]]
    return chosen.reshape(shape)


class Examples(NamedTuple):
    """Raw examples, and their labels if the model is conditioned on them."""

    x: Num[Any, "..."]
    labels: Int32[Any, "..."] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatch:
    """The input of one compiled call: `count` steps from step `first` on, counted from 0."""

    first: int
    count: int
    batch: Examples | Int[Array, "steps batch"]  # or their indices, if the data set is on the devices
    waited: float  # seconds that the loop waited for it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """The stream of dispatches over a data set."""

    examples: Examples
    mesh: Mesh
    seed: int
    batch_size: int
    # The whole data set on every device; None if each process gathers on the host what its own devices need.
    resident: Examples | None

    def stream(self, start: int, stop: int, size: int) -> Iterator[Dispatch]:
        """Yield dispatches of steps `start` to `stop`, cut at multiples of `size`; each is made while another runs."""
        if start >= stop:
            return
        bounds = [start, *range((start // size + 1) * size, stop, size), stop]
        spans = [(first, end - first) for first, end in itertools.pairwise(bounds)]
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._batch, *spans[0])
            for i, (first, count) in enumerate(spans):
                ready = following
                if i + 1 < len(spans):
                    following = pool.submit(self._batch, *spans[i + 1])
                began = time.perf_counter()
                batch = ready.result()
                yield Dispatch(first=first, count=count, batch=batch, waited=time.perf_counter() - began)

    def not_finite(self, step: int) -> int | None:
        """Return the index of an example with values that are not finite in the batch of a step, or None."""
        chosen = indices(self.seed, step, (1, self.batch_size), len(self.examples.x))[0]
        finite = np.isfinite(self.examples.x[chosen]).reshape(len(chosen), -1).all(1)
        return None if finite.all() else int(chosen[finite.argmin()])

    def _batch(self, first: int, count: int) -> Examples | Int[Array, "steps batch"]:
        chosen = indices(self.seed, first, (count, self.batch_size), len(self.examples.x))
        if self.resident is not None:
            return place(chosen, self.mesh, batch_spec(leading=1))
        sharding = NamedSharding(self.mesh, batch_spec(leading=1))

        def gather(array: Any) -> Array:
            shape = (*chosen.shape, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, lambda index: array[chosen[index[:2]]])  # type: ignore[index]

        return jax.tree.map(gather, self.examples)


def make_batches(
    dataset: Dataset, mesh: Mesh, *, seed: int, batch_size: int, on_device: bool, labelled: bool = False
) -> Batches:
    """Return the stream of batches over `dataset`; `on_device` copies it to every device once."""
    examples = Examples(dataset.x, dataset.labels if labelled else None)
    resident = jax.tree.map(lambda array: place(array, mesh, PartitionSpec()), examples) if on_device else None
    return Batches(examples=examples, mesh=mesh, seed=seed, batch_size=batch_size, resident=resident)
