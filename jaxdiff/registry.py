"""Things by name, with options, as on a command line: "ddim", "min_snr:gamma=3", "shift:pixels=(2,0)"."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def make(what: str, text: str, registry: Mapping[str, Callable[..., T]]) -> T:
    """What the text names, made with the text's options.

    Args:
      what: the name of the argument that the text is, for messages.
      text: NAME or NAME:OPTION=VALUE,OPTION=VALUE…
      registry: the functions that make things, by name.

    Raises:
      ValueError: for a name that is not in the registry, an option that the thing does not have or that is given
        twice, and a value that the thing does not take.
    """
    name, _, options = text.partition(":")
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} = {name!r}; the known ones are {', '.join(sorted(registry))}{hint}")
    signature = inspect.signature(registry[name]).replace(return_annotation=inspect.Signature.empty)
    known = list(signature.parameters)
    values: dict[str, Any] = {}
    for option in filter(None, re.split(r",(?![^=]*\))", options)):  # not at the commas of a tuple
        field, equals, value = option.partition("=")
        if not equals or field not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{what} = {text!r} has no option {field!r}; {takes}, as in NAME:OPTION=VALUE")
        if field in values:
            raise ValueError(f"{what} = {text!r} gives {field!r} twice; give it once")
        try:
            values[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[field] = value
    try:
        return registry[name](**values)
    except TypeError as error:
        raise ValueError(f"{what} = {text!r}: {values} does not fit {name}{signature}") from error
