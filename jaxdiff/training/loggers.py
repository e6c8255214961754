"""Where the metrics and pictures of a run go beside its files: TensorBoard, Weights & Biases, trackio, or yours.

A logger is an object with the methods of `Logger`. A config names the classes in `loggers`, and `jaxdiff.train` takes
objects. Only process 0 of a run has loggers. They are made in the thread of the run and called in another, so that the
steps need not wait for them. One that raises an error is named in a warning and left out from then on: the run goes on.

A run that was killed repeats its steps from the last checkpoint on, with the same metrics but for times. TensorBoard
drops what it had of these steps, Weights & Biases what comes again, and trackio keeps both.
"""

import importlib
import json
import logging
import queue
import re
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8

from jaxdiff import registry
from jaxdiff.buckets import Growing
from jaxdiff.storage import AnyPath, is_bucket, replacing
from jaxdiff.typing import InputError, first_line, shown

_log = logging.getLogger(__name__)

Pixels = UInt8[np.ndarray, "height width 3"]
Metrics = Mapping[str, float]

_IDS = "loggers.json"  # in the run's folder


class Logger(Protocol):
    """Takes what a run reports."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a line of `metrics.jsonl`."""

    def picture(self, step: int, pixels: Pixels) -> None:
        """Take the picture of a step, of RGB values."""

    def close(self) -> None:
        """Write what is left; called once, at the end of the run."""


