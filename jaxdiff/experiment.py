"""From a config to the things it names: the process, the network, its denoiser, the loss.

A learned schedule is one of the parameters: `params["schedule"]` beside Flax's collections. Everything that has a
schedule (`process`, the denoisers) is thus made from parameters, the averaged ones where samples are drawn. The network
is then told the log-SNR instead of t: what it learns does not change as the schedule moves, and the loss depends on the
schedule only through its ends (`jaxdiff.bounds`).

A network that is told the random parameters of a perturbation sees them as further channels of x, and what it says of
those is left out.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from jaxdiff import bounds, data, denoisers, losses, models, processes, samplers, schedules, settings, weightings
from jaxdiff import config as configs
from jaxdiff.config import Config
from jaxdiff.data import Dataset
from jaxdiff.evaluation import NoisyAccuracy, accuracy_by_noise
from jaxdiff.guidance import NetworkClassifier
from jaxdiff.processes import Perturbed, Process, Told
from jaxdiff.time_sampling import LossHistory, TimeSampler, time_sampler, to_steps
from jaxdiff.typing import Denoiser, Prediction, PyTree, Time
from jaxdiff.weightings import Weighting


@dataclasses.dataclass(frozen=True)
class _ToldLogSNR:
    """A network for which t says only where the log-SNR of the learned schedule among its parameters is."""

    model: nn.Module

    def __call__(self, params: PyTree, x: Array, t: Array, *cond: PyTree) -> Array:
        weights = {name: part for name, part in params.items() if name != "schedule"}
        return self.model.apply(weights, x, params["schedule"].position(t), *cond)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class _ToldParameters:
    """A network that sees the parameters of its sample's perturbation."""

    apply: Callable[..., Array]

    def __call__(self, params: PyTree, x: Array, t: Array, told: Told) -> Array:
        cond = () if told.cond is None else (told.cond,)
        return self.apply(params, _with_parameters(x, told.signal), t, *cond)[..., : x.shape[-1]]


