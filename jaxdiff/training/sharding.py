"""The sharding of arrays over a mesh with the axes `data` and `fsdp`.

A batch is split over both axes. Weights, their average and the optimizer's state are split over `fsdp` along their
longest axis that it divides, if they are large enough for that to be worth a message; otherwise they are copied.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.typing import InputError, PyTree

_SMALL = 2**14  # elements: below this a copy is cheaper than a gather


def make_mesh(fsdp: int, batch_size: int, accumulate: int = 1) -> Mesh:
    """Return the mesh over all devices of all hosts, with `fsdp` devices to each copy of the weights.

    Raises an InputError if `fsdp` does not divide the devices, or the devices don't divide a (micro-)batch.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise InputError(f"train.fsdp = {fsdp} does not divide the {devices} devices; choose a divisor of {devices}")
    if batch_size % (devices * accumulate):
        parts = f"{devices} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        unit = devices * accumulate
        lower, upper = batch_size // unit * unit, (batch_size // unit + 1) * unit
        raise InputError(
            f"train.batch_size = {batch_size} is not divisible over {parts}; "
            f"use {' or '.join(str(size) for size in (lower, upper) if size)}"
        )
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_spec(leading: int = 0) -> PartitionSpec:
    """Return the layout of a batch whose example axis comes after `leading` others."""
    return PartitionSpec(*[None] * leading, ("data", "fsdp"))


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
