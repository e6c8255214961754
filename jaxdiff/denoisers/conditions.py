"""Null conditions: what stands in a condition's place where it was dropped in training.

A null condition is a number for all leaves of a condition, or a pytree of numbers; where a mapping lacks a part, or has
None in its place, that part is kept. So guidance can drop a label and keep the picture that is to be upscaled.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdiff.typing import PyTree, RandomKey


def nulled(cond: PyTree, null: PyTree) -> PyTree:
    """Return a condition with the null condition in its place."""
    if isinstance(cond, Mapping) and isinstance(null, Mapping):
        return {name: nulled(part, null.get(name)) for name, part in cond.items()}
    if null is None:
        return cond
    return jax.tree.map(jnp.full_like, cond, jax.tree.broadcast(null, cond))


def drop(key: RandomKey, cond: PyTree, null: PyTree, p: float) -> PyTree:
    """Return the null condition with probability p, and else the condition; of one example."""
    dropped = jax.random.bernoulli(key, p)
    return jax.tree.map(lambda kept, none: jnp.where(dropped, none, kept), cond, nulled(cond, null))
