"""A residual network on vectors, for low-dimensional data.

With e the embedding of t (`TimeEmbedding`) and φ = SiLU:

    h = W x;   h ← h + B φ(A φ(h) + U φ(e)),  depth times;   output = V φ(h)

These are the U-Net's residual blocks without normalization, which would remove the length of a vector of two numbers.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models.conditions import LabelEmbedding, VectorEmbedding, unpack
from jaxdiff.models.layers import TimeEmbedding, Times, check_fields
from jaxdiff.typing import Count, InputError, Layers, PyTree, Shape, Width


class MLP(nn.Module):
    """A network on vectors: `model.apply(variables, x, t, cond)` returns the prediction, in float32.

    `cond` holds labels of shape (n,), −1 for none, or a mapping as in `jaxdiff.models.conditions`; or it is None.
    Kernels start with LeCun's normal initializer (variance 1/fan-in), biases and the last layer at zero, so that an
    untrained network predicts zero.

    Fields:
      width: width of the hidden layers.
      depth: number of residual blocks.
      time_dim: size of the time embedding.
      time_steps: scale of the time embedding, which takes t in [0, 1] as the position t·time_steps − 1.
      classes: number of labels, 0 for an unconditional network. The label embedding is added to that of the time.
      conditions: the shapes of other conditions: a vector, which is added as a label is.
      outputs: number of outputs per coordinate of x, concatenated on the last axis.
      dtype: dtype of all layers but the last, which is float32, as are the parameters.

    Raises:
      InputError: if a field is out of its range, x are not vectors, or there is a condition without a place.
    """

    width: Width = 128
    depth: Layers = 3
    time_dim: Width = 128
    time_steps: int = 1000
    classes: Count = 0
    outputs: Width = 1
    dtype: DTypeLike = jnp.float32
    conditions: Mapping[str, Shape] = FrozenDict()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "width", "depth", "outputs")
        if others := sorted({*self.conditions} - {"vector"}):
            raise InputError(f"conditions = {others}: an mlp has no place for {others[0]!r}; use a unet")

    @nn.compact
    def __call__(self, x: Float[Array, "n dim"], t: Times, cond: PyTree = None) -> Float[Array, "n predicted"]:
        if x.ndim != 2:
            dims = f" with dims = {x.ndim - 2}" if x.ndim in (3, 5) else ""
            raise InputError(f"an mlp takes vectors, but an example here has shape {x.shape[1:]}; use a unet{dims}")
        time = TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        labels, given = unpack(cond, len(x), self.classes, self.conditions)
        time = time + LabelEmbedding(self.classes, self.time_dim, self.dtype, name="label")(labels, len(x))
        if "vector" in self.conditions:
            embed = VectorEmbedding(self.time_dim, self.dtype, name="vector")
            time = time + embed(given["vector"], given["vector_mask"])
        h = nn.Dense(self.width, dtype=self.dtype, name="stem")(x)
        for i in range(self.depth):
            branch = nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_dense1")(nn.silu(h))
            shift = nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_time")(nn.silu(time))
            h = h + nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_dense2")(nn.silu(branch + shift))
        head = nn.Dense(self.outputs * x.shape[-1], dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head")
        return head(nn.silu(h))
