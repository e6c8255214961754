"""Checkpoints of a run: written in the background, the newest few kept, damage found out.

Orbax writes each one beside its place and renames it when it is whole, so that a run killed at any moment leaves only
whole ones. What a disk does to one later is found by a fingerprint of every array, stored with it:

    f = Σ_i (2i + 1) bits_i  mod 2^32

in which no single changed element can hide, since its weight is odd. (The files' own format notices damage to its
index but not to the values.)

A checkpoint has two items: `weights`, the averaged weights that sampling needs, and `training`, all the rest.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from jaxdiff.training.step import State
from jaxdiff.typing import PyTree

_log = logging.getLogger(__name__)


class NoCheckpointError(ValueError):
    """There is no checkpoint, or none that is whole."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, *, keep: int | None = None) -> None:
        self._folder = folder.resolve()
        # With keep=None it is only read, maybe while another process writes: nothing may be tidied away.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: State) -> None:
        """Start writing the state of `step`, and return once the arrays may be overwritten."""
        if step in self._manager.all_steps():
            return
        items = {
            name: ocp.args.StandardSave({"values": values, "fingerprint": fingerprint(values)})
            for name, values in _items(state).items()
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract: State) -> State | None:
        """The newest whole state, laid out like `abstract`; None if there is no checkpoint at all.

        Damaged ones that are newer are reported and put aside in the folder `damaged` beside this one, so that their
        steps can be written again.

        Raises:
          NoCheckpointError: where there are checkpoints but none is whole.
        """
        found = self._newest_whole(_items(abstract))
        if found is None:
            return None
        step, items = found
        self._set_aside([newer for newer in self._manager.all_steps() if newer > step])
        return State(ema=items["weights"], **items["training"])

    def restore_weights(self, abstract: PyTree) -> tuple[int, PyTree]:
        """(step, averaged weights) of the newest checkpoint whose weights are whole.

        Raises:
          NoCheckpointError: where there is none.
        """
        found = self._newest_whole({"weights": abstract})
        if found is None:
            raise NoCheckpointError(f"{self._folder} holds no checkpoint yet; train until the first one is written")
        step, items = found
        return step, items["weights"]

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _newest_whole(self, items: dict[str, PyTree]) -> tuple[int, dict[str, Any]] | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found, reason = self._read(step, items)
            if found is not None:
                return step, found
            _log.warning("the checkpoint of step %d is damaged and is not used: %s", step, reason)
        if steps:
            raise NoCheckpointError(
                f"none of the checkpoints in {self._folder} (steps {', '.join(map(str, steps))}) is whole, or other "
                "versions of jaxdiff, flax or optax wrote them; restore one from a copy, or train again elsewhere"
            )
        return None

    def _read(self, step: int, items: dict[str, PyTree]) -> tuple[dict[str, Any] | None, str]:
        """The items of one checkpoint, or None and the reason; on several processes the same on all."""
        wanted = {
            name: ocp.args.StandardRestore({"values": abstract, "fingerprint": _abstract_fingerprint(abstract)})
            for name, abstract in items.items()
        }
        restored: Any = None
        reason = "another process can't read it"
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except MemoryError:
            raise
        # Damage shows in many ways, and Orbax promises no type for any of them.
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if not _everywhere(restored is not None):
            return None, reason
        for name in items:
            # A computation of all processes: every one of them must have got here.
            saved, now = restored[name]["fingerprint"], fingerprint(restored[name]["values"])
            if not bool(jnp.array_equal(saved, now)):
                return None, f"the values of {name!r} are not those that were written"
        return {name: restored[name]["values"] for name in items}, ""

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        aside = self._folder.parent / "damaged"
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in steps:
                number = sum(1 for _ in aside.iterdir())
                (self._folder / str(step)).rename(aside / f"{step}-{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()


def _everywhere(ok: bool) -> bool:
    """Whether it holds on every process."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.int32(ok)).all())


def _items(state: State) -> dict[str, PyTree]:
    training = {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": state.key}
    if state.history is not None:
        training["history"] = state.history
    return {"weights": state.ema, "training": training}


@jax.jit
def fingerprint(tree: PyTree) -> UInt32[Array, " leaves"]:
    """A uint32 for each leaf, which changes when any one element of it does; the same for every sharding."""
    return jnp.stack([_fingerprint(leaf) for leaf in jax.tree.leaves(tree)])


def _abstract_fingerprint(abstract: PyTree) -> jax.ShapeDtypeStruct:
    """The fingerprint's shape and layout: on the devices of what it belongs to, a copy on each."""
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    shape = jax.eval_shape(fingerprint, abstract)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, P()))


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    index, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):  # not a reshape, which would gather a sharded array
        index += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        stride *= leaf.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
