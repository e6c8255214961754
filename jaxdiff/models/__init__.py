"""Networks on batches: `model.apply(variables, x, t, cond=None)`, with t in [0, 1] of shape (n,).

They are `flax.linen` modules with float32 parameters and output, whatever dtype they compute in. `jaxdiff.denoiser`
takes networks of other libraries just as well. A `NoisyClassifier` returns logits; a `Classifier` is called with clean
images alone, and is not a network for a config.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxdiff.models.attention import attend
from jaxdiff.models.classifier import Classifier, NoisyClassifier
from jaxdiff.models.mlp import MLP
from jaxdiff.models.unet import UNet, sized_unet

__all__ = ["MLP", "MODELS", "Classifier", "NoisyClassifier", "UNet", "attend", "sized_unet"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "unet": UNet,
    "sized_unet": sized_unet,
    "classifier": NoisyClassifier,
}
