"""From a config to its objects: the process, the network, the denoiser and the loss.

A learned schedule is one of the parameters: `params["schedule"]` beside Flax's collections. So the process and the
denoiser are made from parameters, and from the averaged ones for sampling. The network then sees the position of the
log-SNR between its ends in place of t: its task stays the same as the schedule moves, and the loss depends on the
schedule only through its ends (`jaxdiff.likelihood.elbo`).

A network that is conditioned on the transform sees the transform's parameters as further channels of x; the output's
channels beyond those of x are dropped.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from jaxdiff import data, denoisers, losses, models, registry, samplers, schedules, xla
from jaxdiff.data import Dataset, DataSpec, Examples
from jaxdiff.denoisers.guidance import NetworkClassifier
from jaxdiff.denoisers.network import by_value
from jaxdiff.evaluation import NoisyAccuracy, accuracy_by_noise
from jaxdiff.experiment.conditions import Conditioning, conditioning
from jaxdiff.experiment.config import Config
from jaxdiff.likelihood.elbo import prior_term, reconstruction_term
from jaxdiff.losses.time_sampling import LossHistory, TimeSampler, time_sampler, to_steps
from jaxdiff.losses.weightings import for_target
from jaxdiff.processes import Denoiser, Perturbed, Process, TransformCondition, require_gaussian
from jaxdiff.samplers.loop import check_sampler
from jaxdiff.typing import (
    InputError,
    Prediction,
    PyTree,
    RandomKey,
    Samples,
    Scalar,
    Shape,
    Time,
    first_line,
    key_of,
    shown,
)

_MOST_BYTES = 2**36  # of a network's weights


@dataclasses.dataclass(frozen=True)
class _SeesLogSNR:
    """A network that is given the position of the log-SNR of the learned schedule among its parameters, not t."""

    apply: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # where `inspect.signature` looks
        return self.apply

    def __call__(self, params: PyTree, x: Array, t: Array, *cond: PyTree, **options: Any) -> Any:
        weights = {name: part for name, part in params.items() if name != "schedule"}
        return self.apply(weights, x, params["schedule"].position(t), *cond, **options)


@dataclasses.dataclass(frozen=True)
class _SeesTransform:
    """A network that sees the parameters of its sample's transform."""

    apply: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.apply

    def __call__(self, params: PyTree, x: Array, t: Array, known: TransformCondition, **options: Any) -> Array:
        cond = () if known.cond is None else (known.cond,)
        return self.apply(params, _with_parameters(x, known.transform), t, *cond, **options)[..., : x.shape[-1]]


