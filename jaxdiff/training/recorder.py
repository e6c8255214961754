"""The reports of a run (`metrics.jsonl`, TensorBoard events, a progress bar) and its check for NaN.

The recorder reads the metrics of a dispatch only once they are ready, or in `drain`, so that the devices never idle for
a log line.

A line of `metrics.jsonl` covers the steps since the line before: the means of `loss` and `grad_norm`, the last
`learning_rate`, `images_per_second` over all the time that passed (with compilation, saving and pictures), and
`data_wait`, the fraction of that time in which the loop waited for data.
"""

import collections
import json
import math
import secrets
import sys
import time
from datetime import timedelta
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxdiff.experiment import plots
from jaxdiff.storage import replacing
from jaxdiff.training.batches import Dispatch
from jaxdiff.training.step import Metrics

_IN_FLIGHT = 2  # dispatches that may run ahead of the host


class DivergenceError(RuntimeError):
    """The loss or its gradient is no longer finite."""


class Recorder:
    """Reports on one run. Only process 0 of a multi-host run writes; every process watches for NaN."""

    def __init__(self, workdir: Path, *, start: int, steps: int, batch_size: int, every: int) -> None:
        self._workdir, self._every, self._batch_size, self._steps = workdir, every, batch_size, steps
        self._writes = jax.process_index() == 0
        self._queue: collections.deque[tuple[Dispatch, Metrics]] = collections.deque()
        self._window: list[Metrics] = []
        self._waited, self._since = 0.0, time.perf_counter()
        if self._writes:
            _drop_after(workdir / "metrics.jsonl", start)
            self._file = (workdir / "metrics.jsonl").open("a")
            # A name that nobody can foresee, since the writer follows links, and an absolute path, since it takes gs:x
            # for a bucket.
            self._board = SummaryWriter(
                str(workdir.absolute()), purge_step=start + 1, filename_suffix=f".{secrets.token_hex(8)}"
            )
            # disable=None: a bar if there is a terminal; else `_report` writes lines.
            self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True)

    def push(self, dispatch: Dispatch, metrics: Metrics) -> None:
        """Queue the metrics of a dispatch that has just been started."""
        self._queue.append((dispatch, metrics))
        # All processes must find a NaN after the same dispatch, so that none is left waiting for the others.
        alone = jax.process_count() == 1
        while len(self._queue) > _IN_FLIGHT or (alone and self._queue and self._queue[0][1].ready()):
            self._absorb()

    def drain(self) -> None:
        """Wait for every dispatch so far and check that its steps were finite."""
        while self._queue:
            self._absorb()

    def picture(self, step: int, pixels: UInt8[np.ndarray, "height width 3"] | None) -> None:
        """Save a picture of the samples at this step, and show it in TensorBoard; None says that there is none."""
        if not self._writes:
            return
        if pixels is None:
            tqdm.write(f"step {step}: samples of more than 4 axes have no picture", file=sys.stderr)
        else:
            path = self._workdir / "samples" / f"{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            plots.save(path, pixels)
            self._board.add_image("samples", pixels, step, dataformats="HWC")
            tqdm.write(f"step {step}: {path}", file=sys.stderr)

    def close(self) -> None:
        """Close the files."""
        if self._writes:
            self._bar.close()
            self._board.close()
            self._file.close()

    def _absorb(self) -> None:
        dispatch, on_device = self._queue.popleft()
        metrics = jax.device_get(on_device)
        finite = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
        if not finite.all():
            i = int(np.argmin(finite))
            raise DivergenceError(
                f"at step {dispatch.first + i + 1} the loss is {metrics.loss[i]} and its gradient's norm "
                f"{metrics.grad_norm[i]}; lower optimizer.learning_rate or set optimizer.clip_norm"
            )
        self._window.append(metrics)
        self._waited += dispatch.waited
        done = dispatch.first + dispatch.count
        if self._writes:
            self._bar.update(dispatch.count)
        if done % self._every == 0 or done == self._steps:
            self._report(done)

    def _report(self, step: int) -> None:
        now = time.perf_counter()
        elapsed = now - self._since
        window = jax.tree.map(lambda *parts: np.concatenate(parts), *self._window)
        record = {
            "loss": float(window.loss.mean()),
            "grad_norm": float(window.grad_norm.mean()),
            "learning_rate": float(window.learning_rate[-1]),
            "images_per_second": len(window.loss) * self._batch_size / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
        }
        self._window, self._waited, self._since = [], 0.0, now
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in record.items():
            self._board.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{record['loss']:.4f}", img_s=f"{record['images_per_second']:.0f}")
        if self._bar.disable:
            left = (self._steps - step) * elapsed / len(window.loss)
            speed = f"{record['images_per_second']:.0f} images/s  {timedelta(seconds=math.ceil(left))} left"
            tqdm.write(f"step {step}/{self._steps}  loss {record['loss']:.4f}  {speed}", file=sys.stderr)


def _drop_after(path: Path, step: int) -> None:
    """Drop the reports after the step that a run resumes from, which it will make again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step).encode())
