"""Components by name, and values checked by annotations: the one way from texts and mappings to objects.

A component is named by a text or by a mapping, as on a command line or in a file:

    "ddim"    "shift:pixels=(2,0)"    "package.module:Name"    "package.module:Name:option=value,option=value"
    {"name": "shift", "pixels": (2, 0)}    {"name": "package.module:Name", "option": value}

The name is a registered name, or names a class or function of any importable module. Its options are checked by the
annotations of the constructor, which also turn whole numbers into floats and lists into tuples.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin

from jaxdiff.typing import InputError

Names = Mapping[str, Callable[..., Any]]


def make(what: str, value: Any, names: Names, *, given: Collection[str] = (), **extra: Any) -> Any:
    """Return the component that a text or a mapping names; any other value is returned as it is.

    `what` names the argument or section in messages. The constructor gets those of the `extra` arguments that it takes.
    Texts and mappings may give neither these nor the `given` options.

    Raises:
      InputError: if the name or an option is unknown, or a value does not fit its annotation.
    """
    if not isinstance(value, str | Mapping):
        return value
    name, options, parameters, open_ended = _resolve(what, value, names, {*given, *extra})
    options |= {key: item for key, item in extra.items() if open_ended or key in parameters}
    for key, parameter in parameters.items():
        if key not in options and parameter.default is parameter.empty:
            how = "only code can give it" if key in given else f"write {name}:{key}=VALUE"
            raise InputError(f"{what} = {name!r} needs a value for {key}; {how}")
    return find(what, name, names)(**options)


def normalize(
    what: str, value: str | Mapping[str, Any], names: Names, *, given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the mapping form of a component, with its defaults and without `given`; raise as `make`."""
    name, options, parameters, _ = _resolve(what, value, names, given)
    for key, item in options.items():
        if not _is_plain(item):
            raise InputError(f"{what}.{key} = {item!r}; it must be a value that JSON can hold")
    defaults = {key: parameter.default for key, parameter in parameters.items() if key not in given}
    plain = {key: _plain(default) for key, default in defaults.items() if _is_plain(default)}
    return {"name": name, **plain, **options}


def takes(what: str, value: Any, names: Names, option: str) -> bool:
    """Return whether the constructor that a text or a mapping names has a parameter called `option`."""
    return option in _signature(find(what, _parse(what, value, names)[0], names))[0]


def find(what: str, name: str, names: Names) -> Callable[..., Any]:
    """Return the constructor with this name, a registered one or `package.module:Name`, or raise an InputError."""
    if name in names:
        return names[name]
    module, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in module.split(".")):
        known = ", ".join(sorted(names))
        raise InputError(f"{what} = {name!r}; the known ones are {known}, or package.module:Name{_near(name, names)}")
    try:
        source = importlib.import_module(module)
    except ImportError as error:
        advice = f"the module must be importable, see PYTHONPATH{_near(module, names)}"
        raise InputError(f"{what} = {name!r}: {error}; {advice}") from error
    try:
        found = operator.attrgetter(attribute)(source)
    except AttributeError as error:
        raise InputError(f"{what} = {name!r}: {error}; name a class or function of the module") from error
    if not callable(found):
        raise InputError(f"{what} = {name!r} is a {type(found).__name__}; name a class or function")
    return found


def _resolve(
    what: str, value: str | Mapping[str, Any], names: Names, given: Collection[str]
) -> tuple[str, dict[str, Any], dict[str, inspect.Parameter], bool]:
    """The name, the checked options, the constructor's parameters, and whether it takes **options."""
    name, options = _parse(what, value, names)
    parameters, open_ended = _signature(find(what, name, names))
    hints = {key: parameter.annotation for key, parameter in parameters.items() if key not in given}
    for key in options:
        if key in given or (key not in hints and not open_ended):
            shown = value if isinstance(value, str) else name
            listed = ", ".join(hints) or "none"
            raise InputError(f"{what} = {shown!r} has no option {key!r}; it takes {listed}{_near(key, hints)}")
    fitted = {key: checked(f"{what}.{key}", item, hints.get(key, Any)) for key, item in options.items()}
    return name, fitted, parameters, open_ended


