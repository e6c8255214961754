"""Many samples: batch after batch of one compiled size, spread over the devices."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer, Key
from tqdm import tqdm

from jaxdiff import probability_flow
from jaxdiff.processes import Process
from jaxdiff.samplers import grids
from jaxdiff.samplers.grids import Grid
from jaxdiff.samplers.loop import Sampler, sample_each, sample_keys
from jaxdiff.typing import Denoiser, PyTree


def sample_in_batches(
    key: Key[Array, ""],
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    *,
    shape: tuple[int, ...],
    n: int,
    batch: int,
    steps: int | None = None,
    grid: Grid = "uniform",
    cond: PyTree = None,
    start: Float[np.ndarray, "n *shape"] | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "n *shape"]:
    """`jaxdiff.sample` for any n, in the memory that `batch` samples take.

    Args:
      key, denoiser, process, sampler, shape, n, steps, grid, cond, start: as for `jaxdiff.sample`; NumPy arrays.
      batch: how many at a time; rounded up to a multiple of the devices.
      mesh: the devices; all there are if left out. The denoiser's weights may be sharded over it.
      progress: whether to show a progress bar.

    Returns:
      float32 on the host, the same on every process.

    Raises:
      ValueError: for n or batch < 1, and for steps or a grid that the schedule can't take.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n = {n}, batch = {batch}; both must be at least 1")
    times = grids.make(grid, steps, process.schedule)
    mesh = mesh or all_devices()

    def draw(indices: Integer[Array, " size"], rows: tuple[PyTree, Any]) -> Float[Array, "size *shape"]:
        x = sample_each(
            _spread_keys(key, indices, indices.sharding),
            denoiser,
            process,
            sampler,
            times=times,
            shape=shape,
            cond=rows[0],
            start=rows[1],
            on_step=_counter if progress else None,
            outermost=True,
        )
        if progress:
            jax.block_until_ready(x)
            jax.effects_barrier()  # callbacks may come after the result
            _counter.next_batch()
        return x

    batches = -(-n // _size(n, batch, mesh))
    with _counter.shown_as(batches * (len(times) - 1)) if progress else nullcontext():
        return in_batches(draw, n, rows=(cond, start), batch=batch, mesh=mesh)


def in_batches(
    function: Callable[[Any, Any], PyTree],
    n: int,
    *,
    batch: int,
    rows: PyTree = None,
    check: Callable[[Any], None] | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> PyTree:
    """What a function gives for each of n examples, in batches of one size that are spread over the devices.

    Args:
      function: of a batch of indices in 0 … n − 1 and the rows at them; gives a pytree of arrays with the same leading
        axis. The last batch is filled up with the last example, and what that gives is thrown away.
      n: how many examples.
      batch: how many at a time; rounded up to a multiple of the devices.
      rows: a pytree of NumPy arrays with leading axis n.
      check: called with each batch of it, on the host: to raise what can't be raised from devices.
      mesh: the devices; all there are if left out.
      progress: whether to show a progress bar.

    Returns:
      The pytree as NumPy arrays with leading axis n, the same on every process.

    Raises:
      ValueError: for n or batch < 1; where a solver gives up on an ODE, with the time and the tolerance.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n = {n}, batch = {batch}; both must be at least 1")
    mesh = mesh or all_devices()
    size, over_devices = _size(n, batch, mesh), NamedSharding(mesh, P(mesh.axis_names))

    def spread(array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, over_devices, lambda part: array[part])

    parts = []
    with tqdm(total=n, disable=None, dynamic_ncols=True) if progress else nullcontext() as bar:
        for start in range(0, n, size):
            indices = np.minimum(np.arange(start, start + size), n - 1)
            with probability_flow.plain_errors():
                found = function(spread(indices), jax.tree.map(lambda array: spread(array[indices]), rows))  # noqa: B023
                parts.append(multihost_utils.process_allgather(found, tiled=True))
            if check is not None:
                check(parts[-1])
            if bar is not None:
                bar.update(min(size, n - start))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def _size(n: int, batch: int, mesh: Mesh) -> int:
    return -(-min(n, batch) // mesh.size) * mesh.size


@partial(jax.jit, static_argnames="sharding")
def _spread_keys(key: Key[Array, ""], indices: Integer[Array, " n"], sharding: NamedSharding) -> Key[Array, " n"]:
    return jax.lax.with_sharding_constraint(sample_keys(key, indices), sharding)


def all_devices() -> Mesh:
    """The mesh of all devices on one axis."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


class _Counter:
    """Moves a progress bar: devices call it once a jump each, in any order; the bar counts the foremost."""

    def __init__(self) -> None:
        self._foremost, self._lock = 0, threading.Lock()

    @contextmanager
    def shown_as(self, total: int) -> Iterator[None]:
        """Count on a bar of this length, where there is a terminal."""
        self._foremost = 0
        with tqdm(total=total, unit="jump", disable=None, dynamic_ncols=True) as self._bar:
            yield

    def __call__(self, done: int) -> None:
        with self._lock:
            if done > self._foremost:
                self._bar.update(done - self._foremost)
                self._foremost = done

    def next_batch(self) -> None:
        """Count from 0 again."""
        self._foremost = 0


_counter = _Counter()  # one for all calls: it is part of what is compiled
