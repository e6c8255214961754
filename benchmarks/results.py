"""Results that survive interruptions, the identity of a run, and the text around a table."""

import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np

import jaxdiff as jd
from jaxdiff.evaluation import Card


class Results:
    """The finished cells of a table, in a file that is replaced atomically."""

    def __init__(self, path: Path, of: dict) -> None:
        self.path, self.of = path, of
        found = json.loads(path.read_text()) if path.exists() else {"of": of, "cells": {}}
        if found["of"] != of:
            raise SystemExit(f"{path} holds results of {found['of']}, not of {of}; give another --out, or delete it")
        self.cells: dict[str, dict] = found["cells"]

    def add(self, key: str, cell: dict) -> None:
        self.cells[key] = cell
        self.path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = self.path.with_suffix(".incomplete")
        incomplete.write_text(json.dumps({"of": self.of, "cells": self.cells}, indent=1) + "\n")
        os.replace(incomplete, self.path)


def identity(run: jd.Run, card: Card, n: int) -> dict:
    """Return what the results of a run depend on."""
    content = hashlib.sha256()
    for leaf in jax.tree.leaves(run.params):
        content.update(np.asarray(leaf).tobytes())
    return {
        "data": card.name,
        "step": run.step,
        "weights": content.hexdigest()[:12],
        "n": n,
        "classifier": card.sha256,
    }


def source(of: dict, script: str, floor: float, card: Card) -> tuple[str, str]:
    """Return the text before the table, on its distances, and the text after it, on its origin."""
    before = (
        f"Each distance is the Fréchet distance (± its standard error) of {of['n']} samples to the train split, on "
        f"features of the shipped {card}. The floor, the distance of equally many test images, is {floor:.2f}."
    )
    after = (
        f"Made by `benchmarks/{script}` from step {of['step']} of a run, weights {of['weights']}, with jax "
        f"{jax.__version__}."
    )
    return before, after
