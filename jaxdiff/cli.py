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

from jaxdiff import plots, requests, run, xla
from jaxdiff.config import Config
from jaxdiff.settings import nearest
from jaxdiff.training import loop
from jaxdiff.training.recorder import DivergenceError

FLAGS = flags.FLAGS


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
    requests.define_flags()
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
    requests.check_flags()
    xla.split_cpu(FLAGS.batch)
    loaded = run.load(FLAGS.workdir)
    said, picture, arrays = requests.make(loaded)
    np.savez(out.with_suffix(".npz"), **arrays)
    if picture is not None:
        plots.save(out, picture)
    print(f"{said}: {'' if picture is None else f'{out}, '}{out.with_suffix('.npz')}")


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

    for module in (__name__, requests.__name__):
        for flag in FLAGS.get_flags_for_module(module):
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
