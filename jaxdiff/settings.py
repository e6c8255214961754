"""Settings as nested mappings, as JSON and command lines have them, and as the typed values that annotations ask for.

Every error names the path of the setting, the value, what it should be, and the nearest name that there is.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin

from ml_collections import ConfigDict, config_dict


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The leaves in which two nested mappings differ, as "path: old -> new"."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(none)"), new.get(key, "(none)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{key}.")
        elif _plain(a) != _plain(b):
            found.append(f"{path}{key}: {a!r} -> {b!r}")
    return found


def build(registry: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], **extra: Any) -> Any:
    """The object that a `model`, `schedule` or `process` section names, made with the section's fields and `extra`."""
    options = {key: _plain(value) for key, value in section.items() if key != "name"}
    return registry[section["name"]](**options, **extra)


@contextmanager
def named(section: str) -> Iterator[None]:
    """Say of which section of the config an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None


def component(path: str, section: Mapping[str, Any], registry: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """The section checked against the signature of what it names, defaults filled in."""
    if "name" not in section:
        raise ValueError(f"{path}.name is missing from the config; the known ones are {', '.join(sorted(registry))}")
    name = section["name"]
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{path}.name = {name!r} is unknown{nearest(str(name), registry)}")
    # Decided elsewhere: classes by p_uncond, dtype by train.dtype, outputs by learned_variance, key by train.seed, the
    # schedule of a process by its own section, its examples by the data.
    # parent and name are Flax's own.
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(registry[name]).parameters.items()
        if key not in ("classes", "dtype", "outputs", "parent", "name", "key", "schedule", "examples")
    }
    hints = typing.get_type_hints(registry[name] if inspect.isfunction(registry[name]) else registry[name].__init__)
    given = {key: value for key, value in section.items() if key != "name"}
    for key in given:
        if key not in parameters:
            raise ValueError(f"{path}.{key} is no field of {path} {name!r}{nearest(key, parameters)}")
    values = {
        key: _checked(f"{path}.{key}", given.get(key, parameter.default), hints[key])
        for key, parameter in parameters.items()
    }
    return {"name": name, **values}


def dataclass_from(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{path}{key} is no field of a config{nearest(key, fields)}")
    hints = typing.get_type_hints(cls)
    arguments = dict(values)
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{path}{name} = {value!r}; it must be a section with fields of its own")
            arguments[name] = dataclass_from(hints[name], value, f"{path}{name}.")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path}{missing[0]} is missing from the config")
    return cls(**arguments)


def check_types(section: Any, path: str) -> None:
    """Make every field of a section what its annotation says, or raise."""
    for name, hint in typing.get_type_hints(type(section)).items():
        object.__setattr__(section, name, _checked(f"{path}{name}", getattr(section, name), hint))


def _checked(path: str, value: Any, hint: Any) -> Any:
    """`value`, with whole numbers made floats and lists made tuples where the hint wants that."""
    try:
        return _fitted(value, hint)
    except TypeError:
        if get_origin(hint) is Literal:
            raise ValueError(f"{path} = {value!r} is unknown{nearest(str(value), get_args(hint))}") from None
        raise ValueError(f"{path} = {value!r} has the wrong type; it must be {_type_name(hint)}") from None


def _fitted(value: Any, hint: Any) -> Any:
    """`_checked`, with a TypeError where it doesn't fit. A bool is no number here."""
    kind, options = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        for option in options:
            try:
                return _fitted(value, option)
            except TypeError:
                continue
    elif kind is Literal:
        if isinstance(value, str) and value in options:
            return value
    elif kind in (Sequence, tuple):
        if isinstance(value, list | tuple):
            return tuple(_fitted(item, options[0]) for item in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind or hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def _type_name(hint: Any) -> str:
    return hint.__name__ if get_origin(hint) is None else str(hint).replace("collections.abc.", "")


def _plain(value: Any) -> Any:
    """JSON has no tuples: a list and a tuple of the same values are the same setting."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def with_placeholders(cls: Any, values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict in which a field that may be None can be set from the command line."""
    result = ConfigDict()
    hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    for name, value in values.items():
        hint = hints.get(name)
        if isinstance(value, Mapping):
            result[name] = with_placeholders(hint, value)
        elif hint is not None and type(None) in get_args(hint):
            # A field of type object takes None from the command line too; a str is taken as it is written.
            result[name] = config_dict.placeholder(str if str in get_args(hint) else object)
            result[name] = value
        else:
            result[name] = value
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the known ones are {', '.join(sorted(known)) or 'none'}"


def at_least(path: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{path} = {value}; it must be at least {least}, and finite")
