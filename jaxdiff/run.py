"""A trained model: how it is sampled, guided and measured by a program.

    run = jaxdiff.load("runs/mnist")
    images = run.sample(jax.random.key(0), n=64)

Samples go in and out as float32, of shape (n, *shape): images (n, height, width, channels) in [−1, 1], signals
(n, length, channels), volumes (n, depth, height, width, channels), points (n, d).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import data, registry, samplers, xla
from jaxdiff.denoisers.guidance import Weight
from jaxdiff.denoisers.inpainting import AnyMask, Known, fit_mask, inpainting
from jaxdiff.evaluation import NoisyAccuracy
from jaxdiff.experiment import Config, Experiment, Sampling
from jaxdiff.experiment.build import noisy_accuracy
from jaxdiff.experiment.labels import Asked, Labels, condition
from jaxdiff.likelihood import BitsPerDim, bits_per_dim, slerp
from jaxdiff.likelihood.latents import integrate_each
from jaxdiff.processes import Denoiser, Process, for_sample
from jaxdiff.samplers import Adaptive, RePaint, Sampler
from jaxdiff.samplers.batching import in_batches, sample_in_batches
from jaxdiff.samplers.loop import as_array
from jaxdiff.samplers.probability_flow import Outcome, Solver, check_solver
from jaxdiff.samplers.timesteps import Timesteps
from jaxdiff.schedules import check_times
from jaxdiff.typing import (
    HostSamples,
    InputError,
    PyTree,
    RandomKey,
    Sample,
    Samples,
    check_whole,
    elementwise,
    fields_of,
    shown,
)

Weights = Literal["ema", "raw", "best"]
AnySamples = Float[np.ndarray | Array, "n *shape"]


class SamplingOptions(TypedDict, total=False):
    """The options of `Run.inpaint` and `Run.image_to_image`; `Run.sample` documents them."""

    labels: Labels | None
    cond: Mapping[str, Any] | None
    guidance: Weight | None
    classifier: "Run | None"
    sampler: str | Sampler | None
    steps: int | None
    timesteps: Timesteps | None
    batch: int | None
    progress: bool


class SolverOptions(TypedDict, total=False):
    """The options of `Run.encode`, `Run.decode` and `Run.interpolate`: by default `Solver()` and batches of 64."""

    solver: Solver | None
    batch: int
    progress: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model with its config, as `load` returns it."""

    experiment: Experiment
    params: PyTree
    step: int  # the optimizer steps that the weights have seen
    weights: Weights = "ema"  # which ones `params` are; see `load`
    trusted: bool = True  # whether what the config says of the data is followed without asking; see `load`

    __getstate__ = fields_of

    @property
    def config(self) -> Config:
        """The config that the model was trained with."""
        return self.experiment.config

    @property
    def levels(self) -> int | None:
        """The number of values that a coordinate of the data can take; None for continuous data."""
        return self.experiment.levels

    @property
    def process(self) -> Process:
        """The process of the model; a learned schedule in it is the averaged one."""
        return self.experiment.process(self.params)

    @property
    def denoiser(self) -> Denoiser:
        """The model as it samples, with x̂_0 clipped as `config.sampling.clip` says."""
        return self.experiment.sampling_denoiser(self.params)

    def sample(
        self,
        key: RandomKey,
        *,
        n: int,
        labels: Labels | None = None,
        cond: Mapping[str, Any] | None = None,
        guidance: Weight | None = None,
        classifier: "Run | None" = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        timesteps: Timesteps | None = None,
        batch: int | None = None,
        progress: bool = False,
    ) -> HostSamples:
        """Draw n samples, `batch` at a time. The config's sampling section replaces options that are None.

        Args:
          key: a typed key. Sample i depends on fold_in(key, i) alone; n and `batch` change only the rounding.
          labels: for conditional models or with a classifier: one label, one for each sample (−1 for none), or the
            weights of a composition of labels, which sum to 1, as in {3: 0.5, 8: 0.5} (see `jaxdiff.guidance`).
          cond: for models with other conditions: a mapping of "vector", "image" or "tokens" (with "tokens_mask") to one
            array for all samples, or one with a leading axis n, as in `jaxdiff.data.Examples`; "label" is `labels`.
            uint8 images are mapped to [−1, 1].
          guidance: the weight w, a number or a function of t. 0 and None sample the plain conditional model.
          classifier: the run of a classifier of noisy samples that replaces classifier-free guidance. It guides an
            unconditional model with the weight 1 + w, so that w means the same for both.
          sampler: a name with options ("ddim:eta=0.5") or a sampler.
          timesteps: a rule or the times themselves (see `jaxdiff.timesteps`).

        Raises:
          InputError: if the model can't take the labels, the conditions, the guidance or the classifier; a condition
            has another shape, or is missing though it was never dropped in training; the sampler is unknown or needs a
            variance that the network does not predict; or the schedule can't take the steps.
        """
        n = check_whole("n", n)
        asked = SamplingOptions(labels=labels, cond=cond, guidance=guidance, classifier=classifier)
        denoiser, rows = self._condition(n, asked)
        options = SamplingOptions(sampler=sampler, steps=steps, timesteps=timesteps, batch=batch, progress=progress)
        return self._draw(key, denoiser, self._sampling(options), n=n, cond=rows)

    def inpaint(
        self, key: RandomKey, x0: AnySamples, mask: AnyMask, *, resample: int = 5, **options: Unpack[SamplingOptions]
    ) -> HostSamples:
        """Draw the unknown part of each of n samples (see `jaxdiff.inpainting`).

        Args:
          x0: samples; their values where the mask is 0 are ignored.
          mask: True or 1 where x0 is known, False or 0 where it is not. Values in between blend x0 with the prediction,
            as at a soft edge. It has the shape of x0; the batch axis, the last axis or both may be left out.
          resample: how many times each step is made; more make the new part fit the known part better.
          **options: as for `sample`, but the sampler is "ddpm" by default. It must keep no state between steps if
            `resample` > 1.

        Raises:
          InputError: as `sample`; if the samples or the mask are unsuitable, or resample < 1.
        """
        resample = check_whole("resample", resample)
        x0 = self._shaped(x0)
        mask = fit_mask(mask, x0.shape)
        x0 = self._checked(np.where(mask > 0, x0, 0))
        denoiser, cond = self._condition(len(x0), options)
        chosen = samplers.make(options.get("sampler") or "ddpm")
        sampling = self._sampling({**options, "sampler": chosen if resample == 1 else RePaint(chosen, resample)})
        return self._draw(key, inpainting(denoiser), sampling, n=len(x0), cond=Known(x0, mask, cond))

    def image_to_image(
        self, key: RandomKey, x0: AnySamples, *, t: float = 0.5, **options: Unpack[SamplingOptions]
    ) -> HostSamples:
        """Noise samples to time t, and denoise them from there.

        Args:
          t: noise level in (0, 1] to start from: the higher, the less of the input is kept.
          **options: as for `sample`. `steps` is the number of steps of the whole path from 1 to 0, of which only those
            below t are made. If `timesteps` is a list of times, its first one must be t.

        Raises:
          InputError: as `sample`; if the samples are unsuitable, or t is outside (0, 1].

        Source: Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations".
        """
        x0 = self._checked(x0)
        check_times(t)
        if not t > 0:
            raise InputError(f"t = {t}; must satisfy 0 < t <= 1")
        denoiser, cond = self._condition(len(x0), options)
        sampling = self._sampling(options)
        times = sampling.times(self.process.schedule)
        listed = not isinstance(options.get("timesteps"), str | None)
        if listed and times[0] != t:
            raise InputError(f"timesteps starts at {times[0]}, but samples are noised to t = {t}; start it there")
        sampling = dataclasses.replace(sampling, timesteps=(float(t), *times[times < t - 1e-6].tolist()))
        key_noise, key_draw = jax.random.split(elementwise(key))

        def noised(i: Array, x: Sample) -> Sample:
            process = for_sample(denoiser, jax.random.fold_in(key_draw, i), x.shape).process
            return process.corrupt(x, process.sample_noise(jax.random.fold_in(key_noise, i), x.shape, t), t)

        start = np.asarray(jax.vmap(noised)(jnp.arange(len(x0)), jnp.asarray(x0)))
        return self._draw(key_draw, denoiser, sampling, n=len(x0), cond=cond, start=start)

    def _condition(self, n: int, options: SamplingOptions) -> tuple[Denoiser, PyTree]:
        """The guided denoiser and its conditions for n samples."""
        for name in options:
            if name not in SamplingOptions.__annotations__:
                raise InputError(
                    f"{name} is not an option of sampling{registry.suggest(name, SamplingOptions.__annotations__)}"
                )
        by, given = options.get("classifier"), options.get("cond")
        if not isinstance(by, Run | None):
            raise InputError(f"classifier = {shown(by)}; it must be a run: load its folder with jaxdiff.load")
        if not isinstance(given, Mapping | None):
            raise InputError(
                f"cond = {shown(given)}; it must be a mapping of kinds to arrays, as in {{'image': image}}"
            )
        classifier = None if by is None else (by.experiment, by.params)
        asked: Any = {name: options.get(name) for name in ("labels", "cond", "guidance")}
        return condition(self.experiment, self.params, n, Asked(**asked, classifier=classifier))

    def _sampling(self, options: SamplingOptions) -> Sampling:
        """The config's section with the options that are given."""
        names = ("sampler", "steps", "timesteps", "batch", "progress")
        given: dict[str, Any] = {key: item for key, item in options.items() if key in names and item is not None}
        times = given.get("timesteps", "")
        if not isinstance(times, str):
            samplers.timesteps.make(times, given.get("steps"), self.process.schedule)  # which refuses other steps
            given["timesteps"] = tuple(map(float, times))
        sampler = samplers.make(given.get("sampler", self.config.sampling.sampler))
        if isinstance(sampler, Adaptive) and "sampler" in given and "timesteps" not in given:
            given.setdefault("steps", 1)  # each step is a whole solve to a tolerance
        sampling = dataclasses.replace(self.config.sampling, **given)
        self.config.check_sampler(sampler)
        return sampling

    def _draw(self, key: RandomKey, denoiser: Denoiser, sampling: Sampling, **rows: Any) -> HostSamples:
        denoiser = self.experiment.clip_denoised(denoiser)
        return sample_in_batches(key, denoiser, sampling, shape=self.experiment.shape, **rows)

    def noisy_accuracy(self, n: int = 1000, *, dir: str | None = None) -> NoisyAccuracy:
        """Return the accuracy of a classifier on n examples of the test split, by noise level.

        `dir` and errors are as for `test_examples`.
        """
        if not self.experiment.classifies:
            raise InputError("this run is a denoiser; only a classifier has an accuracy")
        return noisy_accuracy(self.experiment, self.params, check_whole("n", n), dir=self._data_dir(dir))

    def test_examples(self, n: int, *, dir: str | None = None) -> HostSamples:
        """Return the first n examples of the test split of the run's data set.

        Args:
          dir: the folder of the data set, for `jaxdiff.data.load`; None is the config's, which only a trusted run uses.

        Raises:
          InputError, ConnectionError: if the data set can't be read or is smaller, or the run is not trusted and its
            data set is code of a user, or in a folder that the config gives.
        """
        found, levels = self._test(n, dir)
        return np.asarray(data.normalize(found.x, levels), np.float32)

    def test_conditions(self, n: int, *, dir: str | None = None) -> dict[str, Any]:
        """Return what the model is conditioned on of the first n examples of the test split, for `Run.sample`'s `cond`.

        It maps "label", int32 (n,), and the kinds of `jaxdiff.data.Examples`, float32 (n, ...), to arrays.

        `dir` and errors are as for `test_examples`.
        """
        found, _ = self._test(n, dir)
        kinds, given = self.experiment.conditioning.kinds, {"label": found.labels, **(found.cond or {})}
        return {name: part for name, part in given.items() if name.removesuffix("_mask") in kinds}

    def _test(self, n: int, dir: str | None) -> tuple[data.Examples, int | None]:
        """The first n examples of the test split, and the number of their levels."""
        section = self.config.data
        found = section.load("test", dir=self._data_dir(dir))
        if check_whole("n", n) > len(found):
            raise InputError(
                f"n = {n}, but the test split of {section.name} has {len(found)} examples; use 1 to that many"
            )
        return found.take(np.arange(n)), found.spec.levels

    def _data_dir(self, dir: str | None) -> str | None:
        """The folder of the data set, if reading the set runs no code and opens no file of a stranger's choice."""
        section = self.config.data
        if not self.trusted:
            data.check_untrusted(section.name, section.dir if dir is None else None, dir=dir)
        return section.dir if dir is None else dir

    def encode(self, x0: AnySamples, **options: Unpack[SolverOptions]) -> HostSamples:
        """Return the latents x_1 of samples along the model's unclipped probability-flow ODE: nearly N(0, σ_1² I).

        Raises:
          InputError: if the samples have another shape, values that are not finite or beyond the data's range, or the
            solver gives up.
        """
        return self._integrate(self._checked(x0), 0.0, 1.0, **options)

    def decode(self, x1: AnySamples, **options: Unpack[SolverOptions]) -> HostSamples:
        """Return the samples that latents decode to: the inverse of `encode`, with the same options and errors."""
        return self._integrate(self._checked(x1, of_data=False), 1.0, 0.0, **options)

    def interpolate(
        self, first: AnySamples, last: AnySamples, *, steps: int = 10, **options: Unpack[SolverOptions]
    ) -> Float[np.ndarray, "n {steps} *shape"]:
        """Interpolate from each of n samples to another, at equal angles on the sphere between their latents.

        `steps` is the number of samples in a row, including the reconstructions of its ends.

        Raises:
          InputError: as `encode`; if steps < 2, or the numbers of first and last samples differ.
        """
        steps = check_whole("steps", steps, least=2)
        first, last = self._checked(first), self._checked(last)
        if len(first) != len(last):
            raise InputError(f"from {len(first)} samples to {len(last)}; both ends need the same number of samples")
        a, b = jnp.split(jnp.asarray(self.encode(np.concatenate([first, last]), **options)), 2)
        between = jax.vmap(jax.vmap(slerp, (None, None, 0)), (0, 0, None))(a, b, jnp.linspace(0, 1, steps))
        x1 = np.asarray(between).reshape(-1, *self.experiment.shape)
        return self.decode(x1, **options).reshape(between.shape)

    def likelihood_terms(
        self, x0: AnySamples, *, key: RandomKey | None = None, probes: int = 4, batch: int = 64, progress: bool = False
    ) -> BitsPerDim:
        """Return the ELBO of images, term by term, and their ODE likelihood; `.table()` formats both.

        The ELBO takes one network call per image and timestep of a discrete schedule, or 64 calls per image for a
        continuous one. It does not exist for a continuous schedule without noise at t = 0.

        Args:
          x0: images, moved to the nearest levels of the data set, −1 + 2k/(levels − 1).
          key: draws noise, dequantization and probes, of image i with fold_in(key, i) alone; None for a fixed one.
          probes: number of Hutchinson probes for the ODE's divergence.
          batch: number of images at a time; it changes rounding only.

        Raises:
          InputError: if the data have no levels, the images are unsuitable, probes or batch < 1, or the ODE solver
            gives up.
        """
        if self.levels is None:
            raise InputError(
                "bits_per_dim needs images with a finite number of levels; for other data see log_likelihood"
            )
        options: Any = {"levels": self.levels, "probes": probes, "batch": batch, "progress": progress}
        x0 = data.quantize(self._checked(x0), self.levels)
        return bits_per_dim.measure(jax.random.key(0) if key is None else key, self.network, x0, **options)

    def bits_per_dim(self, x0: AnySamples, **options: Any) -> dict[str, tuple[float, float]]:
        """Return {"elbo": (mean, standard error), "ode": (mean, standard error)} of images, in bits/dim.

        Arguments and errors are as for `likelihood_terms`. The standard error of one image is NaN; "elbo" is left out
        if it does not exist.
        """
        return self.likelihood_terms(x0, **options).summary()

    @functools.cached_property  # one object, so that its compiled programs are reused
    def network(self) -> Denoiser:
        """The model without label and clipping, in float32: for likelihoods and latents, with their small tolerances.

        Raises:
          InputError: if the model was never trained without its label or its other conditions.
        """
        self._condition(1, {})  # raises if the model needs labels
        return self.experiment.in_float32().network(self.params)

    def _shaped(self, x: AnySamples) -> HostSamples:
        """The samples as float32, if they are of the model's shape."""
        x, shape = as_array("samples", x), self.experiment.shape
        if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
            raise InputError(f"samples have dtype {x.dtype}; they must hold real numbers")
        with np.errstate(over="ignore"):
            x = np.asarray(x, np.float32)
        if x.shape[1:] != shape or not len(x):
            wanted = ", ".join(map(str, shape))
            raise InputError(f"samples have shape {x.shape}; this model takes (n, {wanted}), n >= 1")
        return x

    def _checked(self, x: AnySamples, *, of_data: bool = True) -> HostSamples:
        """The samples as float32, if they are of the model's shape and range."""
        x = self._shaped(x)
        if not np.isfinite(x).all():
            raise InputError("samples have values that are not finite; leave those out")
        if of_data and self.levels is not None and np.abs(x).max() > 1:
            raise InputError(
                f"images lie in [{x.min():g}, {x.max():g}], beyond [-1, 1]; scale 0 ... {self.levels - 1} with "
                f"jaxdiff.data.normalize(images, {self.levels})"
            )
        return x

    def _integrate(
        self, x: HostSamples, t: float, s: float, solver: Solver | None = None, batch: int = 64, progress: bool = False
    ) -> HostSamples:
        integrate_all, used = xla.outermost(integrate_each, "t", "s", "solver"), check_solver(solver)

        def integrate(_: Array, x: Samples) -> tuple[Samples, Outcome]:
            return integrate_all(self.network, x, None, t=t, s=s, solver=used)

        def check(found: tuple[Any, Outcome]) -> None:
            used.check(found[1])

        return in_batches(integrate, len(x), rows=x, check=check, batch=batch, progress=progress)[0]
