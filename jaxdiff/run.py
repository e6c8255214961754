"""A run loaded from its folder, finished or not: the programmatic interface.

run = jaxdiff.load("runs/mnist")
images = run.sample(jax.random.key(0), n=64)
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Key

from jaxdiff import conditioning, costs, data, encoding, folder, inpainting, samplers, xla
from jaxdiff.conditioning import Labels
from jaxdiff.config import Config
from jaxdiff.costs import Costs
from jaxdiff.evaluation import NoisyAccuracy
from jaxdiff.experiment import Experiment, noisy_accuracy, test_split
from jaxdiff.guidance import Weight
from jaxdiff.inpainting import Known
from jaxdiff.probability_flow import Outcome, Solver
from jaxdiff.processes import Process
from jaxdiff.samplers.batches import all_devices, in_batches, sample_in_batches
from jaxdiff.samplers.grids import Grid
from jaxdiff.samplers.loop import as_pytree, own_process
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
    def levels(self) -> int | None:
        """The number of values that a coordinate of the data can take; None where they are continuous."""
        return self.experiment.levels

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
        labels: Labels | None = None,
        guidance: Weight | None = None,
        classifier: "Run | None" = None,
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
          labels: the class to draw, or one class a sample (−1 is any), or a blend of classes with their weights, which
            should sum to 1, as in {3: 0.5, 8: 0.5} (see `jaxdiff.guidance.mixed`). Of a conditional model, or with a
            classifier.
          guidance: w, a number or a function of t (see `jaxdiff.guidance`). 0 and None are the plain conditional model.
          classifier: the run of a classifier of noisy samples to guide by; without it guidance is classifier-free. An
            unconditional model is guided by it with the weight 1 + w, so that w means the same for both.
          sampler: a name with options ("ddim:eta=0.5") or a sampler; the config's if left out.
          steps: the number of jumps; the config's if left out.
          grid: the times to visit (see `jaxdiff.samplers.grids`); the config's if left out.
          batch: how many are drawn at a time.
          progress: whether to show a progress bar.

        Returns:
          float32, images in [−1, 1] of shape (n, height, width, channels), points of shape (n, 2).

        Raises:
          ValueError: for labels of an unconditional model or out of range; guidance without labels, or of a model whose
            training dropped none; a classifier of other data or another process; an unknown sampler or one that wants a
            variance which the network does not predict; and steps that the schedule lacks.
        """
        denoiser, cond = self._told(n, labels, guidance, classifier)
        return self._draw(
            key, denoiser, cond, n=n, sampler=sampler, steps=steps, grid=grid, batch=batch, progress=progress
        )

    def inpaint(
        self,
        key: Key[Array, ""],
        x0: Float[np.ndarray | Array, "n *shape"],
        mask: Bool[np.ndarray, "..."],
        *,
        resample: int = 5,
        labels: Labels | None = None,
        guidance: Weight | None = None,
        classifier: "Run | None" = None,
        sampler: str | samplers.Sampler | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n *shape"]:
        """Draw what is missing of each of n samples (see `jaxdiff.inpainting`).

        Args:
          key: as for `sample`.
          x0: samples in the scale of `sample`, anything where they are not known.
          mask: True where they are known: of their shape, or without the leading axis, or without the last one, too.
          resample: how often each jump is made; more fits the new part better to the old.
          labels, guidance, classifier, sampler, steps, grid, batch, progress: as for `sample`. The sampler must not
            remember earlier steps if `resample` > 1; by default it is "ddpm".

        Raises:
          ValueError: as `sample`; for samples of another shape or range, a mask that does not fit them, and
            resample < 1.
        """
        x0 = self._checked(x0)
        mask = np.asarray(mask, bool)
        if mask.ndim in (len(x0.shape) - 2, len(x0.shape) - 1) and mask.shape[-1:] != x0.shape[-1:]:
            mask = mask[..., None]
        try:
            mask = np.broadcast_to(mask, x0.shape)
        except ValueError:
            raise ValueError(f"mask has shape {mask.shape}; samples have {x0.shape}: give one value a pixel") from None
        chosen = samplers.make(sampler or "ddpm") if sampler is None or isinstance(sampler, str) else sampler
        denoiser, cond = self._told(len(x0), labels, guidance, classifier)
        return self._draw(
            key,
            inpainting.inpainting(denoiser, self.process),
            Known(x0, mask, cond),
            n=len(x0),
            sampler=chosen if resample == 1 else inpainting.resampled(chosen, resample),
            steps=steps,
            grid=grid,
            batch=batch,
            progress=progress,
        )

    def vary(
        self,
        key: Key[Array, ""],
        x0: Float[np.ndarray | Array, "n *shape"],
        *,
        t: float = 0.5,
        labels: Labels | None = None,
        guidance: Weight | None = None,
        classifier: "Run | None" = None,
        sampler: str | samplers.Sampler | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n *shape"]:
        """Image to image: noise samples to time t, and draw them anew from there.

        Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations".

        Args:
          key: as for `sample`; draws the noise, too.
          x0: samples in the scale of `sample`.
          t: in (0, 1]: how much is forgotten; what is left of a sample shows in the log-SNR at t.
          labels, guidance, classifier, sampler, batch, progress: as for `sample`.
          steps: of the whole way from 1 to 0, of which those below t are made.
          grid: as for `sample`; times that are given start at t.

        Raises:
          ValueError: as `sample`; for samples of another shape or range, and t outside (0, 1].
        """
        x0 = self._checked(x0)
        if not 0 < t <= 1:
            raise ValueError(f"t = {t}; the rule is 0 < t <= 1")
        settings, process = self.config.sampling, self.process
        if grid is None or isinstance(grid, str):
            steps = settings.steps if steps is None else steps
            times = samplers.grids.make(grid or settings.grid, steps, process.schedule)
            grid = [t, *times[times < t - 1e-6]]
        elif grid[0] != t:
            raise ValueError(f"grid starts at {grid[0]}, but samples are noised to t = {t}; start it there")
        denoiser, cond = self._told(len(x0), labels, guidance, classifier)
        key_noise, key_draw = jax.random.split(key)

        def noised(i: Array, x: Array) -> Array:
            mine = own_process(jax.random.fold_in(key_draw, i), process, x.shape)
            return mine.corrupt(x, mine.noise(jax.random.fold_in(key_noise, i), x.shape, t), t)

        start = jax.vmap(noised)(jnp.arange(len(x0)), jnp.asarray(x0))
        return self._draw(
            key_draw,
            denoiser,
            cond,
            n=len(x0),
            start=np.asarray(start),
            sampler=sampler,
            grid=grid,
            batch=batch,
            progress=progress,
        )

    def _draw(
        self,
        key: Key[Array, ""],
        denoiser: Denoiser,
        cond: PyTree,
        *,
        n: int,
        sampler: str | samplers.Sampler | None,
        steps: int | None = None,
        grid: Grid | None,
        batch: int,
        progress: bool,
        start: Float[np.ndarray, "n *shape"] | None = None,
    ) -> Float[np.ndarray, "n *shape"]:
        """Samples, with what is left out as the config says."""
        defaults = self.config.sampling
        if isinstance(sampler, str) or sampler is None:
            sampler = samplers.make(defaults.sampler if sampler is None else sampler)
        self.config.check_sampler(sampler)
        if steps is None and (grid is None or isinstance(grid, str)):
            steps = defaults.steps
        return sample_in_batches(
            key,
            self.experiment.held_in_range(denoiser, self.process),
            self.process,
            sampler,
            shape=self.experiment.shape,
            n=n,
            batch=batch,
            cond=cond,
            start=start,
            steps=steps,
            grid=defaults.grid if grid is None else grid,
            progress=progress,
        )

    def _told(
        self, n: int, labels: Labels | None, w: Weight | None, classifier: "Run | None"
    ) -> tuple[Denoiser, PyTree]:
        by = None if classifier is None else (classifier.experiment, classifier.params)
        return conditioning.tell(self.experiment, self.params, n=n, labels=labels, w=w, classifier=by)

    def noisy_accuracy(self, n: int = 1000) -> NoisyAccuracy:
        """Of a classifier's run: its accuracy on n examples of the test split, by the level of noise.

        Raises:
          ValueError: for the run of a denoiser.
          ValueError, ConnectionError: where the data set is not at hand.
        """
        if not self.experiment.classifies:
            raise ValueError("this run is of a denoiser; only a classifier has an accuracy")
        return noisy_accuracy(self.experiment, self.params, test_split(self.experiment), n)

    def test_examples(self, n: int) -> Float[np.ndarray, "n *shape"]:
        """The first n examples of its data set's test split, in the scale of `sample`.

        Raises:
          ValueError, ConnectionError: where the data set is not at hand, or has not so many.
        """
        section = self.config.data
        found = data.load(section.name, split="test", dir=section.dir)
        if not 1 <= n <= len(found.x):
            raise ValueError(f"n = {n}, but the test split of {section.name} has {len(found.x)} examples: 1 to as many")
        return np.asarray(data.normalize(found.x[:n], found.levels), np.float32)

    def encode(
        self,
        x0: Float[np.ndarray | Array, "n *shape"],
        *,
        solver: Solver | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n *shape"]:
        """The latents of samples, along the probability-flow ODE of the model as it is, without clipping.

        Args:
          x0: samples in the scale of `sample`.
          solver: how the ODE is solved; by default to 1e-5.
          batch: how many at a time.
          progress: whether to show a progress bar.

        Returns:
          x_1, of about the law N(0, σ_1² I), float32.

        Raises:
          ValueError: for another shape, values that are not finite or beyond the data's range, and where the solver
            gives up.
        """
        return self._carry(self._checked(x0), t=0.0, s=1.0, solver=solver, batch=batch, progress=progress)

    def decode(
        self,
        x1: Float[np.ndarray | Array, "n *shape"],
        *,
        solver: Solver | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n *shape"]:
        """The inverse of `encode`: the samples of latents. Arguments and errors as there."""
        return self._carry(
            self._checked(x1, of_data=False), t=1.0, s=0.0, solver=solver, batch=batch, progress=progress
        )

    def interpolate(
        self,
        first: Float[np.ndarray | Array, "n *shape"],
        last: Float[np.ndarray | Array, "n *shape"],
        *,
        steps: int = 10,
        solver: Solver | None = None,
        batch: int = 64,
        progress: bool = False,
    ) -> Float[np.ndarray, "n {steps} *shape"]:
        """From each of n samples to another, at equal angles on the sphere between their latents.

        Args:
          first, last: where each row starts and ends.
          steps: how many there are in a row, the two ends (their reconstructions) among them.
          solver, batch, progress: as for `encode`.

        Returns:
          float32 samples, row by row.

        Raises:
          ValueError: as `encode`, for steps < 2, and for other numbers of first and last ones.
        """
        if steps < 2 or len(first) != len(last):
            raise ValueError(
                f"steps = {steps}, from {len(first)} samples to {len(last)}; the rule is steps >= 2 and as many ends"
            )
        ends = self.encode(np.concatenate([first, last]), solver=solver, batch=batch, progress=progress)
        a, b = jnp.split(jnp.asarray(ends), 2)
        rows = jax.vmap(jax.vmap(encoding.slerp, (None, None, 0)), (0, 0, None))
        between = rows(a, b, jnp.linspace(0, 1, steps))
        x1 = np.asarray(between).reshape(-1, *self.experiment.shape)
        return self.decode(x1, solver=solver, batch=batch, progress=progress).reshape(between.shape)

    def costs(
        self,
        x0: Float[np.ndarray | Array, "n *shape"],
        *,
        key: Key[Array, ""] | None = None,
        probes: int = 4,
        batch: int = 64,
        progress: bool = False,
    ) -> Costs:
        """What images cost under the model, term by term: `.table()` prints it, `.bits_per_dim()` sums it up.

        Args:
          x0: images in [−1, 1], as `sample` and `jaxdiff.data.normalize` make them; moved to the nearest of the data
            set's levels, −1 + 2k/(levels − 1), as nothing between them has a probability.
          key: draws noise, dequantisation and probes, of image i with fold_in(key, i) alone; a fixed one if left out.
          probes: of Hutchinson's estimate of the ODE's divergence.
          batch: how many images at a time; it changes rounding only.
          progress: whether to show a progress bar.

        Returns:
          The terms of the bound, with as many network calls an image as a discrete schedule has steps, 64 for another
          (which must have noise at t = 0; else there is no bound), and the ODE's likelihood.

        Raises:
          ValueError: for a model of points, which have no levels; for images of another shape or beyond [−1, 1];
            for probes or batch < 1; and where the ODE's solver gives up.
        """
        if self.levels is None:
            raise ValueError("bits_per_dim is for images of so many levels; for points in the plane see log_likelihood")
        x0 = data.quantize(self._checked(x0), self.levels)
        return costs.measure(
            jax.random.key(0) if key is None else key,
            self._network,
            self.process,
            x0,
            levels=self.levels,
            probes=probes,
            batch=batch,
            progress=progress,
        )

    def bits_per_dim(self, x0: Float[np.ndarray | Array, "n *shape"], **options: Any) -> dict[str, tuple[float, float]]:
        """What images cost under the model, in bits a coordinate: by the bound and by the probability-flow ODE.

        Args:
          x0, options: as for `costs`.

        Returns:
          {"bound": (mean, standard error), "ode": (mean, standard error)} over the images; the standard error of one
          image is NaN. "bound" is the discrete one for a discrete schedule; the continuous one, with 64 network calls
          an image, for another with noise at t = 0; and is left out for the rest, which have none.

        Raises:
          ValueError: as `costs`.
        """
        return self.costs(x0, **options).bits_per_dim()

    @functools.cached_property  # one network, so that what is compiled with it is found again
    def _network(self) -> Denoiser:
        """The model as it is, told no label: without clipping, and in float32, as tolerances are far below bfloat16."""
        conditioning.tell(self.experiment, self.params, n=1, labels=None, w=None, classifier=None)  # raises if it can't
        return self.experiment.in_float32().network(self.params)

    def _checked(self, x: Float[np.ndarray | Array, "n *shape"], *, of_data: bool = True) -> Float[np.ndarray, "..."]:
        """The samples as float32, if the model could have made them."""
        x, shape = np.asarray(x, np.float32), self.experiment.shape
        if x.shape[1:] != shape or not len(x):
            raise ValueError(
                f"samples have shape {x.shape}; this model takes (n, {', '.join(map(str, shape))}), n >= 1"
            )
        if not np.isfinite(x).all():
            raise ValueError("samples have values that are not finite; leave those out")
        if of_data and self.levels is not None and np.abs(x).max() > 1:
            raise ValueError(
                f"images lie in [{x.min():g}, {x.max():g}], beyond [-1, 1]; scale 0 ... {self.levels - 1} with "
                f"jaxdiff.data.normalize(images, {self.levels})"
            )
        return x

    def _carry(
        self, x: Float[np.ndarray, "n *shape"], *, t: float, s: float, solver: Solver | None, batch: int, progress: bool
    ) -> Float[np.ndarray, "n *shape"]:
        carry_each, solver = xla.outermost(encoding.carry_each, "t", "s", "solver"), solver or Solver()
        network = jax.tree.map(as_pytree, self._network)

        def carry(_: Array, x: Float[Array, "size *shape"]) -> tuple[Float[Array, "size *shape"], Outcome]:
            return carry_each(network, self.process, x, None, t=t, s=s, solver=solver)

        check = lambda found: solver.check(found[1])  # noqa: E731
        return in_batches(carry, len(x), rows=x, check=check, batch=batch, progress=progress)[0]


def load(workdir: str | Path) -> Run:
    """The run in a folder, with the averaged weights of its newest checkpoint that is whole.

    Nothing but the folder is needed: neither the config file nor the data.

    Raises:
      ValueError: where the folder is no run, or holds no whole checkpoint, or lacks the examples that its process is
        made of.
    """
    path = Path(workdir)
    config, form = folder.read(path)
    experiment = folder.experiment(config, form, folder.read_examples(path, config, form))
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
