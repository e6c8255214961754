"""The frozen classifiers that jaxdiff ships, whose features and labels are used to judge samples.

    mnist     28×28, trained on the 60,000 images of MNIST's train split, tested on the other 10,000
    digits    8×8, trained on the first 1,500 of scikit-learn's digits, tested on the other 297, by other writers

Their weights are the .npz files in this folder, written by `benchmarks/train_classifier.py`. Figures are comparable
only if computed with the same weights, so the weights are identified by their SHA-256, and other files are rejected.
"""

import dataclasses
import hashlib
import importlib.resources
import io
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int32, Integer

from jaxdiff.models import Classifier
from jaxdiff.typing import InputError, PyTree

Images = Float[np.ndarray | Array, "n *shape"]

_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The description of a shipped classifier."""

    name: str  # of its data set
    shape: tuple[int, int, int]  # height, width and channels of its images
    model: Classifier
    sha256: str  # of its file of weights
    test_accuracy: float  # on the test split of the data set

    def __str__(self) -> str:
        return f"classifier {self.name} {self.sha256[:12]}, test accuracy {self.test_accuracy:.2%}"


CARDS: Mapping[str, Card] = MappingProxyType(
    {
        "mnist": Card(
            name="mnist",
            shape=(28, 28, 1),
            model=Classifier(patch=2, width=32, features=64, classes=10),
            sha256="f2773059c5041b7c2b6eec9a2a2c82ed72746a9b839fd6b8a6842b48e212004d",
            test_accuracy=0.9919,
        ),
        "digits": Card(
            name="digits",
            shape=(8, 8, 1),
            model=Classifier(patch=1, width=32, features=32, classes=10),
            sha256="efa136edea9935c24b5c0f2f76c7101b9292b906c11afb462764b8dc1203b473",
            test_accuracy=0.9562,
        ),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenClassifier:
    """A shipped classifier with its weights, as `load_classifier` returns it.

    Its methods raise an InputError if images have another shape than the card's, are outside [−1, 1] or not finite.
    """

    card: Card
    params: PyTree

    def features(self, images: Images) -> Float[np.ndarray, "n d"]:
        """Return the float32 activations of the last hidden layer."""
        return self._apply(images)[0]

    def labels(self, images: Images) -> Int32[np.ndarray, " n"]:
        """Return the predicted class of each image."""
        return self._apply(images)[1].argmax(axis=1).astype(np.int32)

    def accuracy(self, images: Images, labels: Integer[np.ndarray | Array, " n"]) -> float:
        """Return the fraction of images whose predicted class is their label; one label per image."""
        if len(labels) != len(images):
            raise InputError(f"{len(labels)} labels for {len(images)} images; give one label per image")
        return float((self.labels(images) == np.asarray(labels)).mean())

    def _apply(self, images: Images) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n classes"]]:
        """Return (features, logits)."""
        images, card = np.asarray(images, np.float32), self.card
        if images.shape[1:] != card.shape or len(images) == 0:
            takes = ", ".join(map(str, card.shape))
            raise InputError(f"images has shape {images.shape}; the classifier of {card.name} takes (n, {takes})")
        if bad := np.count_nonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1)):
            raise InputError(f"{bad} of {len(images)} images are not finite; remove them, and report how many")
        low, high = images.min(), images.max()
        # Digits are white on black: images without any dark pixel are in [0, 1].
        if low < -1.001 or high > 1.001 or low >= 0:
            raise InputError(
                f"images are in [{low:g}, {high:g}]; they must be in [−1, 1], −1 for black: use jaxdiff.data.normalize "
                "or clip"
            )
        n = len(images)
        padded = np.concatenate([images, np.repeat(images[:1], -n % _BATCH, axis=0)])  # so that one program is compiled
        parts = [_forward(card.model, self.params, padded[i : i + _BATCH]) for i in range(0, n, _BATCH)]
        features, logits = (np.concatenate(part)[:n] for part in zip(*parts, strict=True))
        return features, logits


@partial(jax.jit, static_argnums=0)
def _forward(model: Classifier, params: PyTree, x: Float[Array, "n *shape"]) -> Any:
    return model.apply(params, x)


def load_classifier(name: str) -> FrozenClassifier:
    """Return the classifier of a data set, "mnist" or "digits"; verifies its weights.

    Raises:
      InputError: if there is none, or the file of weights is missing or has another SHA-256.
    """
    if name not in CARDS:
        raise InputError(f"name = {name!r}; it must be a data set with a shipped classifier: {', '.join(CARDS)}")
    card = CARDS[name]
    file = importlib.resources.files("jaxdiff.evaluation") / f"{name}.npz"
    content = file.read_bytes() if file.is_file() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise InputError(f"{file} has SHA-256 {found}, not {card.sha256}: it is damaged or missing; reinstall jaxdiff")
    with np.load(io.BytesIO(content)) as arrays:  # named by path, as in "params/conv1/kernel"
        params = unflatten_dict({path: jnp.asarray(array) for path, array in arrays.items()}, sep="/")
    return FrozenClassifier(card=card, params=params)
