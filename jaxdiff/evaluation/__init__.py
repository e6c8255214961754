"""How good samples are: their Fréchet distance to a data set, and their labels, by small frozen classifiers.

reference = jaxdiff.evaluation.reference("digits")
print(reference.distance(images))
reference.classifier.accuracy(images, labels)
"""

from jaxdiff.evaluation.classifiers import CARDS, Card, FrozenClassifier, load_classifier
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.noisy import NoisyAccuracy, accuracy_by_noise
from jaxdiff.evaluation.reference import Distance, Reference, reference

__all__ = [
    "CARDS",
    "Card",
    "Distance",
    "FrozenClassifier",
    "NoisyAccuracy",
    "Reference",
    "accuracy_by_noise",
    "frechet_distance",
    "load_classifier",
    "reference",
]
