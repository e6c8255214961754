"""The config of a run, as frozen dataclasses that are validated when they are made.

A file in `configs/` builds a `Config` and returns `to_config_dict()`, so that `--config.section.field=value` can set
any field. `from_mapping` makes the result a Config again, which is written to the run's `config.json`.

The sections `model`, `schedule` and `process` name components, with the texts and mappings of `jaxdiff.registry`.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import jax
import numpy as np
from ml_collections import ConfigDict, config_dict

from jaxdiff import models, registry, samplers, schedules
from jaxdiff.data import Reading, Source, derive, load
from jaxdiff.data.derived import DERIVED
from jaxdiff.experiment import components
from jaxdiff.experiment.optimizers import Optimizer, all_but_schedule
from jaxdiff.losses import weightings
from jaxdiff.losses.time_sampling import Times, time_sampler
from jaxdiff.processes import parameterization
from jaxdiff.processes.transforms import Transform
from jaxdiff.samplers import timesteps
from jaxdiff.samplers.batching import Sampling
from jaxdiff.typing import AtMost, Count, InputError, fields_of

Seed = Annotated[int, AtMost(2**32)]
Component = Any  # a text or a mapping; a mapping with all plain options once the Config is made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Reading):
    """The data set: see `jaxdiff.data.load`. The fields of `Reading` are for folder:, hf: and tfds:."""

    name: str
    dir: str | None = None  # the folder that holds it; None if it is downloaded or needs none
    # Whether it is kept in the memory of each device, or every batch is sent from the host; None: if it has at most
    # 256 MB and its examples do not vary.
    on_device: bool | None = None
    workers: Count | None = None  # processes that read examples which are not in memory; None: one for each core
    derive: str | None = None  # conditions computed from each example, as in "reduced:factor=2"; see cond
    # Examples of the train split that are kept out of training, and evaluated in place of the test split.
    held_out: Count = 0
    evaluated: Count = 1024  # the most held-out examples whose loss `every.evaluate` takes

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.at_least(self, 0, "workers", "held_out")
        registry.at_least(self, 1, "evaluated")
        if self.derive is not None:
            registry.make("derive", self.derive, DERIVED)

    def load(self, split: Literal["train", "test"] = "train", *, dir: str | None = None) -> Source:
        """Return a split of the data set, with the conditions that are derived from it.

        `dir` is the folder that holds the data set; None is that of the config. Raises as `jaxdiff.data.load`.
        """
        found = load(self.name, split=split, dir=self.dir if dir is None else dir, reading=self.reading)
        return self.with_conditions(found)

    def with_conditions(self, source: Source) -> Source:
        """Return a data set with the conditions that `derive` names."""
        return source if self.derive is None else derive(source, self.derive)

    @property
    def reading(self) -> Reading:
        """How pictures become examples."""
        return Reading(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Reading)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the network is conditioned on: the probability of dropping each condition in training.

    Classifier-free guidance needs some, as 0.1. With 0 a condition is always given; with None the network doesn't see
    it. The data set must have it: see `jaxdiff.data.Examples`.
    """

    label: float | None = None
    vector: float | None = None  # an array of numbers, added to the embedding of the time as the label is
    image: float | None = None  # a picture, as further channels of x: to upscale, to colour, or class maps
    tokens: float | None = None  # a sequence of vectors, as of a text; a unet attends to them

    def __post_init__(self) -> None:
        registry.check_types(self)
        for name, p in self.used.items():
            if not 0 <= p < 1:
                raise InputError(f"{name} = {p}; must satisfy 0 <= {name} < 1, or None for a network without it")

    @property
    def used(self) -> dict[str, float]:
        """The probability of each condition that is not None."""
        return {name: p for name, p in dataclasses.asdict(self).items() if p is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The training loss: see `jaxdiff.losses`."""

    target: str | None = None  # the parameterization whose error is measured; None: what the network predicts
    weight: str | None = None  # as "min_snr:gamma=5"; None weights the error of `target` equally at all times
    times: Times = "auto"

    __getstate__ = fields_of

    def __post_init__(self) -> None:
        registry.check_types(self)
        if self.target is not None:
            object.__setattr__(self, "target", parameterization.canonical(self.target, what="target"))
        _ = self.built_weight

    @functools.cached_property
    def built_weight(self) -> weightings.Weighting | None:
        """The weighting that `weight` names."""
        return self.weight and registry.make("weight", self.weight, weightings.WEIGHTINGS)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The training run."""

    steps: int
    batch_size: Count  # over all devices of all hosts
    accumulate: Count = 1  # micro-batches per optimizer step
    # Optimizer steps in one compiled call; None: 1 on CPU, else 10, or less where every.* asks for less.
    steps_per_dispatch: Count | None = None
    ema_decay: float = 0.9999  # reached by a warm-up: at step n the decay is at most (1 + n)/(10 + n)
    seed: Seed = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of computation; auto: float32 on CPU, else bfloat16
    fsdp: int = 1  # devices that weights and optimizer state are sharded over
    remat: bool = False  # compute the insides of each block again in the backward pass, to save memory
    init_from: str | None = None  # the folder of a run whose averaged weights this one starts from
    init_partial: bool = False  # whether to take from init_from only the arrays that fit, and initialize the others

    def __post_init__(self) -> None:
        registry.check_types(self)
        registry.at_least(self, 1, "steps", "batch_size", "accumulate", "fsdp", "steps_per_dispatch")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay = {self.ema_decay}; must satisfy 0 <= ema_decay < 1")
        if self.init_partial and self.init_from is None:
            raise InputError("init_partial = True, but init_from is None; set init_from to the folder of a run")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed = {self.seed}; must satisfy 0 <= seed < 2^32")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size = {self.batch_size} is not divisible by accumulate = {self.accumulate}; make it a multiple"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """How often things are done, in steps (multiples of train.steps_per_dispatch), and how many are kept."""

    log: int = 100
    checkpoint: int = 1000
    sample: int = 1000
    keep: int = 3  # checkpoints kept, the newest ones; the best one by `evaluate` is kept too
    # The loss of the averaged weights on held-out examples, `eval_loss`; None: never. A multiple of `log`.
    evaluate: int | None = None
    profile: int | None = None  # a trace of what the devices do in a few steps, for XProf or TensorBoard; None: never

    def __post_init__(self) -> None:
        registry.check_types(self)
        registry.at_least(self, 1, "log", "checkpoint", "sample", "keep", "evaluate", "profile")
        if self.evaluate is not None and self.evaluate % self.log:
            raise InputError(f"evaluate = {self.evaluate} is not a multiple of log = {self.log}; make it one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    data: Data
    schedule: Component
    train: Train
    model: Component = "given"  # "given" stands for a network that code gives: see `jaxdiff.train`
    process: Component = "gaussian"
    predicts: str = "eps"
    scale_input: bool | None = None  # see `jaxdiff.denoiser`
    cond: Conditions = dataclasses.field(default_factory=Conditions)
    learned_variance: bool = False  # train the variance of the reverse step too: `jaxdiff.losses.hybrid`
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    every: Every = dataclasses.field(default_factory=Every)
    # Where metrics and pictures go beside the run's files, as "wandb:project=mine": see `jaxdiff.training.loggers`.
    loggers: tuple[str, ...] = ("tensorboard",)

    __getstate__ = fields_of

    def __post_init__(self) -> None:
        registry.check_types(self)
        for what, (names, given) in components.NAMES.items():
            object.__setattr__(self, what, registry.normalize(what, getattr(self, what), names, given=given))
        object.__setattr__(self, "predicts", parameterization.canonical(self.predicts, what="predicts"))
        if self.data.derive is not None and not {*self.cond.used} - {"label"}:
            raise InputError(
                f"data.derive = {self.data.derive!r}, but the network is given none of what it computes; set "
                "cond.image or cond.vector, as to 0.1"
            )
        # JAX must compute nothing in these checks: it would choose its devices before `jaxdiff.xla.split_cpu` can.
        self._check_components()
        dispatch = self.train.steps_per_dispatch or 1
        for name in ("log", "checkpoint", "sample", "profile"):
            if (steps := getattr(self.every, name) or 0) % dispatch:
                raise InputError(
                    f"every.{name} = {steps} is not a multiple of train.steps_per_dispatch = {dispatch}; "
                    "make it one, or set train.steps_per_dispatch"
                )

    def _check_components(self) -> None:
        model, schedule, transform = self.built_model, self.built_schedule, self.built_transform
        parameterization.check(self.predicts, transform, what="predicts")
        if self.loss.target is not None:
            parameterization.check(self.loss.target, transform, what="loss.target")
        if not isinstance(self.sampling.sampler, str):
            found = f"sampling.sampler = {self.sampling.sampler!r}"
            raise InputError(
                f"{found}; a config holds text only: give a name, such as ddim:eta=0.5 or package.module:Name"
            )
        with registry.named("sampling"):
            if isinstance(self.sampling.timesteps, str):
                timesteps.check(self.sampling.timesteps, self.sampling.steps, schedule)
            else:
                timesteps.make(self.sampling.timesteps, None, schedule)
            self.check_sampler(samplers.make(self.sampling.sampler))
        with registry.named("loss"):
            time_sampler(self.loss.times, schedule)
        if self.train.remat and not registry.takes("model", self.model, components.NAMES["model"][0], "remat"):
            fix = "leave it out, or raise train.accumulate to save memory"
            raise InputError(f"train.remat = True, but model {self.model['name']!r} has no parameter remat; {fix}")
        if isinstance(model, models.NoisyClassifier):
            for name, is_set in {
                "cond": bool(self.cond.used),
                "learned_variance": self.learned_variance,
                "loss.weight": self.loss.weight is not None,
                "schedule": self.schedule["name"] == "learned",
            }.items():
                if is_set:
                    raise InputError(
                        f"{name} is set, but model 'classifier' has no use for it; leave it at its default"
                    )
        elif isinstance(schedule, schedules.Learned):
            _check_learned(self, schedule)
        if self.learned_variance and schedule.num_timesteps is None:
            name = self.schedule["name"]
            raise InputError(
                f"learned_variance = True needs discrete steps, which schedule {name!r} lacks; use another"
            )

    @functools.cached_property
    def built_model(self) -> Any:
        """A registered network without what only the data and the device decide; None for one of a user."""
        if self.model["name"] not in models.MODELS:
            return None
        return self.make("model", outputs=2 if self.learned_variance else None)

    @functools.cached_property
    def built_schedule(self) -> Any:
        """The schedule; only the shapes of its arrays if it is learned."""
        learned = self.schedule["name"] == "learned"
        return jax.eval_shape(lambda: self.make("schedule")) if learned else self.make("schedule")

    @functools.cached_property
    def built_transform(self) -> Transform:
        """The transform of the process, with placeholders for examples of the data."""
        examples = np.zeros((2, 1), np.float32) if components.takes_examples(self.process) else None
        if self.process["name"] != "perturbed":
            return self.make("process", schedule=schedules.VP(), examples=examples).transform
        with registry.named("process"):
            registry.make("noise", self.process["noise"], components.NOISES)
            return components.named_transform(self.process["transform"], examples)

    def make(self, what: str, **extra: Any) -> Any:
        """Return the model, schedule or process, made with the extra arguments that it takes and that aren't None."""
        given = {name: value for name, value in extra.items() if value is not None}
        with registry.named(what):
            return registry.make("name", getattr(self, what), components.NAMES[what][0], **given)

    def steps_per_dispatch(self, *, on_cpu: bool) -> int:
        """Return the number of optimizer steps in one compiled call: by default 1 on a CPU, else at most 10."""
        every = (self.every.log, self.every.checkpoint, self.every.sample, self.every.profile or 0)
        return self.train.steps_per_dispatch or (1 if on_cpu else math.gcd(10, *every))

    @property
    def labels_used_by(self) -> str | None:
        """The setting that needs labels, for messages; None if no setting does."""
        if isinstance(self.built_model, models.NoisyClassifier):
            return "model 'classifier'"
        return None if self.cond.label is None else f"a model with cond.label = {self.cond.label}"

    def check_sampler(self, sampler: samplers.Sampler) -> None:
        """Raise an InputError if the sampler needs a learned variance that the network does not predict."""
        if getattr(sampler, "variance", None) == "learned" and not self.learned_variance:
            raise InputError(
                "sampler = 'ddpm:variance=learned', but the network is trained without learned_variance = True; "
                "train it with that, or use variance=small, large or a number in [0, 1]"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | ConfigDict) -> Self:
        """Return the Config of nested mappings, such as the content of `config.json`, or raise an InputError."""
        return registry.dataclass_from(cls, values.to_dict() if isinstance(values, ConfigDict) else values)

    def to_mapping(self) -> dict[str, Any]:
        """Return nested dicts of plain values, for JSON."""
        return dataclasses.asdict(self)

    def to_config_dict(self) -> ConfigDict:
        """Return a locked ConfigDict for the command line."""
        return _optional(self.to_mapping(), type(self)).lock()


def _optional(values: Mapping[str, Any], cls: Any = None) -> ConfigDict:
    """A ConfigDict in which fields that may be None can be set to a value and back to None."""
    result, hints = ConfigDict(), typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    for name, value in values.items():
        options = typing.get_args(hints.get(name))
        if value is None or type(None) in options:  # a placeholder for any object takes None from the command line too
            result[name] = config_dict.placeholder(str if str in options else object)
        result[name] = _optional(value, hints.get(name)) if isinstance(value, Mapping) else value
    return result


def _check_learned(config: Config, schedule: schedules.Learned) -> None:
    """Refuse a loss that a learned schedule could lower by its shape alone."""
    weight, times = config.loss.weight, config.loss.times
    with registry.named("optimizer"):
        config.optimizer.build(config.train.steps, all_but_schedule)
    if schedule.ends is not None and weight != "elbo":
        fix = "set loss.weight to elbo, or schedule.learn_ends to False"
        raise InputError(f"loss.weight = {weight!r}, but schedule.learn_ends learns the ends by the ELBO: {fix}")
    if weight != "elbo" and (weight or "").partition(":")[0] != "sigmoid":
        why = "a learned schedule needs a loss that does not depend on its shape"
        raise InputError(f"loss.weight = {weight!r}, but {why}: set loss.weight to elbo or sigmoid")
    if times not in ("auto", "continuous", "antithetic"):
        fix = "set loss.times to antithetic or continuous"
        raise InputError(f"loss.times = {times!r}, but a learned schedule is trained at uniform times: {fix}")
    if config.predicts == "velocity":
        why = "dx/dt changes with the shape of a learned schedule"
        raise InputError(f"predicts = 'velocity', but {why}: set predicts to eps, v or x0")
