"""Sample quality: Fréchet distance to a data set, and labels, both from small frozen classifiers.

reference = jaxdiff.evaluation.reference("digits")
print(reference.distance(images))
reference.classifier.accuracy(images, labels)
"""

from jaxdiff.evaluation.classifiers import CARDS, Card, FrozenClassifier, load_classifier
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.noisy import NoisyAccuracy, accuracy_by_noise
from jaxdiff.evaluation.reference import Distance, Reference, reference

__all__ = ["CARDS", "Card", "Distance", "FrozenClassifier", "NoisyAccuracy", "Reference", "accuracy_by_noise"]
__all__ += ["frechet_distance", "load_classifier", "reference"]
