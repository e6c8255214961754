"""From what a user asks for, labels and guidance, to a denoiser and its conditions."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int32, Integer

from jaxdiff import guidance
from jaxdiff.denoisers import NetworkDenoiser
from jaxdiff.experiment import Experiment
from jaxdiff.guidance import Blend, NetworkClassifier, Weight
from jaxdiff.settings import differences
from jaxdiff.typing import Denoiser, PyTree

Labels = int | Sequence[int] | Integer[np.ndarray | Array, " n"] | Mapping[int, float]
Trained = tuple[Experiment, PyTree]  # with its parameters


def tell(
    experiment: Experiment,
    params: PyTree,
    *,
    n: int,
    labels: Labels | None,
    w: Weight | None,
    classifier: Trained | None,
) -> tuple[Denoiser, PyTree]:
    """The denoiser that is guided so, without clipping, and the conditions of n samples for it.

    Args:
      experiment, params: the model.
      n: how many samples.
      labels: one for all, one for each (−1 for none), or a blend of some with their weights; None for none.
      w: the weight of guidance; 0 and None are the plain conditional model.
      classifier: what guides; None is classifier-free guidance. w is the same for conditional and unconditional models.

    Raises:
      ValueError: for labels that the model can't take, and guidance that it was not trained for.
    """
    if experiment.classifies:
        raise ValueError("this run is of a classifier, which draws no samples; give it as the classifier of a model")
    network, classes, p_uncond = experiment.network(params), experiment.classes, experiment.config.p_uncond
    plain = w is None
    if isinstance(w, int | float | np.number):
        if not math.isfinite(w):
            raise ValueError(f"guidance = {w}; the rule is a finite number: 0 for the plain conditional model")
        plain = w == 0
    if labels is None:
        if not plain or classifier is not None:
            raise ValueError(f"guidance = {w!r} guides towards a label; give labels too")
        if classes:
            _check_null(p_uncond, "labels = None")
        return network, None
    if classifier is not None:
        if classes and plain:
            raise ValueError(
                f"guidance = {w!r} leaves a conditional model as it is, classifier or not; give guidance too"
            )
        denoiser = _guided_by(classifier, experiment, network, w)
        classes = classifier[0].classes
    elif not classes:
        raise ValueError(
            f"labels = {labels!r}, but this model is unconditional: it was trained without labels; leave them out, "
            "give a classifier, or train a model with p_uncond = 0.1"
        )
    elif plain or w is None:
        denoiser = network
    else:
        _check_null(p_uncond, f"guidance = {w!r}")
        denoiser = guidance.classifier_free(network, w)
    if not isinstance(labels, Mapping):
        found = _checked(labels, n, classes, least=0 if classifier else -1)
        if (found < 0).any():
            _check_null(p_uncond, "labels = -1")
        return denoiser, np.broadcast_to(found, n)
    if classifier is not None:
        raise ValueError(f"labels = {labels!r} is a blend, of which a classifier knows nothing; give one label")
    parts = _checked(list(labels), len(labels), classes, least=0)
    weights = np.asarray(list(labels.values()), np.float32)
    if not abs(weights.sum() - 1) < 1e-3:
        raise ValueError(f"labels = {labels!r}: the weights of a blend sum to {weights.sum():g}; the rule is 1")
    rows = [np.broadcast_to(part, (n, len(labels))) for part in (parts, weights)]
    return guidance.mixed(denoiser), Blend(*rows)


def _check_null(p_uncond: float | None, what: str) -> None:
    """Raises where the network has never been told that there is no label."""
    if not p_uncond:
        raise ValueError(
            f"{what}, but this model was trained with p_uncond = {p_uncond}: it never saw an example without its "
            "label; train one with p_uncond = 0.1"
        )


def _guided_by(classifier: Trained, experiment: Experiment, network: NetworkDenoiser, w: Weight | None) -> Denoiser:
    """The network guided by a classifier of the same data under the same process and schedule."""
    other, params = classifier
    if not other.classifies:
        raise ValueError("classifier is the run of a denoiser; train one with the model 'classifier'")
    if experiment.learns_schedule:
        raise ValueError("classifier: this model has learned its schedule, under which none was trained; leave it out")
    ours, theirs = (
        {"data": e.config.data.name, "shape": e.shape, "process": e.config.process, "schedule": e.config.schedule}
        for e in (experiment, other)
    )
    if found := differences(ours, theirs):
        listed = "\n  ".join(found)
        raise ValueError(
            f"classifier was trained for another model:\n  {listed}\n"
            "train one on the same data under the same process and schedule"
        )
    weight: Any = 0.0 if w is None else w
    if experiment.classes:
        inner: Denoiser = network
    else:
        inner = guidance.unconditional(network)
        weight = jax.tree_util.Partial(_one_more, weight) if callable(weight) else 1 + weight
    log_prob: NetworkClassifier = other.classifier(params)
    return guidance.classifier(inner, log_prob, weight, process=network.process)


def _one_more(w: Callable[[Any], Array], t: Any) -> Array:
    return 1 + w(t)


def _checked(labels: Any, n: int, classes: int, *, least: int) -> Int32[np.ndarray, "..."]:
    """One label for all, or n, as numbers within range."""
    found = np.asarray(labels)
    if found.shape not in ((), (n,)) or found.dtype.kind not in "iu":
        raise ValueError(f"labels = {labels!r}; give one whole number, or one for each of n = {n} samples")
    if wrong := sorted({int(label) for label in found.ravel() if not least <= label < classes}):
        none = ", or -1 for none" if least < 0 else ""
        raise ValueError(f"labels holds {wrong[0]}; the rule is 0 <= label < {classes}{none}")
    return found.astype(np.int32)
