"""Which examples each step sees, and how they reach the devices.

The order is a function of (seed, step) alone: position p = step·batch + j of the endless stream is example
permutation(seed, p // N)[p mod N] of N. So a resumed run needs no iterator state, on any number of hosts.

Examples that are not in memory are read by worker processes, ahead of the steps; each process of a run on several hosts
reads what its own devices need. What is random about example i of step n is drawn from (seed, n, i), so that the number
of workers changes nothing.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxdiff.data import Dataset, DataSpec, Examples, Part, Source, in_memory
from jaxdiff.training import chips
from jaxdiff.training.sharding import batch_spec, place
from jaxdiff.training.workers import read_ahead
from jaxdiff.typing import InputError
from jaxdiff.xla import cores

_ELEMENT, _MOST_STEPS = 2**22, 16  # bytes and steps of an element, as each that a worker sends takes a millisecond
_LANES = 128  # elements of a row of a TPU's tiles
_MOST_BYTES = 2**28  # of examples that are kept on the devices unless the config says otherwise


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


def _chosen(
    seed: int, first_step: int, shape: tuple[int, int], dataset: Source, among: Int[np.ndarray, " n"] | None
) -> Int[np.ndarray, "steps batch"]:
    if among is None:
        return indices(seed, first_step, shape, len(dataset))
    return among[indices(seed, first_step, shape, len(among))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatch:
    """The input of one compiled call: `count` steps from step `first` on, counted from 0."""

    first: int
    count: int
    batch: Examples | Int[Array, "steps batch"]  # or their indices, if the data set is on the devices
    waited: float  # seconds that the loop waited for it


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["shapes"])
@dataclasses.dataclass(frozen=True)
class Resident:
    """A whole data set on every device, with examples of more than one axis as flat rows.

    A TPU lays out the last two axes of an array in tiles of 128 elements, and would read 806 MB to gather 128 images
    from 50,000 of (32, 32, 3). From rows of a multiple of 128 elements it reads 5.5 MB.
    """

    rows: Examples
    shapes: tuple[tuple[int, ...], ...]  # of one example, for each leaf of rows

    @classmethod
    def of(cls, examples: Examples, mesh: Mesh) -> "Resident":
        """Copy examples to every device of a mesh."""

        def row(leaf: np.ndarray) -> Array:
            if leaf.ndim > 2:
                flat = leaf.reshape(len(leaf), -1)
                leaf = np.pad(flat, ((0, 0), (0, _width(leaf.shape[1:]) - flat.shape[1])))
            return place(leaf, mesh, PartitionSpec())

        return cls(jax.tree.map(row, examples), tuple(leaf.shape[1:] for leaf in jax.tree.leaves(examples)))

    @classmethod
    def abstract(cls, example: Examples, n: int, mesh: Mesh) -> "Resident":
        """Return the shapes, dtypes and shardings of `of` for n examples like this one."""
        everywhere = NamedSharding(mesh, PartitionSpec())

        def row(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            shape = (_width(leaf.shape[1:]),) if leaf.ndim > 2 else leaf.shape[1:]
            return jax.ShapeDtypeStruct((n, *shape), leaf.dtype, sharding=everywhere)

        return cls(jax.tree.map(row, example), tuple(leaf.shape[1:] for leaf in jax.tree.leaves(example)))

    def take(self, chosen: Int[Array, " n"]) -> Examples:
        """Return the examples at these indices."""
        leaves, structure = jax.tree.flatten(self.rows)
        pairs = zip(leaves, self.shapes, strict=True)
        found = [
            leaf[chosen][..., : math.prod(shape)].reshape(len(chosen), *shape) if len(shape) > 1 else leaf[chosen]
            for leaf, shape in pairs
        ]
        return jax.tree.unflatten(structure, found)


def _width(shape: tuple[int, ...]) -> int:
    """The number of elements of a flat row that holds an example of this shape."""
    return -(-math.prod(shape) // _LANES) * _LANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """The stream of dispatches over a data set."""

    dataset: Source
    among: Int[np.ndarray, " n"] | None  # the examples to train on; None for all
    mesh: Mesh
    seed: int
    batch_size: int
    kinds: tuple[str, ...]  # the conditions that the network is given, "label" among them
    workers: int
    # The whole data set on every device; None if each process gathers on the host what its own devices need.
    resident: "Resident | None"

    def stream(self, start: int, stop: int, size: int) -> Iterator[Dispatch]:
        """Yield dispatches of steps `start` to `stop`, cut at multiples of `size`; each is made while another runs."""
        if start >= stop:
            return
        bounds = [start, *range((start // size + 1) * size, stop, size), stop]
        spans = [(first, end - first) for first, end in itertools.pairwise(bounds)]
        with ExitStack() as stack:
            taken = None if self.resident is not None else stack.enter_context(self._taken(start, stop))
            pool = stack.enter_context(ThreadPoolExecutor(1))
            following = pool.submit(self._batch, taken, *spans[0])
            for i, (first, count) in enumerate(spans):
                ready = following
                if i + 1 < len(spans):
                    following = pool.submit(self._batch, taken, *spans[i + 1])
                began = time.perf_counter()
                batch = ready.result()
                yield Dispatch(first=first, count=count, batch=batch, waited=time.perf_counter() - began)

    def not_finite(self, step: int) -> int | None:
        """Return the index of an example with values that are not finite in the batch of a step, or None."""
        chosen = _chosen(self.seed, step, (1, self.batch_size), self.dataset, self.among)[0]
        x = self.dataset.take(chosen, seed=self.seed, step=step).x
        finite = np.isfinite(x).reshape(len(chosen), -1).all(1)
        return None if finite.all() else int(chosen[finite.argmin()])

    def _batch(self, taken: Iterator[Examples] | None, first: int, count: int) -> Examples | Int[Array, "steps batch"]:
        if taken is None:
            chosen = _chosen(self.seed, first, (count, self.batch_size), self.dataset, self.among)
            return place(chosen, self.mesh, batch_spec(leading=1))
        sharding = NamedSharding(self.mesh, batch_spec(leading=1))
        steps = list(itertools.islice(taken, count))
        examples = jax.tree.map(lambda *parts: np.stack(parts), *steps)

        def spread(array: np.ndarray) -> Array:
            def part(index: Any) -> np.ndarray:
                first, last, _ = index[1].indices(self.batch_size)
                begin = int(np.searchsorted(self._rows, first))
                return array[:, begin : begin + last - first]

            return jax.make_array_from_callback((count, self.batch_size, *array.shape[2:]), sharding, part)

        return jax.tree.map(spread, examples)

    @functools.cached_property
    def _rows(self) -> Int[np.ndarray, " rows"]:
        """Which examples of a batch the devices of this process need, in order."""
        slices = NamedSharding(self.mesh, batch_spec()).addressable_devices_indices_map((self.batch_size,)).values()
        every = np.arange(self.batch_size)
        return np.unique(np.concatenate([every[index] for index in slices if index is not None]))

    @contextmanager
    def _taken(self, start: int, stop: int) -> Iterator[Iterator[Examples]]:
        """Open an iterator over the examples of steps `start` to `stop` that the devices of this process need."""
        steps = _Steps(self.dataset, self.among, self._rows, self.seed, self.batch_size, self.kinds, start, stop)
        if isinstance(self.dataset, Dataset):  # in memory: nothing to wait for
            yield map(steps.take, range(start, stop))
            return
        if self.workers:
            size = _ELEMENT // (len(self._rows) * _bytes_of_example(self.dataset.spec, self.kinds))
            steps = dataclasses.replace(steps, size=min(max(size, 1), _MOST_STEPS))
        with read_ahead(steps, self.workers) as elements:
            yield itertools.chain.from_iterable(map(_apart, elements))


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The examples of `size` steps each, by random access: what workers read."""

    dataset: Source
    among: Int[np.ndarray, " n"] | None
    rows: Int[np.ndarray, " rows"]
    seed: int
    batch_size: int
    kinds: tuple[str, ...]
    start: int
    stop: int
    size: int = 1

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.size)

    def __getitem__(self, i: Any) -> Examples:
        first = self.start + int(i) * self.size
        found = [self.take(step) for step in range(first, min(first + self.size, self.stop))]
        return jax.tree.map(lambda *parts: np.stack(parts), *found)

    def take(self, step: int) -> Examples:
        """Return the examples of one step."""
        chosen = _chosen(self.seed, step, (1, self.batch_size), self.dataset, self.among)[0][self.rows]
        return only(self.dataset.take(chosen, seed=self.seed, step=step), self.kinds)