def _with_parameters(x: Array, transform: PyTree) -> Array:
    """x of shape (n, ..., channels), with the arrays of n transforms, spread over every axis, as further channels."""
    spread = [leaf.reshape(len(x), *[1] * (x.ndim - leaf.ndim), *leaf.shape[1:]) for leaf in jax.tree.leaves(transform)]
    channels = [jnp.broadcast_to(leaf, (*x.shape[:-1], leaf.shape[-1])).astype(x.dtype) for leaf in spread]
    return jnp.concatenate([x, *channels], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The objects of a config; made by `make_experiment`."""

    config: Config
    spec: DataSpec
    schedule: schedules.Schedule  # if it is learned, its first value for a fixed key
    first_process: Process  # the process with that schedule; `process` has the schedule of given parameters
    model: Any  # the network: see `jaxdiff.models`
    times: TimeSampler

    @property
    def shape(self) -> Shape:
        """The shape of one sample."""
        return self.spec.shape

    @property
    def levels(self) -> int | None:
        """The number of values of a coordinate in [−1, 1]; None for continuous, unbounded data."""
        return self.spec.levels

    @property
    def classes(self) -> int:
        """The number of classes that the network is conditioned on; 0 if it is unconditional."""
        return (self.spec.classes or 0) if self.config.labels_used_by else 0

    @functools.cached_property
    def conditioning(self) -> Conditioning:
        """What the network is conditioned on."""
        return conditioning(self.config, self.spec)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The conditions of examples that the loss takes, "label" among them."""
        return ("label",) if self.classifies else self.conditioning.kinds

    def condition(self, examples: Examples) -> PyTree:
        """Return the conditions of examples as the loss takes them."""
        return examples.labels if self.classifies else self.conditioning.of(examples.labels, examples.cond)

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier of noisy samples rather than a denoiser."""
        return isinstance(self.model, models.NoisyClassifier)

    @property
    def learns_schedule(self) -> bool:
        """Whether the schedule is among the parameters."""
        return isinstance(self.schedule, schedules.Learned)

    @property
    def abstract_weights(self) -> PyTree:
        """The shapes and dtypes of what `init` returns."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def init(self, key: RandomKey) -> PyTree:
        """Return the first weights of the network, and the first schedule if it is learned."""
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros((1,))
        if self.first_process.condition_on_transform:
            transform = self.first_process.for_sample(key, self.shape).transform
            x = _with_parameters(x, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], transform))
        weights = _init(by_value(self.model.init), key, x, t, self.conditioning.absent(1))
        if not self.learns_schedule:
            return weights
        return {**weights, "schedule": self.config.make("schedule", key=jax.random.fold_in(key, 1))}

    def process(self, params: PyTree) -> Process:
        """Return the process under the schedule of these parameters."""
        first: Any = self.first_process
        return dataclasses.replace(first, schedule=params["schedule"]) if self.learns_schedule else first

    def network(self, params: PyTree) -> Denoiser:
        """Return the denoiser as it is trained."""
        apply = by_value(self.model.apply)
        apply = _SeesLogSNR(apply) if self.learns_schedule else apply
        return denoisers.denoiser(
            _SeesTransform(apply) if self.first_process.condition_on_transform else apply,
            params,
            self.process(params),
            predicts=self.config.predicts,
            scale_input=self.config.scale_input,
            learned_variance=self.config.learned_variance,
            null=self.conditioning.null,
        )

    def in_float32(self) -> "Experiment":
        """Return the experiment with a network that computes in float32."""
        return self._with_network("float32")

    def _with_network(self, dtype: str, device: jax.Device | None = None) -> "Experiment":
        if dtype == "auto":
            dtype = xla.compute_dtype(device or jax.devices()[0])
        if self.config.model["name"] == "given":
            return self
        shapes, name = self.conditioning.shapes, self.config.model["name"]
        if shapes and name in models.MODELS and not registry.takes("model", name, models.MODELS, "conditions"):
            raise InputError(f"cond.{next(iter(shapes))} is set, but model {name!r} has no place for it; use a unet")
        given: Any = {"shape": self.shape, "classes": self.classes, "dtype": jnp.dtype(dtype)}
        given |= {"outputs": 2 if self.config.learned_variance else 1, "remat": self.config.train.remat}
        model = self.config.make("model", **given, conditions=dict(shapes))
        return dataclasses.replace(self, model=model)

    def classifier(self, params: PyTree) -> NetworkClassifier:
        """Return the classifier of noisy samples."""
        process, scale_input = self.process(params), self.config.scale_input
        if scale_input is None:
            scale_input = denoisers.scales_input(process.schedule)
        return NetworkClassifier(
            apply=by_value(self.model.apply), params=params, process=process, scale_input=scale_input
        )

    def sampling_denoiser(self, params: PyTree) -> Denoiser:
        """Return the denoiser for sampling, with x̂_0 clipped as the config says."""
        return self.clip_denoised(self.network(params))

    def clip_denoised(self, denoiser: Denoiser) -> Denoiser:
        """Clip x̂_0 to the range of the data as the config says; apply guidance before."""
        clip = self.config.sampling.clip
        if clip == "none" or self.levels is None:
            return denoiser
        return denoisers.clip_denoised(denoiser) if clip == "static" else denoisers.dynamic_threshold(denoiser)

    def draw(
        self, key: RandomKey, n: int, history: LossHistory | None = None
    ) -> tuple[Float[Array, " n"], Key[Array, " n"], Float[Array, " n"]]:
        """Return the times of a batch, a key for the noise of each example, and its weight in the mean loss."""
        key_times, key_noise = jax.random.split(key)
        keys = jax.random.split(key_noise, n)
        if history is None:
            return self.times(key_times, n), keys, jnp.ones(n)
        t, weights = history.sample(key_times, n)
        steps = self.schedule.num_timesteps
        return (t if steps is None else to_steps(t, num_timesteps=steps)), keys, weights

    def loss(
        self,
        params: PyTree,
        x0: Samples,
        t: Float[Array, " n"],
        keys: Key[Array, " n"],
        cond: PyTree = None,
        *,
        training: bool = True,
    ) -> Float[Array, " n"]:
        """Return the loss of each example of a batch, at its time and with the noise of its key.

        `cond` is that of `condition`. In training each part of it is dropped with its probability in the config, and
        the network gets a key for dropout. The loss of a classifier is the cross-entropy, −log p(label|x_t, t). If the
        ends of the schedule are learned, the loss is the whole ELBO in nats per coordinate.
        """
        if self.classifies:
            entropy = partial(losses.cross_entropy, self.classifier(params))
            return jax.vmap(lambda x0, label, t, key: entropy(x0, label, t, key=key))(x0, cond, t, keys)
        denoiser, config = self.network(params), self.config
        denoiser = denoiser if training else denoisers.without_dropout(denoiser)
        loss: Callable[..., Scalar] = losses.simple
        if config.learned_variance:
            loss = partial(losses.hybrid, weight=config.loss.built_weight)
        elif config.loss.built_weight is not None:
            loss = partial(losses.weighted, weight=config.loss.built_weight)
        process: Any = denoiser.process

        def one(x0: Array, t: Time, key: RandomKey, cond: PyTree) -> Scalar:
            if training and cond is not None:
                cond = self.conditioning.dropped(jax.random.fold_in(key, 2), cond)
            found = loss(denoiser, x0, t, key=key, cond=cond, target=config.loss.target)
            if self.learns_schedule and process.schedule.ends is not None:
                key = jax.random.fold_in(key, 1)
                start = reconstruction_term(key, process, x0, levels=self.levels)
                found += (prior_term(process.schedule, x0) + start) / x0.size
            return found

        return jax.vmap(one)(x0, t, keys, cond)


