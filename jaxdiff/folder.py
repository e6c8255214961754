"""A run's folder, as far as it says what the run is: `config.json` and `examples.npy`.

config.json    the config and what the network needs to know of the data
examples.npy   examples of the data, where the process is made of some: raw, as in `Dataset.x`
checkpoints/   see `jaxdiff.training.checkpoint`
damaged/       checkpoints that were found damaged, if any
samples/       pictures made while training, NNNNNNNN.png by step
metrics.jsonl  one line a log; TensorBoard's event files lie beside it
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Num

from jaxdiff import processes
from jaxdiff.config import Config
from jaxdiff.data import Dataset, normalize
from jaxdiff.experiment import Experiment, make_experiment
from jaxdiff.settings import differences

_EXAMPLES = "examples.npy"
_MOST_EXAMPLES = 2048  # enough for a covariance of images; they become a constant of the compiled step

# A resumed run may differ in these: they don't change what its steps compute, but for rounding, or say where to stop
# (a cosine decay then ends at the new place).
_FREE = (
    "data.dir:",
    "data.on_device:",
    "train.steps:",
    "train.steps_per_dispatch:",
    "train.fsdp:",
    "every.",
    "sampling.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What a run must know of its data to sample."""

    shape: tuple[int, ...]
    """Of one example."""
    levels: int | None
    """The number of values that a coordinate can take; None: unbounded."""
    classes: int | None = None
    """The number of labels; None: the data have none."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Form":
        """That of a data set."""
        return cls(shape=tuple(dataset.shape), levels=dataset.levels, classes=dataset.num_classes)


def experiment(config: Config, form: Form, examples: Num[np.ndarray, "n *shape"] | None) -> Experiment:
    """The objects of a run: of its config, the form of its data, and the raw examples of them where it has some.

    Raises:
      ValueError: as `make_experiment`.
    """
    return make_experiment(
        config,
        form.shape,
        levels=form.levels,
        classes=form.classes,
        examples=None if examples is None else np.asarray(normalize(examples, form.levels)),
    )


def prepare(workdir: Path, config: Config) -> None:
    """Make the folder, and make sure that a run in it is one of this config.

    Raises:
      ValueError: where the folder can't be written, or holds a run of another config (the differences are listed).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"workdir = {workdir} can't be written ({error.strerror}); choose another folder") from error
    if not (workdir / "config.json").exists():
        return
    old, _ = read(workdir)
    found = [line for line in differences(old.to_mapping(), config.to_mapping()) if not line.startswith(_FREE)]
    if found:
        listed = "\n  ".join(found)
        raise ValueError(
            f"workdir = {workdir} holds a run of another config:\n  {listed}\n"
            "choose another folder, or set these back to go on with that run"
        )


def write(workdir: Path, config: Config, form: Form, examples: Num[np.ndarray, "n *shape"] | None = None) -> None:
    """Write `config.json`, whole or not at all, and before it the raw examples, where there are some."""
    if examples is not None:
        partial = workdir / f"{_EXAMPLES}.{os.getpid()}"
        with partial.open("wb") as file:
            np.save(file, examples)
        partial.rename(workdir / _EXAMPLES)
    text = json.dumps({"config": config.to_mapping(), "data": dataclasses.asdict(form)}, indent=2)
    partial = workdir / f"config.json.{os.getpid()}"
    partial.write_text(text + "\n")
    partial.rename(workdir / "config.json")


def read(workdir: Path) -> tuple[Config, Form]:
    """What the run in a folder is.

    Raises:
      ValueError: where the folder holds no run, or its config is not one that this version knows.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"workdir = {workdir} is no run: it has no config.json; give a folder that train.py wrote")
    try:
        content = json.loads(path.read_text())
        data = content["data"]
        form = Form(shape=tuple(data["shape"]), levels=data["levels"], classes=data.get("classes"))
        return Config.from_mapping(content["config"]), form
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or of another version ({error}); restore it from a copy, or train in another folder"
        ) from error


def choose_examples(workdir: Path, config: Config, dataset: Dataset) -> Num[np.ndarray, "n *shape"] | None:
    """The raw examples that the config's process is made of, the same for every run of a data set; None for no such.

    Raises:
      ValueError: where the folder holds a run of others.
    """
    if not processes.takes_examples(config.process):
        return None
    n = len(dataset.x)
    chosen = np.random.default_rng(0).permutation(n)[:_MOST_EXAMPLES] if n > _MOST_EXAMPLES else slice(None)
    found, path = dataset.x[chosen], workdir / _EXAMPLES
    if path.exists() and (workdir / "config.json").exists():
        old = read_examples(workdir, config, Form.of(dataset))
        if not np.array_equal(old, found):  # type: ignore[arg-type]
            raise ValueError(
                f"{path} holds examples of other data than {config.data.name!r} is here; go on with the data that the "
                "run was begun with, or choose another folder"
            )
    return found


def read_examples(workdir: Path, config: Config, form: Form) -> Num[np.ndarray, "n *shape"] | None:
    """The raw examples that the process of a folder's run is made of; None where it is made of none.

    Raises:
      ValueError: where they are missing or damaged.
    """
    if not processes.takes_examples(config.process):
        return None
    path = workdir / _EXAMPLES
    hint = "restore it from a copy, or delete it and run train.py on this folder again, which writes it from the data"
    if not path.is_file():
        raise ValueError(f"{path} is missing, and the process of this run is made of it; {hint}")
    try:
        found = np.load(path, allow_pickle=False)
        expected = np.float32 if form.levels is None else np.uint8
        if found.dtype != expected or found.shape[1:] != form.shape or len(found) < 2:
            raise ValueError(
                f"it holds {found.dtype} of shape {found.shape}, not {np.dtype(expected)} (n, *{form.shape})"
            )
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {hint}") from error
    return found
