"""The sharding of arrays over a mesh with the axes `data` and `fsdp`.

A batch is split over both axes. Weights, their average and the optimizer's state are split over `fsdp` along their
longest axis that it divides, if they are large enough for that to be worth a message; otherwise they are copied.

Each device gathers the weights that it lacks, computes the gradient of its own part of the batch, and receives the sum
of the gradients for the weights that it holds: an all-gather and a reduce-scatter for each split array and step, or on
TPUs one for each axis of the torus (Rajbhandari et al. 2019, "ZeRO", arXiv:1910.02054). Gradients are summed in the
dtype of the weights, float32, whatever the network computes in.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.training import chips
from jaxdiff.typing import InputError, PyTree

AXES = ("data", "fsdp")
_SMALL = 2**14  # elements: below this a copy is cheaper than a gather


def make_mesh(fsdp: int, batch_size: int, accumulate: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over these devices, by default all of all hosts, with `fsdp` of them to each copy of the weights.

    Raises an InputError if `fsdp` does not divide the devices, or the devices don't divide a (micro-)batch.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if n % fsdp:
        raise InputError(f"train.fsdp = {fsdp} does not divide the {n} devices; choose a divisor of {n}")
    if batch_size % (n * accumulate):
        parts = f"{n} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        unit = n * accumulate
        lower, upper = batch_size // unit * unit, (batch_size // unit + 1) * unit
        raise InputError(
            f"train.batch_size = {batch_size} is not divisible over {parts}; "
            f"use {' or '.join(str(size) for size in (lower, upper) if size)}"
        )
    ordered = np.array(sorted(devices, key=chips.place), dtype=object)  # `fsdp` gets the neighbours
    return Mesh(ordered.reshape(n // fsdp, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def batch_spec(leading: int = 0) -> PartitionSpec:
    """Return the layout of a batch whose example axis comes after `leading` others."""
    return PartitionSpec(*[None] * leading, AXES)


def state_shardings(mesh: Mesh, abstract: PyTree) -> PyTree:
    """Return the layout of a training state, from its shapes."""
    size = mesh.shape["fsdp"]

    def spec(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < _SMALL:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(spec, abstract)


def place(value: np.ndarray, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Lay out over the mesh a host array that every process holds."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(shards: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return whole arrays from the parts that the devices of `fsdp` hold; call it inside `jax.shard_map`."""
    rings = _rings(mesh)

    def whole(shard: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _split_axis(spec)
        for groups in [] if axis is None else reversed(rings):
            shard = jax.lax.all_gather(shard, "fsdp", axis=axis, axis_index_groups=groups, tiled=True)
        return shard

    return jax.tree.map(whole, shards, specs)


def mean_over_devices(gradients: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """Return each device's part of the mean of all devices' gradients: what `gather` is to weights."""
    rings = _rings(mesh)

    def mean(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _split_axis(spec)
        if axis is None:
            return jax.lax.pmean(gradient, AXES)
        for groups in rings:
            options: Any = {"scatter_dimension": axis, "axis_index_groups": groups, "tiled": True}
            gradient = jax.lax.psum_scatter(gradient, "fsdp", **options)
        return jax.lax.pmean(gradient, "data") / jax.lax.axis_size("fsdp")

    return jax.tree.map(mean, gradients, specs)


def _rings(mesh: Mesh) -> list[list[list[int]] | None]:
    """Return groups along `fsdp` in which to exchange, one grouping after the other; None groups all.

    Where these devices are a torus of TPUs, each grouping has the rings along one of its axes. The compiler makes an
    all-reduce, which sends twice as much, of a reduce-scatter over several axes, and of some all-gathers.
    """
    places = np.array([chips.place(device) for device in mesh.devices[0]])  # in increasing order
    sizes = [len({*along}) for along in places.T if len({*along}) > 1]
    if len(sizes) < 2 or math.prod(sizes) != len(places):  # no torus, or only a part of one
        return [None]
    order = np.arange(len(places)).reshape(sizes)
    return [np.moveaxis(order, i, -1).reshape(-1, size).tolist() for i, size in enumerate(sizes)]


def _split_axis(spec: PartitionSpec) -> int | None:
    return spec.index("fsdp") if "fsdp" in spec else None
