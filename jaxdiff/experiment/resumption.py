"""Which settings of a run may change when it is resumed.

Free are those that change the steps by rounding alone, or say where to stop and what to report. The place of the data
may change if their fingerprint does not. Some others may change
if they are named in `allow_change`: they leave the state and the meaning of the data as they are.
"""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from jaxdiff.data import names_place
from jaxdiff.experiment.config import Config, Optimizer, Train
from jaxdiff.registry import differences, suggest
from jaxdiff.typing import InputError

_FREE = (
    "data.dir:",
    "data.on_device:",
    "data.workers:",
    "data.evaluated:",
    "train.steps:",
    "train.steps_per_dispatch:",
    "train.fsdp:",
    "train.remat:",
    "every.",
    "sampling.",
    "loggers:",
)

ALLOWABLE = (
    *(f"optimizer.{field.name}" for field in dataclasses.fields(Optimizer)),
    *(f"train.{field.name}" for field in dataclasses.fields(Train) if not field.name.startswith("init_")),
    "loss.weight",
    "loss.times",
)


def checked(allow_change: Collection[str] | str) -> tuple[str, ...]:
    """Return the names of settings that may change; raise an InputError if one of them can't be allowed to."""
    names = (allow_change,) if isinstance(allow_change, str) else tuple(allow_change)
    for name in names:
        if name not in ALLOWABLE:
            raise InputError(
                f"allow_change = {name!r} is no setting that may change within a run; only those of optimizer and "
                f"train, loss.weight and loss.times may{suggest(name, ALLOWABLE)}"
            )
    return names


def check(old: Config, new: Config, step: int, allow_change: Collection[str], *, where: str) -> None:
    """Raise an InputError if the run of the config `old`, which is at this step, can't go on with the config `new`."""
    if new.train.steps < step:
        raise InputError(
            f"train.steps = {new.train.steps}, but {where} is at step {step} already; set train.steps to {step} or more"
        )
    changed = {line.partition(":")[0]: line for line in differences(old.to_mapping(), new.to_mapping())}
    refused = {name: line for name, line in changed.items() if name not in allow_change}
    found = {name: line for name, line in refused.items() if not line.startswith(_FREE)}
    if names_place(old.data.name) and names_place(new.data.name):
        found.pop("data.name", None)  # data that moved: `workdir.check_data` tells by their fingerprint
    if found:
        listed = "\n  ".join(found.values())
        way = ""
        if all(name in ALLOWABLE for name in found):
            way = f", or go on with the change by --allow_change={','.join({**dict.fromkeys(allow_change), **found})}"
        raise InputError(
            f"{where} holds a run of another config:\n  {listed}\n"
            f"choose another folder, or set these back to go on with that run{way}"
        )
    if step and "train.steps" in refused and not _same_rates(new.optimizer, old.train.steps, new.train.steps, step):
        before = float(old.optimizer.rate(old.train.steps)(step - 1))
        after = float(new.optimizer.rate(new.train.steps)(step))
        raise InputError(
            f"{refused['train.steps']}, but optimizer.decay = {new.optimizer.decay!r} depends on train.steps: the "
            f"learning rate would go from {before:.2g} at step {step} to {after:.2g} at the next one; set train.steps "
            f"back to {old.train.steps}, or go on with the change by "
            f"--allow_change={','.join([*allow_change, 'train.steps'])}"
        )


def _same_rates(optimizer: Optimizer, old: int, new: int, steps: int) -> bool:
    """Whether the learning rates of so many steps are the same in runs of the lengths `old` and `new`."""
    curves = (jax.vmap(optimizer.rate(length))(jnp.arange(steps)) for length in (old, new))
    return bool(jnp.array_equal(*curves))
