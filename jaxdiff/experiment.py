"""From a config to the things it names: the process, the network, its denoiser, the loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from jaxdiff import config as configs
from jaxdiff import denoisers, losses, models, schedules, weightings
from jaxdiff.config import Config
from jaxdiff.processes import Gaussian, Process
from jaxdiff.time_sampling import TimeSampler, time_sampler
from jaxdiff.typing import Denoiser, PyTree, Time
from jaxdiff.weightings import Weighting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A config made into objects. Make one with `make_experiment`."""

    config: Config
    shape: tuple[int, ...]
    bounded: bool  # whether samples have a range, [−1, 1]
    process: Process
    model: nn.Module
    times: TimeSampler
    weight: Weighting | None

    def init(self, key: Key[Array, ""]) -> PyTree:
        """The network's first weights."""
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        return self.model.init(key, x, t)

    def network(self, params: PyTree) -> denoisers.NetworkDenoiser:
        """The denoiser as it is trained."""
        return denoisers.denoiser(
            self.model.apply,
            params,
            self.process,
            predicts=self.config.predicts,
            scale_input=self.config.scale_input,
        )

    def in_float32(self) -> "Experiment":
        """This one with a network that computes in float32."""
        return dataclasses.replace(self, model=self.model.clone(dtype=jnp.float32))

    def sampling_denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser as it samples: clipped where the config says so."""
        network = self.network(params)
        return denoisers.clipped(network, self.process) if self.config.sampling.clip and self.bounded else network

    def draw(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, " n"], Key[Array, " n"]]:
        """The times of a batch of n examples, and a key for the noise of each."""
        key_times, key_noise = jax.random.split(key)
        return self.times(key_times, n), jax.random.split(key_noise, n)

    def loss(
        self, params: PyTree, x0: Float[Array, "n *shape"], t: Float[Array, " n"], keys: Key[Array, " n"]
    ) -> Float[Array, " n"]:
        """The loss of each example of a batch, at its time and with its key's noise."""
        denoiser = self.network(params)

        def one(x0: Float[Array, "*shape"], t: Time, key: Key[Array, ""]) -> Float[Array, ""]:
            space = self.config.loss.space
            if self.weight is None:
                return losses.simple(denoiser, self.process, x0, t, key=key, space=space)
            return losses.weighted(denoiser, self.process, x0, t, key=key, weight=self.weight, space=space)

        return jax.vmap(one)(x0, t, keys)


def make_experiment(config: Config, shape: tuple[int, ...], *, bounded: bool) -> Experiment:
    """The objects that a config names, for samples of the given shape.

    Raises:
      ValueError: for a shape that the network can't take, found without running it; for a weight that is infinite at
        t = 1 on what the loss measures.
    """
    process = Gaussian(configs.build(schedules.REGISTRY, config.schedule))
    experiment = Experiment(
        config=config,
        shape=shape,
        bounded=bounded,
        process=process,
        model=configs.build(models.REGISTRY, config.model, dtype=compute_dtype(config.train.dtype)),
        times=time_sampler(config.loss.times, process.schedule),
        weight=_weighting(config, process.schedule),
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
