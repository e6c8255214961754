"""Checkpoints: written in the background, only the newest and the best kept, checked for damage.

A checkpoint holds named items, each a pytree. Orbax writes it under a temporary name and renames it once it is whole,
so that a run killed at any moment leaves whole ones only. Later damage is found by a fingerprint that is stored with
every array (the file format detects damage to its index but not to the values):

    f = Σ_i (2i + 1) bits_i  mod 2^32

It changes with any single element, since the weights are odd.

A checkpoint of a step that was evaluated keeps the loss on held-out examples. The best one is that of the least such
loss among those that were measured in the same way as the last; it is kept in its place, without a copy.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from jaxdiff import buckets
from jaxdiff.experiment.workdir import side_folder
from jaxdiff.storage import AnyPath, absolute, exists, move, size_of
from jaxdiff.typing import InputError, PyTree, first_line

_log = logging.getLogger(__name__)

_NOTES = "notes"
_MOST_BYTES = 2**26  # of notes


class NoCheckpointError(InputError):
    """There is no checkpoint, or no whole one."""


class Evaluated(NamedTuple):
    """The loss on held-out examples at a step."""

    eval_loss: float
    eval_on: str  # a text that is the same for losses that can be compared


@dataclasses.dataclass
class _Kept:
    """Which checkpoints Orbax keeps: the newest ones, and the best one."""

    newest: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether to keep each of the checkpoints, which are in the order of their steps."""
        first = len(checkpoints) - self.newest
        return [i >= first or found.step == self.best for i, found in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: AnyPath, *, keep: int | None = None) -> None:
        self._folder = absolute(folder)
        # keep=None only reads, perhaps while another process writes: nothing may be cleaned up.
        writes = keep is not None
        self._kept = None if keep is None else _Kept(newest=keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, create=writes, cleanup_tmp_directories=writes
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self.stored = self._begun = 0  # the newest steps known to be whole, and begun

    def save(
        self,
        step: int,
        items: dict[str, PyTree],
        notes: dict[str, Any] | None = None,
        evaluated: Evaluated | None = None,
    ) -> None:
        """Start writing the items of `step`, and return once their arrays may be overwritten.

        `notes` are plain values for JSON, which `notes_of` returns, together with `evaluated`.
        """
        if step in self._manager.all_steps():
            return
        buckets.check_held(self._folder)
        saved: dict[str, Any] = {
            name: ocp.args.StandardSave({"values": values, "fingerprint": fingerprint(values)})
            for name, values in items.items()
        }
        if notes is not None or evaluated is not None:
            saved[_NOTES] = ocp.args.JsonSave({**(notes or {}), **(evaluated._asdict() if evaluated else {})})
        if evaluated is not None:
            self._evaluated[step] = evaluated
        if self._kept is not None:
            self._kept.best = next(iter(self._by_loss([*self.steps(), step])), None)
        self.wait()  # as Orbax would
        self._manager.save(step, args=ocp.args.Composite(**saved))
        self._begun = step

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def only(self, step: int) -> list[int]:
        """Return a step in a list; raise a NoCheckpointError that lists the kept ones if it has no checkpoint."""
        if step not in (kept := self.steps()):
            listed = ", ".join(map(str, sorted(kept))) or "none"
            raise NoCheckpointError(f"step = {step} is not kept in {self._folder}; the kept ones are {listed}")
        return [step]

    def best(self) -> list[int]:
        """Return the steps that were evaluated in the same way as the last of them, the best first.

        Raises a NoCheckpointError if no checkpoint was evaluated.
        """
        if not (found := self._by_loss(self.steps())):
            raise NoCheckpointError(
                f"weights = 'best', but no checkpoint in {self._folder} was evaluated; train with every.evaluate set, "
                "or take other weights"
            )
        return found

    def improves(self, evaluated: Evaluated) -> bool:
        """Return whether a step is better than those that are kept and were evaluated in the same way."""
        best = next(iter(self._by_loss(self.steps())), None)
        if best is None or self._evaluated[best].eval_on != evaluated.eval_on:
            return math.isfinite(evaluated.eval_loss)
        return evaluated.eval_loss < self._evaluated[best].eval_loss

    def _by_loss(self, steps: Sequence[int]) -> list[int]:
        found = {step: self._evaluated[step] for step in sorted(steps) if step in self._evaluated}
        on = [evaluated.eval_on for evaluated in found.values()][-1:]
        same = [step for step in found if found[step].eval_on in on and math.isfinite(found[step].eval_loss)]
        return sorted(same, key=lambda step: found[step].eval_loss)

    @functools.cached_property
    def _evaluated(self) -> dict[int, Evaluated]:
        """The losses on held-out examples, by step."""
        found = {step: self.notes_of(step) or {} for step in self.steps()}
        pairs = {step: (notes.get("eval_loss"), notes.get("eval_on")) for step, notes in found.items()}
        return {
            step: Evaluated(loss, on)
            for step, (loss, on) in pairs.items()
            if isinstance(loss, float) and isinstance(on, str)
        }

    def verify(self, step: int, abstract: dict[str, PyTree]) -> None:
        """Wait until the items of `step` are on disk and read them back, or raise a NoCheckpointError."""
        self.wait()
        for name, item in abstract.items():  # one after the other, to need the memory of one only
            reason = self._read(step, {name: item})
            if isinstance(reason, str):
                raise NoCheckpointError(
                    f"the checkpoint of step {step} was written to {self._folder} but can't be read back ({reason}), "
                    "so this storage loses data; choose a workdir elsewhere"
                )

    def notes_of(self, step: int) -> dict[str, Any] | None:
        """Return the notes of a checkpoint; None if it has none or they are damaged."""
        if not (folder := self._folder / str(step) / _NOTES).is_dir():
            return None
        try:
            if (size := sum(map(size_of, folder.iterdir()))) > _MOST_BYTES:
                raise ValueError(f"they have {size} bytes, more than {_MOST_BYTES}")
            found = self._manager.restore(step, args=ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()}))[_NOTES]
            return found if isinstance(found, dict) else None
        except Exception as error:  # as for `_read`
            check_damage(self._folder, error)
            _log.warning("the notes of step %d are damaged and are not used: %s", step, error)
            return None

    def restore(
        self, abstract: dict[str, PyTree], *, steps: Sequence[int] | None = None, repair: bool = False
    ) -> tuple[int, dict[str, Any]] | None:
        """Return the step and the items of the first checkpoint whose items are whole; None if there is none at all.

        `abstract` has the shapes, dtypes and shardings of the items to read, all or some of those saved. `steps` are
        those to try; None for all, the newest first. `repair` moves newer, damaged checkpoints to the folder `damaged`
        beside this one, so that their steps can be written again.

        Raises:
          NoCheckpointError: if there are checkpoints but none is whole.
        """
        steps = self.steps() if steps is None else steps
        for i, step in enumerate(steps):
            found = self._read(step, abstract)
            if not isinstance(found, str):
                if repair and i > 0:
                    self._set_aside(steps[:i])
                self.stored = self._begun = step
                return step, found
            _log.warning("the checkpoint of step %d is damaged and is not used: %s", step, found)
        if steps:
            raise NoCheckpointError(
                f"none of the checkpoints in {self._folder} (steps {', '.join(map(str, steps))}) is whole, or other "
                "versions of jaxdiff, flax or optax wrote them; restore one from a copy, or train again elsewhere"
            )
        return None

    def restore_item(self, name: str, abstract: PyTree, steps: Sequence[int] | None = None) -> tuple[int, PyTree]:
        """Return the step and one item of the first checkpoint in which it is whole, as `restore`, or raise."""
        found = self.restore({name: abstract}, steps=steps)
        if found is None:
            raise NoCheckpointError(f"{self._folder} holds no checkpoint yet; train until the first one is written")
        return found[0], found[1][name]

    def wait(self) -> None:
        """Wait until everything saved is on disk."""
        begun, self._begun = self._begun, self.stored
        self._manager.wait_until_finished()  # it raises an error only once
        self.stored = self._begun = begun

    def close(self) -> None:
        """Wait, then release the folder."""
        self.wait()
        self._manager.close()

    def _read(self, step: int, items: dict[str, PyTree]) -> dict[str, Any] | str:
        """The items of one checkpoint, or the reason why they are damaged; on several processes the same on all."""
        wanted = {}
        for name, abstract in items.items():
            everywhere = NamedSharding(jax.tree.leaves(abstract)[0].sharding.mesh, PartitionSpec())
            shape = jax.eval_shape(fingerprint, abstract).update(sharding=everywhere)
            wanted[name] = ocp.args.StandardRestore({"values": abstract, "fingerprint": shape})
        restored: Any = None
        reason = "another process can't read it"
        try:
            self.wait()
            for name in wanted:
                check_chunks(self._folder / str(step) / name)
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except MemoryError:
            raise
        # Damage shows in many ways, and Orbax promises no type for any of them.
        except Exception as error:
            check_damage(self._folder, error)
            reason = first_line(error)
        if not np.all(multihost_utils.process_allgather(np.int32(restored is not None))):
            return reason
        for name in items:
            # A computation of all processes: every one of them must have got here.
            saved, now = restored[name]["fingerprint"], fingerprint(restored[name]["values"])
            if not bool(jnp.array_equal(saved, now)):
                return f"the values of {name!r} are not those that were written"
        return {name: restored[name]["values"] for name in items}

    def _set_aside(self, steps: Sequence[int]) -> None:
        aside = self._folder.parent / "damaged"
        if jax.process_index() == 0:
            side_folder(aside)
            for step in steps:
                kept = list(aside.iterdir()) if aside.is_dir() else []
                names = (aside / f"{step}-{n}" for n in itertools.count(len(kept)))
                move(self._folder / str(step), next(name for name in names if not exists(name)))
        multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()
        vars(self).pop("_evaluated", None)


