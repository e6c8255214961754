"""What `train.py` and `sample.py` do: read flags, set JAX up, call one function, and tell errors from crashes."""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from jaxdiff import data, plots, run, samplers, xla
from jaxdiff.bounds import Bound
from jaxdiff.config import Config, nearest
from jaxdiff.training import loop
from jaxdiff.training.recorder import DivergenceError

FLAGS = flags.FLAGS

Made = tuple[str, np.ndarray | None, dict[str, Any]]  # what to say of it, a picture, and arrays to keep beside it


def train() -> None:
    """The command line of `train.py`."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/, as FILE or FILE:VARIANT.", lock_config=True)
    flags.DEFINE_string("workdir", None, "The run's folder: made, or resumed if it holds this run.")
    flags.DEFINE_bool("distributed", False, "Several hosts: start jax.distributed before anything else.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell by itself.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, likewise.")
    flags.DEFINE_integer("process_id", None, "Index of this process, likewise.")
    _run(_train, required=("config", "workdir"))


def sample() -> None:
    """The command line of `sample.py`."""
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("n", 64, "How many samples.")
    flags.DEFINE_integer("reconstruct", None, "Instead: encode so many images to latents, and decode them again.")
    flags.DEFINE_integer("interpolate", None, "Instead: so many rows, each from one image to another by their latents.")
    flags.DEFINE_integer("bits_per_dim", None, "Instead: what so many images cost under the model, as table and plot.")
    flags.DEFINE_string(
        "images",
        "test",
        "For these three: test, the first of the data set's test split; samples of the model; or files, A.png,B.png or "
        "A.npz.",
    )
    flags.DEFINE_string(
        "sampler", None, f"One of {', '.join(samplers.REGISTRY)}, with options as in ddim:eta=0.5; default: the run's."
    )
    flags.DEFINE_integer("steps", None, "The number of jumps; default: the run's.")
    flags.DEFINE_string("grid", None, f"One of {', '.join(samplers.grids.REGISTRY)}; default: the run's.")
    flags.DEFINE_string("label", None, "The class to draw, of a conditional model.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same samples.")
    flags.DEFINE_integer("batch", 64, "How many at a time.")
    flags.DEFINE_string("out", "samples.png", "The picture; the samples themselves go beside it, as .npz.")
    _run(_sample, required=("workdir",))


def _train() -> None:
    config = Config.from_mapping(FLAGS.config)
    cluster = {name: FLAGS[name].value for name in ("coordinator", "num_processes", "process_id")}
    if FLAGS.distributed:
        try:
            jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        except (ValueError, RuntimeError) as error:
            given = ", ".join(f"--{name}={value}" for name, value in cluster.items())
            raise ValueError(f"--distributed can't start with {given}: {error}") from error
    elif unread := [name for name, value in cluster.items() if value is not None]:
        raise ValueError(f"--{unread[0]} is read with --distributed only; give that too, or leave it out")
    else:
        xla.split_cpu(config.train.batch_size // config.train.accumulate, config.train.fsdp)
    loop.train(config, Path(FLAGS.workdir))


def _sample() -> None:
    out = _writable_picture(Path(FLAGS.out))
    if not 0 <= FLAGS.seed < 2**32:
        raise ValueError(f"--seed = {FLAGS.seed}; the rule is 0 <= seed < 2^32")
    instead = [name for name in _INSTEAD if FLAGS[name].value is not None]
    _check_read(instead)
    xla.split_cpu(FLAGS.batch)
    loaded = run.load(FLAGS.workdir)
    said, picture, arrays = _INSTEAD[instead[0]](loaded) if instead else _samples(loaded)
    np.savez(out.with_suffix(".npz"), **arrays)
    if picture is not None:
        plots.save(out, picture)
    print(f"{said}: {'' if picture is None else f'{out}, '}{out.with_suffix('.npz')}")


def _draw(loaded: run.Run, n: int) -> np.ndarray:
    return loaded.sample(
        jax.random.key(FLAGS.seed),
        n=n,
        labels=FLAGS.label,
        sampler=FLAGS.sampler,
        steps=FLAGS.steps,
        grid=FLAGS.grid,
        batch=FLAGS.batch,
        progress=True,
    )


def _samples(loaded: run.Run) -> Made:
    samples = _draw(loaded, FLAGS.n)
    picture = plots.image_grid(samples) if samples.ndim == 4 else plots.scatter(samples)
    return f"{len(samples)} samples of step {loaded.step}", picture, {"samples": samples}


def _images(loaded: run.Run, n: int) -> np.ndarray:
    """The n images that --images names."""
    if FLAGS.images == "samples":
        return _draw(loaded, n)
    if FLAGS.images == "test":
        return loaded.test_examples(n)
    return data.read_files(FLAGS.images.split(","), n=n)


def _reconstruct(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.reconstruct)
    x1 = loaded.encode(x0, batch=FLAGS.batch, progress=True)
    again = loaded.decode(x1, batch=FLAGS.batch, progress=True)
    error = np.abs(again - x0)
    print(f"reconstruction error: {np.sqrt((error**2).mean()):.1e} (root mean square), {error.max():.1e} at most")
    picture = plots.reconstructions(x0, x1 / float(loaded.process.schedule.sigma(1.0)), again)
    arrays = {"original": x0, "latent": x1, "reconstruction": again}
    return f"{len(x0)} originals, latents and reconstructions by step {loaded.step}", picture, arrays


def _interpolate(loaded: run.Run) -> Made:
    if len(shape := loaded.experiment.shape) != 3:
        raise ValueError(f"--interpolate draws rows of images, but this run's samples have shape {shape}; leave it out")
    ends = _images(loaded, 2 * FLAGS.interpolate)
    rows = loaded.interpolate(ends[::2], ends[1::2], batch=FLAGS.batch, progress=True)
    picture = plots.image_grid(np.concatenate(rows), columns=rows.shape[1])
    return f"{len(rows)} rows of {rows.shape[1]} by step {loaded.step}", picture, {"samples": rows}


def _bits_per_dim(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.bits_per_dim)
    if FLAGS.images == "samples" and loaded.levels is not None:
        x0 = data.quantize(x0, loaded.levels)
    costs = loaded.costs(x0, key=jax.random.key(FLAGS.seed), batch=FLAGS.batch, progress=True)
    print(costs.table())
    said, ode = f"{len(x0)} images under step {loaded.step}", {"ode": costs.ode}
    if costs.bound is None:
        return said, None, ode
    picture = plots.bound_over_time(costs.bound) if isinstance(costs.bound, Bound) else None
    return said, picture, ode | costs.bound._asdict()


_INSTEAD: dict[str, Callable[[run.Run], Made]] = {
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "bits_per_dim": _bits_per_dim,
}


def _check_read(instead: list[str]) -> None:
    """Refuses flags that say nothing about what is made."""
    if len(instead) > 1:
        raise ValueError(f"--{instead[0]} and --{instead[1]} make one picture each; leave one out")
    for name in instead:
        if FLAGS.get_flag_value(name, 0) < 1:
            raise ValueError(f"--{name} = {FLAGS[name].value}; it must be at least 1")
    draws = not instead or FLAGS.images == "samples"
    unread = {
        "images": "" if instead else f"with --{', --'.join(_INSTEAD)} only",
        "n": f"without --{instead[0]}, which has its own number" if instead else "",
        **dict.fromkeys(("sampler", "steps", "grid", "label"), "" if draws else "to draw samples only"),
    }
    for name, why in unread.items():
        if why and FLAGS[name].present:
            raise ValueError(f"--{name} is read {why}; leave it out")


def _writable_picture(out: Path) -> Path:
    """The path, if a PNG can be written there: better known before sampling than after."""
    if out.suffix != ".png":
        raise ValueError(f"--out = {out}: the picture is a PNG; give a name that ends in .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out = {out} can't be written ({error.strerror}); choose another place") from error
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out = {out} can't be written; choose another place")
    return out


def _run(main: Callable[[], None], *, required: tuple[str, ...]) -> None:
    def guarded(arguments: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells of every file
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
        _silence_abandoned_reads()
        try:
            if arguments[1:]:
                raise ValueError(f"{arguments[1]!r} is no flag; every setting is written --NAME=VALUE")
            for name in required:
                if FLAGS[name].value is None:
                    raise ValueError(f"--{name} is missing. {FLAGS[name].help}")
            _use_compilation_cache()
            main()
        except loop.Interrupted as stopped:
            print(stopped, file=sys.stderr)
            raise SystemExit(128 + stopped.number) from None
        except KeyboardInterrupt:
            print("stopped by SIGINT", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except (ValueError, ConnectionError, DivergenceError) as error:
            if not _ours(error):
                raise
            _fail(error)

    for flag in FLAGS.get_flags_for_module(__name__):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # for --help, which looks in the script
    app.run(guarded, flags_parser=_parse)


def _fail(error: Exception | str) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1)


def _parse(arguments: list[str]) -> list[str]:
    """absl's parsing, with what is wrong on the command line or refused by the config file told in one line."""
    file = _value_of("config", arguments)
    if file is not None and not Path(file.partition(":")[0]).is_file():
        _fail(f"--config = {file}: there is no such file; give FILE or FILE:VARIANT, as in configs/digits.py")
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        _explain_config_file(error, file or "")
        _fail(str(error))
    except (AttributeError, LookupError, TypeError, ValueError):
        # What ml_collections raises for a field that isn't there, or what the config file raises.
        unknown = None if file is None else _unknown_field(arguments, FLAGS["config"].parser.parse(file))
        if unknown is None:
            raise
        _fail(unknown)


