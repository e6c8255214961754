"""The loss on held-out examples.

    eval_loss = mean_i L(x_i, t_i, key_i; θ̄)

L is the training loss, but labels are never dropped, and θ̄ are the averaged weights. The examples, the times t_i and
the keys of the noise are the same at every evaluation, in every run on the same data, whatever its seed. The times are
quantiles of those that training draws, which adds no variance. So curves are smooth, and what differs between steps and
between runs is due to the weights.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxdiff import data, registry, xla
from jaxdiff.data import Examples, Source
from jaxdiff.experiment import Config, Experiment
from jaxdiff.losses.time_sampling import stratified
from jaxdiff.training.batches import only
from jaxdiff.training.sharding import batch_spec, place
from jaxdiff.typing import InputError, PyTree, Scalar, key_of


def split(config: Config, dataset: Source, fingerprint: str, *, named: bool) -> tuple[Source, Source | None]:
    """Return the examples to train on, and those to evaluate on, which are None if nothing is to be evaluated.

    Args:
      fingerprint: that of the data set.
      named: whether it is the one that the config names, rather than an object.

    Raises:
      InputError: if an evaluation is asked for and there are no held-out examples, or they are unlike the others.
    """
    evaluates = config.every.evaluate is not None
    if config.data.held_out:
        with registry.named("data"):
            rest, held_out = data.hold_out(dataset, config.data.held_out)
        return rest, held_out if evaluates else None
    return dataset, _test_split(config, dataset, fingerprint, named=named) if evaluates else None


def _test_split(config: Config, dataset: Source, fingerprint: str, *, named: bool) -> Source:
    section, asked = config.data, f"every.evaluate = {config.every.evaluate} needs held-out examples"
    fix = f"set data.held_out to the number of examples to keep out of training, such as {-(-len(dataset) // 10)}"
    if not named:
        raise InputError(f"{asked}, and data that are given as an object have no test split; {fix}")
    try:
        found = section.load("test")
    except InputError as error:
        raise InputError(f"{asked}, but data.{error}; or {fix}") from error
    if found.fingerprint() == fingerprint:
        raise InputError(f"{asked}, but data.name = {section.name!r} has the same examples in both splits; {fix}")
    ours, theirs = dataset.spec, found.spec
    same = (ours.shape, ours.levels) == (theirs.shape, theirs.levels)
    for kind in {*config.cond.used} - {"label"}:
        same &= ours.conditions.get(kind) == theirs.conditions.get(kind)
    if config.labels_used_by is not None:  # arrays have as many classes as their greatest label says
        same &= 0 < (theirs.classes or 0) <= (ours.classes or 0)
        same &= theirs.class_names == ours.class_names or None in (theirs.class_names, ours.class_names)
    if not same:
        raise InputError(
            f"{asked}, but the test split of data.name = {section.name!r} has examples {theirs} and the train split "
            f"{ours}; make them alike, or {fix}"
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The mean loss of the same examples at the same times and with the same noise; `make_evaluation` makes it."""

    examples: Examples  # on the host of every process
    batch: int  # examples at a time
    mesh: Mesh
    total: Callable[..., Scalar]  # the compiled sum of the losses of a batch
    on: str  # what is measured: a hash of the examples, the times and the loss

    def __call__(self, params: PyTree) -> float:
        """Return `eval_loss` of these weights; every process must call it."""
        n = len(self.examples.x)
        totals = [self.total(params, *self.rows(start)) for start in range(0, n, self.batch)]
        mean = np.sum(jax.device_get(totals), dtype=np.float64) / n
        return float(multihost_utils.broadcast_one_to_all(np.float32(mean)))  # the processes save the best alike

    def rows(self, start: int) -> tuple[Examples, Int[Array, " batch"]]:
        """Return the batch that begins at an example, filled up with the last one, and the indices of its examples."""
        indices = np.arange(start, start + self.batch, dtype=np.int32)
        rows = np.minimum(indices, len(self.examples.x) - 1)
        spread = partial(place, mesh=self.mesh, spec=batch_spec())
        return jax.tree.map(lambda leaf: spread(leaf[rows]), self.examples), spread(indices)


def make_evaluation(experiment: Experiment, held_out: Source, mesh: Mesh, params: PyTree) -> Evaluation:
    """Return the compiled evaluation of an experiment on at most `data.evaluated` of these examples.

    `params` are the shapes, dtypes and shardings of the weights. It takes the memory of a micro-batch of training, or
    less.
    """
    config = experiment.config
    n = min(len(held_out), config.data.evaluated)
    found = held_out.take(np.random.default_rng(0).permutation(len(held_out))[:n])
    examples = only(found, experiment.kinds)
    t = np.asarray(stratified(config.loss.times, experiment.schedule, n))
    on = hashlib.blake2b(repr((config.loss, t.tolist())).encode(), digest_size=8)
    for leaf in jax.tree.leaves(examples):
        on.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    batch = -(-min(n, config.train.batch_size // config.train.accumulate) // mesh.size) * mesh.size
    evaluation = Evaluation(examples=examples, batch=batch, mesh=mesh, total=_total(experiment, t), on=on.hexdigest())
    whole: Any = {
        "out_shardings": NamedSharding(mesh, PartitionSpec()),
        "compiler_options": xla.compiler_options(level=1, mesh=mesh),
    }
    compiled = jax.jit(evaluation.total, **whole).lower(params, *evaluation.rows(0)).compile()
    return dataclasses.replace(evaluation, total=compiled)


def _total(experiment: Experiment, times: np.ndarray) -> Callable[..., Scalar]:
    """Return the sum of the losses of a batch as a function of the weights, the examples and their indices."""
    key, n = key_of(0), len(times)

    def total(params: PyTree, examples: Examples, indices: Int[Array, " batch"]) -> Scalar:
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
        t = jnp.asarray(times)[jnp.minimum(indices, n - 1)]
        x0: Any = data.normalize(examples.x, experiment.levels)
        losses = experiment.loss(params, x0, t, keys, experiment.condition(examples), training=False)
        return jnp.sum(jnp.where(indices < n, losses, 0))

    return total