def _with_parameters(x: Array, signal: PyTree) -> Array:
    """x, of shape (n, ..., channels), and behind its channels the arrays of n transforms, on every axis."""
    spread = [leaf.reshape(len(x), *[1] * (x.ndim - leaf.ndim), *leaf.shape[1:]) for leaf in jax.tree.leaves(signal)]
    channels = [jnp.broadcast_to(leaf, (*x.shape[:-1], leaf.shape[-1])).astype(x.dtype) for leaf in spread]
    return jnp.concatenate([x, *channels], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A config made into objects. Make one with `make_experiment`."""

    config: Config
    shape: tuple[int, ...]
    levels: int | None  # that a coordinate of the data can take, in [−1, 1]; None: continuous, and without bounds
    classes: int  # that the network is told of; 0: it is unconditional
    schedule: schedules.Schedule  # a learned one is here as it starts with a fixed key; see `process`
    first_process: Process  # with that schedule
    model: nn.Module
    times: TimeSampler
    weight: Weighting | None

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier of noisy samples, and no denoiser."""
        return isinstance(self.model, models.NoisyClassifier)

    @property
    def learns_schedule(self) -> bool:
        """Whether the schedule is among the parameters."""
        return isinstance(self.schedule, schedules.Learned)

    @property
    def tells_parameters(self) -> bool:
        """Whether the network is told the random parameters of the process."""
        return bool(self.config.process.get("tell"))

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The network's first weights; with them, where it is learned, the first schedule."""
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        if self.tells_parameters:
            drawn: Any = self.first_process.draw(key, self.shape)
            x = _with_parameters(x, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], drawn.signal))
        weights = self.model.init(key, x, t)
        if not self.learns_schedule:
            return weights
        key = jax.random.fold_in(key, 1)
        return {**weights, "schedule": settings.build(configs.SCHEDULES, self.config.schedule, key=key)}

    def process(self, params: PyTree) -> Process:
        """The process of these parameters: another one for others only where the schedule is learned."""
        first: Any = self.first_process
        return dataclasses.replace(first, schedule=params["schedule"]) if self.learns_schedule else first

    def network(self, params: PyTree) -> denoisers.NetworkDenoiser:
        """The denoiser as it is trained."""
        apply: Callable[..., Any] = _ToldLogSNR(self.model) if self.learns_schedule else self.model.apply
        return denoisers.denoiser(
            _ToldParameters(apply) if self.tells_parameters else apply,
            params,
            self.process(params),
            predicts=self.config.predicts,
            scale_input=self.config.scale_input,
            learned_variance=self.config.learned_variance,
        )

    def in_float32(self) -> "Experiment":
        """This one with a network that computes in float32."""
        return dataclasses.replace(self, model=self.model.clone(dtype=jnp.float32))

    def classifier(self, params: PyTree) -> NetworkClassifier:
        """The classifier of noisy samples."""
        return NetworkClassifier(
            apply=self.model.apply,
            params=params,
            process=self.process(params),
            scale_input=self.config.scale_input,
        )

    def sampling_denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser as it samples: with x̂_0 held in the data's range as the config says."""
        network = self.network(params)
        return self.held_in_range(network, network.process)

    def held_in_range(self, denoiser: Denoiser, process: Process) -> Denoiser:
        """The denoiser with x̂_0 held in the data's range as the config says; what guides it comes first."""
        clip = self.config.sampling.clip
        if clip == "none" or self.levels is None:
            return denoiser
        return (denoisers.clipped if clip == "static" else denoisers.thresholded)(denoiser, process)

    def draw(
        self, key: Key[Array, ""], n: int, history: LossHistory | None = None
    ) -> tuple[Float[Array, " n"], Key[Array, " n"], Float[Array, " n"]]:
        """The times of a batch of n examples, a key for the noise of each, and the weight of each in the mean loss."""
        key_times, key_noise = jax.random.split(key)
        keys = jax.random.split(key_noise, n)
        if history is None:
            return self.times(key_times, n), keys, jnp.ones(n)
        t, weights = history.sample(key_times, n)
        steps = self.schedule.steps
        return (t if steps is None else to_steps(t, steps=steps)), keys, weights

    def loss(
        self,
        params: PyTree,
        x0: Float[Array, "n *shape"],
        t: Float[Array, " n"],
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None = None,
    ) -> Float[Array, " n"]:
        """The loss of each example of a batch, at its time and with its key's noise.

        Of a conditional model each example's label is made −1, for none, with probability p_uncond, by its own key.
        That of a classifier is the cross-entropy, −log p(label|x_t, t).

        Where the ends of the schedule are learned it is the whole bound, in nats a coordinate; else what the config's
        `loss` says.
        """
        if self.classifies:
            assert labels is not None
            one_of = partial(losses.cross_entropy, self.classifier(params), self.process(params))
            return jax.vmap(one_of)(x0, labels, t, keys)
        loss: Callable[..., Float[Array, ""]] = losses.simple
        if self.config.learned_variance:
            loss = partial(losses.hybrid, weight=self.weight)
        elif self.weight is not None:
            loss = partial(losses.weighted, weight=self.weight)
        denoiser = self.network(params)
        process, schedule = denoiser.process, denoiser.process.schedule
        learns_ends = isinstance(schedule, schedules.Learned) and schedule.ends is not None

        def one(
            x0: Float[Array, "*shape"], t: Time, key: Key[Array, ""], label: Int[Array, ""] | None
        ) -> Float[Array, ""]:
            if label is not None and self.config.p_uncond is not None:
                dropped = jax.random.bernoulli(jax.random.fold_in(key, 2), self.config.p_uncond)
                label = jnp.where(dropped, -1, label)
            found = loss(denoiser, process, x0, t, key=key, cond=label, space=self.config.loss.space)
            if learns_ends:
                key = jax.random.fold_in(key, 1)
                start = bounds.reconstruction_term(key, process, x0, levels=self.levels)
                found += (bounds.prior_term(schedule, x0) + start) / x0.size
            return found

        return jax.vmap(one)(x0, t, keys, labels)


