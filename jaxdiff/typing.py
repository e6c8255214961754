"""Types and aliases that every module shares.

Everything is written for one sample: `x_t` has the sample's own shape and `t` is a scalar. Batches are `jax.vmap`.
"""

import dataclasses
import operator
from typing import Any, NamedTuple, TypeVar, dataclass_transform

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
def pytree(cls: Any = None, /, *, kw_only: bool = True, eq: bool = True) -> Any:
    """Make a class a frozen dataclass that JAX treats as a pytree, with `static` fields in its structure.

    Unlike `jax.tree_util.register_dataclass`, rebuilding an instance from its leaves skips `__init__`, so that
    `__post_init__` validates what users pass and nothing else. Use `eq=False` where a field holds arrays, which have
    no hash.
    """

    def wrap(cls: type[T]) -> type[T]:
        cls = dataclasses.dataclass(frozen=True, kw_only=kw_only, eq=eq)(cls)
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


def check_whole(name: str, value: Any, *, least: int = 1) -> int:
    """Return a whole number as an int; raise an InputError about the argument `name` if it is another value or less."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r}; it must be a whole number, {least} or more") from None
    if whole < least:
        raise InputError(f"{name} = {whole}; it must be {least} or more")
    return whole


def key_of(seed: int) -> RandomKey:
    """Return the typed key of a seed, of the generator Threefry whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")


def elementwise(key: RandomKey) -> RandomKey:
    """Return a key whose draws under `jax.vmap` are those of each sample alone, or raise an InputError if it is no key.

    Only JAX's Threefry has this property: with a key of another generator, such as "rbg", sample i would change with
    its batch. The words of such a key make a key of Threefry.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape:
        found = f"{key.dtype} of shape {key.shape}" if isinstance(key, jax.Array | np.ndarray) else repr(key)
        raise InputError(f"key = {found}; it must be a single typed key: jax.random.key(0)")
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
