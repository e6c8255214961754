"""Samplers: how one sample moves from t to s < t, and the loop that runs them."""

import ast
import difflib
import inspect
from collections.abc import Callable
from typing import Any

from jaxdiff.samplers import grids
from jaxdiff.samplers.jump import ddim, ddpm, fresh
from jaxdiff.samplers.loop import Sampler, sample
from jaxdiff.samplers.ode import euler, heun

__all__ = [
    "REGISTRY",
    "Sampler",
    "ddim",
    "ddpm",
    "euler",
    "fresh",
    "grids",
    "heun",
    "make",
    "sample",
]

REGISTRY: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "fresh": fresh,
    "euler": euler,
    "heun": heun,
}


def make(text: str) -> Sampler:
    """A sampler from its name and options, as written on a command line: "ddim", "ddim:eta=0.5", "ddpm:variance=large".

    Raises:
      ValueError: for a name that is not in `REGISTRY`, an option that the sampler does not have or that is given
        twice, and a value that the sampler does not take.
    """
    name, _, options = text.partition(":")
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"sampler = {name!r}; the known ones are {', '.join(sorted(REGISTRY))}{hint}")
    signature = inspect.signature(REGISTRY[name]).replace(return_annotation=inspect.Signature.empty)
    known = list(signature.parameters)
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        field, equals, value = option.partition("=")
        if not equals or field not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"sampler = {text!r} has no option {field!r}; {takes}, as in NAME:OPTION=VALUE")
        if field in values:
            raise ValueError(f"sampler = {text!r} gives {field!r} twice; give it once")
        try:
            values[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[field] = value
    try:
        return REGISTRY[name](**values)
    except TypeError as error:
        raise ValueError(f"sampler = {text!r}: {values} does not fit {name}{signature}") from error
