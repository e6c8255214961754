"""Tests run on one device, or on eight in modules that say `DEVICES = 8`; with rank promotion and old keys refused.

The package's annotations are checked at every call: types by beartype, dtypes and shapes by jaxtyping. An int stands
for a float, as everywhere in Python.
"""

import gc
import importlib.metadata
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# The tests compile far more than they run: without LLVM's optimizations they take two thirds of the time, and with
# XLA's older code for fused operations six tenths of that. Processes of tests/tiny.py's `start` have neither.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # JAX 0.11 has no other code, and would refuse the option.
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"

import beartype
import jax
import pytest
from beartype.roar import BeartypeDecorHintException
from jaxtyping import config, install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

# What several tests train is compiled once. Not shared with other processes: JAX writes these files in place.
compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_unconfigure() -> None:
    compiled.cleanup()


def checked(function: Callable) -> Callable:
    """A function that checks its annotations, or the function itself where beartype can't (`typing.Self`)."""
    try:
        return beartype.beartype(function, conf=beartype.BeartypeConf(is_pep484_tower=True))
    except BeartypeDecorHintException:
        return function


install_import_hook("jaxdiff", f"{__name__}.{checked.__name__}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks as thorough the cases of a test marked `quick(parameter=[values], …)` that have other values or ids.

    Raises:
      pytest.UsageError: if that leaves such a test no quick case, and all its cases were collected.
    """
    quick_cases: dict[str, int] = {}
    for item in items:
        for marker in item.iter_markers("quick"):
            for name, quick in marker.kwargs.items():
                if item.callspec.params[name] not in quick and item.callspec.id not in quick:
                    item.add_marker(pytest.mark.thorough)
        if item.get_closest_marker("quick"):
            name = item.nodeid.partition("[")[0]
            quick_cases[name] = quick_cases.get(name, 0) + (item.get_closest_marker("thorough") is None)
    never = [name for name, count in quick_cases.items() if not count]
    if never and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"no case is quick, whatever the marker `quick` says: {', '.join(never)}")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # or all modules are searched each time
    gc.set_threshold(100_000, 20, 100)  # tracing makes many objects


from jaxdiff import xla  # noqa: E402 - after the import hook

DEVICE_FUNCTIONS = {
    name: getattr(jax, name) for name in ("devices", "local_devices", "device_count", "local_device_count")
}


@pytest.fixture(autouse=True, scope="module")
def devices(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets the package see as many of the eight host devices as the module says, which is one if it says nothing.

    Programs for eight devices take much longer to compile and to run. Also drops what a module compiled: a process that
    keeps thousands of programs runs out of memory maps, and crashes.
    """
    seen = jax.devices()[: getattr(request.module, "DEVICES", 1)]
    with pytest.MonkeyPatch.context() as patch:
        for name in DEVICE_FUNCTIONS:
            patch.setattr(jax, name, lambda *_, name=name: len(seen) if name.endswith("count") else seen)
        xla.compiler_options.cache_clear()
        yield
    jax.clear_caches()


@pytest.fixture
def eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the package see all eight devices in a test of a module that sees one."""
    for name, function in DEVICE_FUNCTIONS.items():
        monkeypatch.setattr(jax, name, function)


@pytest.fixture(scope="session", autouse=True)
def closed_event_loops() -> Iterator[None]:
    """Where one array of a checkpoint can't be read, Orbax leaves the reads of the others unfinished.

    What they say of it, some of it much later, must not fail the tests.
    """
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            usual(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = usual


@pytest.fixture
def forgotten_coroutines() -> Iterator[None]:
    """Collects the unfinished reads of a damaged checkpoint within the test that made them."""
    gc.freeze()  # or all that earlier tests left behind is searched after each
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        yield
        warnings.simplefilter("ignore")
        gc.collect()
    gc.unfreeze()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the checks of annotations off, where the package itself must refuse what breaks them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