@partial(jax.jit, static_argnums=0)  # so that the initialization of equal networks is traced once
def _init(init: Callable[..., PyTree], key: RandomKey, x: Array, t: Array, cond: PyTree) -> PyTree:
    return init(key, x, t) if cond is None else init(key, x, t, cond)


def make_experiment(
    config: Config,
    spec: DataSpec,
    examples: Num[np.ndarray, "n *shape"] | None = None,
    model: Any = None,
    device: jax.Device | None = None,
) -> Experiment:
    """Return the objects of a config for data of this spec; some processes need raw `examples`, as in `Dataset.x`.

    `model` is the network, if the config's is "given". `device` is like those that it will run on, which choose its
    dtype; by default those of this process.

    Raises:
      InputError: if a conditional model lacks its conditions, an example has no values, the network can't take the
        shape or returns another one (found without running it), a weight is infinite at t = 1, or the process lacks its
        examples.
    """
    conditioning(config, spec)  # raises if the data lack a condition
    if 0 in spec.shape:
        raise InputError(
            f"data {config.data.name!r} has examples of shape {spec.shape}, which are empty; make every size 1 or more"
        )
    schedule = config.make("schedule") if config.schedule["name"] == "learned" else config.built_schedule
    normalized = None if examples is None else np.asarray(data.normalize(examples, spec.levels))
    experiment = Experiment(
        config=config,
        spec=spec,
        schedule=schedule,
        first_process=config.make("process", schedule=schedule, examples=normalized),
        model=model,
        times=time_sampler(config.loss.times, schedule),
    )._with_network(config.train.dtype, device)
    _check_network(experiment)
    target: Any = config.loss.target or config.predicts
    weight = config.loss.built_weight
    if weight and not jnp.isfinite(for_target(target, weight(schedule, 1.0), t=1.0, schedule=schedule)):
        raise InputError(
            f"loss.weight = {config.loss.weight!r} is infinite at t = 1 on loss.target = {target!r}, where the "
            "schedule ends in pure noise; set loss.target to v, velocity or x0"
        )
    leaves = jax.tree.leaves(experiment.abstract_weights)
    if (size := sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)) > _MOST_BYTES:
        found = f"model = {shown(config.model)} has {size} bytes of weights"
        raise InputError(f"{found}; it must have at most {_MOST_BYTES}: make it smaller")
    _check_process(experiment)
    return experiment


