"""Checkpoints: what is kept, what damage does, and runs that are stopped or killed and go on as if nothing had been."""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff import data
from jaxdiff.data import DataSpec
from jaxdiff.experiment import make_experiment
from jaxdiff.experiment.checkpoint import Checkpoints, NoCheckpointError, fingerprint
from jaxdiff.loading import load
from jaxdiff.training import loop
from jaxdiff.training.batches import make_batches
from jaxdiff.training.step import State, abstract_state, init_state, make_step

DEVICES = 8

WIDE = {"model": {"name": "mlp", "width": 128, "depth": 1, "time_dim": 8}}


pytestmark = pytest.mark.usefixtures("forgotten_coroutines")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains without drawing, which takes longer than these runs."""
    monkeypatch.setattr(loop, "_picture", lambda *_: np.zeros((2, 2, 3), np.uint8))


def random_state(abstract: State, seed: int = 0) -> State:
    """A state of random bits (of finite floats), laid out like `abstract`."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(seed), leaf.sharding)
        value = rng.normal(size=leaf.shape) * 100
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, abstract)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What jaxdiff logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff.")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, State]:
    """A run of 30 steps with checkpoints of steps 10, 20 and 30, and its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    picture, loop._picture = loop._picture, lambda *_: np.zeros((2, 2, 3), np.uint8)
    try:
        state = loop.train(tiny.config(), workdir)
    finally:
        loop._picture = picture
    return workdir, state


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of that run."""
    return shutil.copytree(finished[0], tmp_path / "run")


def restore(workdir: Path) -> State | None:
    checkpoints = Checkpoints(workdir / "checkpoints", keep=3)
    try:
        return tiny.restored(checkpoints, tiny.abstract_of(tiny.config(), tiny.mesh_of(8)))
    finally:
        checkpoints.close()


@pytest.mark.thorough
def test_the_newest_are_kept(tmp_path):
    loop.train(tiny.config({"train.steps": 20, "every.checkpoint": 5, "every.log": 5, "every.keep": 2}), tmp_path)
    assert tiny.steps_in(tmp_path) == [15, 20]


def test_a_state_comes_back_bit_for_bit(finished):
    tiny.assert_identical(restore(finished[0]), finished[1])


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4), (4, 2), (8, 1)])
@pytest.mark.quick(devices=[4])
def test_a_state_comes_back_on_other_devices_and_in_another_layout(tmp_path, devices, fsdp):
    config = tiny.config(WIDE)
    saved = random_state(tiny.abstract_of(config, tiny.mesh_of(8, 2)))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, saved.items())
    abstract = tiny.abstract_of(config, tiny.mesh_of(devices, fsdp))
    found = tiny.restored(checkpoints, abstract)
    checkpoints.close()
    tiny.assert_identical(found, saved)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == wanted.sharding


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"name": "cosine", "num_timesteps": 4}, "loss.times": "importance"},
        {"schedule": {"name": "learned", "hidden": 4, "learn_ends": True}, "loss.weight": "elbo"},
    ],
    ids=["a history of losses", "a learned schedule"],
)
def test_what_else_is_trained_with_goes_on_bit_for_bit(tmp_path, changes):
    config, mesh = tiny.config({**changes, "train.steps_per_dispatch": 1, "train.accumulate": 2}), tiny.mesh_of(4)
    experiment = make_experiment(config, DataSpec(shape=(2,), levels=None))
    abstract = abstract_state(experiment, mesh)
    step = make_step(experiment, mesh, abstract)
    batches = make_batches(data.load("swissroll"), mesh, seed=0, batch_size=16, on_device=True)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(lambda: init_state(experiment), out_shardings=shardings)()
    checkpoints = Checkpoints(tmp_path, keep=1)
    for dispatch in batches.stream(0, 12, 1):
        if dispatch.first == 9:
            checkpoints.save(9, state.items())
            halfway = tiny.arrays(state)
        state, _ = step(state, batches.resident, dispatch.batch)
    resumed = tiny.restored(checkpoints, abstract)
    checkpoints.close()
    tiny.assert_identical(resumed, halfway)
    if resumed.history is not None:
        # From which times are drawn by now, not uniformly.
        assert resumed.history.counts.sum() == 9 * 16
        assert np.ptp(np.asarray(resumed.history.probabilities())) > 0.01
    for dispatch in batches.stream(9, 12, 1):
        resumed, _ = step(resumed, batches.resident, dispatch.batch)
    tiny.assert_identical(resumed, state)


