"""The training run: set up, resume, step, report, save, stop."""

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

from jaxdiff import data, folder, plots, samplers
from jaxdiff.config import Config, Train
from jaxdiff.data import Dataset
from jaxdiff.experiment import Experiment, noisy_accuracy, test_split
from jaxdiff.folder import Form
from jaxdiff.samplers.batches import sample_in_batches
from jaxdiff.training.batches import Dispatch, make_batches
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.recorder import DivergenceError, Recorder
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.step import State, abstract_state, init_state, make_step
from jaxdiff.typing import PyTree

_log = logging.getLogger(__name__)

_POINTS = 2000  # in a picture of points in the plane


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The run was told to stop by a signal; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; step {step} is saved, run the same command to go on"
        )
        self.number = number


def train(config: Config, workdir: Path) -> State:
    """Train to `config.train.steps`, going on from the newest whole checkpoint in `workdir`.

    The weights after step n are the same, bit for bit, however often the run was stopped and resumed, on the same
    devices with the same versions.

    Returns:
      The last state.

    Raises:
      ValueError: for a config that can't run here (found before any slow work), a `workdir` that can't be written or
        holds another run, or data that can't be read.
      DivergenceError: where the loss or the weights are no longer finite; the last checkpoint is from before.
      Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    settings = config.train
    mesh = make_mesh(settings.fsdp, settings.batch_size, settings.accumulate)
    _prepare(workdir, config)
    dataset = data.load(config.data.name, dir=config.data.dir)
    form = Form.of(dataset)
    examples = folder.choose_examples(workdir, config, dataset)
    experiment = folder.experiment(config, form, examples)
    if experiment.classifies:
        test_split(experiment)  # if there is none, better known now
    if jax.process_index() == 0:
        folder.write(workdir, config, form, examples)
    abstract = abstract_state(experiment, mesh)
    with closing(Checkpoints(workdir / "checkpoints", keep=config.every.keep)) as checkpoints:
        state = checkpoints.restore(abstract)
        if state is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(partial(init_state, experiment), out_shardings=shardings)()
        start = int(state.step)
        if start >= settings.steps:
            _log.warning("%s is at step %d of %d already: nothing to do", workdir, start, settings.steps)
            return state

        batches = make_batches(
            dataset,
            mesh,
            seed=settings.seed,
            batch_size=settings.batch_size,
            on_device=config.data.on_device,
            labelled=experiment.classes > 0,
        )
        run_step = make_step(experiment, mesh, abstract, dataset.levels)
        recorder = Recorder(
            workdir, start=start, steps=settings.steps, batch_size=settings.batch_size, every=config.every.log
        )
        with closing(recorder), _signals() as received:
            for dispatch in batches.stream(start, settings.steps, _steps_per_dispatch(settings)):
                state, metrics = run_step(state, batches.resident, dispatch.batch)
                recorder.push(dispatch, metrics)
                done = dispatch.first + dispatch.count
                last = done == settings.steps
                stop = _agreed(received, dispatch)
                if last or stop or done % config.every.checkpoint == 0:
                    recorder.drain()
                    if not _finite(state):
                        raise DivergenceError(
                            f"after step {done} the weights are no longer finite; lower optimizer.learning_rate"
                        )
                    checkpoints.save(done, state)
                if stop and not last:
                    checkpoints.wait()
                    raise Interrupted(stop, done)
                if last or done % config.every.sample == 0:
                    recorder.drain()
                    recorder.picture(done, _picture(experiment, dataset, state.ema, mesh))
            checkpoints.wait()
    return state


def _prepare(workdir: Path, config: Config) -> None:
    """`folder.prepare`, by process 0; where it refuses, every process raises."""
    refusal = None
    if jax.process_index() == 0:
        try:
            folder.prepare(workdir, config)
        except ValueError as error:
            refusal = error
    if jax.process_count() > 1:
        refused = multihost_utils.broadcast_one_to_all(np.int32(refusal is not None))
        if refused and refusal is None:
            refusal = ValueError(f"process 0 refuses workdir = {workdir}; its own message says why")
    if refusal is not None:
        raise refusal


@jax.jit
def _finite(state: State) -> Bool[Array, ""]:
    """Whether every number of a state is: that of a finite loss need not be."""
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _steps_per_dispatch(settings: Train) -> int:
    """One on CPU, where a loop around convolutions is slow (see `jaxdiff.training.step`) and a dispatch is cheap."""
    return settings.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGTERM or SIGINT; a second one acts at once, as usual.

    Several processes must agree on where to stop: JAX sees to that for SIGTERM (`_agreed`), as which Ctrl-C is passed
    on.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
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
    """The signal to stop after this dispatch for, the same on every process; None to go on."""
    if jax.process_count() > 1:
        # They agree on one step, of which JAX wants to be told each.
        steps = range(dispatch.first + 1, dispatch.first + dispatch.count + 1)
        reached = [multihost_utils.reached_preemption_sync_point(step) for step in steps]
        return signal.SIGTERM if any(reached) else None
    return received[0] if received else None


def _picture(experiment: Experiment, dataset: Dataset, params: PyTree, mesh: Mesh) -> UInt8[np.ndarray, "h w 3"]:
    """Samples of these weights, always from the same key: pictures of one run can be compared.

    Every process must call it: they draw images together. Points are few, and every process draws all of them.
    """
    if experiment.classifies:
        return plots.accuracy_by_noise(
            noisy_accuracy(experiment, params, test_split(experiment)), classes=experiment.classes
        )
    settings = experiment.config.sampling
    key, sampler = jax.random.key(experiment.config.train.seed), samplers.make(settings.sampler)
    if len(experiment.shape) == 1:
        here = jax.tree.map(jnp.asarray, multihost_utils.process_allgather(params, tiled=True))
        return plots.diffusion_in_the_plane(
            key,
            experiment.sampling_denoiser(here),
            experiment.process(here),
            dataset.x[:_POINTS],
            sampler=sampler,
            steps=settings.steps,
            rule=settings.grid,
        )
    classes = experiment.classes
    images = sample_in_batches(
        key,
        experiment.sampling_denoiser(params),
        experiment.process(params),
        sampler,
        shape=experiment.shape,
        n=settings.n,
        batch=settings.n,
        cond=np.arange(settings.n) % classes if classes else None,
        steps=settings.steps,
        grid=settings.grid,
        mesh=mesh,
    )
    return plots.image_grid(images, columns=classes or None)  # a column for each label
