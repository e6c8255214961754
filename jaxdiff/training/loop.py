"""The training run: set up, resume, step, report, save, stop."""

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, UInt8

from jaxdiff import data
from jaxdiff.data import Dataset
from jaxdiff.experiment import Config, Experiment, make_experiment, plots
from jaxdiff.experiment import workdir as folder
from jaxdiff.experiment.build import noisy_accuracy, test_split
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.samplers.batching import sample_in_batches
from jaxdiff.training.batches import Dispatch, make_batches
from jaxdiff.training.recorder import DivergenceError, Recorder
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.step import State, abstract_state, init_state, make_step
from jaxdiff.typing import InputError, PyTree

_log = logging.getLogger(__name__)

_POINTS = 2000  # in a picture of points in the plane


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A signal stopped the run; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; step {step} is saved, run the same command to go on")
        self.number = number


def train(config: Config, workdir: Path) -> State:
    """Train to `config.train.steps`, resuming from the newest whole checkpoint in `workdir`; return the last state.

    The weights after step n are the same bit for bit however often the run was stopped and resumed, on the same devices
    with the same versions.

    Raises:
      InputError: if the config can't run here (found before any slow work), `workdir` can't be written or holds another
        run, or the data can't be read.
      DivergenceError: if the loss or the weights are no longer finite; the last checkpoint is from before.
      Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    settings = config.train
    mesh = make_mesh(settings.fsdp, settings.batch_size, settings.accumulate)
    dataset, experiment = _set_up(config, workdir)
    abstract = abstract_state(experiment, mesh)
    with closing(Checkpoints(workdir / "checkpoints", keep=config.every.keep)) as checkpoints:
        found = checkpoints.restore(abstract.items(), repair=True)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        new = jax.jit(partial(init_state, experiment), out_shardings=shardings)
        state = new() if found is None else State.from_items(found[1])
        start = int(state.step)
        if start >= settings.steps:
            _log.warning("%s is at step %d of %d already: nothing to do", workdir, start, settings.steps)
            return state
        options: Any = {"on_device": config.data.on_device, "labelled": experiment.classes > 0}
        batches = make_batches(dataset, mesh, seed=settings.seed, batch_size=settings.batch_size, **options)
        run_step = make_step(experiment, mesh, abstract)
        lengths = {"start": start, "steps": settings.steps, "batch_size": settings.batch_size}
        recorder = Recorder(workdir, **lengths, every=config.every.log)
        with closing(recorder), _signals() as received:
            # On CPU a loop around convolutions is slow (see `jaxdiff.training.step`), and a dispatch is cheap.
            size = settings.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)
            for dispatch in batches.stream(start, settings.steps, size):
                state, metrics = run_step(state, batches.resident, dispatch.batch)
                recorder.push(dispatch, metrics)
                done = dispatch.first + dispatch.count
                last, stop = done == settings.steps, _agreed(received, dispatch)
                if last or stop or done % config.every.checkpoint == 0:
                    recorder.drain()
                    if not _finite(state):  # a finite loss does not imply it
                        raise DivergenceError(
                            f"after step {done} the weights are no longer finite; lower optimizer.learning_rate"
                        )
                    checkpoints.save(done, state.items())
                if stop and not last:
                    checkpoints.wait()
                    raise Interrupted(stop, done)
                if last or done % config.every.sample == 0:
                    recorder.drain()
                    recorder.picture(done, _picture(experiment, dataset, state.ema, mesh))
            checkpoints.wait()
    return state


def _set_up(config: Config, workdir: Path) -> tuple[Dataset, Experiment]:
    """Let process 0 prepare the folder (if it can't, every process raises), read the data and build the experiment."""
    refusal = None
    if jax.process_index() == 0:
        try:
            folder.prepare(workdir, config)
        except InputError as error:
            refusal = error
    if multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
        raise refusal or InputError(f"process 0 refuses workdir = {workdir}; its own message says why")
    dataset = data.load(config.data.name, dir=config.data.dir)
    examples = folder.choose_examples(workdir, config, dataset)
    experiment = make_experiment(config, dataset.spec, examples)
    if experiment.classifies:
        test_split(experiment, config.data.dir)  # raises now rather than after training
    if jax.process_index() == 0:
        folder.write(workdir, config, dataset.spec, examples)
    return dataset, experiment


@jax.jit
def _finite(state: State) -> Bool[Array, ""]:
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list that gets the number of the first SIGTERM or SIGINT; a second one acts at once, as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    # Several processes must agree on where to stop. JAX sees to that for SIGTERM (`_agreed`), so Ctrl-C becomes one.
    several = jax.process_count() > 1
    numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    before = {int(number): signal.getsignal(number) for number in numbers}

    def note(number: int, _: Any) -> None:
        signal.signal(number, before[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            received.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(received: list[int], dispatch: Dispatch) -> int | None:
    """The signal to stop for after this dispatch, the same on every process; None to go on."""
    if jax.process_count() == 1:
        return received[0] if received else None
    # The processes agree on one step; JAX must be asked at each.
    steps = range(dispatch.first + 1, dispatch.first + dispatch.count + 1)
    reached = [multihost_utils.reached_preemption_sync_point(step) for step in steps]
    return signal.SIGTERM if any(reached) else None


def _picture(experiment: Experiment, dataset: Dataset, params: PyTree, mesh: Mesh) -> UInt8[np.ndarray, "h w 3"]:
    """Samples of these weights, always from the same key, so that the pictures of a run can be compared.

    Every process must call it: they draw images together. Points are few, and every process draws all of them.
    """
    if experiment.classifies:
        return plots.accuracy_by_noise(noisy_accuracy(experiment, params), classes=experiment.classes)
    sampling = experiment.config.sampling
    key = jax.random.key(experiment.config.train.seed)
    if len(experiment.shape) == 1:
        here = jax.tree.map(jnp.asarray, multihost_utils.process_allgather(params, tiled=True))
        denoiser = experiment.sampling_denoiser(here)
        return plots.diffusion_in_the_plane(key, denoiser, dataset.x[:_POINTS], sampling)
    classes, n, denoiser = experiment.classes, sampling.n, experiment.sampling_denoiser(params)
    cond = np.arange(n) % classes if classes else None
    sampling = dataclasses.replace(sampling, batch=n, progress=False)
    images = sample_in_batches(key, denoiser, sampling, shape=experiment.shape, n=n, cond=cond, mesh=mesh)
    return plots.image_grid(images, columns=classes or None)  # a column for each label