def _value_of(name: str, arguments: list[str]) -> str | None:
    """The value of a flag, before anything is parsed."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else following
    return None


def _explain_config_file(error: flags.Error, file: str) -> None:
    """Tell of an error that the config file raised, which ml_collections hides in a flag's; return for any other."""
    link: BaseException | None = error
    while link is not None and not str(link).startswith("Error whilst parsing config file"):
        link = link.__context__
    if link is None or link.__context__ is None:
        return
    cause = link.__context__
    if isinstance(cause, ValueError):
        _fail(cause)
    if Path(traceback.extract_tb(cause.__traceback__)[-1].filename) == Path(config_flags.config_flags.__file__):
        path, _, variant = file.partition(":")
        _fail(f"{path} has no variants; leave out :{variant}" if variant else f"{path} needs a variant: {path}:VARIANT")
    raise cause


def _unknown_field(arguments: list[str], config: ConfigDict) -> str | None:
    """What is wrong with the first flag that sets a field which the config lacks; None if none does."""
    for argument in arguments[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            section: Any = config
            for key in match[1].split("."):
                if not isinstance(section, ConfigDict) or key not in section:
                    known = section if isinstance(section, ConfigDict) else ()
                    return f"--config.{match[1]}: {key!r} is no field{nearest(key, known)}"
                section = section[key]
    return None


def _ours(error: Exception) -> bool:
    """Whether a `raise` of jaxdiff's made it: then the message says all, and a traceback would bury it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Path(where.filename).is_relative_to(Path(__file__).parent) and (where.line or "").startswith("raise")


def _silence_abandoned_reads() -> None:
    """Where one array of a checkpoint can't be read, Orbax leaves the reads of the others to a closed event loop.

    The checkpoint is reported as damaged; dozens of tracebacks would bury that.
    """
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache, unless JAX has been told where to keep them."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "jaxdiff" / "xla"))
