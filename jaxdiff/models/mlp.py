"""A residual network on vectors, for low-dimensional data.

With e the embedding of t (`TimeEmbedding`) and φ = SiLU:

    h = W x;   h ← h + B φ(A φ(h) + U φ(e)),  depth times;   output = V φ(h)

These are the residual blocks of the U-Net without their normalization, which would remove the length of a vector of two
numbers.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdiff.models.layers import LabelEmbedding, TimeEmbedding, check_time
from jaxdiff.typing import InputError, PyTree


class MLP(nn.Module):
    """A network on vectors: `model.apply(variables, x, t)` for x (n, dim).

    Kernels start with LeCun's normal initializer (variance 1/fan-in), biases and the last layer at zero, so that an
    untrained network predicts zero.

    Fields:
      width: of the hidden layers.
      depth: number of residual blocks.
      time_dim: size of the time embedding.
      time_steps: t in [0, 1] is embedded as the position t·time_steps − 1.
      classes: number of labels, whose embedding is added to that of the time; 0 for a network without.
      outputs: predicted numbers for each number of x, concatenated on the last axis.
      dtype: of the computation, except in the last layer. Parameters and output are float32.

    Raises:
      InputError: if a field is out of its range.
    """

    width: int = 128
    depth: int = 3
    time_dim: int = 128
    time_steps: int = 1000
    classes: int = 0
    outputs: int = 1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "depth", "outputs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; the rule is 1 or more")
        check_time(self.time_dim, self.time_steps)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n dim"], t: Float[Array, " n"], cond: PyTree = None
    ) -> Float[Array, "n predicted"]:
        """Return the prediction for noisy vectors x at times t in [0, 1], in float32.

        Args:
          cond: labels of shape (n,), −1 for none; or None.

        Raises:
          InputError: if there is a condition but no classes, or x are no vectors.
        """
        if x.ndim != 2:
            raise InputError(f"an mlp takes vectors, but an example here has shape {x.shape[1:]}; use a unet")
        time = TimeEmbedding(self.time_dim, self.time_steps, self.dtype, name="time")(t)
        time = time + LabelEmbedding(self.classes, self.time_dim, self.dtype, name="label")(cond, len(x))
        h = nn.Dense(self.width, dtype=self.dtype, name="stem")(x)
        for i in range(self.depth):
            branch = nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_dense1")(nn.silu(h))
            shift = nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_time")(nn.silu(time))
            branch = nn.silu(branch + shift)
            h = h + nn.Dense(self.width, dtype=self.dtype, name=f"block{i}_dense2")(branch)
        head = nn.Dense(self.outputs * x.shape[-1], dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head")
        return head(nn.silu(h))
