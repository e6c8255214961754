"""The training run: set up, resume, step, report, save, stop."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, UInt8

from jaxdiff import data as datasets
from jaxdiff import registry, xla
from jaxdiff.data import Source
from jaxdiff.experiment import Config, Experiment, checkpoint, make_experiment, plots, resumption, transfer
from jaxdiff.experiment import workdir as folder
from jaxdiff.experiment.build import noisy_accuracy, test_split
from jaxdiff.experiment.checkpoint import Checkpoints, Evaluated
from jaxdiff.samplers import pieces
from jaxdiff.samplers.batching import sample_in_batches
from jaxdiff.storage import AnyPath, user_path
from jaxdiff.training import callbacks as callbacks_
from jaxdiff.training import costs, hosts, summary
from jaxdiff.training import loggers as loggers_
from jaxdiff.training.batches import Batches, make_batches
from jaxdiff.training.callbacks import Callback
from jaxdiff.training.evaluation import Evaluation, make_evaluation, split
from jaxdiff.training.loggers import Logger, Loggers
from jaxdiff.training.profile import Profile
from jaxdiff.training.recorder import DivergenceError, Recorder, picture_path
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.signals import Interrupted, stop_requests
from jaxdiff.training.step import State, abstract_state, init_state, make_step
from jaxdiff.training.workers import check_main_guard
from jaxdiff.typing import InputError, PyTree, key_of

_log = logging.getLogger(__name__)

_POINTS = 2000  # in a picture of points


def train(
    config: Config,
    workdir: str | AnyPath,
    *,
    data: Any = None,
    model: Any = None,
    allow_change: Collection[str] | str = (),
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> State:
    """Train to `config.train.steps`, resuming from the newest whole checkpoint in `workdir`; return the last state.

    The weights after step n are the same bit for bit however often the run was stopped and resumed, on the same devices
    with the same versions.

    Args:
      data: the data set, in place of the one that `config.data.name` names, which is then only a name: anything that
        `jaxdiff.data.from_object` takes, such as an array, a pair (x, labels), or an object with len and [i].
      model: the network, in place of the one that `config.model` names: an object with `init` and `apply` as in
        `jaxdiff.models`. The folder keeps "given" in its place, and `jaxdiff.load` needs the network again.
      allow_change: settings, such as "optimizer.learning_rate", that may differ from those the run was begun with:
        see `jaxdiff.experiment.resumption`. What changes is kept in the history in `config.json`.
      loggers: objects that get the metrics and pictures beside those of `config.loggers`: see
        `jaxdiff.training.loggers`. Those of process 0 are used.
      callbacks: functions called after each line of metrics as callback(step, state, metrics), which end the run by
        returning True: see `jaxdiff.training.callbacks`.

    Raises:
      BucketError: if the folder is in a bucket that refuses or no longer answers; it names the last checkpoint.
      InputError: if the config can't run here (found before any slow work), `workdir` can't be written, is in use or
        holds another run, or the data can't be read.
      DivergenceError: if the loss or the weights are no longer finite; the last checkpoint is from before.
      Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    check_main_guard()
    workdir = user_path(workdir, what="workdir")
    if model is not None:
        config = dataclasses.replace(config, model="given")
    settings = config.train
    allow_change = resumption.checked(allow_change)
    loggers_.check(config.loggers, loggers)
    callbacks_.check(callbacks)
    folder.check_path(workdir)
    mesh = make_mesh(settings.fsdp, settings.batch_size, settings.accumulate)
    with ExitStack() as stack:
        given = _Given(data, model, loggers, callbacks)
        prepared = stack.enter_context(_set_up(config, workdir, allow_change, given))
        experiment = prepared.experiment
        abstract = abstract_state(experiment, mesh)
        checkpoints = stack.enter_context(checkpoint.opened(workdir / "checkpoints", keep=config.every.keep))
        stack.enter_context(hosts.failing())
        state, taken = _first_state(experiment, abstract, checkpoints)
        start = int(state.step)
        undrawn = _is_undrawn(config, workdir, start)
        done = start >= settings.steps and not undrawn
        _write(workdir, config, prepared, step=start, done=done)
        if done:
            fix = "raise train.steps to go on"
            _log.warning("%s is at step %d of %d already: nothing to do; %s", workdir, start, settings.steps, fix)
            return state
        if start == 0 and settings.steps <= (warmup := config.optimizer.warmup_steps):
            what = f"optimizer.warmup_steps = {warmup}, but train.steps = {settings.steps}"
            _log.warning("%s: the learning rate never reaches %g", what, config.optimizer.learning_rate)
        run = stack.enter_context(_begin(workdir, prepared, given, abstract, checkpoints, start))
        if taken is not None:
            run.recorder.say(f"weights  {taken}")
            run.save(0, state)  # so that the run needs the other folder no more
        if undrawn:
            run.draw(start, state)
        if start < settings.steps:
            run.recorder.say("compiling the training step, once ...")
        return run.train(start, state)


