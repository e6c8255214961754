"""What --help prints: how to call the command, its flags, and the settings of a config."""

import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxdiff.cli import config_files

_WIDTH, _INDENT = 100, 26


def text(usage: str, values: flags.FlagValues, *, module: str, config: Any = None, about: str = "") -> str:
    """Return the help of the command whose flags `module` defines; with a config, what it is about and its settings."""
    lines = [f"usage: {usage}", "", "flags:"]
    for flag in values.get_flags_for_module(module):
        default = "" if flag.default in (None, [], False) else f" Default: {flag.default}."
        lines += _entry(f"--{flag.name}" if flag.boolean else f"--{flag.name}=...", f"{flag.help}{default}")
    if "config" in values and config is None:
        lines += [
            "",
            "configs, to give by name or as files (jaxdiff train --config=NAME --help tells variants and settings):",
        ]
        for name, path in config_files.shipped().items():
            lines += _entry(name, config_files.describe(str(path)).partition("\n")[0])
    if config is not None:
        lines += ["", *about.splitlines(), "", "settings of the config and their values:"]
        lines += [f"  --config.{name}={value}" for name, value in _settings(config)]
    return "\n".join(lines)


def _entry(name: str, description: str) -> list[str]:
    head = f"  {name}".ljust(_INDENT)
    body = textwrap.wrap(description, _WIDTH - _INDENT)
    if len(head) > _INDENT:
        return [head, *(" " * _INDENT + line for line in body)]
    return [head + body[0], *(" " * _INDENT + line for line in body[1:])]


def _settings(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sorted(config.items()):
        if isinstance(value, ConfigDict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