@contextmanager
def opened(folder: AnyPath, *, keep: int) -> Iterator[Checkpoints]:
    """Open the checkpoints of a run in training.

    If the folder is in a bucket that refuses or does not answer any more, a BucketError names the last checkpoint.
    """
    checkpoints = Checkpoints(folder, keep=keep)
    with buckets.explained(folder.parent, lambda: checkpoints.stored), closing(checkpoints):
        yield checkpoints


def check_damage(folder: AnyPath, error: Exception) -> None:
    """Raise a BucketError if a checkpoint can't be read for another reason than its damage."""
    if buckets.is_bucket(folder) and buckets.is_weather(error):
        raise buckets.BucketError(f"{folder} can't be read ({first_line(error)}); try again later") from error


def check_chunks(item: AnyPath) -> None:
    """Raise a ValueError if an array is stored in chunks that are larger than itself.

    Orbax refuses arrays of other shapes than asked for before it reads them, but unpacks whole chunks.
    """
    for array in jax.tree.leaves(ocp.StandardCheckpointHandler().metadata(item).tree):
        chunk = array.storage.chunk_shape if getattr(array, "storage", None) else None
        if any(a > max(b, 1) for a, b in zip(chunk or (), array.shape, strict=False)):
            raise ValueError(f"{array.name} has shape {array.shape} and chunks of {chunk}")


@jax.jit
def fingerprint(tree: PyTree) -> UInt32[Array, " leaves"]:
    """Return a uint32 for each leaf that changes with any single element of it, and not with its sharding."""
    return jnp.stack([_fingerprint(leaf) for leaf in jax.tree.leaves(tree)])


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    index, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):  # not a reshape, which would gather a sharded array
        index += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        stride *= leaf.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
