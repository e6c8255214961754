"""The frame of a command line: parse the flags, run, and print errors of the user's as one line."""

import inspect
import logging
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from jaxdiff.registry import suggest
from jaxdiff.storage import make_folder, user_path
from jaxdiff.training.loop import Interrupted
from jaxdiff.training.recorder import DivergenceError
from jaxdiff.typing import InputError

FLAGS = flags.FLAGS


def run(main: Callable[[], None], *, module: str, required: tuple[str, ...]) -> None:
    """Parse the command line, check that the `required` flags are given, and call `main`.

    `module` is the name of the module that defines the flags, for --help.
    """

    def guarded(arguments: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax logs every file
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs the damage that an error tells
        _silence_abandoned_reads()
        try:
            if arguments[1:]:
                raise InputError(f"{arguments[1]!r} is not a flag; every setting is written --NAME=VALUE")
            for name in required:
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
        except (InputError, ConnectionError, DivergenceError) as error:
            _fail(error)

    for flag in FLAGS.get_flags_for_module(module):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help looks in the script
    app.run(guarded, flags_parser=_parse)


def _fail(error: object) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1)


def _parse(arguments: list[str]) -> list[str]:
    """absl's parser, preceded by checks of the config file, whose errors ml_collections would hide."""
    arguments = list(arguments)
    if "config" in FLAGS:
        for i, argument in enumerate(arguments):
            flag, equals, value = argument.partition("=")
            if flag.lstrip("-") == "config" and flag.startswith("-"):
                value = os.path.expanduser(value if equals else "".join(arguments[i + 1 : i + 2]))
                arguments[i : i + (1 if equals else 2)] = [f"{flag}={value}"]
                _check_overrides(arguments, _load_config(value))
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        _fail(error)


def _load_config(file: str) -> Any:
    path, colon, variant = file.partition(":")
    if not Path(path).is_file():
        _fail(f"--config = {file}: there is no such file; give FILE or FILE:VARIANT, as in configs/digits.py")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        _fail(f"{path} defines no function get_config; write one, as in configs/digits.py")
    arguments = [variant] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        _fail(f"{path} has no variants; leave out :{variant}" if colon else f"{path} needs a variant: {path}:VARIANT")
    try:
        return get_config(*arguments)
    except ValueError as error:
        _fail(error)


def _check_overrides(arguments: list[str], config: Any) -> None:
    """Refuse a flag that sets a field which the config lacks."""
    for argument in arguments[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            section = config
            for key in match[1].split("."):
                known = section if isinstance(section, ConfigDict) else ()
                if key not in known:
                    _fail(f"--config.{match[1]}: {key!r} is not a field{suggest(key, known)}")
                section = section[key]


def _choose_cache() -> None:
    """Keep compiled programs where the user says, or else in the user's cache folder; nowhere if there is none."""
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is None:
        try:
            home = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", what="XDG_CACHE_HOME")
            make_folder(home / "jaxdiff" / "xla", what="the compilation cache")
        except InputError:
            return
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxdiff" / "xla"))
    elif chosen.startswith("~"):
        folder = user_path(chosen, what="JAX_COMPILATION_CACHE_DIR")
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _silence_abandoned_reads() -> None:
    """Hide tracebacks of reads of a damaged checkpoint, whose other arrays Orbax leaves to a closed event loop."""
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
