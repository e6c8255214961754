"""The command `jaxdiff train`, or `python train.py`."""

import faulthandler
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext

import jax
from absl import flags
from ml_collections import config_flags

from jaxdiff import __version__, registry, xla
from jaxdiff.cli import command, config_files
from jaxdiff.data import names_place
from jaxdiff.experiment import Config
from jaxdiff.experiment.workdir import last_step
from jaxdiff.storage import AnyPath, absolute, user_path
from jaxdiff.training import chips, hosts, loop
from jaxdiff.training.dry_run import dry_run
from jaxdiff.training.recorder import DivergenceError
from jaxdiff.typing import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Train the run that the flags describe."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"The config: {', '.join(config_files.shipped())}, or a file, as FILE or FILE:VARIANT.",
        lock_config=True,
    )
    flags.DEFINE_string("workdir", None, "The run's folder; a run of the same config in it is resumed.")
    flags.DEFINE_list(
        "allow_change", [], "Settings that may differ from those of the run, as in optimizer.learning_rate,train.steps."
    )
    flags.DEFINE_string(
        "dry_run",
        None,
        "MACHINE: compile the run for it, print what it needs, and train nothing; --workdir is not used. A slice of "
        "TPUs, as v5e:16x16, or the devices of this machine: here, or cpu.",
    )
    flags.DEFINE_bool("distributed", False, "Whether to train on several hosts: starts jax.distributed first.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if the cluster does not announce it.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, if the cluster does not announce it.")
    flags.DEFINE_integer("process_id", None, "Index of this process, if the cluster does not announce it.")
    with hosts.exit_at_once():
        command.run(
            _train,
            usage=f"{command.called('train')} --config=CONFIG --workdir=FOLDER [--config.SECTION.FIELD=VALUE ...]",
            module=__name__,
            required=lambda: ("config",) if FLAGS.dry_run is not None else ("config", "workdir"),
            failures=(ConnectionError, DivergenceError),
        )


def _train() -> None:
    if FLAGS.dry_run is not None:
        chips.check_name(FLAGS.dry_run, what="--dry_run")
    workdir = None if FLAGS.dry_run is not None else user_path(FLAGS.workdir, what="--workdir")
    config = Config.from_mapping(FLAGS.config)
    with _together(config, workdir):
        if workdir is None:
            _dry_run(config)
            return
        loop.train(config, workdir, allow_change=FLAGS.allow_change)
    if jax.process_index() == 0:
        sampling = f"{command.called('sample')} --workdir={shlex.quote(str(workdir))}"
        values = config.to_mapping()
        if names_place(config.data.name) or config.data.name.startswith("tfds:"):  # a name of data, not of code
            values["data"]["name"] = ""
        if registry.outside(values):
            sampling += " --trust"  # the folder names code, which a stranger could have written
        others = {*config.cond.used} - {"label"}
        if others:
            sampling += " --cond=test"  # or --cond=FILE.npz
        elif config.cond.label is not None:
            sampling += " --label=all"
        print(f"done: {workdir}\nto sample: {sampling} --out=samples.png", file=sys.stderr)


def _together(config: Config, workdir: AnyPath | None) -> AbstractContextManager[None]:
    """Return the context in which this process trains: with others, or alone on several devices of a CPU."""
    if FLAGS.distributed:
        faulthandler.disable()  # absl's, which would print the stack of every thread when a process is lost
        facts = {
            "jaxdiff": __version__,
            **hosts.versions(),
            "--workdir": str(workdir and absolute(workdir)),
            "--allow_change": sorted(FLAGS.allow_change),
            "JAX_ENABLE_X64": bool(jax.config.values["jax_enable_x64"]),
            **config.to_mapping(),
        }
        cluster = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
        return hosts.joined(cluster, facts, lambda: _way_on(workdir))
    if unused := [name for name in ("coordinator", "num_processes", "process_id") if FLAGS[name].value is not None]:
        raise InputError(f"--{unused[0]} needs --distributed; give that too, or leave it out")
    if FLAGS.dry_run in (None, "cpu", chips.HERE):
        xla.split_cpu(config.train.batch_size // config.train.accumulate, config.train.fsdp)
    return nullcontext()


def _dry_run(config: Config) -> None:
    if FLAGS.dry_run != chips.HERE:
        jax.config.update("jax_platforms", "cpu")  # this machine may lack those devices
    if FLAGS.dry_run not in (chips.HERE, "cpu"):
        jax.config.update("jax_enable_compilation_cache", False)  # programs for other machines can't be read from it
    print(dry_run(config, FLAGS.dry_run, what="--dry_run", say=lambda text: print(text, file=sys.stderr)))


def _way_on(workdir: AnyPath | None) -> str:
    """Return which step is saved, and how to go on from it."""
    step = last_step(workdir) if workdir else 0
    return f"step {step} is saved, run the same command to go on" if step else "no step is saved yet, run it again"