def _parse(what: str, value: str | Mapping[str, Any], names: Names) -> tuple[str, dict[str, Any]]:
    """The name and the options, unchecked."""
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise InputError(f"{what}.name is missing; the known ones are {', '.join(sorted(names))}")
        return value["name"], {key: item for key, item in value.items() if key != "name"}
    if not isinstance(value, str):
        raise InputError(f"{what} = {value!r}; it must be a text, NAME:OPTION=VALUE, or a mapping with a name")
    name, _, rest = value.partition(":")
    first, _, after = rest.partition(":")
    if first and "=" not in first and name not in names:
        name, rest = f"{name}:{first}", after
    options: dict[str, Any] = {}
    for option in filter(None, re.split(r",(?![^(\[]*[)\]])", rest)):  # not at the commas of a tuple
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"{what} = {value!r} has no option {option!r}; write NAME:OPTION=VALUE,OPTION=VALUE")
        if key in options:
            raise InputError(f"{what} = {value!r} gives {key!r} twice; give it once")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return name, options


def _signature(constructor: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a constructor, and whether it takes **options."""
    try:
        signature = inspect.signature(constructor, eval_str=True)
    except ValueError:  # one of Python's own without a signature
        return {}, False
    except (NameError, TypeError):  # another library's annotations: those that can't be evaluated are not checked
        signature = inspect.signature(constructor)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {key: parameter for key, parameter in signature.parameters.items() if parameter.kind not in variadic}
    return named, inspect.Parameter.VAR_KEYWORD in kinds


def checked(path: str, value: Any, hint: Any) -> Any:
    """Return the value as its annotation asks for it, or raise an InputError."""
    try:
        return _fitted(value, hint)
    except TypeError:
        if get_origin(hint) is Literal:
            raise InputError(f"{path} = {value!r} is unknown{suggest(str(value), get_args(hint))}") from None
        kind = hint.__name__ if get_origin(hint) is None else str(hint).replace("collections.abc.", "")
        raise InputError(f"{path} = {value!r} has the wrong type; it must be {kind}") from None


def _fitted(value: Any, hint: Any) -> Any:
    """`checked`, with a TypeError if the value doesn't fit. A bool does not count as a number."""
    kind, options = get_origin(hint), get_args(hint)
    value = _plain(value)
    if hint in (Any, object, inspect.Parameter.empty) or (kind is None and not isinstance(hint, type)):
        return value
    if kind in (Union, types.UnionType):
        for option in options:
            try:
                return _fitted(value, option)
            except TypeError:
                continue
    elif kind is Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
    elif kind is tuple and options[-1] is not Ellipsis:
        if isinstance(value, tuple) and len(value) == len(options):
            return tuple(map(_fitted, value, options))
    elif kind in (Sequence, tuple, list):
        if isinstance(value, tuple):
            return tuple(_fitted(item, options[0]) for item in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hasattr(hint, "array_type") and isinstance(value, int | float | tuple):  # numbers, as a file has them
        return tuple(_fitted(item, hint) for item in value) if isinstance(value, tuple) else _fitted(value, float)
    elif isinstance(value, kind or hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if type(value) in (list, tuple) else value


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def dataclass_from(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass made from a mapping; fields that are dataclasses are made from its sections."""
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{name} is not a field of the config{suggest(name, fields)}")
        if not dataclasses.is_dataclass(hints[name]):
            arguments[name] = checked(name, value, hints[name])
        elif isinstance(value, Mapping):
            with named(name):
                arguments[name] = dataclass_from(hints[name], value)
        else:
            raise InputError(f"{name} = {value!r}; it must be a section with fields of its own")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{name} is missing from the config")
    return cls(**arguments)


def check_types(section: Any) -> None:
    """Make every field of a frozen dataclass what its annotation says, or raise an InputError."""
    for name, hint in typing.get_type_hints(type(section)).items():
        object.__setattr__(section, name, checked(name, getattr(section, name), hint))


def at_least(section: Any, least: float, *names: str) -> None:
    """Raise an InputError unless least <= value < ∞ for each of these fields, or it is None."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not least <= value < math.inf:
            raise InputError(f"{name} = {value}; it must be at least {least}, and finite")


@contextmanager
def named(section: str) -> Iterator[None]:
    """Prefix the InputErrors of a block with the section of the config that they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}.{error}") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Return the leaves in which two nested mappings differ, as "path: old -> new"."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(none)"), new.get(key, "(none)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a!r} -> {b!r}")
    return found


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them."""
    names = [str(item) for item in known]
    return _near(name, names) or f"; the known ones are {', '.join(sorted(names)) or 'none'}"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