class TensorBoard:
    """Writes TensorBoard's event files to the run's folder."""

    def __init__(self, *, workdir: AnyPath, start: int) -> None:
        from tensorboardX import SummaryWriter, record_writer  # here, as it is slow

        record_writer.register_writer_factory("gs", _Objects)  # its own loses what it can't upload at once

        # A name that nobody can foresee, as the writer follows links; an absolute path, as it takes gs:x for a bucket;
        # no limit (max_queue=0), as a full queue whose thread has ended by an error would block this one.
        self._board = SummaryWriter(
            str(_place(workdir)),
            purge_step=start + 1,
            max_queue=0,
            filename_suffix=f".{secrets.token_hex(8)}",
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Write a scalar for each metric."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, pixels: Pixels) -> None:
        """Write the picture as "samples"."""
        self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self._board.close()


class _Objects:
    """Opens the event files of TensorBoard in a bucket."""

    @staticmethod
    def open(path: str) -> Growing:
        return Growing(epath.Path(path))

    @staticmethod
    def directory_check(path: str) -> None:
        """Make no folder, as a bucket needs none."""


class WandB:
    """Logs to Weights & Biases, where a run that is resumed goes on as the same run.

    Options are those of `wandb.init`; `run_name` is its `name`, by default that of the folder. The package's own
    settings, such as the environment variable WANDB_MODE, apply too.
    """

    def __init__(
        self,
        *,
        workdir: AnyPath,
        config: Mapping[str, Any],
        project: str = "jaxdiff",
        run_name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        self._wandb = importlib.import_module("wandb")
        options = {"project": project, "name": run_name or _place(workdir).name, "entity": entity, "group": group}
        folder = tempfile.gettempdir() if is_bucket(workdir) else str(workdir)
        self._run = self._wandb.init(
            **options, mode=mode, id=_kept_id(workdir, "wandb"), resume="allow", dir=folder, config={**config}
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Log the metrics at the step."""
        self._run.log({**metrics}, step=step)

    def picture(self, step: int, pixels: Pixels) -> None:
        """Log the picture as "samples"."""
        self._run.log({"samples": self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()


class Trackio:
    """Logs to trackio, where a run that is resumed goes on as the same run.

    Options are those of `trackio.init`. The run is named after its folder, with a part that no other run has.
    """

    def __init__(
        self,
        *,
        workdir: AnyPath,
        config: Mapping[str, Any],
        project: str = "jaxdiff",
        group: str | None = None,
        space_id: str | None = None,
    ) -> None:
        self._trackio = importlib.import_module("trackio")
        name = f"{_place(workdir).name}-{_kept_id(workdir, 'trackio')}"
        options = {"project": project, "name": name, "group": group, "space_id": space_id, "config": {**config}}
        self._run = self._trackio.init(**options, resume="allow", embed=False)

    def log(self, step: int, metrics: Metrics) -> None:
        """Log the metrics at the step."""
        self._run.log({**metrics}, step=step)

    def picture(self, step: int, pixels: Pixels) -> None:
        """Log the picture as "samples"."""
        self._run.log({"samples": self._trackio.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()


LOGGERS: registry.Names = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
_PACKAGES = ("wandb", "trackio")  # which are extras of jaxdiff, by the names of their loggers
_GIVEN = ("workdir", "start", "config")  # by code
_MOST_WAITING = 1000  # lines and pictures that slow loggers have not taken yet
_END = 30.0  # seconds for them to take the rest at the end of a run


def check(names: Sequence[str], objects: Sequence[Any]) -> None:
    """Raise an InputError if a logger is unknown or not installed, or an object is no logger."""
    for text in names:
        name = registry.normalize("loggers", text, LOGGERS, given=_GIVEN)["name"]
        if name in _PACKAGES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise InputError(f'loggers = {text!r} is not installed: pip install "jaxdiff[{name}]"') from error
    for found in objects:
        for method in ("log", "picture", "close"):
            if isinstance(found, type) or not callable(getattr(found, method, None)):
                rule = "an object with the methods log(step, metrics), picture(step, pixels) and close()"
                raise InputError(f"loggers holds {shown(found)}; give {rule}")


class Loggers:
    """Several loggers as one, called in a thread in the order of the calls.

    One that raises an error is named in a warning and left out from then on.
    """

    def __init__(
        self,
        names: Sequence[str],
        objects: Sequence[Logger],
        *,
        workdir: AnyPath,
        start: int,
        config: Mapping[str, Any],
    ) -> None:
        given: Any = {"workdir": workdir, "start": start, "config": config}
        self._kept: list[tuple[str, Logger]] = []
        for text in names:
            try:
                self._kept.append((text, registry.make("loggers", text, LOGGERS, **given)))
            except Exception as error:
                _warn_of(text, error)
        self._kept += [(type(found).__name__, found) for found in objects]
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_WAITING)
        self._busy = ""  # the logger that is called now
        self._taken = threading.Event()  # everything up to the last `wait`
        self._taken.set()
        threading.Thread(target=self._take, name="loggers", daemon=True).start()

    def log(self, step: int, metrics: Metrics) -> None:
        """Pass on the metrics of a line."""
        taken = {**metrics}  # now: the caller may change its own
        self._soon(lambda logger: logger.log(step, {**taken}))

    def picture(self, step: int, pixels: Pixels) -> None:
        """Pass on a picture."""
        self._soon(lambda logger: logger.picture(step, pixels.copy()))

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds at most until the loggers have taken what was passed on; return whether they have.

        It does not wait for loggers that have not come back since the last time.
        """
        if not self._taken.is_set():
            return False
        taken = threading.Event()
        if not self._put(taken.set, seconds):
            return False
        self._taken = taken
        return taken.wait(seconds)

    def close(self) -> None:
        """Close all that are left, after they have taken the rest; a logger that takes more than 30 s is left out."""
        closed = threading.Event()

        def close() -> None:
            self._each(lambda logger: logger.close())
            closed.set()

        if not (self._put(close, _END) and closed.wait(_END)):
            _log.warning("the logger %s has not come back for %g s: the run ends without it", self._busy, _END)

    def _soon(self, call: Callable[[Logger], None]) -> None:
        if not self._put(lambda: self._each(call), 0):
            _log.warning("the logger %s is %d calls behind: it misses one", self._busy, _MOST_WAITING)

    def _put(self, call: Callable[[], None], seconds: float) -> bool:
        """Add a call to those that wait; return whether there was room for it within so many seconds."""
        try:
            self._calls.put(call, block=seconds > 0, timeout=seconds or None)
        except queue.Full:
            return False
        return True

    def _take(self) -> None:
        while True:
            self._calls.get()()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._kept):
            self._busy = name
            try:
                call(logger)
            except BaseException as error:  # whatever it is, be it SystemExit, it is not the run that failed
                self._kept = [entry for entry in self._kept if entry[1] is not logger]
                _warn_of(name, error)


def _warn_of(name: str, error: BaseException) -> None:
    fault = f"{type(error).__name__}: {first_line(error, 500)}"
    _log.warning("the logger %s failed and is left out from now on, the run goes on: %s", name, fault)


def _place(workdir: AnyPath) -> AnyPath:
    return workdir if is_bucket(workdir) else workdir.absolute()


def _kept_id(workdir: AnyPath, kind: str) -> str:
    """The name of a run at a service, which the run's folder keeps."""
    path = workdir / _IDS
    try:
        content = json.loads(path.read_text())
        found = {name: text for name, text in content.items() if re.fullmatch(r"[\w-]{1,64}", text)}
    except (OSError, ValueError, TypeError, AttributeError):  # there is none yet, or it is damaged
        found = {}
    if kind not in found:
        found[kind] = secrets.token_hex(4)
        with replacing(path) as file:
            file.write(json.dumps(found).encode())
    return found[kind]