def only(examples: Examples, kinds: Collection[str]) -> Examples:
    """Return the examples with these kinds of conditions alone."""
    kept = {name: part for name, part in (examples.cond or {}).items() if name.removesuffix("_mask") in kinds}
    return Examples(examples.x, examples.labels if "label" in kinds else None, kept or None)


def _apart(steps: Examples) -> Iterator[Examples]:
    """The examples of each step of an element."""
    for i in range(len(steps.x)):
        yield jax.tree.map(lambda part: part[i], steps)  # noqa: B023 - used at once


def _bytes_of_example(spec: DataSpec, kinds: Collection[str]) -> int:
    """The size of an example with these kinds of conditions."""
    own = math.prod(spec.shape) * (4 if spec.levels is None else 1)
    return own + sum(4 * math.prod(spec.conditions[kind]) for kind in kinds if kind != "label")


def is_resident(dataset: Source, kinds: Collection[str], on_device: bool | None) -> bool:
    """Return whether a data set is kept on the devices, by the rule of `make_batches`, which raises the same."""
    if on_device and dataset.varies:
        raise InputError("data.on_device = True, but data.crop or data.flip make the examples vary; leave one out")
    size = len(dataset) * _bytes_of_example(dataset.spec, kinds)
    return bool(on_device) or (on_device is None and not dataset.varies and size <= _MOST_BYTES)


