"""From a config to the things it names: the process, the network, its denoiser, the loss.

A learned schedule is one of the parameters: `params["schedule"]` beside Flax's collections. Everything that has a
schedule (`process`, the denoisers) is thus made from parameters, the averaged ones where samples are drawn. The network
is then told the log-SNR instead of t: what it learns does not change as the schedule moves, and the loss depends on the
schedule only through its ends (`jaxdiff.bounds`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxdiff import bounds, denoisers, losses, models, schedules, weightings
from jaxdiff import config as configs
from jaxdiff.config import Config
from jaxdiff.processes import Gaussian
from jaxdiff.time_sampling import LossHistory, TimeSampler, time_sampler, to_steps
from jaxdiff.typing import Denoiser, PyTree, Time
from jaxdiff.weightings import Weighting


@dataclasses.dataclass(frozen=True)
class _ToldLogSNR:
    """A network for which t says only where the log-SNR of the learned schedule among its parameters is."""

    model: nn.Module

    def __call__(self, params: PyTree, x: Array, t: Array, *cond: PyTree) -> Array:
        weights = {name: part for name, part in params.items() if name != "schedule"}
        return self.model.apply(weights, x, params["schedule"].position(t), *cond)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A config made into objects. Make one with `make_experiment`."""

    config: Config
    shape: tuple[int, ...]
    bounded: bool  # whether samples have a range, [−1, 1]
    levels: int | None  # that a coordinate of the data can take; None: continuous
    schedule: schedules.Schedule  # a learned one is here as it starts with a fixed key; see `process`
    model: nn.Module
    times: TimeSampler
    weight: Weighting | None

    @property
    def learns_schedule(self) -> bool:
        """Whether the schedule is among the parameters."""
        return isinstance(self.schedule, schedules.Learned)

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The network's first weights; with them, where it is learned, the first schedule."""
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        weights = self.model.init(key, x, t)
        if not self.learns_schedule:
            return weights
        key = jax.random.fold_in(key, 1)
        return {**weights, "schedule": configs.build(configs.SCHEDULES, self.config.schedule, key=key)}

    def process(self, params: PyTree) -> Gaussian:
        """The process of these parameters: another one for others only where the schedule is learned."""
        return Gaussian(params["schedule"] if self.learns_schedule else self.schedule)

    def network(self, params: PyTree) -> denoisers.NetworkDenoiser:
        """The denoiser as it is trained."""
        return denoisers.denoiser(
            _ToldLogSNR(self.model) if self.learns_schedule else self.model.apply,
            params,
            self.process(params),
            predicts=self.config.predicts,
            scale_input=self.config.scale_input,
            learned_variance=self.config.learned_variance,
        )

    def in_float32(self) -> "Experiment":
        """This one with a network that computes in float32."""
        return dataclasses.replace(self, model=self.model.clone(dtype=jnp.float32))

    def sampling_denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser as it samples: with x̂_0 held in the data's range as the config says."""
        network, clip = self.network(params), self.config.sampling.clip
        if clip == "none" or not self.bounded:
            return network
        return (denoisers.clipped if clip == "static" else denoisers.thresholded)(network, network.process)

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
        self, params: PyTree, x0: Float[Array, "n *shape"], t: Float[Array, " n"], keys: Key[Array, " n"]
    ) -> Float[Array, " n"]:
        """The loss of each example of a batch, at its time and with its key's noise.

        Where the ends of the schedule are learned it is the whole bound, in nats a coordinate; else what the config's
        `loss` says.
        """
        loss: Callable[..., Float[Array, ""]] = losses.simple
        if self.config.learned_variance:
            loss = partial(losses.hybrid, weight=self.weight)
        elif self.weight is not None:
            loss = partial(losses.weighted, weight=self.weight)
        denoiser = self.network(params)
        process, schedule = denoiser.process, denoiser.process.schedule
        learns_ends = isinstance(schedule, schedules.Learned) and schedule.ends is not None

        def one(x0: Float[Array, "*shape"], t: Time, key: Key[Array, ""]) -> Float[Array, ""]:
            found = loss(denoiser, process, x0, t, key=key, space=self.config.loss.space)
            if learns_ends:
                key = jax.random.fold_in(key, 1)
                start = bounds.reconstruction_term(key, process, x0, levels=self.levels)
                found += (bounds.prior_term(schedule, x0) + start) / x0.size
            return found

        return jax.vmap(one)(x0, t, keys)


def make_experiment(config: Config, shape: tuple[int, ...], *, bounded: bool, levels: int | None = None) -> Experiment:
    """The objects that a config names, for samples of the given shape, [−1, 1] if `bounded`, and of so many levels.

    Raises:
      ValueError: for a shape that the network can't take, found without running it; for a weight that is infinite at
        t = 1 on what the loss measures.
    """
    schedule = configs.build(configs.SCHEDULES, config.schedule)
    experiment = Experiment(
        config=config,
        shape=shape,
        bounded=bounded,
        levels=levels,
        schedule=schedule,
        model=configs.build(
            models.REGISTRY,
            config.model,
            dtype=compute_dtype(config.train.dtype),
            outputs=2 if config.learned_variance else 1,
        ),
        times=time_sampler(config.loss.times, schedule),
        weight=_weighting(config, schedule),
    )
    jax.eval_shape(experiment.init, jax.random.key(0))
    return experiment


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
