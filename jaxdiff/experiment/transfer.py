"""The first weights of a run, taken from another run's folder.

Of that folder only arrays are read, by their paths and in the shapes of this network. So it may be a stranger's: code
that its config names is not imported.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from jaxdiff.experiment import workdir
from jaxdiff.experiment.checkpoint import NoCheckpointError, check_chunks, check_damage, fingerprint
from jaxdiff.experiment.config import Config
from jaxdiff.storage import AnyPath, absolute, user_path
from jaxdiff.typing import InputError, PyTree, first_line, shown

_log = logging.getLogger(__name__)

_LISTED = 4  # arrays of a kind in a message
_MEANING = ("model", "schedule", "process", "predicts", "scale_input", "learned_variance")  # of equal arrays


class Taken(NamedTuple):
    """Arrays of another run's averaged weights."""

    weights: dict[str, Array]  # by path, as `path_of` gives it
    described: str  # how many of them, and from where


def path_of(path: tuple[Any, ...]) -> str:
    """Return the path of an array in a tree of weights as a text, as in "params/stem/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def take(config: Config, abstract: PyTree) -> Taken | None:
    """Return the averaged weights of the run `train.init_from` at its newest whole checkpoint; None without such a run.

    `abstract` has the shapes, dtypes and shardings of the weights of this run's network.

    Raises:
      InputError: if the folder holds no run or no whole checkpoint; if its arrays aren't finite, none of them fits or,
        without `train.init_partial`, they are not the same as those of this network.
    """
    if config.train.init_from is None:
        return None
    name = "train.init_from"
    what, folder = f"{name} = {config.train.init_from}", absolute(user_path(config.train.init_from, what=name))
    workdir.check_path(folder, what=name)
    if not (folder / "config.json").is_file():
        raise InputError(f"{what} is not a run: it has no config.json; give the folder of a training run")
    wanted = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(abstract)}

    def choose(stored: Mapping[str, Any]) -> Collection[str]:
        return _fitting(what, wanted, stored, partial=config.train.init_partial)

    for step in workdir.checkpoint_steps(folder):
        found = _read(folder / "checkpoints" / str(step) / "weights", wanted, choose)
        if isinstance(found, str):
            _log.warning("the checkpoint of step %d in %s is damaged and is not used: %s", step, folder, found)
            continue
        if not all(finite := np.asarray(_finite(found)).tolist()):
            bad = sorted(found)[finite.index(False)]
            raise InputError(f"{what}: the values of {bad} are not finite; take another run")
        if changed := _other_meaning(folder, config):
            _log.warning("%s is a run with other settings of %s; its weights fit by shape alone", folder, changed)
        new = "" if len(found) == len(wanted) else f"; {len(wanted) - len(found)} new"
        return Taken(found, f"{len(found)} arrays from step {step:,} of {folder}{new}")
    raise NoCheckpointError(f"{what} has no whole checkpoint; train it until the first one is written, or restore one")


def _read(item: AnyPath, wanted: Mapping[str, Any], choose: Callable[..., Collection[str]]) -> dict[str, Array] | str:
    """The chosen arrays of one checkpoint, or the reason why it is damaged; on several processes the same on all."""
    restored: Any = None
    chosen: Collection[str] = ()
    reason = "another process can't read it"
    try:
        check_chunks(item)
        tree = ocp.StandardCheckpointHandler().metadata(item).tree
        stored = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree["values"])}
        if tree["fingerprint"].shape != (len(stored),):
            raise ValueError("its fingerprint is not that of its arrays")
        chosen = choose(stored)
        restored = _restore(item, tree, {path: wanted[path] for path in chosen})
    except (InputError, MemoryError):
        raise
    except Exception as error:  # as for `Checkpoints`: damage has no type
        check_damage(item, error)
        reason = first_line(error)
    if not np.all(multihost_utils.process_allgather(np.int32(restored is not None))):
        return reason
    leaves = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(restored["values"])}
    found = {path: leaves[path] for path in chosen}
    # In which order the fingerprints of a stranger's tree were stored, its paths do not tell.
    now, saved = (Counter(np.asarray(part).tolist()) for part in (fingerprint(found), restored["fingerprint"]))
    return found if now <= saved else "its values are not those that were written"


def _restore(item: AnyPath, tree: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The wanted arrays in the tree of a checkpoint's metadata, and the fingerprints of all."""
    values = jax.tree.map_with_path(lambda path, _: wanted.get(path_of(path), ocp.PLACEHOLDER), tree["values"])
    everywhere = NamedSharding(next(iter(wanted.values())).sharding.mesh, PartitionSpec())
    shape = jax.ShapeDtypeStruct(tree["fingerprint"].shape, jnp.uint32, sharding=everywhere)
    asked = {"values": values, "fingerprint": shape}
    options = ocp.args.PyTreeRestore(item=asked, restore_args=ocp.checkpoint_utils.construct_restore_args(asked))
    with closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        return checkpointer.restore(item, args=options)


def _fitting(what: str, wanted: Mapping[str, Any], stored: Mapping[str, Any], *, partial: bool) -> list[str]:
    """The paths of arrays that are the same in both; raise an InputError if others may not be left out, or all are."""

    def kind(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name} {tuple(leaf.shape)}"

    both = [path for path in wanted if path in stored]
    fits = [path for path in both if kind(wanted[path]) == kind(stored[path])]
    other = [path for path in both if path not in fits]
    unfit = {
        "of another shape": [f"{path} {kind(wanted[path])}, there {kind(stored[path])}" for path in other],
        "missing there": [path for path in wanted if path not in stored],
        "not in this network": [shown(path) for path in stored if path not in wanted],
    }
    listed = "; ".join(f"{len(paths)} {how}: {_listed(paths)}" for how, paths in unfit.items() if paths)
    if not fits:
        raise InputError(f"{what} has no array that this network has: {listed}; take a run of a similar network")
    if listed and not partial:
        fix = f"set train.init_partial to True to take the {len(fits)} that fit and initialize the others"
        raise InputError(f"{what} is a run of another network: {listed}; {fix}, or make the networks alike")
    return fits


@jax.jit
def _finite(arrays: dict[str, Array]) -> Bool[Array, " arrays"]:
    """Whether the values of each array, in the order of their names, are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)])


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _other_meaning(folder: AnyPath, config: Config) -> str:
    """The settings, among those that give weights their meaning, in which the run in a folder differs."""
    try:
        theirs = workdir.content_of(folder)["config"]
        ours = json.loads(json.dumps(config.to_mapping()))
        return ", ".join(name for name in _MEANING if theirs.get(name, ours[name]) != ours[name])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
