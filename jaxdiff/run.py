"""A run loaded from its folder, finished or not: the programmatic interface.

run = jaxdiff.load("runs/mnist")
images = run.sample(jax.random.key(0), n=64)
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from jaxdiff import bounds, folder, likelihood, samplers
from jaxdiff.config import Config
from jaxdiff.experiment import Experiment, make_experiment
from jaxdiff.processes import Process
from jaxdiff.samplers.batches import all_devices, sample_in_batches
from jaxdiff.samplers.grids import Grid
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.typing import Denoiser, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model and how it was trained. Make one with `load`."""

    experiment: Experiment
    params: PyTree
    """The averaged (EMA) weights."""
    step: int
    """The optimizer steps that they have seen."""
    levels: int | None
    """The number of values that a coordinate of the data can take; None where they are continuous."""

    @property
    def config(self) -> Config:
        """The config that it was trained with."""
        return self.experiment.config

    @property
    def process(self) -> Process:
        """The process that it denoises; a learned schedule in it is the averaged one."""
        return self.experiment.process(self.params)

    @property
    def denoiser(self) -> Denoiser:
        """The model as it samples: x̂_0 held in the range of the data as `config.sampling.clip` says."""
        return self.experiment.sampling_denoiser(self.params)

    def sample(
        self,
        key: Key[Array, ""],
        *,
        n: int,
        labels: Any = None,
        sampler: str | samplers.Sampler | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n *shape"]:
        """Draw n samples.

        Args:
          key: a typed key. Sample i depends on fold_in(key, i) alone; n and `batch` change its rounding.
          n: how many.
          labels: the classes to draw, of a conditional model.
          sampler: a name with options ("ddim:eta=0.5") or a sampler; the config's if left out.
          steps: the number of jumps; the config's if left out.
          grid: the times to visit (see `jaxdiff.samplers.grids`); the config's if left out.
          batch: how many are drawn at a time.
          progress: whether to show a progress bar.

        Returns:
          float32, images in [−1, 1] of shape (n, height, width, channels), points of shape (n, 2).

        Raises:
          ValueError: for labels of an unconditional model, an unknown sampler or one that wants a variance which the
            network does not predict, and steps that the schedule lacks.
        """
        if labels is not None:
            raise ValueError(f"labels = {labels!r}, but this model is unconditional: it was trained without labels")
        defaults = self.config.sampling
        if isinstance(sampler, str) or sampler is None:
            sampler = samplers.make(defaults.sampler if sampler is None else sampler)
        self.config.check_sampler(sampler)
        if steps is None and (grid is None or isinstance(grid, str)):
            steps = defaults.steps
        return sample_in_batches(
            key,
            self.denoiser,
            self.process,
            sampler,
            shape=self.experiment.shape,
            n=n,
            batch=batch,
            steps=steps,
            grid=defaults.grid if grid is None else grid,
            progress=progress,
        )

    def bits_per_dim(
        self, x0: Float[np.ndarray | Array, "n *shape"], *, key: Key[Array, ""] | None = None, probes: int = 4
    ) -> dict[str, tuple[float, float]]:
        """What images cost under the model, in bits a coordinate: by the bound and by the probability-flow ODE.

        Args:
          x0: images of the data set's levels, scaled to [−1, 1] as `sample` returns them.
          key: draws noise, dequantisation and probes; a fixed one if left out.
          probes: of Hutchinson's estimate of the ODE's divergence.

        Returns:
          {"bound": (mean, standard error), "ode": (mean, standard error)} over the images. "bound" is the discrete one
          for a discrete schedule, with as many network calls an image as that has steps; the continuous one, with 64,
          for another with noise at t = 0; and is left out for the rest, which have none.

        Raises:
          ValueError: for a model of points, which have no levels, and for probes < 1.
        """
        levels = self.levels
        if levels is None:
            raise ValueError("bits_per_dim is for images of so many levels; for points in the plane see log_likelihood")
        if probes < 1:
            raise ValueError(f"probes = {probes}; the rule is 1 or more")
        x0, d = jnp.asarray(x0, jnp.float32), math.prod(self.experiment.shape)
        network = self.experiment.network(self.params)
        key_bound, key_noise, key_probes = jax.random.split(jax.random.key(0) if key is None else key, 3)
        costs = {}
        process = self.process
        if process.schedule.steps is not None:
            terms = bounds.variational_bound(key_bound, network, process, x0, levels=levels)
            costs["bound"] = terms.total() / (d * math.log(2))
        elif math.isfinite(process.schedule.log_snr(0.0)):
            parts = bounds.continuous_bound(key_bound, network, process, x0, levels=levels)
            costs["bound"] = parts.total() / (d * math.log(2))
        x = likelihood.dequantise(key_noise, x0, levels)
        found = likelihood.log_likelihood(network, process, x, key=key_probes, probes=probes)
        costs["ode"] = likelihood.bits_per_dim(found.log_density, d, levels)
        return {
            name: (float(cost.mean()), float(cost.std(ddof=1)) / math.sqrt(len(cost))) for name, cost in costs.items()
        }


def load(workdir: str | Path) -> Run:
    """The run in a folder, with the averaged weights of its newest checkpoint that is whole.

    Nothing but the folder is needed: neither the config file nor the data.

    Raises:
      ValueError: where the folder is no run, or holds no whole checkpoint.
    """
    path = Path(workdir)
    config, form = folder.read(path)
    experiment = make_experiment(config, form.shape, bounded=form.levels is not None, levels=form.levels)
    everywhere = NamedSharding(all_devices(), P())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(experiment.init, jax.random.key(0)),
    )
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        step, params = checkpoints.restore_weights(abstract)
    finally:
        checkpoints.close()
    return Run(experiment=experiment, params=params, step=step, levels=form.levels)
