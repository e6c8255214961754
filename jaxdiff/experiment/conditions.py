"""What the network of an experiment is conditioned on: the shapes, the null condition, and dropping in training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data import DataSpec, as_condition
from jaxdiff.denoisers.conditions import drop
from jaxdiff.experiment.config import Config
from jaxdiff.typing import InputError, PyTree, RandomKey, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The conditions of a network and how often each is dropped; made by `conditioning`.

    A network with a label alone gets the labels, one with other conditions a mapping as in `jaxdiff.models.conditions`.
    """

    classes: int  # 0 without a label
    shapes: Mapping[str, Shape]  # of the other conditions, by kind
    p: Mapping[str, float]  # the probability of dropping each kind in training

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of all conditions, the label first."""
        return (*(("label",) if self.classes else ()), *self.shapes)

    @property
    def null(self) -> PyTree:
        """The null condition, without the parts that are never dropped; None if none is."""
        parts = [self._null(kind) for kind in self.kinds if self.p[kind]]
        if not self.shapes:
            return -1 if parts else None
        return {name: value for part in parts for name, value in part.items()} or None

    def of(self, labels: Any, given: Mapping[str, Any] | None) -> PyTree:
        """Return the condition of n examples of the data as the network gets it; None if it is unconditional."""
        if not self.shapes or given is None:
            return labels if self.classes else None
        found = {"label": labels} if self.classes else {}
        for kind in self.shapes:
            part, mask = given[kind], given.get(f"{kind}_mask")
            every = jnp.ones(part.shape[: 2 if kind == "tokens" else 1], bool)
            found |= {kind: part, f"{kind}_mask": every if mask is None else mask}
        return found

    def absent(self, n: int) -> PyTree:
        """Return the condition of n examples that have none, in NumPy arrays."""
        if not self.shapes:
            return np.full(n, -1, np.int32) if self.classes else None
        found: dict[str, np.ndarray] = {"label": np.full(n, -1, np.int32)} if self.classes else {}
        for kind, shape in self.shapes.items():
            mask = np.zeros((n, *shape[: kind == "tokens"]), bool)
            found |= {kind: np.zeros((n, *shape), np.float32), f"{kind}_mask": mask}
        return found

    def dropped(self, key: RandomKey, cond: PyTree) -> PyTree:
        """Return the condition of one example with each part dropped with its own probability."""
        if not self.shapes:
            return drop(key, cond, -1, self.p["label"])
        for i, kind in enumerate(self.kinds):
            cond = drop(jax.random.fold_in(key, i), cond, self._null(kind), self.p[kind])
        return cond

    def rows(self, given: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
        """Return the condition of n samples that a user asks for, one of each kind for all samples or n of them.

        Conditions that are not given are absent.

        Raises:
          InputError: if one has another shape, the network has no place for it, or it never saw examples without one.
        """
        found = self.absent(n)
        for name in given:
            if name.removesuffix("_mask") not in self.shapes or name in ("vector_mask", "image_mask"):
                raise InputError(f"cond has {name!r}, but the conditions of this model are {', '.join(self.kinds)}")
            if name == "tokens_mask" and given.get("tokens") is None:
                raise InputError("cond has 'tokens_mask' without 'tokens'; give the tokens too")
        for kind, shape in self.shapes.items():
            if given.get(kind) is None:
                if not self.p[kind]:
                    raise InputError(
                        f"cond has no {kind!r}, but this model never saw an example without it (cond.{kind} = "
                        f"{self.p[kind]}); give one"
                    )
                continue
            part = as_condition(kind, given[kind])
            ours = shape[1:] if kind == "tokens" else shape  # sequences may have any length
            if part.shape[-len(ours) :] != ours or part.ndim not in (len(shape), len(shape) + 1):
                raise InputError(f"cond[{kind!r}] has shape {part.shape}; it must be {shape}, or ({n}, *{shape})")
            part = np.broadcast_to(part, (n, *part.shape[-len(shape) :])) if part.ndim == len(shape) else part
            if len(part) != n:
                raise InputError(f"cond[{kind!r}] has {len(part)} rows for n = {n} samples; give one, or {n}")
            if not np.isfinite(part).all():
                raise InputError(f"cond[{kind!r}] has values that are not finite")
            shown = part.shape[:2] if kind == "tokens" else (n,)
            mask = np.asarray(given.get(f"{kind}_mask", True), bool)
            if mask.shape not in ((), shown, shown[1:]):
                raise InputError(f"cond['{kind}_mask'] has shape {mask.shape}; it must be {shown[1:]} or {shown}")
            found |= {kind: part, f"{kind}_mask": np.broadcast_to(mask, shown)}
        return found

    def _null(self, kind: str) -> dict[str, Any]:
        return {"label": -1} if kind == "label" else {kind: 0.0, f"{kind}_mask": False}


def conditioning(config: Config, spec: DataSpec) -> Conditioning:
    """Return the conditions of the network that a config trains on data of this spec.

    Raises:
      InputError: if the network is to be conditioned on what the data set lacks.
    """
    name, used = config.data.name, config.cond.used
    if (user := config.labels_used_by) and spec.classes is None:
        raise InputError(f"{user} is trained on labels, but data {name!r} has none; use a data set with labels")
    for kind in [kind for kind in used if kind != "label" and kind not in spec.conditions]:
        has = ", ".join(spec.conditions) or "none"
        raise InputError(
            f"cond.{kind} = {used[kind]}, but the examples of data {name!r} have no such condition ({has}); give it in "
            "the data set, or compute it by data.derive"
        )
    shapes = {kind: spec.conditions[kind] for kind in used if kind != "label"}
    return Conditioning(classes=(spec.classes or 0) if "label" in used else 0, shapes=shapes, p=used)
