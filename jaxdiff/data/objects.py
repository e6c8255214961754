"""Data sets from what users have: arrays, pairs of arrays, `.npz` files, and any object with `len` and `[i]`."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdiff.data.base import AXES, Dataset, DataSpec, Examples, Source, as_condition, check_each, shapes_of
from jaxdiff.progress import tqdm
from jaxdiff.storage import opened, user_path
from jaxdiff.typing import InputError, first_line

_RULE = (
    "give a jaxdiff.data.Dataset, (x, labels) or x alone: uint8 or float32 (n, ...), and integers (n,) or None; or a "
    'mapping of arrays with "x", "labels", "vector", "image" or "tokens"; or an object with len and [i], where [i] is '
    "an example, (example, label) or such a mapping of one example"
)
_CHUNK = 256  # examples that are taken at once


def from_object(name: str, found: Any) -> Source:
    """Return the data set of what a user gave: a data set, arrays, or an object with len and [i].

    Arrays are x alone, (x, labels), or a mapping with "x" and perhaps "labels" and the conditions of
    `jaxdiff.data.Examples`. Floating-point arrays are continuous data, uint8 ones have 256 levels; uint8 images among
    the conditions become float32 in [−1, 1]. [i] is an example, a pair (example, label) or a mapping with "x" and
    perhaps "label" and conditions. An object may have the attributes `classes`, the number of its labels or their
    names, and `fingerprint()`.

    Raises:
      InputError: if it is none of these, or examples or labels are invalid.
    """
    if all(hasattr(found, part) for part in ("take", "spec", "varies", "fingerprint")):
        return found
    if isinstance(found, np.ndarray) or hasattr(found, "__array__"):
        found = (found, None)
    if isinstance(found, tuple) and len(found) == 2:
        return _from_arrays(name, *found)
    if isinstance(found, Mapping) and "x" in found:
        cond = {key: part for key, part in found.items() if key not in ("x", "labels")}
        return _from_arrays(name, found["x"], found.get("labels"), cond)
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")) or isinstance(found, str | Mapping | tuple):
        raise InputError(f"data {name!r} is a {type(found).__name__}; {_RULE}")
    if not len(found):
        raise InputError(f"data {name!r} has no examples")
    x, label, cond = _parts(name, found[0], 0)
    levels = 256 if x.dtype == np.uint8 else None
    classes: Any = getattr(found, "classes", None)
    names = tuple(map(str, classes)) if isinstance(classes, Sequence) else None
    if label is not None and classes is None:
        raise InputError(f"data {name!r} has labels; give it the attribute classes, their number or their names")
    count = None if label is None else len(names) if names is not None else int(classes)
    shapes = shapes_of({kind: part[None] for kind, part in cond.items()})
    options: Any = {"class_names": names if count else None, "conditions": shapes}
    return Given(name=name, examples=found, spec=DataSpec(shape=x.shape, levels=levels, classes=count, **options))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """An object of a user with len and [i]; `from_object` makes it."""

    name: str
    examples: Any
    spec: DataSpec

    @property
    def varies(self) -> bool:
        """False: an example is the same whenever it is taken."""
        return False

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices, or raise an InputError that names an example unlike the first."""
        found = [self._example(int(i)) for i in indices]
        wanted = np.dtype(np.float32 if self.spec.levels is None else np.uint8)
        for i, (x, label, cond) in zip(indices, found, strict=True):
            if x.shape != self.spec.shape or x.dtype != wanted or (label is None) != (self.spec.classes is None):
                has = "no label" if label is None else "a label"
                raise InputError(
                    f"data {self.name!r}: example {i} is {x.dtype}{x.shape} with {has}; the first one is "
                    f"{wanted}{self.spec.shape} with {'no label' if self.spec.classes is None else 'a label'}"
                )
            floats = [x, *(part for part in cond.values() if part.dtype != bool)]
            if not all(np.isfinite(part).all() for part in floats):
                raise InputError(f"data {self.name!r}: example {i} has values that are not finite; leave it out")
            if label is not None and not 0 <= label < (self.spec.classes or 0):
                rule = f"it must lie in 0 ... {(self.spec.classes or 0) - 1}"
                raise InputError(f"data {self.name!r}: example {i} has the label {label}; {rule}")
            shapes = {name: part.shape for name, part in cond.items()}
            if shapes != (first := {name: part.shape for name, part in found[0][2].items()}):
                raise InputError(
                    f"data {self.name!r}: example {i} has conditions of shapes {shapes}, another one {first}; give all "
                    "the same, tokens padded to one length with a tokens_mask"
                )
        labels = None if self.spec.classes is None else np.array([label for _, label, _ in found], np.int32)
        conditions = {name: np.stack([cond[name] for *_, cond in found]) for name in found[0][2]}
        # A `Dataset` checks the values.
        checked = Dataset(
            name=self.name,
            x=np.stack([x for x, *_ in found]),
            labels=labels,
            levels=self.spec.levels,
            classes=self.spec.classes,
            cond=conditions or None,
        )
        return Examples(checked.x, checked.labels, checked.cond)

    def _example(self, i: int) -> tuple[np.ndarray, int | None, dict[str, np.ndarray]]:
        try:
            example = self.examples[i]
        except Exception as error:
            error.add_note(f"This is what [{i}] of data {self.name!r} raised.")
            raise
        return _parts(self.name, example, i)

    def fingerprint(self) -> str:
        """Return that of the object if it has one, or else a hash of its length and of 64 examples."""
        own = getattr(self.examples, "fingerprint", None)
        if own is not None:
            return str(own() if callable(own) else own)
        found = hashlib.blake2b(str(len(self)).encode(), digest_size=16)
        some = self.take(np.unique(np.linspace(0, len(self) - 1, 64).astype(int)))
        for part in (some.x, some.labels, *(part for _, part in sorted((some.cond or {}).items()))):
            found.update(b"" if part is None else np.ascontiguousarray(part).data)
        return found.hexdigest()


