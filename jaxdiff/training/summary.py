"""What `train` and `sample` say of a run before they compile."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff.data import Source
from jaxdiff.experiment import Experiment
from jaxdiff.storage import AnyPath
from jaxdiff.typing import PyTree


def network(experiment: Experiment, params: PyTree) -> str:
    """Return the name of the network, the number of its parameters, and the dtype that it computes in if it says so."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    dtype = getattr(experiment.model, "dtype", None)
    computes = "" if dtype is None else f", computes in {jnp.dtype(dtype).name}"
    return f"{experiment.config.model['name']}, {count:,} parameters{computes}"


def devices(mesh: Mesh) -> str:
    """Return the number and kind of the devices, and how many of them share the weights."""
    kind = next(iter(mesh.devices.flat)).device_kind
    fsdp = mesh.shape.get("fsdp", 1)
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} × {kind}{hosts}" + (f", weights split over {fsdp}" if fsdp > 1 else "")


def scale_warning(dataset: Source) -> str:
    """Return a warning if continuous data are far from unit scale, judged by 64 examples; "" otherwise."""
    if dataset.spec.levels is not None:
        return ""
    some = dataset.take(np.unique(np.linspace(0, len(dataset) - 1, 64).astype(int))).x
    found = float(np.sqrt(np.mean(np.square(some, dtype=np.float64))))
    return "" if 0.1 <= found <= 10 else f" (warning: their root mean square is {found:.3g}; scale them to about 1)"


def describe(
    experiment: Experiment, dataset: Source, mesh: Mesh, params: PyTree, *, workdir: AnyPath, start: int
) -> str:
    """Return the lines about a run that starts or goes on from step `start`."""
    train, spec = experiment.config.train, dataset.spec
    levels = "" if spec.levels is None else f", {spec.levels} levels"
    names = f": {', '.join(spec.class_names)}" if spec.class_names and len(spec.class_names) <= 10 else ""
    labels = "" if not spec.classes else f", {spec.classes} classes{names if experiment.classes else ' (not used)'}"
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    examples = f"{len(dataset):,} examples of shape {spec.shape}{levels}{labels}{scale_warning(dataset)}"
    lines = {
        "data": f"{experiment.config.data.name}, {examples}",
        "network": network(experiment, params),
        "devices": f"{devices(mesh)}, batches of {train.batch_size}{parts}",
        "steps": f"{start:,} to {train.steps:,}" + (" (resumed)" if start else ""),
        "folder": str(workdir),
    }
    return "\n".join(f"{name:8} {line}" for name, line in lines.items())
