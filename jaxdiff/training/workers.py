"""Elements that worker processes read ahead, by Grain."""

import functools
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
from absl import flags

from jaxdiff.data import Examples
from jaxdiff.typing import InputError

_QUIET = "ignore:resource_tracker:UserWarning"
_AHEAD = 4  # elements that each worker reads ahead
_GUARD = (
    'imports that script: it must call train under `if __name__ == "__main__":`, or read in threads by data.workers = 0'
)


class Elements(Protocol):
    """Elements by random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: Any) -> Examples: ...


@contextmanager
def read_ahead(elements: Elements, workers: int) -> Iterator[Iterator[Examples]]:
    """Open an iterator over the elements in order, read ahead by worker processes, or by threads of this one if 0.

    Raises:
      InputError: if the elements can't be sent to workers; from the iterator, if a worker ends.
    """
    import grain  # imported here because it is slow, and only data that are not in memory need it

    if not workers:
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=_AHEAD)
        with closing(iter(grain.MapDataset.source(elements).to_iter_dataset(options))) as iterator:
            yield iterator
        return
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which only a command line has parsed
        flags.FLAGS.mark_as_parsed()
    # At the end Grain leaves its buffers to the process that watches shared memory, which frees them, and would warn of
    # it. It takes its filters of warnings from here.
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)
    with tempfile.TemporaryDirectory(prefix="jaxdiff-", ignore_cleanup_errors=True) as folder:
        # In a worker's only thread: a second one would compete with it for Python's lock.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        stream = grain.MapDataset.source(_Stored.of(elements, Path(folder))).to_iter_dataset(options)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
        stream = stream.mp_prefetch(options, worker_init_fn=functools.partial(_end_with_parent, folder))
        with closing(iter(stream)) as iterator:
            yield _explained(iterator)


def check_main_guard() -> None:
    """Refuse to train in a worker, which imports the script that started it.

    Raises:
      InputError: in a process that is importing the script of the one that started it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        raise InputError(f"this process, which reads data for another, {_GUARD}")


def _explained(iterator: Iterator[Examples]) -> Iterator[Examples]:
    """The same elements; a worker that ended is explained."""
    try:
        yield from iterator
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):  # an error of the data itself
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        raise InputError(
            f"a process that reads data ended with exit code {code}. If a script calls jaxdiff.train, the process "
            f"{_GUARD}. Code -9 often means too little memory: take fewer data.workers"
        ) from None


def _end_with_parent(folder: str, index: int, count: int) -> None:
    """End this worker when the process that started it ends in any way, as by kill -9."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class _Stored:
    """Elements by random access that each worker takes from a file.

    Sent through a pipe, as Python does, they would block the sender for ever if a worker ended before it had read them.
    """

    path: Path
    size: int

    @classmethod
    def of(cls, elements: Elements, folder: Path) -> "_Stored":
        """Write the elements to the folder."""
        path = folder / "steps.pickle"
        try:
            path.write_bytes(cloudpickle.dumps(elements))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise InputError(
                f"these data can't be sent to the processes that read them ({error}); "
                "data.workers = 0 reads them in threads of this one"
            ) from error
        return cls(path, len(elements))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: Any) -> Examples:
        return _stored(self.path)[i]


@functools.lru_cache(maxsize=1)
def _stored(path: Path) -> Elements:
    elements: Elements = pickle.loads(path.read_bytes())
    return elements
