"""A signal while a picture is drawn: the state is saved, and the picture is abandoned."""

import os
import signal
import time
from pathlib import Path

import jax
import pytest
import tiny

from jaxdiff.samplers import Stateless
from jaxdiff.training import loop

SLOW = '''
import time
from pathlib import Path

import jax

from jaxdiff.samplers import Stateless


def wait(x):
    """Takes half a second, and leaves a file."""
    Path(__file__).with_name("begun").touch()
    time.sleep(0.5)
    return x


class Slow(Stateless):
    """A sampler that waits at each step."""

    def advance(self, key, x_t, *, t, s, denoiser):
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(x_t.shape, x_t.dtype), x_t, vmap_method="broadcast_all")
'''


@pytest.mark.thorough
def test_a_signal_during_a_picture_of_minutes_saves_the_state_and_ends_the_process(tmp_path):
    (tmp_path / "slow_sampler.py").write_text(SLOW)
    changes = {
        "schedule.num_timesteps": 1000,
        "train.steps": 100,
        "every.log": 2,
        "every.sample": 2,
        "sampling.sampler": "slow_sampler:Slow",
        "sampling.steps": 1000,
    }
    config, run = tiny.write_config(tmp_path, changes, base=tiny.IMAGES), tmp_path / "run"
    arguments = f"--config={config}", f"--workdir={run}"
    process = tiny.start("train.py", *arguments, cache=tmp_path / "cache", paths=(tmp_path,))
    end = time.monotonic() + 200
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, _, err = tiny.finish(process, seconds=200)  # the picture would take 500
    assert code == 128 + signal.SIGTERM, err
    assert "stopped by SIGTERM; step 2 is saved, run the same command to go on" in err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["2"]
    assert not (run / "samples").exists()


class Signalling(Stateless):
    """A sampler that sends SIGTERM to this process while a picture is drawn, once the first picture is written."""

    def advance(self, key, x_t, *, t, s, denoiser):
        form = jax.ShapeDtypeStruct(x_t.shape, x_t.dtype)
        return jax.pure_callback(send_once, form, x_t, vmap_method="broadcast_all")


first_picture: list[Path] = []  # its path until the signal is sent


def send_once(x):
    if first_picture and first_picture[0].exists():
        first_picture.clear()
        os.kill(os.getpid(), signal.SIGTERM)
    return x


@pytest.mark.thorough
def test_a_signal_during_a_later_picture_saves_a_state_that_was_not_due(tmp_path: Path):
    changes = {
        "train.steps": 25,
        "train.steps_per_dispatch": 1,
        "every.log": 5,
        "every.checkpoint": 1000,
        "every.sample": 5,
        "sampling.sampler": "test_interruption:Signalling",
        "sampling.steps": 6,
    }
    first_picture[:] = [tmp_path / "samples" / "00000005.png"]
    with pytest.raises(loop.Interrupted, match="step 10 is saved"):
        loop.train(tiny.config(changes), tmp_path)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5, 10]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000005.png"]
