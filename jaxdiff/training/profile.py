"""Traces of what the devices and the host do during a few steps, for XProf or TensorBoard's profile plugin."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxdiff.experiment.workdir import side_folder
from jaxdiff.storage import AnyPath, replacing
from jaxdiff.typing import first_line

_log = logging.getLogger(__name__)

_STEPS = 5  # in a trace, at least


class Profile:
    """Traces the steps that begin at every multiple of `every`; None traces none.

    A trace is written to `plugins/profile/NNNNNNNN` in the run's folder, where those programs look, by the step at
    which it begins; each process of a run on several hosts writes a file there.
    """

    def __init__(self, workdir: AnyPath, every: int | None) -> None:
        self._workdir, self._every = workdir, every
        self._first = 0  # step of the trace that is being made
        self._made: tempfile.TemporaryDirectory[str] | None = None  # where JAX writes it

    def begin(self, step: int) -> None:
        """Begin a trace before this step if it is time to."""
        if self._every is None or self._made is not None or step % self._every:
            return
        made = tempfile.TemporaryDirectory(prefix="jaxdiff-profile-")
        try:
            jax.profiler.start_trace(made.name)
        except RuntimeError as error:  # another trace is being made in this process
            _log.warning("step %d is not traced: %s", step, first_line(error))
            made.cleanup()
            return
        self._first, self._made = step, made

    def end(self, done: int, metrics: Any) -> AnyPath | None:
        """End the trace once it has enough steps, when their `metrics` are computed, and return the folder it is in."""
        if self._made is None or done - self._first < _STEPS:
            return None
        jax.block_until_ready(metrics)
        return self._write()

    def close(self) -> None:
        """Write a trace that has fewer steps than it was to have, if there is one."""
        if self._made is not None:
            self._write()

    def _write(self) -> AnyPath | None:
        made, self._made = self._made, None
        try:
            jax.profiler.stop_trace()
        except RuntimeError as error:  # somebody else has ended it
            _log.warning("the trace of step %d is lost: %s", self._first, first_line(error))
        folder = self._workdir / "plugins" / "profile" / f"{self._first:08d}"
        found = list(Path(made.name).rglob("*.xplane.pb")) if made is not None else []
        for parent in (*reversed(list(folder.parents)[:2]), folder) if found else ():
            side_folder(parent)
        for path in found:
            # JAX names it by the host, of which there may be several processes.
            name = path.name if jax.process_count() == 1 else f"{jax.process_index()}.{path.name}"
            with replacing(folder / name) as file:
                file.write(path.read_bytes())
        if made is not None:
            made.cleanup()
        return folder if found else None