def in_memory(source: Source) -> Dataset:
    """Return all examples of a data set that does not vary, in memory."""
    if isinstance(source, Dataset):
        return source
    n, spec = len(source), source.spec
    x = np.empty((n, *spec.shape), np.float32 if spec.levels is None else np.uint8)
    labels: Any = None if spec.classes is None else np.empty(n, np.int32)
    cond: dict[str, np.ndarray] = {}
    for start in tqdm(range(0, n, _CHUNK), desc=f"Reading {source.name}", unit=f"×{_CHUNK} examples", delay=2):
        rows = np.arange(start, min(start + _CHUNK, n))
        found = source.take(rows)
        x[rows] = found.x
        if labels is not None:
            labels[rows] = found.labels
        for name, part in (found.cond or {}).items():
            cond.setdefault(name, np.empty((n, *part.shape[1:]), part.dtype))[rows] = part
    options: Any = {"levels": spec.levels, "classes": spec.classes, "class_names": spec.class_names}
    return Dataset(name=source.name, x=x, labels=labels, cond=cond or None, **options)


def load_npz(name: str, split: str) -> Dataset:
    """Return the arrays of "npz:FILE": x and labels, or for the test split x_test and labels_test.

    x is uint8 of 256 levels or floating-point, (n, ...); labels are integers (n,), and may be left out, as may the
    conditions vector, image, tokens and tokens_mask of `jaxdiff.data.Examples`. A file with one array holds x. Objects
    in the file are never loaded.

    Raises:
      InputError: if the file can't be read, or lacks the arrays of this split.
    """
    path = user_path(name.partition(":")[2], what="name")
    try:
        with opened(path) as content, np.load(content, allow_pickle=False) as file:
            keys = list(file.files)
            end = "" if split == "train" else "_test"
            key = keys[0] if split == "train" and len(keys) == 1 else f"x{end}"
            if key not in keys:
                raise InputError(f"name = {name!r} holds {', '.join(keys)}; the {split} split needs x{end}")
            x, labels = file[key], file[f"labels{end}"] if f"labels{end}" in keys else None
            cond = {kind: file[kind + end] for kind in (*AXES, "tokens_mask") if kind + end in keys}
    except InputError:
        raise
    except Exception as error:  # NumPy promises no type for what a damaged file raises
        reason = first_line(error)
        raise InputError(f"name = {name!r} can't be read ({reason}); give a .npz file of plain arrays") from error
    return _from_arrays(name, x, labels, cond)


def _parts(name: str, example: Any, i: int) -> tuple[np.ndarray, int | None, dict[str, np.ndarray]]:
    """The array, the label and the further conditions of one example."""
    label, cond = None, {}
    if isinstance(example, Mapping):
        if not {"x"} <= {*example} <= {"x", "label", *AXES, "tokens_mask"}:
            raise InputError(f"data {name!r}: example {i} has the parts {', '.join(map(str, example))}; {_RULE}")
        cond = {key: as_condition(key, part) for key, part in example.items() if key not in ("x", "label")}
        example, label = example["x"], example.get("label")
    elif isinstance(example, tuple):
        if len(example) != 2:
            raise InputError(f"data {name!r}: example {i} is a tuple of {len(example)}; {_RULE}")
        example, label = example
    x = np.asarray(example)
    if not x.ndim or (x.dtype != np.uint8 and x.dtype.kind != "f"):
        raise InputError(f"data {name!r}: example {i} is {x.dtype}{x.shape}; {_RULE}")
    if label is not None and (np.ndim(label) or np.asarray(label).dtype.kind not in "iu"):
        raise InputError(f"data {name!r}: example {i} has the label {label!r}; it must be a whole number")
    return (x if x.dtype == np.uint8 else x.astype(np.float32)), None if label is None else int(label), cond


def _from_arrays(name: str, x: Any, labels: Any, cond: Mapping[str, Any] | None = None) -> Dataset:
    x, labels = np.asarray(x), None if labels is None else np.asarray(labels)
    if x.ndim < 2 or not x.size or (x.dtype != np.uint8 and x.dtype.kind != "f"):
        raise InputError(f"data {name!r} has x = {x.dtype}{x.shape}; {_RULE}")
    if labels is not None and (labels.shape != x.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(f"data {name!r} has labels = {labels.dtype}{labels.shape}; {_RULE}")
    if labels is not None:
        check_each(f"data {name!r}: labels", labels, (labels >= 0) & (labels < 2**31), "must lie in 0 ... 2^31 - 1")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which a `Dataset` refuses
        x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return Dataset(
        name=name,
        x=x,
        labels=None if labels is None else labels.astype(np.int32),
        levels=256 if x.dtype == np.uint8 else None,
        classes=None if labels is None else int(labels.max()) + 1,
        cond={kind: as_condition(kind, part) for kind, part in (cond or {}).items()} or None,
    )
