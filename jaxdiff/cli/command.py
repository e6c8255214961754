"""The frame of a command line: parse the flags, run, and print errors of the user's as one line."""

import errno
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags

from jaxdiff import __version__
from jaxdiff.buckets import BucketError
from jaxdiff.cli import config_files, help
from jaxdiff.experiment.workdir import last_step
from jaxdiff.storage import local_path, make_folder, user_path
from jaxdiff.training.signals import Interrupted
from jaxdiff.typing import InputError, causes

FLAGS = flags.FLAGS

DONE, FAILED, REFUSED = 0, 1, 2  # exit codes; a signal adds 128 to its number


def run(
    main: Callable[[], None],
    *,
    usage: str,
    module: str,
    required: Callable[[], tuple[str, ...]],
    failures: tuple[type[Exception], ...] = (ConnectionError,),
) -> None:
    """Parse the command line, check that the flags are given which `required` then returns, and call `main`.

    `usage` and the flags that `module` defines are what --help prints. `failures` are errors of which the message is
    enough for the user.
    """

    def guarded(arguments: list[str]) -> None:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
        for name in ("absl", "gcsfs", "fsspec"):  # Orbax and gcsfs log every error that they raise, several times
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs the damage that an error tells
        _silence_threads()
        try:
            if arguments[1:]:
                raise InputError(f"{arguments[1]!r} is not a flag; every setting is written --NAME=VALUE")
            for name in required():
                if FLAGS[name].value is None:
                    raise InputError(f"--{name} is missing. {FLAGS[name].help}")
            _choose_cache()
            main()
        except Interrupted as stopped:
            print(stopped, file=sys.stderr)
            raise SystemExit(128 + stopped.number) from None
        except KeyboardInterrupt:
            print("stopped by SIGINT", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except InputError as error:
            _end(error, REFUSED)
        except BucketError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(FAILED)  # threads of Orbax wait for ten minutes for what can't be written any more
        except failures as error:
            _end(error, FAILED)

    try:
        app.run(guarded, flags_parser=functools.partial(_parse, usage=usage, module=module))
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"error: {line}{_how_to_go_on()}", file=sys.stderr, flush=True)
        os._exit(FAILED)  # what libraries still try to write at the exit would fail too, with a traceback each


def called(command: str) -> str:
    """Return how the user calls a command of the package: as `jaxdiff train`, or as `python train.py` in a checkout."""
    return f"python {command}.py" if sys.argv[0].endswith(("train.py", "sample.py")) else f"jaxdiff {command}"


_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs, as the system has no open files left",
    errno.ENOMEM: "lower the batch size: raise train.accumulate or lower train.batch_size to train, --batch to sample",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "get the permission, or choose another folder",
    errno.EPERM: "get the permission, or choose another folder",
    errno.ESTALE: "mount the network folder again",
    errno.EIO: "check the disk or the network folder",
}


def explain(error: BaseException) -> str | None:
    """Return one line about an error of the operating system, or about memory; None for any other error.

    Libraries wrap such errors in others, or keep only their text: all errors that led to this one are looked at.
    """
    for found in causes(error):
        text = next(iter(str(found).splitlines()), "")
        number = found.errno if isinstance(found, OSError) else None
        if number is None and not isinstance(found, OSError):
            number = next((code for code in _ADVICE if os.strerror(code).lower() in str(found).lower()), None)
        if isinstance(found, MemoryError) or (number is None and "RESOURCE_EXHAUSTED" in text):
            number = errno.ENOMEM
        if number in _ADVICE:
            where = getattr(found, "filename", None)
            about = f" ({where})" if where else f" ({text[:200]})" if number == errno.ENOMEM and text else ""
            return f"{os.strerror(number)}{about}; {_ADVICE[number]}"
    return None


def _how_to_go_on() -> str:
    """Return which step of the run in training is safe, and the way on; nothing if no run was in training."""
    if "config" not in FLAGS or not FLAGS.is_parsed() or not FLAGS.workdir:
        return ""
    try:
        step = last_step(user_path(FLAGS.workdir, what="--workdir"))
    except (OSError, InputError):
        return ""
    return f", then run the same command to go on: {f'step {step} is saved' if step else 'no step is saved yet'}"


def _end(error: object, code: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(code)


def _parse(arguments: list[str], *, usage: str, module: str) -> list[str]:
    """absl's parser, preceded by --help, --version and checks of the config file, whose errors ml_collections hides."""
    arguments, config, about = list(arguments), None, ""
    try:
        if "--version" in arguments:
            print(f"jaxdiff {__version__}")
            raise SystemExit(DONE)
        for i, argument in enumerate(arguments):
            flag, equals, value = argument.partition("=")
            if "config" in FLAGS and flag in ("-config", "--config"):
                located = config_files.locate(value if equals else "".join(arguments[i + 1 : i + 2]))
                arguments[i : i + (1 if equals else 2)] = [f"{flag}={located}"]
                config = config_files.load(located)
                config_files.check_overrides(arguments[1:], config)
                arguments[1:] = config_files.whole_components(arguments[1:], config)
                sys.argv[1:] = arguments[1:]  # where ml_collections looks for the settings that are given
                about = config_files.describe(located)
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & {*arguments[1:]}:
            print(help.text(usage, FLAGS, module=module, config=config, about=about))
            raise SystemExit(DONE)
        return FLAGS(arguments)
    except (InputError, flags.Error) as error:
        _end(error, REFUSED)


def _choose_cache() -> None:
    """Keep compiled programs where the user says, or else in the user's cache folder; nowhere if there is none.

    Those that compile in a moment are kept too, unless the user says otherwise: a start has dozens of them.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is None:
        try:
            home = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", what="XDG_CACHE_HOME")
            make_folder(home / "jaxdiff" / "xla", what="the compilation cache")
        except InputError:
            return
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxdiff" / "xla"))
    elif chosen.startswith("~"):
        folder = local_path(chosen, what="JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _silence_threads() -> None:
    """Hide tracebacks of threads of libraries.

    Orbax leaves reads of a damaged checkpoint to a closed event loop, and TensorBoard writes in a thread.
    """
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    def thread_hook(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is None or (line := explain(ended.exc_value)) is None:
            usual_in_threads(ended)
        else:
            logging.getLogger(__name__).warning("%s", line)

    usual_in_threads, threading.excepthook = threading.excepthook, thread_hook
    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
