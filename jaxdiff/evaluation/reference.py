"""What samples are compared to: the features of a data set's train split, with its test split as the floor."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from jaxdiff import data
from jaxdiff.evaluation.classifiers import Card, FrozenClassifier, load_classifier
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.typing import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A Fréchet distance with everything needed to interpret it, which `print` shows."""

    value: float
    """d² between n samples and the whole train split; lower is better."""
    standard_error: float
    floor: float
    """d² between n images of the test split and the train split: the value of perfect samples, if both splits have the
    same distribution. Those of the digits do not, since other writers wrote the test split: their floor is high."""
    n: int
    card: Card  # of the classifier that computed the features

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.value:.3f} ± {self.standard_error:.3f} (n = {self.n}, floor {self.floor:.3f}; "
            f"{self.card})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The features of the two splits of a data set, as `reference` computes them."""

    classifier: FrozenClassifier
    train: Float[np.ndarray, "n d"]
    test: Float[np.ndarray, "m d"]
    """Shuffled: MNIST's first 5,000 test images are easier than the others."""

    def distance(self, images: Float[np.ndarray | Array, "k *shape"]) -> Distance:
        """Return the Fréchet distance of images in [−1, 1] from the train split, as `frechet_distance` of features.

        Compare values at the same n only. The n images must be more than the features, and no more than the test split,
        of which n images give the floor.

        Raises:
          InputError: if the images have another shape, are outside the range or not finite, or are too few or too many.
        """
        n = len(images)
        if n > len(self.test):
            raise InputError(
                f"{n} images, but the test split that gives the floor has {len(self.test)}; give at most as many"
            )
        value, error = frechet_distance(self.classifier.features(images), self.train)
        floor, _ = frechet_distance(self.test[:n], self.train)
        return Distance(value=value, standard_error=error, floor=floor, n=n, card=self.classifier.card)


def reference(name: str, *, dir: str | None = None) -> Reference:
    """Return the reference for samples of "mnist" or "digits"; `dir` is that of `jaxdiff.data.load`.

    Raises:
      InputError: if the data set has no classifier, or `jaxdiff.data.load` rejects it.
      ConnectionError: if MNIST cannot be downloaded.
    """
    classifier = load_classifier(name)
    splits = (data.in_memory(data.load(name, split=split, dir=dir)) for split in ("train", "test"))
    train, test = (classifier.features(data.normalize(split.x, split.levels)) for split in splits)
    return Reference(classifier=classifier, train=train, test=np.random.default_rng(0).permutation(test))
