"""A run loaded from its folder, finished or not."""

import functools
from contextlib import closing
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.experiment import make_experiment
from jaxdiff.experiment import workdir as workdir_
from jaxdiff.experiment.checkpoint import Checkpoints, NoCheckpointError
from jaxdiff.run import Run, Weights
from jaxdiff.samplers.batching import all_devices
from jaxdiff.storage import AnyPath, user_path
from jaxdiff.typing import InputError, check_whole, checked


def load(
    workdir: str | AnyPath, *, step: int | None = None, weights: Weights = "ema", trust: bool = False, model: Any = None
) -> Run:
    """Return the run in a folder, with the averaged weights of its newest whole checkpoint.

    Args:
      step: the step of a kept checkpoint to take instead of the newest.
      weights: "raw" takes the weights without averaging; "best" the averaged ones of the checkpoint with the least loss
        on held-out examples: see `every.evaluate`.
      model: the network, if the run was trained with one that code gave to `jaxdiff.train`.
      trust: whether to import and call what the folder's config names as `package.module:Name`, and to read its data
        set from where the config says. Both can run code of the folder's author; without, such names are refused.

    Raises:
      BucketError: if the folder is in a bucket that refuses or does not answer.
      InputError: if the folder holds no run or no whole checkpoint, not the one that is asked for, lacks the examples
        that its process is made of, or names code from outside jaxdiff without `trust`.
    """
    path = user_path(workdir, what="workdir")
    weights = checked("weights", weights, Weights)
    step = None if step is None else check_whole("step", step, least=0)
    if weights == "best" and step is not None:
        raise InputError(f"step = {step}, but weights = 'best' chooses the step itself; leave one out")
    config, spec = workdir_.read(path, trust=trust)
    if model is not None and config.model["name"] != "given":
        raise InputError(f"model is given, but {path} names its own, {config.model['name']!r}; leave model out")
    experiment = make_experiment(config, spec, workdir_.read_examples(path, config, spec), model)
    everywhere = NamedSharding(all_devices(), PartitionSpec())
    name, abstract = "weights", experiment.abstract_weights
    if weights == "raw":
        from jaxdiff.training.step import init_state  # here, as sampling from averaged weights needs no trainer

        name, abstract = "training", jax.eval_shape(functools.partial(init_state, experiment)).items()["training"]
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=everywhere), abstract)
    with closing(Checkpoints(path / "checkpoints")) as checkpoints:
        steps = checkpoints.best() if weights == "best" else checkpoints.only(step) if step is not None else None
        try:
            found, item = checkpoints.restore_item(name, abstract, steps)
        except NoCheckpointError as error:
            if model is None:
                raise
            raise NoCheckpointError(
                f"no checkpoint in {path} fits the network that is given, or none is whole; give the network that the "
                "run was trained with"
            ) from error
    params = item["params"] if weights == "raw" else item
    return Run(experiment=experiment, params=params, step=found, weights=weights, trusted=trust)