class _Run(NamedTuple):
    """What the steps of one run use."""

    experiment: Experiment
    dataset: Source
    batches: Batches
    abstract: State
    evaluation: Evaluation | None
    checkpoints: Checkpoints
    recorder: Recorder
    profile: Profile
    asked: Callable[[], int | None]  # see `stop_requests`
    callbacks: Sequence[Callback]

    def train(self, start: int, state: State) -> State:
        """Take the steps from `start` on; save, draw and stop when it is time to."""
        config = self.experiment.config
        steps, verified, drawn = config.train.steps, False, False
        run_step: Any = make_step(self.experiment, self.batches.mesh, self.abstract)
        # On CPU a loop around convolutions is slow (see `jaxdiff.training.step`), and a dispatch is cheap.
        size = config.steps_per_dispatch(on_cpu=self.batches.mesh.devices.flat[0].platform == "cpu")
        for dispatch in self.batches.stream(start, steps, size):
            if self.recorder.flops is None:  # the call below uses this trace
                traced = run_step.trace(state, self.batches.resident, dispatch.batch)
                self.recorder.flops = costs.flops(traced.jaxpr) // dispatch.count
            if dispatch.first > start:  # the first call compiles
                self.profile.begin(dispatch.first)
            state, metrics = run_step(state, self.batches.resident, dispatch.batch)
            done = dispatch.first + dispatch.count
            if traces := self.profile.end(done, metrics):
                self.recorder.say(f"step {done}: {traces}")
            evaluated = self.evaluate(done, state)
            self.recorder.push(dispatch, metrics, {} if evaluated is None else {"eval_loss": evaluated.eval_loss})
            ended = self.call(done, state, evaluated)
            stop, has_picture = self.asked(), _has_picture(config, done)
            # A process compiles its first picture, and no signal can interrupt that: it saves the state before.
            first_picture, drawn = has_picture and not drawn, drawn or has_picture
            is_best = evaluated is not None and _agreed(self.checkpoints.improves(evaluated))
            is_due = done == steps or done % config.every.checkpoint == 0
            if stop or ended or is_best or first_picture or is_due:
                self.save(done, state, evaluated)
                if not verified:
                    self.checkpoints.verify(done, self.abstract.items())
                verified = True
            if stop:
                self.checkpoints.wait()
                raise Interrupted(stop, done)
            if ended:
                self.recorder.say(f"a callback ended the run; step {done} is saved")
                break
            if has_picture:
                self.draw(done, state)
        self.checkpoints.wait()
        return state

    def evaluate(self, step: int, state: State) -> Evaluated | None:
        """Return the loss of the averaged weights on held-out examples if it is due at this step."""
        config = self.experiment.config
        every = config.every.evaluate or 1
        if self.evaluation is None or (step % every and step != config.train.steps):
            return None
        return Evaluated(self.evaluation(state.ema), self.evaluation.on)

    def call(self, step: int, state: State, evaluated: Evaluated | None) -> bool:
        """Call the callbacks if this step has a line of metrics; return whether one ends the run."""
        config = self.experiment.config
        if not self.callbacks or (step % config.every.log and step != config.train.steps):
            return False
        self.recorder.drain()
        try:
            return callbacks_.call(self.callbacks, step, state, self.recorder.latest)
        except Exception:
            with suppress(DivergenceError):
                self.save(step, state, evaluated)
            self.checkpoints.wait()
            raise

    def save(self, step: int, state: State, evaluated: Evaluated | None = None) -> None:
        """Start saving a state, once it is known to be finite."""
        self.recorder.drain()
        self.recorder.settle()
        if not _finite(state):  # a finite loss does not imply it
            raise DivergenceError(f"after step {step} the weights are no longer finite; lower optimizer.learning_rate")
        self.checkpoints.save(step, state.items(), self.recorder.notes(), evaluated)

    def draw(self, step: int, state: State) -> None:
        """Draw the picture of a step; if a signal arrives before it is done, save the state instead."""

        def check() -> None:
            if stop := self.asked():
                raise Interrupted(stop, step)

        self.recorder.drain()
        try:
            with pieces.calling(check):
                pixels = _picture(self.experiment, self.dataset, state.ema, self.batches.mesh)
        except Interrupted:
            self.save(step, state)
            self.checkpoints.wait()
            raise
        self.recorder.picture(step, pixels)


