"""Checkpoints: written in the background, only the newest kept, checked for damage.

A checkpoint holds named items, each a pytree. Orbax writes it under a temporary name and renames it once it is whole,
so that a run killed at any moment leaves whole ones only. Later damage is found by a fingerprint that is stored with
every array (the file format detects damage to its index but not to the values):

    f = Σ_i (2i + 1) bits_i  mod 2^32

It changes with any single element, since the weights are odd.
"""

import itertools
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from jaxdiff.experiment.workdir import side_folder
from jaxdiff.typing import InputError, PyTree

_log = logging.getLogger(__name__)

_NOTES = "notes"


class NoCheckpointError(InputError):
    """There is no checkpoint, or no whole one."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, *, keep: int | None = None) -> None:
        self._folder = folder.resolve()
        # keep=None only reads, perhaps while another process writes: nothing may be cleaned up.
        writes = keep is not None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=writes, cleanup_tmp_directories=writes)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, items: dict[str, PyTree], notes: dict[str, Any] | None = None) -> None:
        """Start writing the items of `step`, and return once their arrays may be overwritten.

        `notes` are plain values for JSON, which `notes_of` returns.
        """
        if step in self._manager.all_steps():
            return
        saved: dict[str, Any] = {
            name: ocp.args.StandardSave({"values": values, "fingerprint": fingerprint(values)})
            for name, values in items.items()
        }
        if notes is not None:
            saved[_NOTES] = ocp.args.JsonSave(notes)
        self._manager.save(step, args=ocp.args.Composite(**saved))

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
        if not (self._folder / str(step) / _NOTES).is_dir():
            return None
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()}))[_NOTES]
        except Exception as error:  # as for `_read`
            _log.warning("the notes of step %d are damaged and are not used: %s", step, error)
            return None

    def restore(self, abstract: dict[str, PyTree], *, repair: bool = False) -> tuple[int, dict[str, Any]] | None:
        """Return the step and the items of the newest checkpoint whose items are whole; None if there is none at all.

        `abstract` has the shapes, dtypes and shardings of the items to read, all or some of those saved. `repair` moves
        newer, damaged checkpoints to the folder `damaged` beside this one, so that their steps can be written again.

        Raises:
          NoCheckpointError: if there are checkpoints but none is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for i, step in enumerate(steps):
            found = self._read(step, abstract)
            if not isinstance(found, str):
                if repair and i > 0:
                    self._set_aside(steps[:i])
                return step, found
            _log.warning("the checkpoint of step %d is damaged and is not used: %s", step, found)
        if steps:
            raise NoCheckpointError(
                f"none of the checkpoints in {self._folder} (steps {', '.join(map(str, steps))}) is whole, or other "
                "versions of jaxdiff, flax or optax wrote them; restore one from a copy, or train again elsewhere"
            )
        return None

    def restore_weights(self, abstract: PyTree) -> tuple[int, PyTree]:
        """Return the step and the item `weights` of the newest checkpoint in which it is whole, or raise."""
        found = self.restore({"weights": abstract})
        if found is None:
            raise NoCheckpointError(f"{self._folder} holds no checkpoint yet; train until the first one is written")
        return found[0], found[1]["weights"]

    def wait(self) -> None:
        """Wait until everything saved is on disk."""
        self._manager.wait_until_finished()

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
                _check_chunks(self._folder / str(step) / name)
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except MemoryError:
            raise
        # Damage shows in many ways, and Orbax promises no type for any of them.
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if not np.all(multihost_utils.process_allgather(np.int32(restored is not None))):
            return reason
        for name in items:
            # A computation of all processes: every one of them must have got here.
            saved, now = restored[name]["fingerprint"], fingerprint(restored[name]["values"])
            if not bool(jnp.array_equal(saved, now)):
                return f"the values of {name!r} are not those that were written"
        return {name: restored[name]["values"] for name in items}

    def _set_aside(self, steps: list[int]) -> None:
        aside = self._folder.parent / "damaged"
        if jax.process_index() == 0:
            side_folder(aside)
            for step in steps:
                names = (aside / f"{step}-{n}" for n in itertools.count(len(list(aside.iterdir()))))
                (self._folder / str(step)).rename(next(name for name in names if not os.path.lexists(name)))
        multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()


def _check_chunks(item: Path) -> None:
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
