"""What a data set is: random access to raw examples, and the properties that a model depends on.

A raw example holds uint8 levels 0 … levels − 1, or continuous float32 values. `normalize` maps levels to [−1, 1].
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Num, UInt8

from jaxdiff import registry
from jaxdiff.typing import Count, InputError, Shape, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The properties of a data set that a model depends on."""

    shape: Shape  # of one example
    levels: int | None
    """Number of values that a coordinate can take, evenly spaced in [-1, 1]; None for continuous, unbounded data."""
    classes: Count | None = None  # None for data without labels
    class_names: tuple[str, ...] | None = None  # of each class, if they have names
    # The shapes of what an example is given with beside its label, by kind; see `Examples`.
    conditions: Mapping[str, Shape] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        registry.check_types(self)
        if not 1 <= len(self.shape) <= 8 or min(self.shape) < 1 or math.prod(self.shape) > 2**26:
            raise InputError(f"shape = {shown(self.shape)}; it must be 1 to 8 sizes of at least 1, of product <= 2^26")
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise InputError(f"levels = {self.levels}; must satisfy 2 <= levels <= 256, or None for continuous data")
        if self.classes is not None and self.classes < 1:
            raise InputError(f"classes = {self.classes}; it must be 1 or more, or None for data without labels")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise InputError(f"class_names has {len(self.class_names)} names for classes = {self.classes}")
        for kind, shape in self.conditions.items():
            if kind not in AXES:
                raise InputError(f"conditions holds {kind!r}; the known ones are {', '.join(AXES)}")
            axes = AXES[kind] or len(self.shape)
            if not isinstance(shape, tuple) or len(shape) != axes or not 0 < math.prod(shape) <= 2**26:
                raise InputError(
                    f"conditions.{kind} = {shown(shape)}; each example must have a {kind} of {axes} axes and 1 to 2^26 "
                    "numbers"
                )


AXES = {"vector": 1, "image": 0, "tokens": 2}  # of each kind of condition; an image has those of the example


class Examples(NamedTuple):
    """Raw examples with a leading axis, their labels, and their further conditions by kind, as networks get them.

    vector  float32 (n, d)
    image   float32 (n, *sizes, channels): a picture as large as the example or smaller, or a signal or volume
    tokens  float32 (n, length, d), with an optional mask: `tokens_mask`, bool (n, length), False for padding
    """

    x: Num[Any, "..."]
    labels: Int32[Any, "..."] | None
    cond: Mapping[str, Any] | None = None


class Source(Protocol):
    """A data set with random access. `Dataset` is one in memory, `Pictures` one in files."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def spec(self) -> DataSpec:
        """Its properties that a model depends on."""

    @property
    def varies(self) -> bool:
        """Whether examples depend on the seed and the step, as by a random crop."""

    def __len__(self) -> int: ...

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices, as step `step` of a run with this seed sees them."""

    def fingerprint(self) -> str:
        """Return a text that changes when the data change."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One split of a data set, whole and in memory."""

    name: str
    x: UInt8[np.ndarray, "n *shape"] | Float32[np.ndarray, "n *shape"]
    """Levels 0 .. levels - 1 as uint8, or continuous data as float32."""
    labels: Int32[np.ndarray, "n"] | None  # 0 .. classes - 1
    levels: int | None
    classes: int | None
    class_names: tuple[str, ...] | None = None
    cond: Mapping[str, np.ndarray] | None = None  # further conditions: see `Examples`

    def __post_init__(self) -> None:
        """Raise an InputError that names the first example which breaks a rule above."""
        check_cond(f"data set {self.name!r}", self.cond or {}, len(self.x))
        x, wanted = self.x, np.uint8 if self.levels is not None else np.float32
        what = f"data set {self.name!r}"
        if not isinstance(x, np.ndarray) or x.dtype != wanted or x.ndim < 2 or not x.size:
            found = f"{x.dtype}{x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise InputError(
                f"{what} has x = {found} with levels = {self.levels}; x must be a NumPy array (n, ...) of at least one "
                "example, uint8 with levels or float32 without"
            )
        if self.levels is None:
            check_each(f"{what}: x", x, np.isfinite(x), "must be finite")
        elif not 2 <= self.levels <= 256:
            raise InputError(f"{what} has levels = {self.levels}; there must be 2 to 256, the values of uint8")
        elif x.max() >= self.levels:
            check_each(f"{what}: x", x, x < self.levels, f"must be below levels = {self.levels}")
        labels, classes = self.labels, self.classes
        if labels is None and classes is None:
            return
        if not isinstance(labels, np.ndarray) or labels.shape != x.shape[:1] or labels.dtype != np.int32 or not classes:
            found = f"{labels.dtype}{labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise InputError(
                f"{what} has labels = {found} and classes = {classes} for {len(x)} examples; labels must be an int32 "
                f"array ({len(x)},) with classes >= 1, or both None"
            )
        check_each(f"{what}: labels", labels, (labels >= 0) & (labels < classes), f"must lie in 0 ... {classes - 1}")

    @property
    def shape(self) -> Shape:
        """Shape of one example."""
        return self.x.shape[1:]

    @property
    def spec(self) -> DataSpec:
        """Its properties that a model depends on."""
        conditions = shapes_of(self.cond or {})
        options: Any = {"class_names": self.class_names, "conditions": conditions}
        return DataSpec(shape=self.shape, levels=self.levels, classes=self.classes, **options)

    @property
    def varies(self) -> bool:
        """False: an example is the same whenever it is taken."""
        return False

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices."""
        cond = None if self.cond is None else {name: part[indices] for name, part in self.cond.items()}
        return Examples(self.x[indices], None if self.labels is None else self.labels[indices], cond)

    def fingerprint(self) -> str:
        """Return a hash of all examples, labels and further conditions."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.x, self.labels, *(part for _, part in sorted((self.cond or {}).items()))):
            if part is not None:
                found.update(f"{part.dtype}{part.shape}".encode())
                found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


