"""From the labels, the conditions and the guidance that a user asks for to a denoiser and its conditions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int32, Integer

from jaxdiff.denoisers import guidance
from jaxdiff.denoisers.guidance import Composition, Weight
from jaxdiff.experiment.build import Experiment
from jaxdiff.processes import Denoiser
from jaxdiff.registry import differences
from jaxdiff.schedules import Schedule
from jaxdiff.typing import InputError, PyTree, Scalar, Time, shown

Labels = int | Sequence[int] | Integer[np.ndarray | Array, " n"] | Mapping[int, float]
Trained = tuple[Experiment, PyTree]  # with its parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What samples are asked to be; `Run.sample` documents it."""

    labels: Labels | None = None
    cond: Mapping[str, Any] | None = None
    guidance: Weight | None = None
    classifier: Trained | None = None


def condition(experiment: Experiment, params: PyTree, n: int, asked: Asked) -> tuple[Denoiser, PyTree]:
    """Return the guided denoiser, without clipping, and the conditions of n samples for it.

    Raises an InputError if the model can't take the conditions, or was not trained for the guidance.
    """
    if experiment.classifies:
        raise InputError("this run is a classifier, which draws no samples; give it as the classifier of a model")
    labels, w, classifier = asked.labels, asked.guidance, asked.classifier
    cond = {kind: part for kind, part in (asked.cond or {}).items() if part is not None}
    if "label" in cond:
        if labels is not None:
            raise InputError("labels and cond['label'] are the same condition; give one of them")
        labels = cond.pop("label")
    network, classes, p_uncond = experiment.network(params), experiment.classes, experiment.config.cond.label
    weight = guidance.as_weight("guidance", 0.0 if w is None else w)
    plain = isinstance(weight, np.ndarray) and not weight
    if experiment.conditioning.shapes:
        if classifier is not None or isinstance(labels, Mapping):
            what = "classifier" if classifier is not None else f"labels = {labels!r}"
            raise InputError(f"{what} cannot be combined with the other conditions of this model; leave it out")
        rows: Any = experiment.conditioning.rows(cond, n)
        if labels is not None or classes:
            rows["label"] = np.broadcast_to(_label_rows(experiment, labels, n), n)
        if not plain and labels is None and not cond:
            raise InputError(f"guidance = {w!r} guides towards a condition; give labels or cond too")
        return (network if plain else _classifier_free(network, weight, w)), rows
    if cond:
        has = "a label" if classes else "none"
        raise InputError(f"cond has {next(iter(cond))!r}, but the conditions of this model are: {has}")
    if labels is None:
        if not plain or classifier is not None:
            raise InputError(f"guidance = {w!r} guides towards a label; give labels too")
        if classes:
            _check_null(p_uncond, "labels = None")
        return network, None
    if classifier is not None:
        if classes and plain:
            raise InputError(f"guidance = {w!r} does not guide a conditional model; give a weight for the classifier")
        denoiser = _guided_by(classifier, experiment, network, weight)
        classes = classifier[0].classes
    elif not classes:
        raise InputError(
            f"labels = {labels!r}, but this model is unconditional: it was trained without labels; leave them out, "
            "give a classifier, or train a model with cond.label = 0.1"
        )
    elif plain:
        denoiser = network
    else:
        _check_null(p_uncond, f"guidance = {w!r}")
        denoiser = guidance.classifier_free(network, weight)
    if isinstance(labels, Mapping):
        if classifier is not None:
            raise InputError(f"labels = {labels!r} is a composition, which no classifier can guide; give one label")
        return guidance.composed(denoiser), _composition(labels, n, classes)
    found = _checked(labels, n, classes, least=0 if classifier else -1)
    if np.any(found < 0):
        _check_null(p_uncond, "labels = -1")
    return denoiser, np.broadcast_to(found, n)


def _label_rows(experiment: Experiment, labels: Any, n: int) -> Int32[np.ndarray, "..."]:
    """The labels of a model with other conditions, −1 for none."""
    if not experiment.classes:
        raise InputError(f"labels = {labels!r}, but this model was trained without labels; leave them out")
    found = _checked(-1 if labels is None else labels, n, experiment.classes, least=-1)
    if np.any(found < 0):
        _check_null(experiment.config.cond.label, f"labels = {labels}")
    return found


def _classifier_free(network: Denoiser, weight: Weight, w: Any) -> Denoiser:
    if guidance.null_condition(network) is None:
        raise InputError(
            f"guidance = {w!r}, but this model never saw an example without its conditions; train one with "
            "cond.image = 0.1 or the like"
        )
    return guidance.classifier_free(network, weight)


def _check_null(p_uncond: float | None, what: str) -> None:
    """Raise an InputError if the network was never trained without a label."""
    if not p_uncond:
        raise InputError(
            f"{what}, but this model was trained with cond.label = {p_uncond}: it never saw an example without its "
            "label; train one with cond.label = 0.1"
        )


def _guided_by(classifier: Trained, experiment: Experiment, network: Denoiser, weight: Weight) -> Denoiser:
    """The network guided by a classifier of the same data under the same process and schedule."""
    other, params = classifier
    if not other.classifies:
        raise InputError("classifier is the run of a denoiser; train one with the model 'classifier'")
    if experiment.learns_schedule:
        raise InputError("classifier: this model has learned its schedule, under which none was trained; leave it out")
    ours, theirs = (
        {"data": e.config.data.name, "shape": e.shape, "process": e.config.process, "schedule": e.config.schedule}
        for e in (experiment, other)
    )
    if found := differences(ours, theirs):
        listed = "\n  ".join(found)
        raise InputError(
            f"classifier was trained for another model:\n  {listed}\n"
            "train one on the same data under the same process and schedule"
        )
    if not experiment.classes:
        network = guidance.unconditional(network)
        weight = jax.tree_util.Partial(_one_more, weight, network.process.schedule)
    return guidance.classifier(network, other.classifier(params), weight)


def _one_more(w: Weight, schedule: Schedule, t: Time) -> Scalar:
    return 1 + guidance.weight_at(w, t, schedule)


def _composition(labels: Mapping[int, float], n: int, classes: int) -> Composition:
    parts = _checked(list(labels), len(labels), classes, least=0)
    weights = np.asarray(list(labels.values()))
    if weights.dtype.kind not in "iuf":
        raise InputError(f"labels = {shown(labels)}; the weights of a composition must be numbers")
    weights = weights.astype(np.float32)
    if not abs(weights.sum() - 1) < 1e-3:
        raise InputError(
            f"labels = {labels!r}: the weights of a composition sum to {weights.sum():g}; they must sum to 1"
        )
    return Composition(*(np.broadcast_to(part, (n, len(labels))) for part in (parts, weights)))


def _checked(labels: Any, n: int, classes: int, *, least: int) -> Int32[np.ndarray, "..."]:
    """One label for all samples, or n, as integers in range."""
    found = np.asarray(labels)
    if found.shape not in ((), (n,)) or found.dtype.kind not in "iu":
        raise InputError(f"labels = {labels!r}; give one whole number, or one for each of n = {n} samples")
    if wrong := sorted({int(label) for label in found.ravel() if not least <= label < classes}):
        none = ", or -1 for none" if least < 0 else ""
        raise InputError(f"labels holds {wrong[0]}; must satisfy 0 <= label < {classes}{none}")
    return found.astype(np.int32)
