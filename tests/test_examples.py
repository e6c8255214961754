"""The scripts in `examples/` run as their first lines say, and draw what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.evaluation import load_classifier

ROOT = Path(__file__).parents[1]
WIDTH = 0.5 / 8  # the standard deviation of the swiss roll about its spiral


def distance_to_the_spiral(points: np.ndarray) -> np.ndarray:
    angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, 4000)
    spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 8
    return np.sqrt(((points[:, None] - spiral[None]) ** 2).sum(-1).min(1))


def run_example(script: str, *arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # those of the tests
    command = [sys.executable, f"examples/{script}.py", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=200)


@pytest.mark.thorough
def test_the_minimal_example_learns_the_swiss_roll(tmp_path: Path) -> None:
    """300 steps bring the samples less than 0.7 times as far from the spiral as normal noise; they were 0.48 times."""
    picture, samples = tmp_path / "swissroll.png", tmp_path / "samples.npy"
    run_example("minimal", picture, "--steps=300", f"--samples={samples}")
    drawn = np.load(samples)
    assert drawn.shape == (2000, 2)
    noise = np.random.default_rng(0).normal(size=drawn.shape)
    far, near = (distance_to_the_spiral(points).mean() for points in (noise, drawn))
    assert WIDTH * np.sqrt(2 / np.pi) < near < 0.7 * far
    with Image.open(picture) as image:
        assert image.width == 3 * image.height
        assert len(image.getcolors(2**24) or []) > 1


@pytest.mark.thorough
def test_the_nnx_example_draws_the_moon_that_it_is_asked_for(tmp_path: Path) -> None:
    """After 300 steps more than 0.9 of the samples lie nearer to their own moon; they were 0.98. By chance: 0.5."""
    run_example("nnx_network", tmp_path / "moons.png", "--steps=300", f"--samples={tmp_path / 'moons.npz'}")
    found, moons = np.load(tmp_path / "moons.npz"), data.load("moons")
    both = [moons.x[moons.labels == label][:2000] for label in (0, 1)]
    near = [np.linalg.norm(found["samples"][:, None] - moon, axis=2).min(1) for moon in both]
    assert (np.argmin(near, axis=0) == found["labels"]).mean() > 0.9


@pytest.mark.thorough
def test_the_equinox_example_learns_the_checkerboard(tmp_path: Path) -> None:
    """After 400 steps more than 0.65 of the samples lie on its fields; they were 0.73. Half of the plane is fields."""
    run_example("equinox_network", tmp_path / "board.png", "--steps=400", f"--samples={tmp_path / 'board.npy'}")
    cells = np.floor(np.load(tmp_path / "board.npy")).astype(int)
    on_fields = (cells.sum(1) % 2 == 0) & (np.abs(cells + 0.5) < 2).all(1)
    assert on_fields.mean() > 0.65


@pytest.mark.thorough
def test_the_example_of_fine_tuning_draws_the_digit_that_it_was_tuned_to(tmp_path: Path) -> None:
    """After 100 steps more than 0.75 of the samples are threes to a classifier; they were 0.91, and 0.14 before."""
    arguments = "--steps=200", f"--workdir={tmp_path}", f"--samples={tmp_path / 'samples.npz'}"
    run_example("fine_tune", tmp_path / "threes.png", *arguments)
    found, classifier = np.load(tmp_path / "samples.npz"), load_classifier("digits")
    threes = {name: float((np.asarray(classifier.labels(found[name])) == 3).mean()) for name in found}
    assert threes["digits"] < 0.4
    assert threes["digit_3"] > 0.75
    assert (tmp_path / "threes.png").exists()


def test_the_minimal_example_stays_minimal() -> None:
    assert len((ROOT / "examples" / "minimal.py").read_text().splitlines()) <= 100
