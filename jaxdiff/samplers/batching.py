"""Draw many samples: in batches of one compiled size, spread over the devices, a few steps at a time."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from jaxdiff import xla
from jaxdiff.processes import Denoiser
from jaxdiff.progress import tqdm
from jaxdiff.samplers import pieces, probability_flow
from jaxdiff.samplers import timesteps as timesteps_
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.loop import Carry, Keys, begin, check_rows, check_sampler, check_start, sample_keys, stepper
from jaxdiff.samplers.names import make
from jaxdiff.schedules import Schedule
from jaxdiff.typing import (
    Count,
    HostSamples,
    InputError,
    PyTree,
    RandomKey,
    Samples,
    Shape,
    check_key,
    check_whole,
    checks_fields,
    key_of,
)

Clip = Literal["static", "dynamic", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
@checks_fields
class Sampling:
    """How samples are drawn: in a config, while training, and by default in `sample.py`."""

    sampler: str | Sampler = "ddim"
    steps: Count = 50
    """The number of steps; not used if `timesteps` lists the times."""
    timesteps: str | tuple[float, ...] = "uniform"
    """The name of a rule of `jaxdiff.timesteps`, or the times themselves."""
    n: Count = 64
    """The number of samples; points are always drawn in thousands."""
    batch: Count = 64
    """How many samples to draw at a time; rounded up to a multiple of the devices."""
    clip: Clip = "static"
    """How x̂_0 is kept in the range of the data: `clip_denoised` or `dynamic_threshold`. Data may have no range."""
    progress: bool = False

    def __post_init__(self) -> None:
        make(self.sampler)
        for name in ("steps", "n", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; it must be 1 or more")
        if isinstance(self.timesteps, str):
            timesteps_.check_name(self.timesteps)

    def times(self, schedule: Schedule) -> Float[np.ndarray, " times"]:
        """Return the decreasing times to visit; raises as `jaxdiff.timesteps.make`."""
        steps = self.steps if isinstance(self.timesteps, str) else None
        return np.asarray(timesteps_.make(self.timesteps, steps, schedule))


def sample_in_batches(
    key: RandomKey,
    denoiser: Denoiser,
    sampling: Sampling,
    *,
    shape: Shape,
    n: int,
    cond: PyTree = None,
    start: HostSamples | None = None,
    mesh: Mesh | None = None,
) -> HostSamples:
    """`jaxdiff.sample` for any n, in the memory that `sampling.batch` samples take, with the same errors.

    The samples are float32 on the host, the same on every process.

    Args:
      sampling: its `clip` and its own n are not used here.
      cond, start: as for `jaxdiff.sample`; NumPy arrays.
      mesh: the devices; None for all. The denoiser's weights may be sharded over it.
    """
    check_key(key)
    shape, start = check_rows(n, shape, cond, start)
    mesh = mesh or all_devices()
    times = sampling.times(denoiser.process.schedule)
    check_start(times, start)
    steps = len(times) - 1
    visited = jnp.asarray(times, jnp.result_type(float))
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    check_sampler(sampler := make(sampling.sampler), times, denoiser.process)
    static: dict[str, Any] = {"sampler": sampler, "shape": shape, "sharding": sharding}
    denoiser = _replicated(denoiser, NamedSharding(mesh, P()))
    begin_all, continue_all = (xla.outermost(f, *static, mesh=mesh) for f in (_begin, _continue))
    with _bar(sampling.progress, -(-n // _size(n, sampling.batch, mesh)) * steps, unit="step") as bar:

        def draw(indices: Integer[Array, " size"], rows: tuple[PyTree, Any]) -> Samples:
            keys = _spread_keys(key, indices, sharding)
            take = partial(continue_all, (keys, rows[0]), denoiser, visited, **static)
            before = 0
            for done, carry in pieces.advance(take, begin_all(keys, denoiser, rows[1], **static), [steps]):  # noqa: B007
                if bar is not None:
                    bar.update(done - before)
                before = done
            return carry[0]

        return in_batches(draw, n, rows=(cond, start), batch=sampling.batch, mesh=mesh)


def batch_of(sampling: Sampling, mesh: Mesh) -> int:
    """Return how many samples `sample_in_batches` draws at a time."""
    return _size(sampling.n, sampling.batch, mesh)


def trace_steps(
    denoiser: Denoiser, sampling: Sampling, *, shape: Shape, cond: PyTree, steps: int, mesh: Mesh
) -> jax.stages.Traced:
    """Return the program that `sample_in_batches` runs for a whole batch of this many steps.

    The arrays of the denoiser and of `cond`, with the leading axis of a batch, need only be shapes. The devices of the
    mesh may be elsewhere.
    """
    n, sharding = batch_of(sampling, mesh), NamedSharding(mesh, P(mesh.axis_names))
    everywhere = NamedSharding(mesh, P())
    static: dict[str, Any] = {"sampler": make(sampling.sampler), "shape": shape, "sharding": sharding}

    def at(where: NamedSharding, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)

    keys = at(sharding, jax.eval_shape(lambda: jax.random.split(key_of(0), n)))
    visited = at(everywhere, jax.ShapeDtypeStruct((steps + 1,), jnp.result_type(float)))
    denoiser, rows = at(everywhere, denoiser), at(sharding, cond)
    carry = at(sharding, jax.eval_shape(partial(_begin, **static), keys, denoiser, None))
    span = at(everywhere, jax.eval_shape(lambda: (0, 1)))
    return xla.outermost(_continue, *static, mesh=mesh).trace((keys, rows), denoiser, visited, carry, span, **static)


def sample_at(
    key: RandomKey, denoiser: Denoiser, sampling: Sampling, *, shape: Shape, n: int, at: Sequence[int]
) -> dict[int, HostSamples]:
    """Return x after each of the increasing numbers of steps `at`, of n samples that this process draws alone.

    The samples are those of `jaxdiff.sample`, which returns x after every step.
    """
    mesh = Mesh(jax.local_devices()[:1], ("data",))
    static: dict[str, Any] = {"sampler": make(sampling.sampler), "shape": shape, "sharding": NamedSharding(mesh, P())}
    keys, times = sample_keys(key, np.arange(n)), sampling.times(denoiser.process.schedule)
    visited = jnp.asarray(times, jnp.result_type(float))
    take = partial(xla.outermost(_continue, *static), (keys, None), denoiser, visited, **static)
    begun = xla.outermost(_begin, *static)(keys, denoiser, None, **static)
    found = {0: np.asarray(begun[0])}
    with probability_flow.plain_errors(), _bar(sampling.progress, at[-1], unit="step") as bar:
        for done, carry in pieces.advance(take, begun, at):
            found[done] = np.asarray(carry[0])
            if bar is not None:
                bar.update(done - bar.n)
    return {index: found[index] for index in at}


def _begin(
    keys: Keys, denoiser: Denoiser, start: Samples | None, *, sampler: Sampler, shape: Shape, sharding: NamedSharding
) -> PyTree:
    """Return x_1 and the sampler's first state of every sample."""
    first = jax.vmap(lambda key, start: begin(key, denoiser, start, sampler, shape))(keys, start)
    return jax.lax.with_sharding_constraint(first, sharding)


