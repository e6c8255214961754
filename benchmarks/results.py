"""Results that survive interruptions, the identity of a run, and the text around a table."""

import argparse
import hashlib
import json
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np

import jaxdiff as jd
from jaxdiff.evaluation import Card
from jaxdiff.storage import replacing, user_path


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
        write_text(self.path, json.dumps({"of": self.of, "cells": self.cells}, indent=1) + "\n")


def given_path(text: str) -> Path:
    """Return the path of a command-line argument, with ~ expanded."""
    return user_path(text, what="path")


def table_path(text: str) -> Path:
    """Return the path of a table that the command line names: a new one, or one with its results beside it."""
    path = given_path(text)
    if path.suffix != ".md":
        raise argparse.ArgumentTypeError(f"{path}: the table is Markdown; give a name that ends in .md")
    if path.exists() and not path.with_suffix(".json").exists():
        raise argparse.ArgumentTypeError(f"{path} has no results beside it, so it is no table of this script's")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_figure(path: Path, figure: matplotlib.figure.Figure, *, dpi: int) -> None:
    """Write a figure as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=dpi)


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
