"""The scripts in `examples/` run as their first lines say, and draw what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
WIDTH = 0.5 / 8  # the standard deviation of the swiss roll about its spiral


def distance_to_the_spiral(points: np.ndarray) -> np.ndarray:
    angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, 4000)
    spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 8
    return np.sqrt(((points[:, None] - spiral[None]) ** 2).sum(-1).min(1))


def test_the_minimal_example_learns_the_swiss_roll(tmp_path: Path) -> None:
    """300 steps bring the samples less than 0.7 times as far from the spiral as normal noise; they were 0.48 times."""
    picture, samples = tmp_path / "swissroll.png", tmp_path / "samples.npy"
    command = [sys.executable, "examples/minimal.py", str(picture), "--steps=300", f"--samples={samples}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # those of the tests
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=200)
    drawn = np.load(samples)
    assert drawn.shape == (2000, 2)
    noise = np.random.default_rng(0).normal(size=drawn.shape)
    far, near = (distance_to_the_spiral(points).mean() for points in (noise, drawn))
    assert WIDTH * np.sqrt(2 / np.pi) < near < 0.7 * far
    with Image.open(picture) as image:
        assert image.width == 3 * image.height
        assert len(image.getcolors(2**24) or []) > 1


def test_the_minimal_example_stays_minimal() -> None:
    assert len((ROOT / "examples" / "minimal.py").read_text().splitlines()) <= 100
