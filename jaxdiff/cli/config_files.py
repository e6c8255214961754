"""What --config names: find the file by its path or by the name of a shipped config, check it, and run it."""

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdiff import registry
from jaxdiff.experiment import components
from jaxdiff.registry import near, suggest
from jaxdiff.storage import local_path
from jaxdiff.typing import InputError

_PACKAGE = Path(__file__).parents[1]


def shipped() -> dict[str, Path]:
    """Return the configs of the package by their names: from a wheel inside it, in a checkout beside it."""
    inside = _PACKAGE / "configs"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def locate(text: str) -> str:
    """Return FILE or FILE:VARIANT for the value of --config, in which the name of a shipped config may stand for FILE.

    Raises:
      InputError: if there is neither such a file nor such a config.
    """
    name, colon, variant = text.partition(":")
    known = shipped()
    if name and (path := local_path(name, what="--config")).is_file():
        return f"{path}{colon}{variant}"
    if name in known:
        return f"{known[name]}{colon}{variant}"
    raise InputError(
        f"--config = {text}: there is neither such a file nor a config of that name; the names are "
        f"{', '.join(known)}{near(Path(name).stem, known)}"
    )


def load(located: str) -> Any:
    """Return what `get_config` of a config file returns; `located` is what `locate` returned.

    Raises:
      InputError: if the file has no such function, or no such variant.
    """
    path, colon, variant = located.partition(":")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise InputError(f"{path} defines no function get_config; write one, as in configs/digits.py")
    arguments = [variant] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        raise InputError(
            f"{path} has no variants; leave out :{variant}" if colon else f"{path} needs a variant: {path}:VARIANT"
        ) from None
    try:
        return get_config(*arguments)
    except ValueError as error:
        raise InputError(str(error)) from error


def describe(located: str) -> str:
    """Return the docstring of a config file, which tells its variants."""
    return ast.get_docstring(ast.parse(Path(located.partition(":")[0]).read_text())) or ""


def whole_components(arguments: list[str], config: Any) -> list[str]:
    """Replace flags that change the kind of a component: one that is set by name has none of the options of the last.

    --config.schedule=linear:num_timesteps=100 and --config.schedule.name=linear become --config.schedule={...}.

    Raises:
      InputError: if a name or an option is unknown.
    """
    result = []
    for argument in arguments:
        match = re.fullmatch(r"--?config\.(\w+)(\.name)?=([^{].*)", argument, re.DOTALL)
        if match and match[1] in components.NAMES and match[1] in config:
            what, given = match[1], match[3]
            if not match[2] or given != config[what].get("name"):
                names, fixed = components.NAMES[what]
                argument = f"--config.{what}={registry.normalize(what, given, names, given=fixed)!r}"
        result.append(argument)
    return result


def check_overrides(arguments: list[str], config: Any) -> None:
    """Raise an InputError if a flag sets a field which the config lacks."""
    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            section = config
            for key in match[1].split("."):
                known = section if isinstance(section, ConfigDict) else ()
                if key not in known:
                    top = match[1].partition(".")[0]
                    other = f"; to choose another {top}, write --config.{top}=NAME:OPTION=VALUE"
                    raise InputError(
                        f"--config.{match[1]}: {key!r} is not a field{suggest(key, known)}"
                        f"{other if top in components.NAMES and key != top else ''}"
                    )
                section = section[key]
