"""Sample quality: Fréchet distance to a data set, and labels, both from small frozen classifiers.

reference = jaxdiff.evaluation.reference("digits")
print(reference.distance(images))
reference.classifier.accuracy(images, labels)
"""

from jaxdiff.evaluation.classifiers import CARDS as CARDS
from jaxdiff.evaluation.classifiers import Card as Card
from jaxdiff.evaluation.classifiers import FrozenClassifier as FrozenClassifier
from jaxdiff.evaluation.classifiers import load_classifier as load_classifier
from jaxdiff.evaluation.frechet import frechet_distance as frechet_distance
from jaxdiff.evaluation.noisy import NoisyAccuracy as NoisyAccuracy
from jaxdiff.evaluation.noisy import accuracy_by_noise as accuracy_by_noise
from jaxdiff.evaluation.reference import Distance as Distance
from jaxdiff.evaluation.reference import Reference as Reference
from jaxdiff.evaluation.reference import reference as reference