def _continue(
    rows: tuple[Keys, PyTree],  # keys and conditions
    denoiser: Denoiser,
    times: Float[Array, " times"],
    carry: PyTree,
    span: tuple[Any, Any],  # scalars: one program serves pieces of any length
    *,
    sampler: Sampler,
    shape: Shape,
    sharding: NamedSharding,
) -> PyTree:
    """Return x and the sampler's state of every sample after the steps first … last − 1 of the span."""

    def one(key: RandomKey, cond: PyTree, carry: Carry) -> Carry:
        return jax.lax.fori_loop(*span, stepper(key, denoiser, cond, times, sampler, shape), carry)

    return jax.lax.with_sharding_constraint(jax.vmap(one)(*rows, carry), sharding)


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
    """Apply a function to n examples, in batches of one size that are spread over the devices.

    Returns NumPy arrays with leading axis n, the same on every process. Raises an `InputError` if n or batch is below
    1, or a solver gives up on an ODE.

    Args:
      function: maps a batch of indices in 0 … n − 1, and the rows at them, to a pytree of arrays with the same leading
        axis. The last batch is padded with the last example, and the results of the padding are dropped.
      batch: how many at a time; rounded up to a multiple of the devices.
      rows: a pytree of NumPy arrays with leading axis n.
      check: called with the results of each batch, on the host, to raise what can't be raised from devices.
      mesh: the devices; None for all.
    """
    n, batch = check_whole("n", n), check_whole("batch", batch)
    mesh = mesh or all_devices()
    size, sharding = _size(n, batch, mesh), NamedSharding(mesh, P(mesh.axis_names))

    def spread(array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    parts = []
    with _bar(progress, n, unit="it") as bar:
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


def _bar(progress: bool, total: int, *, unit: str) -> Any:
    """Return a progress bar, shown on terminals and in notebooks only, or a context of None."""
    # leave=None: below another bar it disappears when it is full.
    options: Any = {"disable": None, "leave": None, "dynamic_ncols": True}
    return tqdm(total=total, unit=unit, **options) if progress else nullcontext()


def _size(n: int, batch: int, mesh: Mesh) -> int:
    """Return the size of a batch: a power of 2 or `batch`, so that few are compiled, and a multiple of the devices."""
    return -(-min(1 << (n - 1).bit_length(), batch) // mesh.size) * mesh.size


@partial(jax.jit, static_argnames="everywhere")
def _replicated(denoiser: Denoiser, everywhere: NamedSharding) -> Denoiser:
    """Copy sharded weights to every device once, so that the devices need not exchange anything at each step."""
    return jax.lax.with_sharding_constraint(denoiser, everywhere)


@partial(jax.jit, static_argnames="sharding")
def _spread_keys(key: RandomKey, indices: Integer[Array, " n"], sharding: NamedSharding) -> Keys:
    return jax.lax.with_sharding_constraint(sample_keys(key, indices), sharding)


def all_devices() -> Mesh:
    """Return the mesh of all devices on one axis."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
