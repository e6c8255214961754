"""A run loaded from its folder, finished or not: the programmatic interface.

run = jaxdiff.load("runs/mnist")
images = run.sample(jax.random.key(0), n=64)
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from jaxdiff import folder, samplers
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

    @property
    def config(self) -> Config:
        """The config that it was trained with."""
        return self.experiment.config

    @property
    def process(self) -> Process:
        """The process that it denoises."""
        return self.experiment.process

    @property
    def denoiser(self) -> Denoiser:
        """The model as it samples: with x̂_0 clipped where `config.sampling.clip` says so."""
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
          ValueError: for labels of an unconditional model, an unknown sampler, and steps that the schedule lacks.
        """
        if labels is not None:
            raise ValueError(f"labels = {labels!r}, but this model is unconditional: it was trained without labels")
        defaults = self.config.sampling
        if isinstance(sampler, str) or sampler is None:
            sampler = samplers.make(defaults.sampler if sampler is None else sampler)
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


def load(workdir: str | Path) -> Run:
    """The run in a folder, with the averaged weights of its newest checkpoint that is whole.

    Nothing but the folder is needed: neither the config file nor the data.

    Raises:
      ValueError: where the folder is no run, or holds no whole checkpoint.
    """
    path = Path(workdir)
    config, form = folder.read(path)
    experiment = make_experiment(config, form.shape, bounded=form.levels is not None)
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
    return Run(experiment=experiment, params=params, step=step)
