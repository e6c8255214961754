"""Networks of Flax NNX and of Equinox as the trainer takes them: `init` and `apply`, with weights in a flat mapping.

    net = jaxdiff.models.from_nnx(lambda rngs: Net(64, rngs=rngs))            # called on batches: net(x, t, cond)
    net = jaxdiff.models.from_equinox(lambda key: Net(64, key=key))           # called on one example: net(x, t, cond)

The function is called again whenever the network is traced, without computing weights. So it must give the same
structure every time; define it at the top of a module, so that a second denoiser shares the compiled programs.
Constants that are not trained, such as frequencies, must be NumPy arrays.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.typing import InputError, PyTree, RandomKey

Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class _FromNNX:
    make: Callable[[Any], Any]

    def init(self, key: RandomKey, x: Array, t: Array, cond: PyTree = None) -> Weights:
        from flax import nnx  # here and below, as these libraries take long to import

        params = nnx.state(self.make(nnx.Rngs(key)), nnx.Param)
        return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(params)}

    def apply(self, weights: Weights, x: Array, t: Array, cond: PyTree = None, *, rngs: Any = None) -> Array:
        from flax import nnx

        graph, params, rest = _abstractly(lambda key: nnx.split(_checked(self.make(nnx.Rngs(key))), nnx.Param, ...))
        key = jax.random.key(0) if rngs is None else rngs["dropout"]
        found = [(path, variable.replace(weights[_name(path)])) for path, variable in nnx.to_flat_state(params)]
        for i, (path, leaf) in enumerate(nnx.to_flat_state(rest)):
            if isinstance(leaf, nnx.RngKey):
                own, shape = jax.random.fold_in(key, i), leaf.get_value().shape  # a key for each of scanned layers
                found.append((path, leaf.replace(jax.random.split(own, shape) if shape else own)))
            elif isinstance(leaf, nnx.RngCount):
                found.append((path, leaf.replace(jnp.zeros(leaf.get_value().shape, jnp.uint32))))
            elif isinstance(leaf, np.ndarray):
                found.append((path, leaf))
            else:
                raise InputError(
                    f"the network has {type(leaf).__name__} at {_name(path)}; beside Param it may hold the keys of "
                    "Dropout, but no state between steps: use LayerNorm or GroupNorm, not BatchNorm"
                )
        net = nnx.merge(graph, nnx.from_flat_state(found))
        net.eval() if rngs is None else net.train()
        return net(x, t) if cond is None else net(x, t, cond)


def from_nnx(make: Callable[[Any], Any]) -> _FromNNX:
    """Return an NNX network as an object with `init` and `apply`.

    Args:
      make: returns the network of an `nnx.Rngs`. The network is called on batches, as `net(x, t)` or `net(x, t, cond)`,
        in training mode with keys of the example's own for its dropout, and otherwise in evaluation mode.

    Raises (when it is called):
      InputError: if it holds arrays of JAX that are no Param, or other state than weights and keys, such as the
        statistics of BatchNorm.
    """
    return _FromNNX(make)


@dataclasses.dataclass(frozen=True)
class _FromEquinox:
    make: Callable[[RandomKey], Any]

    def init(self, key: RandomKey, x: Array, t: Array, cond: PyTree = None) -> Weights:
        return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(_arrays(self.make(key))[0])}

    def apply(self, weights: Weights, x: Array, t: Array, cond: PyTree = None, *, rngs: Any = None) -> Array:
        import equinox

        arrays, rest = _abstractly(lambda key: _arrays(self.make(key)))
        filled = jax.tree.map_with_path(lambda path, _: weights[_name(path)], arrays)
        net = equinox.nn.inference_mode(equinox.combine(filled, rest), rngs is None)
        args = (x, t) if cond is None else (x, t, cond)
        if rngs is None or "key" not in inspect.signature(net).parameters:
            return jax.vmap(net)(*args)
        return jax.vmap(lambda key, *args: net(*args, key=key))(jax.random.split(rngs["dropout"], len(x)), *args)


def from_equinox(make: Callable[[RandomKey], Any]) -> _FromEquinox:
    """Return an Equinox network as an object with `init` and `apply`.

    Args:
      make: returns the network of a key. The network is called on one example, as `net(x, t)` or `net(x, t, cond)`,
        with x (*shape) and t a scalar; in training with `key=` too if it has that parameter, and otherwise in inference
        mode.

    Raises (when it is called):
      InputError: if it holds arrays of JAX that can't be trained, such as whole numbers or the state of BatchNorm.
    """
    return _FromEquinox(make)


def _abstractly(make: Callable[[RandomKey], Any]) -> Any:
    """What `make` returns, traced: of its arrays of JAX only shapes and dtypes may be used, the rest is as it is."""
    kept = []

    def trace(key: RandomKey) -> None:
        kept.append(make(key))

    jax.eval_shape(trace, jax.random.key(0))
    return kept[0]


def _checked(net: Any) -> Any:
    """An NNX module, if none of its attributes is an array of JAX: that would be traced, and lost."""
    from flax import nnx

    for path, node in nnx.iter_graph(net):
        for name, value in vars(node).items() if isinstance(node, nnx.Module) else ():
            if isinstance(value, jax.Array):
                where = "/".join(map(str, (*path, name)))
                raise InputError(f"the network has an array of JAX at {where}; make it a NumPy array, or an nnx.Param")
    return net


def _arrays(net: Any) -> tuple[Any, Any]:
    """The arrays of JAX in an Equinox module, and the rest of it."""
    import equinox

    arrays, rest = equinox.partition(net, lambda leaf: isinstance(leaf, jax.Array))
    for path, leaf in jax.tree.leaves_with_path(arrays):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"the network holds {leaf.dtype} at {_name(path)}; all its arrays of JAX are trained, so they must be "
                "floats: make constants NumPy arrays, and use no BatchNorm"
            )
    return arrays, rest


def _name(path: Any) -> str:
    """The path of a weight as one text, as in layers/0/weight."""
    return "/".join(str(getattr(part, "name", getattr(part, "idx", getattr(part, "key", part)))) for part in path)
