"""The reports of a run (`metrics.jsonl`, its loggers, a progress bar) and its check for NaN.

The recorder reads the metrics of a dispatch only once they are ready, or in `drain`, so that the devices never idle for
a log line.

A line of `metrics.jsonl` covers the steps since the line before: the means of `loss` and `grad_norm`, the last
`learning_rate`, and over all the time that passed (with compilation, evaluation, saving and pictures)
`images_per_second`, `flops_per_second` of all devices, and `data_wait`, the fraction in which the loop waited for data.
On chips whose peak rate is known (`jaxdiff.training.chips`), `share_of_peak` is the fraction of it in bfloat16. The
operations are those of `jaxdiff.training.costs`: what is computed again in the backward pass counts again. A checkpoint
keeps what the next line already covers, so that a resumed run writes the same line. A line of a step that is evaluated
has `eval_loss`, too: see `jaxdiff.training.evaluation`.
"""

import collections
import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxdiff.buckets import BucketError, Growing
from jaxdiff.experiment import plots
from jaxdiff.experiment.workdir import set_aside, side_folder
from jaxdiff.progress import tqdm
from jaxdiff.storage import AnyPath, exists, is_bucket, replacing
from jaxdiff.training import chips
from jaxdiff.training.batches import Batches, Dispatch
from jaxdiff.training.loggers import Loggers
from jaxdiff.training.step import Metrics

_IN_FLIGHT = 2  # dispatches that may run ahead of the host
_MOMENT = 5.0  # seconds


class DivergenceError(RuntimeError):
    """The loss or its gradient is no longer finite."""


class Recorder:
    """Reports on one run. Only process 0 of a multi-host run writes; every process watches for NaN."""

    def __init__(
        self,
        workdir: AnyPath,
        batches: Batches,
        *,
        start: int,
        steps: int,
        every: int,
        notes: dict[str, Any] | None = None,  # what `notes` returned at `start`
        loggers: Loggers | None = None,
    ) -> None:
        self._workdir, self._every, self._batches, self._steps = workdir, every, batches, steps
        self._loggers = loggers
        self.latest: dict[str, float] = {}  # the metrics of the last line
        self.flops: int | None = None  # of a step, on all devices; None if it is not known
        chip = chips.chip(batches.mesh.devices.ravel().tolist())
        self._peak = None if chip is None else chip.flops * batches.mesh.size
        self._writes = jax.process_index() == 0
        self._queue: collections.deque[tuple[Dispatch, Metrics, Mapping[str, float]]] = collections.deque()
        self._window, self._waited, seconds = _restored(notes)
        self._since = time.perf_counter() - seconds
        if self._writes:
            path = workdir / "metrics.jsonl"
            kept = _drop_after(path, start)
            self._file: Any = Growing(path, kept) if is_bucket(path) else path.open("ab")
            if is_bucket(path):
                self._file.write(_missing(kept, (notes or {}).get("lines")))
            # disable=None: a bar on a terminal or in a notebook; else `_report` writes lines.
            self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True)

    def say(self, text: str) -> None:
        """Write text to the standard error, above the bar."""
        if self._writes:
            tqdm.write(text, file=sys.stderr)

    def push(self, dispatch: Dispatch, metrics: Metrics, extra: Mapping[str, float] | None = None) -> None:
        """Queue the metrics of a dispatch that has just been started, and what else its line is to hold."""
        self._queue.append((dispatch, metrics, extra or {}))
        # All processes must find a NaN after the same dispatch, so that none is left waiting for the others.
        alone = jax.process_count() == 1
        while len(self._queue) > _IN_FLIGHT or (alone and self._queue and self._queue[0][1].ready()):
            self._absorb()

    def drain(self) -> None:
        """Wait for every dispatch so far and check that its steps were finite."""
        while self._queue:
            self._absorb()

    def settle(self) -> None:
        """Give the loggers a moment to take what they were given, before its steps are saved and not taken again.

        Lines that are kept in a bucket begin to be uploaded. Call it before `notes`.
        """
        if self._loggers is not None:
            self._loggers.wait(_MOMENT)
        if self._writes and isinstance(self._file, Growing):
            self._file.save()

    def picture(self, step: int, pixels: UInt8[np.ndarray, "height width 3"] | None) -> None:
        """Save a picture of the samples at this step, and show it in TensorBoard; None says that there is none."""
        if not self._writes:
            return
        if pixels is None:
            self.say(f"step {step}: samples of more than 4 axes have no picture")
        else:
            path = picture_path(self._workdir, step)
            side_folder(path.parent)
            if path.is_dir():
                set_aside(path, "it is a folder")
            plots.save(path, pixels)
            if self._loggers is not None:
                self._loggers.picture(step, pixels)
            self.say(f"step {step}: {path}")

    def close(self) -> None:
        """Close the files."""
        if self._loggers is not None:
            self._loggers.close()
        if self._writes:
            self._bar.close()
            self._file.close()

    def notes(self) -> dict[str, Any] | None:
        """Return what a run that is resumed needs to write the same lines, for JSON; None if that is nothing.

        It is what the next line already covers, and lines that may not have reached their bucket yet. Call `drain`
        first.
        """
        found: dict[str, Any] = {}
        if self._window:
            found = {name: values.tolist() for name, values in self._steps_since()._asdict().items()}
            found |= {"waited": self._waited, "seconds": time.perf_counter() - self._since}
        if self._writes and isinstance(self._file, Growing) and (lines := self._file.unstored()):
            found["lines"] = lines.decode()
        return found or None

    def _steps_since(self) -> Metrics:
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._window)

    def _absorb(self) -> None:
        dispatch, on_device, extra = self._queue.popleft()
        metrics = jax.device_get(on_device)
        finite = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
        if not finite.all():
            i = int(np.argmin(finite))
            fix = "lower optimizer.learning_rate or set optimizer.clip_norm"
            if dispatch.first + i == 0:  # before any update
                fix = "the network or the loss gives values that are not finite at the first weights; correct that"
            if (example := self._batches.not_finite(dispatch.first + i)) is not None:
                fix = f"example {example} of the data in its batch has values that are not finite; leave it out"
            raise DivergenceError(
                f"at step {dispatch.first + i + 1} the loss is {metrics.loss[i]} and its gradient's norm "
                f"{metrics.grad_norm[i]}; {fix}"
            )
        self._window.append(metrics)
        self._waited += dispatch.waited
        done = dispatch.first + dispatch.count
        if self._writes:
            self._bar.update(dispatch.count)
        if done % self._every == 0 or done == self._steps:
            self._report(done, extra)

    def _report(self, step: int, extra: Mapping[str, float]) -> None:
        now = time.perf_counter()
        elapsed = now - self._since
        window = self._steps_since()
        record = {
            "loss": float(window.loss.mean()),
            "grad_norm": float(window.grad_norm.mean()),
            "learning_rate": float(window.learning_rate[-1]),
            "images_per_second": len(window.loss) * self._batches.batch_size / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
        }
        if self.flops is not None:
            record["flops_per_second"] = len(window.loss) * self.flops / elapsed
            if self._peak is not None:
                record["share_of_peak"] = record["flops_per_second"] / self._peak
        record |= extra
        self._window, self._waited, self._since = [], 0.0, now
        self.latest = record
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self._file.write(f"{json.dumps({'step': step, **finite})}\n".encode())
        self._file.flush()
        if self._loggers is not None:
            self._loggers.log(step, record)
        losses = {name: f"{record[name]:.4f}" for name in ("loss", "eval_loss") if name in record}
        self._bar.set_postfix(**losses, img_s=f"{record['images_per_second']:.0f}")
        if self._bar.disable:
            left = (self._steps - step) * elapsed / len(window.loss)
            speed = f"{record['images_per_second']:.0f} images/s  {timedelta(seconds=math.ceil(left))} left"
            self.say("  ".join([f"step {step}/{self._steps}", *map(" ".join, losses.items()), speed]))