def _has_picture(config: Config, step: int) -> bool:
    return step == config.train.steps or step % config.every.sample == 0


def _is_undrawn(config: Config, workdir: AnyPath, step: int) -> bool:
    """Return whether a run that was stopped at this step still lacks the picture of it; the same on all processes."""
    return _agreed(step > 0 and _has_picture(config, step) and not picture_path(workdir, step).exists())


def _agreed(found: bool) -> bool:
    """What process 0 found, on all processes: where they read files themselves, one could fail to."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(found)))


class _Given(NamedTuple):
    """What code gives beside the config, or in place of what it names."""

    data: Any  # None for what the config names, as the model
    model: Any
    loggers: Sequence[Logger]
    callbacks: Sequence[Callback]


class _Prepared(NamedTuple):
    """What a run is made from."""

    dataset: Source  # to train on
    held_out: Source | None  # to evaluate on
    fingerprint: str  # of all data
    experiment: Experiment
    examples: np.ndarray | None  # that its process is made from


@contextmanager
def _set_up(config: Config, workdir: AnyPath, allow_change: Collection[str], given: _Given) -> Iterator[_Prepared]:
    """Let process 0 lock and prepare the folder; read the data and build the experiment. Every process raises alike."""
    refusal = None
    with ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(folder.lock(workdir))
                folder.prepare(workdir, config, allow_change)
            except InputError as error:
                refusal = error
        if _agreed(refusal is not None):
            raise refusal or InputError(f"process 0 refuses workdir = {workdir}; its own message says why")
        section = config.data
        if given.data is None:
            dataset = section.load()
        else:
            dataset = section.with_conditions(datasets.from_object(section.name, given.data))
        fingerprint = dataset.fingerprint()
        hosts.agree({"the fingerprint of the data": fingerprint})
        folder.check_data(workdir, section.name, fingerprint)
        dataset, held_out = split(config, dataset, fingerprint, named=given.data is None)
        examples = folder.choose_examples(workdir, config, dataset)
        experiment = make_experiment(config, dataset.spec, examples, given.model)
        if experiment.classifies:
            test_split(experiment, config.data.dir)  # raises now rather than after training
        if allow_change and (workdir / "config.json").exists():
            old, _ = folder.read(workdir, trust=registry.outside(config.to_mapping()))
            _check_state(make_experiment(old, dataset.spec, examples, given.model), experiment, allow_change)
        yield _Prepared(dataset, held_out, fingerprint, experiment, examples)


def _write(workdir: AnyPath, config: Config, prepared: _Prepared, *, step: int, done: bool) -> None:
    """Let process 0 write what the folder says of the run; one that is done keeps its config."""
    if jax.process_index() == 0:
        kept = folder.read(workdir, trust=registry.outside(config.to_mapping()))[0] if done else config
        spec, fingerprint = prepared.dataset.spec, prepared.fingerprint
        folder.write(workdir, kept, spec, prepared.examples, step=step, fingerprint=fingerprint)


@contextmanager
def _begin(
    workdir: AnyPath, prepared: _Prepared, given: _Given, abstract: State, checkpoints: Checkpoints, start: int
) -> Iterator[_Run]:
    """Open the data, the records and the loggers of a run at step `start`, and say what it is."""
    dataset, held_out, _, experiment, _ = prepared
    config, mesh = experiment.config, jax.tree.leaves(abstract)[0].sharding.mesh
    options: Any = {"on_device": config.data.on_device, "workers": config.data.workers, "kinds": experiment.kinds}
    batches = make_batches(dataset, mesh, seed=config.train.seed, batch_size=config.train.batch_size, **options)
    loggers = None
    if jax.process_index() == 0:
        values = config.to_mapping()
        loggers = Loggers(config.loggers, given.loggers, workdir=workdir, start=start, config=values)
    lengths: Any = {"start": start, "steps": config.train.steps, "every": config.every.log}
    recorder = Recorder(workdir, batches, **lengths, notes=checkpoints.notes_of(start), loggers=loggers)
    profile = Profile(workdir, config.every.profile)
    with closing(recorder), closing(profile), stop_requests() as asked:
        recorder.say(summary.describe(experiment, dataset, mesh, abstract.params, workdir=workdir, start=start))
        evaluation = None
        if held_out is not None and start < config.train.steps:
            recorder.say("reading held-out examples and compiling their evaluation, once ...")
            evaluation = make_evaluation(experiment, held_out, mesh, abstract.ema)
        parts = (
            experiment,
            dataset,
            batches,
            abstract,
            evaluation,
            checkpoints,
            recorder,
            profile,
            asked,
            given.callbacks,
        )
        yield _Run(*parts)


def _check_state(old: Experiment, new: Experiment, allow_change: Collection[str]) -> None:
    """Raise an InputError if a changed setting needs another training state than the one in the checkpoints."""
    before, after = (jax.eval_shape(partial(init_state, experiment)) for experiment in (old, new))
    if repr(before) != repr(after):  # structure, shapes and dtypes
        raise InputError(
            f"allow_change = {','.join(allow_change)}: with this change the state of training has other parts than in "
            "the checkpoints of the run; set the change back, or begin a new run in another folder"
        )


def _first_state(experiment: Experiment, abstract: State, checkpoints: Checkpoints) -> tuple[State, str | None]:
    """Return the state of the newest whole checkpoint, or that of a new run and which weights it took from another."""
    found = checkpoints.restore(abstract.items(), repair=True)
    if found is not None:
        return State.from_items(found[1]), None
    taken = transfer.take(experiment.config, abstract.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    made_by = xla.compiler_options(level=0, mesh=jax.tree.leaves(shardings)[0].mesh)
    options: Any = {"out_shardings": shardings, "compiler_options": made_by}
    state = jax.jit(partial(init_state, experiment), **options)(taken and taken.weights)
    return state, taken and taken.described


@jax.jit
def _finite(state: State) -> Bool[Array, ""]:
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _picture(experiment: Experiment, dataset: Source, params: PyTree, mesh: Mesh) -> UInt8[np.ndarray, "h w 3"] | None:
    """Samples of these weights, always from the same key, so that the pictures of a run can be compared.

    Every process must call it: they draw samples together. Points in the plane are few, and every process draws all of
    them. None for samples without a picture.
    """
    progress = jax.process_index() == 0
    if experiment.classifies:
        found = noisy_accuracy(experiment, params, progress=progress)
        return plots.accuracy_by_noise(found, classes=experiment.classes)
    if not plots.has_picture(shape := experiment.shape):
        return None
    sampling = dataclasses.replace(experiment.config.sampling, progress=progress)
    key = key_of(experiment.config.train.seed)
    if shape == (2,) and not experiment.conditioning.shapes:
        here = jax.tree.map(jnp.asarray, multihost_utils.process_allgather(params, tiled=True))
        denoiser = experiment.sampling_denoiser(here)
        some = dataset.take(np.arange(min(_POINTS, len(dataset))))
        points = np.asarray(datasets.normalize(some.x, dataset.spec.levels))
        return plots.diffusion_in_the_plane(key, denoiser, points, sampling)
    classes, denoiser, are_points = experiment.classes, experiment.sampling_denoiser(params), len(shape) < 2
    n = _POINTS if are_points else sampling.n
    cond: Any = np.arange(n) % classes if classes else None
    if experiment.conditioning.shapes:
        seen = dataset.take(np.arange(n) % len(dataset))
        cond = jax.tree.map(np.asarray, experiment.conditioning.of(seen.labels, seen.cond))
    sampling = dataclasses.replace(sampling, batch=n)
    samples = sample_in_batches(key, denoiser, sampling, shape=shape, n=n, cond=cond, mesh=mesh)
    return plots.draw(samples, columns=None if are_points else classes or None)  # a column for each label
