"""Networks of other libraries, as a user has them."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import models


class LinenNet(nn.Module):
    """A Linen module with dropout, which is conditioned on labels."""

    shape: tuple[int, ...]
    width: int = 16
    classes: int = 0

    @nn.compact
    def __call__(self, x, t, cond=None):
        labels = jnp.full(len(x), -1) if cond is None else cond
        rows = nn.Embed(self.classes + 1, self.width)(jnp.where(labels < 0, self.classes, labels))
        h = nn.Dense(self.width)(jnp.concatenate([x.reshape(len(x), -1), t[:, None]], -1)) + rows
        h = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(nn.silu(h))
        return nn.Dense(x[0].size)(h).reshape(x.shape)


class NNXNet(nnx.Module):
    """An NNX module on batches, with dropout."""

    def __init__(self, size: int, width: int = 16, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(size + 1, width, rngs=rngs), nnx.Linear(width, size, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t, cond=None):
        h = nnx.silu(self.layers[0](jnp.concatenate([x.reshape(len(x), -1), t[:, None]], -1)))
        return self.layers[1](self.dropout(h)).reshape(x.shape)


class EquinoxNet(eqx.Module):
    """An Equinox module on one example, with dropout."""

    layers: list
    dropout: eqx.nn.Dropout

    def __init__(self, size: int, width: int = 16, *, key) -> None:
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(size + 1, width, key=first), eqx.nn.Linear(width, size, key=second)]
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, t, cond=None, *, key=None):
        h = jax.nn.silu(self.layers[0](jnp.concatenate([x.ravel(), t[None]])))
        return self.layers[1](self.dropout(h, key=key)).reshape(x.shape)


def make_nnx(rngs):
    return NNXNet(2, rngs=rngs)


def make_equinox(key):
    return EquinoxNet(2, key=key)


def from_nnx(shape: tuple[int, ...]):
    """The NNX network, for a config."""
    assert shape == (2,)
    return models.from_nnx(make_nnx)


def from_equinox():
    """The Equinox network, for a config."""
    return models.from_equinox(make_equinox)


class Nothing:
    """An object that is no network."""
