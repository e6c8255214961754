"""Networks on batches: `model.apply(variables, x, t, cond=None)`, with t in [0, 1] of shape (n,).

They are `flax.linen` modules with float32 parameters and output, whatever they compute in. A
network of another library goes into `jaxdiff.denoiser` just as well. A `NoisyClassifier` returns
logits, and `Classifier` is none of them: it is called with clean images alone.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxdiff.models.attention import attend
from jaxdiff.models.classifier import Classifier, NoisyClassifier
from jaxdiff.models.mlp import MLP
from jaxdiff.models.unet import UNet

__all__ = ["MLP", "REGISTRY", "Classifier", "NoisyClassifier", "UNet", "attend"]

REGISTRY: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "unet": UNet, "classifier": NoisyClassifier}
