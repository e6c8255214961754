"""Types that every module shares, and checks of values by their annotations.

Everything is written for one sample: `x_t` has the sample's own shape and `t` is a scalar. Batches are `jax.vmap`.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, dataclass_transform, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

PyTree = Any
Shape = tuple[int, ...]
Scalar = Float[Array, ""]
Time = Float[Array, ""] | float
RandomKey = Key[Array, ""]
Sample = Float[Array, "*shape"]
Samples = Float[Array, "n *shape"]
HostSamples = Float[np.ndarray, "n *shape"]

T = TypeVar("T")


class InputError(ValueError):
    """Invalid input. The message names the argument, its value, the rule and the fix; command lines print it alone."""


class AtMost(NamedTuple):
    """The greatest size of a number, as in Annotated[int, AtMost(512)]; see `checked` for numbers without one."""

    most: float


Extended = Annotated[float, AtMost(math.inf)]  # a number that may be ±inf
# Sizes of arrays and of programs. The bounds are far above honest use, and below what exhausts a machine.
Count = Annotated[int, AtMost(10**6)]  # of timesteps, of samples or of labels
Width = Annotated[int, AtMost(2**16)]
Layers = Annotated[int, AtMost(256)]


class Prediction(NamedTuple):
    """The pair (x̂_0, n̂) that the output of any network is converted into, so that x_t = α_t g_t(x0) + σ_t noise."""

    x0: Sample  # the estimate of the clean sample
    noise: Sample  # the estimate of the standardized noise
    # Set by networks that learn the variance of the reverse step: the position of its logarithm between those of the
    # posterior variance (0) and of the transition variance (1). See `jaxdiff.samplers.ancestral`.
    variance_mix: Sample | None = None


def static(**options: Any) -> Any:
    """Return a dataclass field that is part of the pytree's structure: hashable, and fixed at compile time."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: Any = None, /, *, kw_only: bool = True, eq: bool = True, checks: bool = True) -> Any:
    """Make a class a frozen dataclass that JAX treats as a pytree, with `static` fields in its structure.

    Unlike `jax.tree_util.register_dataclass`, rebuilding an instance from its leaves skips `__init__`, so that
    `__post_init__` validates what users pass and nothing else. With `checks`, `check_fields` does so before it. Use
    `eq=False` where a field holds arrays, which have no hash.
    """

    def wrap(cls: type[T]) -> type[T]:
        cls = dataclasses.dataclass(frozen=True, kw_only=kw_only, eq=eq)(checks_fields(cls) if checks else cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        leaves = [field.name for field in fields if not field.metadata.get("static")]
        fixed = [field.name for field in fields if field.metadata.get("static")]

        def flatten(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
            return [getattr(node, name) for name in leaves], tuple(getattr(node, name) for name in fixed)

        def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            children, aux = flatten(node)
            return list(zip(map(jax.tree_util.GetAttrKey, leaves), children, strict=True)), aux

        def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
            node = object.__new__(cls)
            for name, value in zip((*leaves, *fixed), (*children, *aux), strict=True):
                object.__setattr__(node, name, value)
            return node

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return wrap if cls is None else wrap(cls)


def check_component(name: str, value: Any, kind: type, example: str) -> None:
    """Raise an `InputError` unless an argument is an instance of this protocol that `jax.jit` accepts."""
    if isinstance(value, type) or not isinstance(value, kind):  # a class has the methods too
        raise InputError(f"{name} = {value!r}; it must be a {kind.__name__}, such as {example}")
    if jax.tree_util.all_leaves([value]):
        raise InputError(f"{name} = {value!r} is not a pytree; decorate its class with jaxdiff.typing.pytree")


def check_between(component: Any, low: float, high: float, *names: str) -> None:
    """Raise an `InputError` unless low < value < high for each of these fields."""
    for name in names:
        if not low < getattr(component, name) < high:
            raise InputError(f"{name} = {getattr(component, name)}; must satisfy {low:g} < {name} < {high:g}")


def check_whole(name: str, value: Any, *, least: int = 1) -> int:
    """Return a whole number as an int; raise an InputError about the argument `name` if it is another value or less."""
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {shown(value)}; it must be a whole number, {least} or more") from None
    if whole < least:
        raise InputError(f"{name} = {whole}; it must be {least} or more")
    return whole


def key_of(seed: int) -> RandomKey:
    """Return the typed key of a seed, of the generator Threefry whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")


def check_key(key: RandomKey) -> None:
    """Raise an InputError unless the argument `key` is one typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape:
        found = f"{key.dtype} of shape {key.shape}" if isinstance(key, jax.Array | np.ndarray) else shown(key)
        raise InputError(f"key = {found}; it must be a single typed key: jax.random.key(0)")


def elementwise(key: RandomKey) -> RandomKey:
    """Return a key whose draws under `jax.vmap` are those of each sample alone, or raise an InputError if it is no key.

    Only JAX's Threefry has this property: with a key of another generator, such as "rbg", sample i would change with
    its batch. The words of such a key make a key of Threefry.
    """
    check_key(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    words = jax.random.key_data(key).ravel()
    threefry = jax.random.wrap_key_data(jnp.resize(words, (2,)), impl="threefry2x32")
    for word in words[2:]:
        threefry = jax.random.fold_in(threefry, word)
    return threefry


def is_traced(tree: PyTree) -> bool:
    """Return whether any leaf has no known value because a transformation such as `jax.jit` is tracing it."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, which as its `__getstate__` leaves cached properties out of copies."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def checks_fields(cls: type[T]) -> type[T]:
    """Make a class that becomes a dataclass call `check_fields` first in its `__post_init__`."""
    after: Any = getattr(cls, "__post_init__", None)

    def post_init(self: Any) -> None:
        check_fields(self)
        if after is not None:
            after(self)

    cls.__post_init__ = post_init  # type: ignore[attr-defined]
    return cls


def check_fields(component: Any) -> None:
    """Raise an `InputError` if a field of a dataclass does not fit an annotation of numbers, texts and tuples of them.

    Whole numbers become floats, and sequences tuples, where the annotation says so. Fields that may be arrays keep
    their value, and pass if `jax.jit` traces it.
    """
    kind: Any = type(component)
    for name, hint, is_array in _plain_fields(kind):
        value = getattr(component, name)
        if is_traced(value):
            continue
        if not is_array:
            object.__setattr__(component, name, checked(name, value, hint))
        elif value is None or isinstance(value, bool | int | float | str | Sequence):
            checked(name, value, hint)
        elif _is_array_of_numbers(value) and not np.isfinite(np.asarray(value)).all():
            raise InputError(f"{name} = {shown(value)}; every number of it must be finite")


def _is_array_of_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


@functools.cache
def _plain_fields(cls: Any) -> list[tuple[str, Any, bool]]:
    """The fields whose annotations `checked` understands, and whether these allow arrays."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # those that can't be evaluated are not checked
        hints = {field.name: field.type for field in dataclasses.fields(cls)}
    found = []
    for field in dataclasses.fields(cls):
        scalars = (int, float, bool, str, type(None))
        arrays = [part for part in _parts(hints[field.name]) if not any(part is scalar for scalar in scalars)]
        if field.init and all(hasattr(part, "array_type") for part in arrays):
            found.append((field.name, hints[field.name], bool(arrays)))
    return found


def _parts(hint: Any) -> list[Any]:
    """The types that an annotation is made of; a literal counts as a text."""
    kind, options = get_origin(hint), get_args(hint)
    if kind is Literal:
        return [str]
    if kind is Annotated:
        return _parts(options[0])
    if kind in (Union, types.UnionType, tuple, Sequence, list):
        return [part for option in options if option is not Ellipsis for part in _parts(option)]
    return [hint]


def checked(path: str, value: Any, hint: Any) -> Any:
    """Return the value as its annotation asks for it, or raise an `InputError`.

    Without `AtMost`, a float must be within ±1e18, whose square float32 holds, and a whole number within ±(2^31 − 1).
    NaN is no number.
    """
    try:
        return _fitted(value, hint)
    except _SizeError as error:
        raise InputError(f"{path} = {shown(value)}; {error}") from None
    except RecursionError:
        raise InputError(f"{path} = {shown(value)} is nested too deeply; write it with fewer brackets") from None
    except TypeError:
        if get_origin(hint) is Literal:
            raise InputError(f"{path} = {shown(value)} is unknown{suggest(str(value), get_args(hint))}") from None
        raise InputError(f"{path} = {shown(value)} has the wrong type; it must be {_described(hint)}") from None


def _described(hint: Any) -> str:
    """The text of an annotation, without the bounds in it."""
    kind, options = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _described(options[0])
    if kind in (Union, types.UnionType):
        return " | ".join(map(_described, options))
    if kind in (Sequence, tuple, list):
        return f"{kind.__name__}[{', '.join(map(_described, options))}]"
    if kind is not None or not isinstance(hint, type):
        return "..." if hint is Ellipsis else str(hint).replace("collections.abc.", "")
    return "None" if hint is type(None) else hint.__name__


class _SizeError(Exception):
    """A number is too large, or not a number."""


def _fitted(value: Any, hint: Any, most: float | None = None) -> Any:
    """`checked`, with a TypeError if the value doesn't fit. A bool does not count as a number."""
    kind, options = get_origin(hint), get_args(hint)
    value = plain(value)
    if kind is Annotated:
        bounds = [part.most for part in options[1:] if isinstance(part, AtMost)]
        return _fitted(value, options[0], *bounds)
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
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return tuple(_fitted(item, options[0]) for item in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(_sized(value, 1e18 if most is None else most))
    elif hasattr(hint, "array_type") and isinstance(value, int | float | tuple):  # numbers, as a file has them
        return tuple(_fitted(item, hint) for item in value) if isinstance(value, tuple) else _fitted(value, float)
    elif isinstance(value, kind or hint) and (hint is bool or not isinstance(value, bool)):
        return _sized(value, 2**31 - 1 if most is None else most) if hint is int else value
    raise TypeError


def _sized(value: float, most: float) -> float:
    if value != value or abs(value) == math.inf > most:
        raise _SizeError("it must be a finite number")
    if abs(value) > most:
        raise _SizeError(f"it must be at most {most:g}" if value > 0 else f"it must be at least {-most:g}")
    return value


def plain(value: Any) -> Any:
    """Return a value as files have it: lists as tuples, and scalars of NumPy and JAX as numbers."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if getattr(value, "shape", None) == () and hasattr(value, "item") and not is_traced(value):
        return value.item() if getattr(value.dtype, "kind", "") in "biuf" else value
    return tuple(map(plain, value)) if type(value) in (list, tuple) else value


def shown(value: Any) -> str:
    """Return the text of a value for a message, cut after 200 characters."""
    try:
        text = " ".join(repr(value).split("\n"))
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or brackets in brackets
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"


def first_line(error: BaseException, most: int = 200) -> str:
    """Return the first line of an error's message, cut after `most` characters; the name of its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the last one first, each once."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop(0)
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            context = None if found.__suppress_context__ else found.__context__
            inner = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
            waiting += [other for other in (*inner, found.__cause__, context) if other is not None]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them."""
    names = [str(item) for item in known]
    return near(name, names) or f"; the known ones are {', '.join(sorted(names)) or 'none'}"


def near(name: str, known: Iterable[str]) -> str:
    """Return the end of a message with the nearest known name, empty if none is near."""
    found = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