def picture_path(workdir: AnyPath, step: int) -> AnyPath:
    """Return the path of the picture of this step."""
    return workdir / "samples" / f"{step:08d}.png"


def _restored(window: dict[str, Any] | None) -> tuple[list[Metrics], float, float]:
    """Return the metrics, the seconds waited and the seconds passed of an unfinished window."""
    try:
        if not window or "seconds" not in window:
            return [], 0.0, 0.0
        parts: Any = [np.asarray(window[name], jnp.result_type(float)) for name in Metrics._fields]
        return [Metrics(*parts)], window["waited"], window["seconds"]
    except (KeyError, TypeError, ValueError):  # damaged
        return [], 0.0, 0.0


def _drop_after(path: AnyPath, step: int) -> bytes:
    """Drop the reports after the step that a run resumes from, which it will make again; return those that are left.

    A file with lines that are no reports, other than a last one that was cut off, is set aside; its reports are kept.
    """
    kept: list[bytes] = []
    lines: list[bytes] = []
    damaged: str | None = None
    try:
        if exists(path):
            lines = path.read_bytes().split(b"\n") if path.is_file() else []
            damaged = None if path.is_file() else "it is not a file"
    except BucketError:
        raise
    except OSError as error:
        damaged = error.strerror
    for number, line in enumerate(lines, 1):
        found = _step_of(line)
        if found is None and line and number < len(lines):
            damaged = f"line {number} is no report"
        elif found is not None and found <= step:
            kept.append(line + b"\n")
    if damaged:
        set_aside(path, damaged)
    if lines or damaged:
        with replacing(path) as file:
            file.write(b"".join(kept))
    return b"".join(kept)


def _missing(kept: bytes, lines: Any) -> bytes:
    """The lines that a checkpoint kept, as they might not reach the bucket, and that are not among those in it."""
    last = max((_step_of(line) or 0 for line in kept.splitlines()), default=0)
    found = lines.encode().splitlines(keepends=True) if isinstance(lines, str) else []
    return b"".join(line for line in found if (_step_of(line) or 0) > last)


def _step_of(line: bytes) -> int | None:
    """Return the step of a line, or None if the line is no report."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None
