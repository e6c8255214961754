"""Networks on batches, and what the trainer asks of a network.

A network is any object with these two methods, as a Flax Linen module has them:

    init(key, x, t[, cond]) -> weights             a pytree of floating-point arrays, all of which are trained
    apply(weights, x, t[, cond][, rngs=…]) -> y    x (n, *shape) and t (n,) in [0, 1] to floats of x's shape

- cond is there only if the config's section `cond` asks for a condition: labels (n,) of int32, −1 for none, or a
  mapping as in `jaxdiff.models.conditions`. Where a run samples or measures without any condition, it is left out or
  holds the null condition: give it the default None.
- If apply has the parameter `rngs`, training gives it rngs={"dropout": key}, from the example's own key. Sampling gives
  none: a Linen module asks `self.has_rng("dropout")`.
- With `learned_variance` y has twice the channels of x.
- `jaxdiff.denoiser` and so the trainer call it with n = 1 under `jax.vmap`, at the cost of one call on a batch.
- No state but the weights is kept from step to step, such as running averages of a batch normalization.

A config names a network by a name below or as `package.module:Name`, a class or function that returns the object. It
is called with the options of the config and with those of these arguments that it has parameters for: `shape` of a
sample, `classes` (the number of labels, 0 for none), `conditions` (the shapes of other conditions, by kind), `outputs`
(2 with a learned variance, else 1), `dtype` to compute in, and `remat`: whether to wrap its blocks in `jax.checkpoint`,
or `nn.remat` of Flax. `jaxdiff.train(..., model=net)` takes the object itself. `from_nnx` and `from_equinox` adapt
networks of these libraries.

The networks here are `flax.linen` modules with float32 parameters and output, whatever dtype they compute in. A
`NoisyClassifier` returns logits; a `Classifier` is called with clean images alone, and is not a network for a config.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxdiff.models.adapters import from_equinox, from_nnx
from jaxdiff.models.attention import attend
from jaxdiff.models.classifier import Classifier, NoisyClassifier
from jaxdiff.models.mlp import MLP
from jaxdiff.models.unet import UNet, sized_unet

__all__ = ["MLP", "MODELS", "Classifier", "NoisyClassifier", "UNet", "attend", "from_equinox", "from_nnx"]
__all__ += ["sized_unet"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "unet": UNet,
    "sized_unet": sized_unet,
    "classifier": NoisyClassifier,
}