def make_experiment(
    config: Config,
    shape: tuple[int, ...],
    *,
    levels: int | None,
    classes: int | None = None,
    examples: Float[np.ndarray, "n *shape"] | None = None,
) -> Experiment:
    """The objects that a config names.

    Args:
      config: names them.
      shape: of one sample.
      levels: that a coordinate of the data can take; None: continuous, and without bounds.
      classes: of the data.
      examples: of the data, as the network sees it, where the process is made of some; see `jaxdiff.folder`.

    Raises:
      ValueError: for a conditional model of data without `classes`; for a shape that the network can't take, found
        without running it; for a weight that is infinite at t = 1 on what the loss measures; for a process that lacks
        its examples.
    """
    told = config.told_labels
    if told and classes is None:
        raise ValueError(f"{told} is trained on labels, but data {config.data.name!r} has none; take a set that has")
    classes = (classes or 0) if told else 0
    schedule = settings.build(configs.SCHEDULES, config.schedule)
    experiment = Experiment(
        config=config,
        shape=shape,
        levels=levels,
        classes=classes,
        schedule=schedule,
        first_process=settings.build(
            processes.REGISTRY,
            config.process,
            schedule=schedule,
            **({"examples": examples} if processes.takes_examples(config.process) else {}),
        ),
        model=settings.build(
            models.REGISTRY,
            config.model,
            dtype=compute_dtype(config.train.dtype),
            classes=classes,
            **({"outputs": 2} if config.learned_variance else {}),
        ),
        times=time_sampler(config.loss.times, schedule),
        weight=_weighting(config, schedule),
    )
    jax.eval_shape(experiment.init, jax.random.key(0))
    _check_process(experiment)
    return experiment


def _check_process(experiment: Experiment) -> None:
    """Raises a ValueError, before any training, for a process that is none, or that sampler or loss know nothing of."""
    process, sampler = experiment.first_process, samplers.make(experiment.config.sampling.sampler)
    if experiment.config.learned_variance:
        processes.gaussian(process, what="learned_variance", instead="set it to False")
    if isinstance(experiment.schedule, schedules.Learned) and experiment.schedule.ends is not None:
        processes.gaussian(process, what="schedule.learn_ends", instead="set it to False")
    process = process.draw(jax.random.key(0), experiment.shape)
    if isinstance(process, Perturbed):
        x = jnp.zeros(experiment.shape)
        jump = partial(sampler.step, t=0.5, s=0.25, denoise=lambda x, *_: Prediction(x, x), process=process)
        jax.eval_shape(lambda: jump(jax.random.key(0), x, sampler.init(x))[0])


def test_split(experiment: Experiment) -> Dataset:
    """The labelled test split of the data set, which a classifier is measured on.

    Raises:
      ValueError, ConnectionError: where it is not at hand, or has no labels.
    """
    section = experiment.config.data
    found = data.load(section.name, split="test", dir=section.dir)
    if found.labels is None:
        raise ValueError(f"data.name = {section.name!r}: its test split has no labels to measure a classifier with")
    return found


def noisy_accuracy(experiment: Experiment, params: PyTree, test: Dataset, n: int = 1000) -> NoisyAccuracy:
    """That of a classifier on the first n examples of a labelled set, or on all where there are fewer."""
    assert test.labels is not None
    x0 = data.normalize(test.x[:n], test.levels)
    classifier = experiment.classifier(params)
    key = jax.random.key(experiment.config.train.seed)
    log_probs = jax.tree_util.Partial(NetworkClassifier.log_probs, classifier)
    return accuracy_by_noise(key, log_probs, classifier.process, x0, test.labels[:n])


def _weighting(config: Config, schedule: schedules.Schedule) -> Weighting | None:
    if config.loss.weight is None:
        return None
    weight = weightings.make(config.loss.weight)
    last = weightings.in_space(config.loss.space, weight(schedule, 1.0), t=1.0, schedule=schedule)
    if not jnp.isfinite(last):
        raise ValueError(
            f"loss.weight = {config.loss.weight!r} is infinite at t = 1 on loss.space = {config.loss.space!r}, "
            "where the schedule ends in pure noise; set loss.space to v, velocity or x0"
        )
    return weight


def compute_dtype(name: str) -> Any:
    """The dtype that `train.dtype` names: "auto" is float32 on CPU and bfloat16 on accelerators."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
