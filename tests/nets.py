"""Networks of other libraries, as a user has them."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


class ScannedNNX(nnx.Module):
    """An NNX module of three scanned layers, each with its own dropout, and a constant."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.frequencies = np.array([1.0, 2.0], np.float32)

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def layers(rngs: nnx.Rngs) -> NNXNet:
            return NNXNet(2, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x, t, cond=None):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, layer):
            return x + layer(x, t)

        return through(x * self.frequencies[None], self.layers)


class ConstantEquinox(eqx.Module):
    """An Equinox module with a constant that is not trained."""

    frequencies: np.ndarray
    layer: eqx.nn.Linear

    def __init__(self, *, key) -> None:
        self.frequencies = np.array([1.0, 2.0], np.float32)
        self.layer = eqx.nn.Linear(2, 2, key=key)

    def __call__(self, x, t, cond=None):
        return self.layer(x * self.frequencies)


def everything(shape, classes, conditions, outputs, dtype, remat):
    """A network for a config that needs all that the trainer gives."""
    assert (shape, classes, conditions, outputs, dtype, remat) == ((2,), 8, {}, 1, jnp.float32, False)
    return LinenNet(shape=shape, classes=classes)


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
