"""What samples are compared to: the features of a data set's train split, with its test split as the floor."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from jaxdiff import data
from jaxdiff.evaluation.classifiers import Card, FrozenClassifier, load_classifier
from jaxdiff.evaluation.frechet import frechet_distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """A Fréchet distance with what it takes to read it; `print` shows all of it."""

    value: float
    """d² between n samples and the whole train split; lower is better."""
    standard_error: float
    floor: float
    """d² between n images of the test split and the train split: what samples of the data's own law have, where the two
    splits have one law. Those of the digits have not (other writers wrote the test split): their floor is high."""
    n: int
    card: Card
    """The classifier whose features they are."""

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.value:.3f} ± {self.standard_error:.3f} (n = {self.n}, floor {self.floor:.3f}; "
            f"{self.card})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The features of a data set's two splits. Make one with `reference`."""

    classifier: FrozenClassifier
    train: Float[np.ndarray, "n d"]
    test: Float[np.ndarray, "m d"]
    """In an order of chance: MNIST's first 5,000 test images are easier than the others."""

    def distance(self, images: Float[np.ndarray | Array, "k *shape"]) -> Distance:
        """How far images are from the train split, as `frechet_distance` of features tells.

        Figures are comparable at the same n alone, and a floor is that of n test images, so there can't be more
        samples than the test split has.

        Args:
          images: n images in [−1, 1], more than there are features.

        Raises:
          ValueError: for images of another shape or range, or that are not finite; for too few or too many.
        """
        n = len(images)
        if n > len(self.test):
            raise ValueError(
                f"{n} images, but the test split that gives the floor has {len(self.test)}; give at most as many"
            )
        value, error = frechet_distance(self.classifier.features(images), self.train)
        floor, _ = frechet_distance(self.test[:n], self.train)
        return Distance(value=value, standard_error=error, floor=floor, n=n, card=self.classifier.card)


def reference(name: str, *, dir: str | None = None) -> Reference:
    """The reference for samples of "mnist" or "digits".

    Args:
      name: of the data set, and so of the classifier.
      dir: the folder of MNIST's files, as for `jaxdiff.data.load`.

    Raises:
      ValueError: for a data set without a classifier, or that `jaxdiff.data.load` refuses.
      ConnectionError: MNIST cannot be downloaded.
    """
    classifier = load_classifier(name)
    features = {}
    for split in ("train", "test"):
        dataset = data.load(name, split=split, dir=dir)
        features[split] = classifier.features(data.normalize(dataset.x, dataset.levels))
    order = np.random.default_rng(0).permutation(len(features["test"]))
    return Reference(classifier=classifier, train=features["train"], test=features["test"][order])
