"""What a run is made of, as frozen, validated dataclasses.

A file in `configs/` builds a `Config` and hands it to the command line as a locked ConfigDict with every field in it
(`to_config_dict`), so that `--config.section.field=value` can set any of them. It comes back once (`from_mapping`),
is written to the run's folder as `config.json`, and is not changed again.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import models, parameterization, processes, samplers, schedules, settings, weightings
from jaxdiff.parameterization import Kind
from jaxdiff.samplers.jump import Jump
from jaxdiff.time_sampling import Times, time_sampler

SCHEDULES = {**schedules.REGISTRY, "learned": schedules.learned}  # the last is trained with the network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The data set: see `jaxdiff.data.load`."""

    name: str
    dir: str | None = None  # a folder that holds it; None downloads it, or needs none
    on_device: bool = True  # keep it all in each device's memory; False ships every batch from the host

    def __post_init__(self) -> None:
        settings.check_types(self, "data.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The training loss: see `jaxdiff.losses`, `jaxdiff.weightings` and `jaxdiff.time_sampling`."""

    space: Kind = "eps"
    weight: str | None = None  # of a time, "min_snr:gamma=5"; None weighs the error in `space` alike at all times
    times: Times = "auto"

    def __post_init__(self) -> None:
        settings.check_types(self, "loss.")
        if self.weight is not None:
            with settings.named("loss"):
                weightings.make(self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with gradient clipping and a learning rate that warms up linearly, then decays or not."""

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # the gradient's global norm is cut to this; None leaves it

    def __post_init__(self) -> None:
        settings.check_types(self, "optimizer.")
        settings.at_least("optimizer.learning_rate", self.learning_rate, 0)
        settings.at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        settings.at_least("optimizer.weight_decay", self.weight_decay, 0)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optimizer.clip_norm = {self.clip_norm}; it must be above 0, or None to leave gradients")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The training run."""

    steps: int
    batch_size: int  # over all devices of all hosts
    accumulate: int = 1  # micro-batches that one step's gradient is summed over
    steps_per_dispatch: int | None = None  # optimizer steps in one compiled call; None: 1 on CPU, else 10
    ema_decay: float = 0.9999  # reached by a warm-up: at step n the decay is at most (1 + n)/(10 + n)
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of computation; auto: float32 on CPU, else bfloat16
    fsdp: int = 1  # devices that weights and optimizer state are sharded over

    def __post_init__(self) -> None:
        settings.check_types(self, "train.")
        for name in ("steps", "batch_size", "accumulate", "fsdp"):
            settings.at_least(f"train.{name}", getattr(self, name), 1)
        if self.steps_per_dispatch is not None:
            settings.at_least("train.steps_per_dispatch", self.steps_per_dispatch, 1)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay = {self.ema_decay}; the rule is 0 <= ema_decay < 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"train.seed = {self.seed}; the rule is 0 <= seed < 2^32")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size = {self.batch_size} is not divisible by train.accumulate = {self.accumulate}; "
                "make it a multiple"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The pictures made while training, and how `sample.py` samples unless told otherwise."""

    sampler: str = "ddim"
    steps: int = 50
    grid: str = "uniform"
    n: int = 64  # of images; points in the plane are always drawn in thousands
    # How x̂_0 is held in the range of the data, [−1, 1]: `jaxdiff.clipped` or `jaxdiff.thresholded`. Data without a
    # range is left alone.
    clip: Literal["static", "dynamic", "none"] = "static"

    def __post_init__(self) -> None:
        settings.check_types(self, "sampling.")
        with settings.named("sampling"):
            samplers.make(self.sampler)
        settings.at_least("sampling.n", self.n, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """How often things are done, in steps (multiples of train.steps_per_dispatch), and how many are kept."""

    log: int = 100
    checkpoint: int = 1000
    sample: int = 1000
    keep: int = 3  # checkpoints kept, the newest ones

    def __post_init__(self) -> None:
        settings.check_types(self, "every.")
        for field in dataclasses.fields(self):
            settings.at_least(f"every.{field.name}", getattr(self, field.name), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `model`, `schedule` and `process` are mappings: a registered `name` and the fields of what it names."""

    data: Data
    model: Mapping[str, Any]
    schedule: Mapping[str, Any]
    train: Train
    process: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "gaussian"})
    predicts: Kind = "eps"
    scale_input: bool = False  # see `jaxdiff.denoiser`
    # None trains an unconditional model; a number, one that is told each example's label but for this share of them.
    p_uncond: float | None = None
    learned_variance: bool = False  # the network predicts the reverse step's variance too: `jaxdiff.losses.hybrid`
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    every: Every = dataclasses.field(default_factory=Every)

    def __post_init__(self) -> None:
        settings.check_types(self, "")
        object.__setattr__(self, "model", settings.component("model", self.model, models.REGISTRY))
        object.__setattr__(self, "schedule", settings.component("schedule", self.schedule, SCHEDULES))
        object.__setattr__(self, "process", settings.component("process", self.process, processes.REGISTRY))
        if self.p_uncond is not None and not 0 <= self.p_uncond < 1:
            raise ValueError(
                f"p_uncond = {self.p_uncond}; the rule is 0 <= p_uncond < 1, or None for an unconditional model"
            )
        # What can't be made is found out now: all of it costs milliseconds. JAX computes nothing here, as it would then
        # choose its devices before `jaxdiff.xla.split_cpu` can: of a schedule that is drawn only shapes are made.
        with settings.named("model"):
            settings.build(models.REGISTRY, self.model)
        with settings.named("schedule"):
            if self.schedule["name"] == "learned":
                schedule = jax.eval_shape(functools.partial(settings.build, SCHEDULES, self.schedule))
            else:
                schedule = settings.build(SCHEDULES, self.schedule)
        with settings.named("process"):
            examples = {"examples": np.zeros((2, 1))} if processes.takes_examples(self.process) else {}
            signal = settings.build(processes.REGISTRY, self.process, schedule=schedules.VP(), **examples).signal
        parameterization.check(self.predicts, signal, what="predicts")
        parameterization.check(self.loss.space, signal, what="loss.space")
        with settings.named("sampling"):
            samplers.grids.check(self.sampling.grid, self.sampling.steps, schedule)
            self.check_sampler(samplers.make(self.sampling.sampler))
        with settings.named("loss"):
            time_sampler(self.loss.times, schedule)
        if self.model["name"] == "classifier":
            _check_classifier(self)
        elif isinstance(schedule, schedules.Learned):
            _check_learned(self, schedule)
        if self.learned_variance and schedule.steps is None:
            raise ValueError(
                f"learned_variance = True, but schedule {self.schedule['name']!r} has no steps, of which the variance "
                "is learned; take a discrete schedule"
            )
        dispatch = self.train.steps_per_dispatch or 10
        default = "" if self.train.steps_per_dispatch else ", its default on accelerators"
        for name in ("log", "checkpoint", "sample"):
            if getattr(self.every, name) % dispatch:
                raise ValueError(
                    f"every.{name} = {getattr(self.every, name)} is not a multiple of "
                    f"train.steps_per_dispatch = {dispatch}{default}; make it one, or set train.steps_per_dispatch"
                )

    @property
    def told_labels(self) -> str | None:
        """What of the config needs the data's labels; None if nothing does."""
        if self.model["name"] == "classifier":
            return "model 'classifier'"
        return None if self.p_uncond is None else f"a model with p_uncond = {self.p_uncond}"

    def check_sampler(self, sampler: samplers.Sampler) -> None:
        """Raises a ValueError for a sampler that asks of the network what it does not predict."""
        if isinstance(sampler, Jump) and sampler.v is None and not self.learned_variance:
            raise ValueError(
                "sampler = 'ddpm:variance=learned', but the network is trained without learned_variance = True; "
                "train it with that, or ask for variance=small, large or a number in [0, 1]"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | ConfigDict) -> Self:
        """A Config from nested mappings (a ConfigDict, or what `config.json` holds).

        Raises:
          ValueError: for an unknown or missing key or a value of the wrong type, with the key's path and the nearest
            known name; for values that break a rule.
        """
        plain = values.to_dict() if isinstance(values, ConfigDict) else values
        return settings.dataclass_from(cls, plain, "")

    def to_mapping(self) -> dict[str, Any]:
        """Nested dicts of plain values, as JSON takes them."""
        return dataclasses.asdict(self)

    def to_config_dict(self) -> ConfigDict:
        """A locked ConfigDict for the command line."""
        return settings.with_placeholders(type(self), self.to_mapping()).lock()