def shapes_of(cond: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Return the shape of each kind of condition, without the leading axis."""
    return {kind: cond[kind].shape[1:] for kind in AXES if kind in cond}


def as_condition(kind: str, value: Any) -> np.ndarray:
    """Return an array as `Examples` holds it: a mask as bool, a uint8 image as float32 in [−1, 1], others as float32.

    Raises an InputError if it is no array of numbers.
    """
    try:
        found = np.asarray(value)
    except ValueError:  # rows of unequal lengths
        found = np.asarray(None)
    if found.dtype.kind not in "biuf":
        raise InputError(f"the condition {kind} = {shown(value)}; it must be one array of numbers, padded if need be")
    if kind == "tokens_mask":
        return found.astype(bool)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        is_picture = kind == "image" and found.dtype == np.uint8
        return np.asarray(normalize(found, 256) if is_picture else found.astype(np.float32))


def check_cond(what: str, cond: Mapping[str, Any], n: int) -> None:
    """Raise an InputError unless these are conditions of n examples: see `Examples`."""
    for name, part in cond.items():
        is_mask = name == "tokens_mask"
        if name not in AXES and not is_mask:
            raise InputError(f"{what} has the condition {name!r}; the known ones are labels, {', '.join(AXES)}")
        wanted = np.dtype(bool if is_mask else np.float32)
        if not isinstance(part, np.ndarray) or part.dtype != wanted or part.shape[:1] != (n,):
            found = f"{part.dtype}{part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
            raise InputError(f"{what} has {name} = {found}; it must be a NumPy array {wanted} ({n}, ...)")
        if is_mask and part.shape != getattr(cond.get("tokens"), "shape", ())[:2]:
            raise InputError(f"{what} has tokens_mask of shape {part.shape}; it must have the first two axes of tokens")
        if not is_mask:
            check_each(f"{what}: {name}", part, np.isfinite(part), "must be finite")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some examples of a data set, by their indices in it. `hold_out` makes it."""

    source: Source
    rows: Int[np.ndarray, " n"]

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.source.name

    @property
    def spec(self) -> DataSpec:
        """The properties of the data set."""
        return self.source.spec

    @property
    def varies(self) -> bool:
        """Whether the examples of the data set vary."""
        return self.source.varies

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Int[np.ndarray, " n"], *, seed: int = 0, step: int = 0) -> Examples:
        """Return the examples with these indices in `rows`."""
        return self.source.take(self.rows[indices], seed=seed, step=step)

    def fingerprint(self) -> str:
        """Return that of the data set, with the number of examples and a hash of their indices."""
        found = hashlib.blake2b(self.rows.astype(np.int64).tobytes(), digest_size=8).hexdigest()
        return f"{self.source.fingerprint()}-{len(self.rows)}-{found}"


def hold_out(source: Source, n: int) -> tuple[Part, Part]:
    """Return all but n examples of a data set, and these n, which are drawn by the length of the set alone.

    Raises:
      InputError: unless 1 <= n < len(source).
    """
    if not 1 <= n < len(source):
        raise InputError(f"held_out = {n}, but {source.name!r} has {len(source)} examples; hold out 1 or more, not all")
    order = np.random.default_rng(0).permutation(len(source))
    return Part(source=source, rows=np.sort(order[n:])), Part(source=source, rows=np.sort(order[:n]))


def check_each(what: str, values: np.ndarray, valid: np.ndarray, rule: str) -> None:
    """Raise an InputError about the first value that breaks a rule."""
    if not valid.all():
        index = np.unravel_index(valid.argmin(), valid.shape)
        raise InputError(
            f"{what}[{index[0]}] holds {values[index]}; it {rule}: mend example {index[0]} or leave it out"
        )


def normalize(
    x: Num[np.ndarray, "*shape"] | Num[jax.Array, "*shape"], levels: int | None
) -> Float32[np.ndarray, "*shape"] | Float32[jax.Array, "*shape"]:
    """Map raw values 0 .. levels - 1 to float32 in [-1, 1]: 2 x / (levels - 1) - 1.

    Works inside jit too. With levels=None (continuous data) x is returned as it is.
    """
    if levels is None:
        return x
    # The numerator is exact, so neither end leaves [-1, 1] by rounding, whatever a compiler makes of the division.
    return (2 * x.astype(np.float32) - (levels - 1)) / (levels - 1)


def quantize(x: Float[np.ndarray, "*shape"], levels: int) -> Float32[np.ndarray, "*shape"]:
    """Round every value to the nearest level -1 + 2 k / (levels - 1), as `normalize` makes them."""
    nearest = np.clip(np.round((x + 1) * (levels - 1) / 2), 0, levels - 1)
    return np.asarray(normalize(nearest, levels))
