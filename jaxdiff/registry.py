"""Components by name, and values checked by annotations: the one way from texts and mappings to objects.

A component is named by a text or by a mapping, as on a command line or in a file:

    "ddim"    "shift:pixels=(2,0)"    "package.module:Name"    "package.module:Name:option=value,option=value"
    {"name": "shift", "pixels": (2, 0)}    {"name": "package.module:Name", "option": value}

The name is a registered name, or names a class or function of any importable module. Its options are checked by the
annotations of the constructor, which also turn whole numbers into floats and lists into tuples.

A name from outside imports and calls code of its author's choice. That is wanted for the names that a user writes, and
not for those in a folder that comes from somebody else: `only` refuses them.
"""

import ast
import dataclasses
import importlib
import inspect
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxdiff.typing import InputError, checked, near, plain, shown, suggest

Names = Mapping[str, Callable[..., Any]]

_LONGEST = 1000  # characters of a text that names a component

# The names from outside that may be imported, and what to do about others; None for any name.
_allowed: ContextVar[tuple[Collection[str], str] | None] = ContextVar("allowed", default=None)


class UntrustedError(InputError):
    """A name from outside jaxdiff where only trusted names may be imported."""


class NotFoundError(InputError):
    """A name `package.module:Name` of a module that can't be imported, or that has no such name."""


@contextmanager
def only(allowed: Collection[str], fix: str) -> Iterator[None]:
    """Let a block build components of jaxdiff and these names from outside; others raise an error that ends in `fix`.

    Raises:
      UntrustedError: in place of the import of another name.
    """
    token = _allowed.set((allowed, fix))
    try:
        yield
    finally:
        _allowed.reset(token)


def outside(value: Any) -> set[str]:
    """Return the names `package.module:Name` among the texts of nested mappings and lists."""
    if isinstance(value, Mapping | list | tuple):
        return set().union(*map(outside, value.values() if isinstance(value, Mapping) else value))
    found = re.match(r"[\w.]+:[\w.]+(?=:|$)", value) if isinstance(value, str) else None
    return {found[0]} if found else set()


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
            raise InputError(f"{what}.{key} = {shown(item)}; it must be a value that JSON can hold")
    defaults = {key: parameter.default for key, parameter in parameters.items() if key not in given}
    written = {key: plain(default) for key, default in defaults.items() if _is_plain(default)}
    return {"name": name, **written, **options}


def takes(what: str, value: Any, names: Names, option: str) -> bool:
    """Return whether the constructor that a text or a mapping names has a parameter called `option`."""
    return option in _signature(find(what, _parse(what, value, names)[0], names))[0]


def find(what: str, name: str, names: Names) -> Callable[..., Any]:
    """Return the constructor with this name, a registered one or `package.module:Name`, or raise an InputError."""
    if name in names:
        return names[name]
    _check_trusted(what, name, names)
    module, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in module.split(".")):
        known = ", ".join(sorted(names))
        raise InputError(f"{what} = {name!r}; the known ones are {known}, or package.module:Name{near(name, names)}")
    try:
        source = importlib.import_module(module)
    except ImportError as error:
        advice = f"the module must be importable: put its folder on PYTHONPATH{near(module, names)}"
        raise NotFoundError(f"{what} = {name!r}: {error}; {advice}") from error
    try:
        found = operator.attrgetter(attribute)(source)
    except AttributeError as error:
        raise NotFoundError(f"{what} = {name!r}: {error}; name a class or function of the module") from error
    if not callable(found):
        raise InputError(f"{what} = {name!r} is a {type(found).__name__}; name a class or function")
    return found


def _check_trusted(what: str, name: str, names: Names) -> None:
    """Raise an UntrustedError unless any name may be imported, or this one, or it is a name of a registered class."""
    module, _, attribute = name.partition(":")
    if (limits := _allowed.get()) is None or name in limits[0] or ":" not in name:
        return
    found = vars(sys.modules.get(module, object)).get(attribute) if module.startswith("jaxdiff.") else None
    if any(found is constructor for constructor in names.values()):
        return
    raise UntrustedError(f"{what} = {shown(name)} is code from outside jaxdiff; {limits[1]}")


def _resolve(
    what: str, value: str | Mapping[str, Any], names: Names, given: Collection[str]
) -> tuple[str, dict[str, Any], dict[str, inspect.Parameter], bool]:
    """The name, the checked options, the constructor's parameters, and whether it takes **options."""
    name, options = _parse(what, value, names)
    parameters, open_ended = _signature(find(what, name, names))
    hints = {key: parameter.annotation for key, parameter in parameters.items() if key not in given}
    for key in options:
        if key in given or (key not in hints and not open_ended):
            written, listed = value if isinstance(value, str) else name, ", ".join(hints) or "none"
            unknown = f"{what} = {shown(written)} has no option {shown(key)}"
            raise InputError(f"{unknown}; it takes {listed}{near(key, hints)}")
    fitted = {key: checked(f"{what}.{key}", item, hints.get(key, Any)) for key, item in options.items()}
    return name, fitted, parameters, open_ended


def _parse(what: str, value: str | Mapping[str, Any], names: Names) -> tuple[str, dict[str, Any]]:
    """The name and the options, unchecked."""
    text = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(text, str) and len(text) > _LONGEST:
        raise InputError(f"{what} = {shown(text)} has {len(text)} characters; write at most {_LONGEST}")
    if isinstance(value, Mapping):
        if not isinstance(text, str):
            raise InputError(f"{what}.name is missing; the known ones are {', '.join(sorted(names))}")
        return text, {key: item for key, item in value.items() if key != "name"}
    if not isinstance(value, str):
        raise InputError(f"{what} = {shown(value)}; it must be a text, NAME:OPTION=VALUE, or a mapping with a name")
    name, _, rest = value.partition(":")
    first, _, after = rest.partition(":")
    if first and "=" not in first and name not in names:
        name, rest = f"{name}:{first}", after
    options: dict[str, Any] = {}
    for option in filter(None, _split(rest)):
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"{what} = {value!r} has no option {option!r}; write NAME:OPTION=VALUE,OPTION=VALUE")
        if key in options:
            raise InputError(f"{what} = {value!r} gives {key!r} twice; give it once")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # not a value, or too many brackets
            options[key] = text
    return name, options


def _split(text: str) -> list[str]:
    """Split a text at its commas, but not at those in brackets."""
    parts, start, depth = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


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


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def dataclass_from(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass made from a mapping; fields that are dataclasses are made from its sections."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{str(name)[:200]} is not a field of the config{suggest(name, fields)}")
        if not dataclasses.is_dataclass(hints[name]):
            arguments[name] = checked(name, value, hints[name])
        elif isinstance(value, Mapping):
            with named(name):
                arguments[name] = dataclass_from(hints[name], value)
        else:
            raise InputError(f"{name} = {shown(value)}; it must be a section with fields of its own")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{name} is missing from the config")
    return cls(**arguments)


def check_types(section: Any) -> None:
    """Make every field of a frozen dataclass what its annotation says, or raise an InputError."""
    for name, hint in typing.get_type_hints(type(section), include_extras=True).items():
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
        raise type(error)(f"{section}.{error}") from None


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