@pytest.mark.thorough
def test_a_run_of_eight_devices_goes_on_with_weights_spread_over_four(workdir, finished, caplog):
    state = loop.train(tiny.config({"train.steps": 31, "train.fsdp": 4}), workdir)
    assert int(state.step) == 31
    assert tiny.difference(state.params, finished[1].params) < 0.05
    assert said(caplog) == []


@pytest.mark.thorough
def test_a_save_is_untouched_by_the_steps_that_reuse_its_memory(tmp_path):
    abstract = tiny.abstract_of(tiny.config({"model": {"name": "mlp", "width": 512, "depth": 3}}), tiny.mesh_of(8))
    state = random_state(abstract)
    expected = tiny.arrays(state)

    def overwrite(state: State) -> State:
        return State(*jax.tree.map(lambda leaf: leaf * 0 + 7, tuple(state[:4])), key=state.key)

    step = jax.jit(overwrite, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state.items())
    for _ in range(3):
        state = step(state)
    found = tiny.restored(checkpoints, abstract)
    checkpoints.close()
    assert float(jax.tree.leaves(state.params)[0].max()) == 7
    for before, after in zip(expected, tiny.arrays(found), strict=True):
        np.testing.assert_array_equal(after, before)


def values(folder: Path) -> list[Path]:
    """The files of values. Any one of them may be a left-over that nothing refers to, so that damage to it is none."""
    return [path for path in folder.rglob("d/*") if path.stat().st_size]