def _check_classifier(config: Config) -> None:
    """Refuse what says how a denoiser is trained."""
    for name, unused in {
        "p_uncond": config.p_uncond is None,
        "learned_variance": not config.learned_variance,
        "loss.weight": config.loss.weight is None,
        "schedule": config.schedule["name"] != "learned",
    }.items():
        if not unused:
            raise ValueError(f"{name} is set, but model 'classifier' has no use for it; leave it at its default")


def _check_learned(config: Config, schedule: schedules.Learned) -> None:
    """Refuse a loss that a learned schedule could lower by its shape alone."""
    weight = config.loss.weight or ""
    if schedule.ends is not None and weight != "elbo":
        raise ValueError(
            f"loss.weight = {config.loss.weight!r}, but schedule.learn_ends learns the ends by the bound: set "
            "loss.weight to elbo, or schedule.learn_ends to False"
        )
    if weight != "elbo" and weight.partition(":")[0] != "sigmoid":
        raise ValueError(
            f"loss.weight = {config.loss.weight!r}, but a learned schedule needs a loss that does not depend on its "
            "shape: set loss.weight to elbo or sigmoid"
        )
    if config.loss.times not in ("auto", "continuous", "antithetic"):
        raise ValueError(
            f"loss.times = {config.loss.times!r}, but a learned schedule is trained at uniform times: set "
            "loss.times to antithetic or continuous"
        )
    if config.predicts == "velocity":
        raise ValueError(
            "predicts = 'velocity', but dx/dt changes with the shape of a learned schedule: set predicts to eps, v "
            "or x0"
        )