def make_batches(
    dataset: Source,
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    on_device: bool | None,
    kinds: Collection[str] = (),
    workers: int | None = None,
) -> Batches:
    """Return the stream of batches over a data set.

    `on_device` copies it to every device once; None does so if it does not vary and has at most 256 MB. `kinds` are the
    conditions that batches have, "label" or those of `Examples`. `workers` are the processes that read examples which
    are not in memory; 0 reads them in threads of this one, None is one a core.

    Raises:
      InputError: if `on_device` is True and the data vary, as by random crops, or do not fit a device.
    """
    among = None
    if isinstance(dataset, Part):  # by indices in the whole set, which messages name
        among, dataset = dataset.rows.astype(np.int32), dataset.source
    size, most = len(dataset) * _bytes_of_example(dataset.spec, kinds), chips.memory(mesh.local_devices[0])
    if on_device and most is not None and size > most:
        raise InputError(
            f"data.on_device = True, but the {len(dataset):,} examples have {size / 2**30:.1f} GiB and each device has "
            f"{most / 2**30:.1f}; leave it out, so that batches are sent from the host"
        )
    resident = None
    if is_resident(dataset, kinds, on_device):
        dataset = whole = in_memory(dataset)
        examples = only(Examples(whole.x, whole.labels, whole.cond), kinds)
        resident = Resident.of(examples, mesh)
    return Batches(
        dataset=dataset,
        among=among,
        mesh=mesh,
        seed=seed,
        batch_size=batch_size,
        kinds=tuple(kinds),
        workers=cores() if workers is None else workers,
        resident=resident,
    )
