"""Errors of the operating system, which the command lines print as one line."""

import errno
import gc
import os
import resource

import jax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.cli.command import explain
from jaxdiff.experiment.checkpoint import Checkpoints
from jaxdiff.samplers.batching import all_devices

SYSTEM = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENAMETOOLONG, errno.EROFS, errno.EACCES, errno.ESTALE]


def wrapped(error: Exception, ways: list[str]) -> Exception:
    """The error inside others, as libraries do it."""
    for way in ways:
        try:
            if way == "cause":
                raise RuntimeError("a library failed") from error
            if way == "group":
                raise ExceptionGroup("several", [KeyError("x"), error])
            try:
                raise error
            except Exception:
                raise ValueError("while that was handled")  # noqa: B904
        except Exception as found:
            error = found
    return error


ways = st.lists(st.sampled_from(["cause", "context", "group"]), max_size=4)


@given(code=st.sampled_from(SYSTEM), ways=ways, as_text=st.booleans())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_an_error_of_the_system_is_one_line_however_it_is_wrapped(code, ways, as_text):
    text = f"RESOURCE_EXHAUSTED: Failed to write 10 bytes: {os.strerror(code)} [os_error_code='{code}']\nmore"
    inner = ValueError(text) if as_text else OSError(code, os.strerror(code), "the/path")
    line = explain(wrapped(inner, ways))
    assert line.startswith(os.strerror(code))
    assert "\n" not in line
    assert as_text or "the/path" in line


@given(ways=ways)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_too_little_memory_is_one_line_and_a_bug_keeps_its_traceback(ways):
    device = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nBuffers:\n...")
    for error in (MemoryError("Unable to allocate 8 GiB"), device):
        line = explain(wrapped(error, ways))
        assert "batch" in line
        assert "\n" not in line
    for error in (KeyError("x"), FileNotFoundError(errno.ENOENT, "none"), TypeError("a bug")):
        assert explain(wrapped(error, ways)) is None


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that Orbax can't close
def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, small_files):
    leaf = jax.device_put(
        jax.random.normal(jax.random.key(0), (100_000,)), NamedSharding(all_devices(), PartitionSpec())
    )
    checkpoints = Checkpoints(tmp_path, keep=1)

    def save() -> None:
        checkpoints.save(1, {"weights": {"a": leaf}})
        checkpoints.wait()

    with pytest.raises(Exception, match=r".") as error:
        save()
    assert explain(error.value).startswith(os.strerror(errno.EFBIG))
    del error
    gc.collect()


@pytest.mark.thorough
def test_a_run_that_cannot_write_says_so_in_one_line_and_which_step_is_safe(tmp_path):
    config, run = tiny.write_config(tmp_path, {"model.width": 256}), tmp_path / "run"

    process = tiny.start("train.py", f"--config={config}", f"--workdir={run}", cache=tmp_path / "cache")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))  # long before it has imported anything
    code, _, err = tiny.finish(process)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: {os.strerror(errno.EFBIG)}")
    assert err.endswith("then run the same command to go on: no step is saved yet\n")
    assert "Traceback" not in err