def _check_network(experiment: Experiment) -> None:
    """Raise an InputError if the network breaks the protocol of `jaxdiff.models`; found by tracing it, not running it.

    jaxdiff's own networks need no such check, which takes as long as tracing them.
    """
    name, model = experiment.config.model["name"], experiment.model
    if model is None:
        raise InputError(
            "model = 'given' stands for a network that code gives; give it as model=..., to jaxdiff.train and to "
            "jaxdiff.load"
        )
    if isinstance(model, type):
        raise InputError(f"model = {name!r} is the class {model.__name__}; give an object of it")
    if missing := [method for method in ("init", "apply") if not callable(getattr(model, method, None))]:
        raise InputError(
            f"model = {name!r} is a {type(model).__name__} without {missing[0]}; it must have init(key, x, t, cond) "
            "and apply(params, x, t, cond): adapters are jaxdiff.models.from_nnx and from_equinox"
        )
    if name in models.MODELS or experiment.classifies:
        return
    weights = experiment.abstract_weights
    for path, leaf in jax.tree.leaves_with_path(weights):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise InputError(
                f"model = {name!r} has the weight {where} of {leaf.dtype}; all weights are trained, as floats"
            )
    if not weights:
        raise InputError(f"model = {name!r} has no weights to train: its init returns {shown(weights)}")
    keys, x, t = jax.random.split(jax.random.key(0), 1), jnp.zeros((1, *experiment.shape)), jnp.ones(1)
    given = (weights, x, t, keys, experiment.conditioning.absent(1))
    jax.eval_shape(experiment.loss, *given)
    try:
        jax.eval_shape(partial(experiment.loss, training=False), *given)
    except Exception as error:
        raise InputError(
            f"model = {name!r} can be trained but not sampled ({first_line(error)}): sampling gives no rngs and no "
            "key, so the network must work without"
        ) from error


def _check_process(experiment: Experiment) -> None:
    """Raise an InputError if the process is invalid, or the sampler or the loss can't be used with it."""
    process, sampler = experiment.first_process, samplers.make(experiment.config.sampling.sampler)
    if experiment.config.learned_variance:
        require_gaussian(process, what="learned_variance", instead="set it to False")
    if isinstance(experiment.schedule, schedules.Learned) and experiment.schedule.ends is not None:
        require_gaussian(process, what="schedule.learn_ends", instead="set it to False")
    if not experiment.classifies:
        check_sampler(sampler, experiment.config.sampling.times(experiment.schedule), process)
    process = process.for_sample(jax.random.key(0), experiment.shape)
    if isinstance(process, Perturbed):
        x = jnp.zeros(experiment.shape)
        denoiser = denoisers.from_function(lambda x, *_: Prediction(x, x), process)
        step = partial(sampler.step, t=0.5, s=0.25, denoiser=denoiser)
        jax.eval_shape(lambda: step(jax.random.key(0), x, sampler.init(x))[0])


def test_split(experiment: Experiment, dir: str | None) -> Dataset:
    """Return the test split, on which a classifier is measured; raise if it can't be read or has no labels."""
    section = experiment.config.data
    name = section.name
    found = data.in_memory(section.load("test", dir=dir))
    if found.labels is None:
        raise InputError(f"data.name = {name!r}: its test split has no labels to measure a classifier with")
    ours, most = (experiment.shape, experiment.levels), found.labels.max()
    if (found.shape, found.levels) != ours or most >= experiment.classes:
        raise InputError(
            f"data.name = {name!r}: the test split has {found.shape} with levels = {found.levels} and labels "
            f"up to {most}, the train split {ours[0]} with levels = {ours[1]} and labels below {experiment.classes}; "
            "make them alike"
        )
    return found


def noisy_accuracy(
    experiment: Experiment, params: PyTree, n: int = 1000, dir: str | None = None, *, progress: bool = False
) -> NoisyAccuracy:
    """Return the accuracy of a classifier by noise level, on the first n examples of `test_split`.

    `dir` is the folder of the data set; None is the config's.
    """
    test: Any = test_split(experiment, experiment.config.data.dir if dir is None else dir)
    key = key_of(experiment.config.train.seed)
    x0 = data.normalize(test.x[:n], test.levels)
    return accuracy_by_noise(key, experiment.classifier(params), x0, test.labels[:n], progress=progress)
