"""Reading pictures while training: memory, images per second, and the time that the training waits.

    python benchmarks/data.py

Makes folders of 5,000 and 50,000 JPEG files of 64×64 pixels. For each it prints the peak memory of the process that
trains and of its workers; then, beside a loop of Pillow alone over the same files in the same order, the images per
second that are read in one process, and by one and two workers; and the share of its time that a loop waits for data,
if each step takes 100 ms. The speed of a machine may change from second to second: the speeds are medians of 9 turns,
each between two loops of Pillow.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxdiff import data
from jaxdiff.training.batches import indices, make_batches
from jaxdiff.training.sharding import make_mesh

BATCH, STEPS, TURNS = 64, 400, 9


def make(folder: Path, n: int) -> None:
    """Write n JPEG files, of 200 different pictures: smooth, as photographs are."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for _ in range(200):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    for i in range(n):
        (folder / f"{i:05}.jpg").write_bytes(files[i % len(files)])


def stream(folder: str, workers: int, seconds_per_step: float, steps: int) -> None:
    """Read batches as training does, and print images/s, the share of waiting, and the peak memory in MB."""
    source = data.load(f"folder:{folder}", reading=data.Reading(size=64))
    options = {"on_device": False, "workers": workers}
    batches = make_batches(source, make_mesh(1, BATCH), seed=0, batch_size=BATCH, **options)
    waited = 0.0
    warm = 60  # steps before the clock starts: workers take seconds to begin, and read ahead
    for dispatch in batches.stream(0, steps + warm, 1):
        if dispatch.first == warm:
            began = time.perf_counter()
        if dispatch.first >= warm:
            waited += dispatch.waited
        jax.block_until_ready(dispatch.batch.x)
        time.sleep(seconds_per_step)
    elapsed = time.perf_counter() - began
    here, workers_most = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{steps * BATCH / elapsed:.1f} {waited / elapsed:.4f} {here:.0f} {workers_most:.0f}")


def measured(folder: Path, workers: int, seconds_per_step: float = 0.0, steps: int = STEPS) -> list[float]:
    """Run `stream` in a process of its own."""
    command = [sys.executable, __file__, "--stream", str(folder), str(workers), str(seconds_per_step), str(steps)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(value) for value in found.stdout.split()]


def pillow(files: list[str]) -> None:
    """Read files in a plain loop of Pillow."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB"))


def rate(read: Callable[[], object]) -> float:
    """Return the images per second that a function reads in this process."""
    began = time.perf_counter()
    read()
    return BATCH * STEPS / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        folder, workers, seconds, steps = arguments.stream
        return stream(folder, int(workers), float(seconds), int(steps))
    with tempfile.TemporaryDirectory() as temporary:
        folders = {n: Path(temporary) / str(n) for n in (5_000, 50_000)}
        for n, folder in folders.items():
            make(folder, n)
        for n, folder in folders.items():
            _, _, here, workers = measured(folder, 2, steps=n // BATCH)
            print(f"{n:6} pictures: at most {here:.0f} MB in the process, {workers:.0f} MB in a worker", flush=True)
        source = data.load(f"folder:{folders[50_000]}", reading=data.Reading(size=64))
        parts = indices(0, 0, (STEPS, BATCH), len(source))
        files = [source.album[i].content for i in parts.reshape(-1).tolist()]
        ways: dict[str, Callable[[], float]] = {
            "one process": lambda: rate(lambda: [source.take(part) for part in parts])
        }
        ways |= {f"{n} workers": lambda n=n: measured(folders[50_000], n)[0] for n in (1, 2)}
        speeds: dict[str, list[float]] = {how: [] for how in ways}
        ratios: dict[str, list[float]] = {how: [] for how in ways}
        before = rate(lambda: pillow(files))
        for _ in range(TURNS):
            for how, measure in ways.items():
                speed, after = measure(), rate(lambda: pillow(files))
                speeds[how].append(speed)
                ratios[how].append(speed / (before * after) ** 0.5)
                before = after
        for how in ways:
            low, middle, high = np.quantile(ratios[how], (0, 0.5, 1))
            speed = f"{np.median(speeds[how]):.0f} images/s"
            print(f"{how}: {speed}, {middle:.2f} ({low:.2f} to {high:.2f}) × a loop of Pillow")
        share = measured(folders[50_000], 2, 0.1)[1]
        print(f"steps of 100 ms: {share:.1%} of the time is spent waiting for data")


if __name__ == "__main__":
    main()
