"""Where arrays lie: a mesh of axes `data` and `fsdp`.

A batch is split over both axes. Weights, their average and the optimizer's state are split over `fsdp` along their
longest axis that it divides, where they are large enough for that to be worth a message; else they are copied.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.typing import PyTree

_SMALL = 2**14  # elements: below this a copy is cheaper than a gather


def make_mesh(fsdp: int, batch_size: int, accumulate: int = 1) -> Mesh:
    """The mesh over all devices of all hosts, `fsdp` of them to each copy of the weights.

    Raises:
      ValueError: where the devices don't divide by `fsdp`, or a (micro-)batch doesn't divide over the devices.
    """
    devices = jax.device_count()
    if devices % fsdp:
        raise ValueError(f"train.fsdp = {fsdp} does not divide the {devices} devices; choose a divisor of {devices}")
    if batch_size % (devices * accumulate):
        parts = f"{devices} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        unit = devices * accumulate
        lower, upper = batch_size // unit * unit, (batch_size // unit + 1) * unit
        raise ValueError(
            f"train.batch_size = {batch_size} is not divisible over {parts}; "
            f"use {' or '.join(str(size) for size in (lower, upper) if size)}"
        )
    return jax.make_mesh((devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_spec(leading: int = 0) -> P:
    """The layout of a batch whose example axis comes after `leading` others."""
    return P(*[None] * leading, ("data", "fsdp"))


def state_shardings(mesh: Mesh, abstract: PyTree) -> PyTree:
    """The layout of a training state, from its shapes."""
    size = mesh.shape["fsdp"]

    def spec(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < _SMALL:
            return NamedSharding(mesh, P())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

    return jax.tree.map(spec, abstract)


def place(value: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    """A host array that every process holds (or can compute), laid out over the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