def flip(folder: Path) -> None:
    for path in values(folder):
        content = bytearray(path.read_bytes())
        for i in range(len(content) // 2, len(content), 7):
            content[i] ^= 0x10
        path.write_bytes(content)


def flip_one_bit(folder: Path) -> None:
    """In the middle of the largest file."""
    path = max(values(folder), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    for path in values(folder):
        os.truncate(path, path.stat().st_size // 2)


def delete(folder: Path) -> None:
    for path in values(folder):
        path.unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def lose_index(folder: Path) -> None:
    (folder / "manifest.ocdbt").unlink()


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, delete, empty, lose_index]
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@every_damage
@pytest.mark.parametrize("item", ["weights", "training"])
def test_training_reports_a_damaged_checkpoint_and_takes_the_one_before(workdir, damage, item, caplog):
    damage(workdir / "checkpoints" / "30" / item)
    state = restore(workdir)
    assert int(state.step) == 20
    (message,) = said(caplog)
    assert message.startswith("the checkpoint of step 30 is damaged and is not used: ")
    assert len(message) < 300
    assert tiny.steps_in(workdir) == [10, 20]
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["30-0"]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    folders = {str(path): (path.stat().st_mtime_ns, b"") for path in folder.rglob("*") if path.is_dir()}
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files} | folders


@every_damage
def test_loading_reports_a_damaged_checkpoint_takes_the_one_before_and_changes_no_file(workdir, damage, caplog):
    damage(workdir / "checkpoints" / "30" / "weights")
    before = snapshot(workdir)
    run = load(workdir)
    assert run.step == 20
    assert "the checkpoint of step 30 is damaged and is not used: " in caplog.text
    assert snapshot(workdir) == before


@pytest.mark.parametrize("damage", [empty, shutil.rmtree])
def test_a_checkpoint_with_nothing_left_in_it_is_passed_over(workdir, damage):
    damage(workdir / "checkpoints" / "30")
    assert load(workdir).step == 20
    assert int(restore(workdir).step) == 20


def test_a_flipped_bit_among_the_values_is_found_by_the_fingerprint(tmp_path, caplog):
    abstract = tiny.abstract_of(tiny.config(WIDE), tiny.mesh_of(1))
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in range(1, 4):
        checkpoints.save(step, random_state(abstract).items())
    checkpoints.wait()
    for step in (2, 3):
        flip_one_bit(tmp_path / str(step) / "training")
    tiny.assert_identical(tiny.restored(checkpoints, abstract), random_state(abstract))
    checkpoints.close()
    assert said(caplog) == [
        f"the checkpoint of step {step} is damaged and is not used: "
        "the values of 'training' are not those that were written"
        for step in (3, 2)
    ]


@pytest.mark.thorough
def test_a_run_with_a_damaged_checkpoint_writes_that_step_again(workdir, finished):
    flip(workdir / "checkpoints" / "30" / "training")
    flip(workdir / "checkpoints" / "20" / "weights")
    state = loop.train(tiny.config(), workdir)
    tiny.assert_identical(state, finished[1])
    assert tiny.steps_in(workdir) == [10, 20, 30]
    assert sorted(path.name.partition("-")[0] for path in (workdir / "damaged").iterdir()) == ["20", "30"]
    tiny.assert_identical(restore(workdir), finished[1])


def test_where_all_are_damaged_training_and_loading_stop_and_touch_nothing(workdir):
    for step in tiny.steps_in(workdir):
        flip(workdir / "checkpoints" / str(step) / "weights")
    before = tiny.steps_in(workdir)
    message = r"^none of the checkpoints in .* \(steps 30, 20, 10\) is whole, or other versions"
    for _ in range(2):
        with pytest.raises(NoCheckpointError, match=message):
            loop.train(tiny.config(), workdir)
        with pytest.raises(NoCheckpointError, match=message):
            load(workdir)
        assert tiny.steps_in(workdir) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_one_flipped_bit_anywhere_changes_the_fingerprint(dtype):
    rng = np.random.default_rng(0)
    size = jnp.dtype(dtype).itemsize * 8
    bits = rng.integers(2**size, size=(5, 7), dtype=np.uint64).astype(f"uint{size}")
    flipped = np.repeat(bits[None], bits.size * size, axis=0)
    for i in range(len(flipped)):
        flipped[i].reshape(-1)[i // size] ^= np.array(1 << i % size, bits.dtype)
    of_one = jax.vmap(lambda leaf: fingerprint({"a": jax.lax.bitcast_convert_type(leaf, jnp.dtype(dtype))}))
    assert (of_one(flipped) != of_one(bits[None])).all()


def test_the_fingerprint_sees_exchanged_elements_and_other_keys():
    x = jnp.arange(6.0)
    assert (fingerprint(x) != fingerprint(x[::-1])).all()
    assert (fingerprint(jax.random.key(0)) != fingerprint(jax.random.key(1))).all()


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data"), P("fsdp", "data"), P(("data", "fsdp"))])
def test_the_fingerprint_is_the_same_for_every_sharding(spec):
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    index = np.arange(x.size, dtype=np.uint64).reshape(x.shape)
    expected = int((x.view(np.uint32).astype(np.uint64) * (2 * index + 1)).sum() % 2**32)
    assert fingerprint(jax.device_put(x, NamedSharding(tiny.mesh_of(8, 2), spec))).tolist() == [expected]


def test_a_run_that_stopped_and_went_on_is_identical_to_an_unbroken_one(finished, tmp_path):
    loop.train(tiny.config({"train.steps": 10}), tmp_path)
    loop.train(tiny.config({"train.steps": 20}), tmp_path)
    tiny.assert_identical(loop.train(tiny.config(), tmp_path), finished[1])


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first_and_the_run_goes_on_identically(finished, tmp_path, number, monkeypatch):
    handlers = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    push = loop.Recorder.push

    def push_then_signal(self: loop.Recorder, dispatch: Any, *rest: Any) -> None:
        push(self, dispatch, *rest)
        if dispatch.first == 10:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Recorder, "push", push_then_signal)
        message = f"^stopped by {number.name}; step 15 is saved, run the same command to go on$"
        with pytest.raises(loop.Interrupted, match=message) as stopped:
            loop.train(tiny.config(), tmp_path)
    assert stopped.value.number == number
    assert {which: signal.getsignal(which) for which in handlers} == handlers
    assert tiny.steps_in(tmp_path) == [10, 15]
    tiny.assert_identical(loop.train(tiny.config(), tmp_path), finished[1])


@pytest.mark.thorough
def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(loop.train(tiny.config({"train.steps": 5}), tmp_path)))
    thread.start()
    thread.join()
    assert int(found[0].step) == 5
