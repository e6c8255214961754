"""Components from outside the package, named in a config: trained by `train.py` and found again by `jaxdiff.load`."""

import json
from pathlib import Path

import pytest
import tiny

STUDIO = '''
"""What a user writes: a schedule, a sampler, a noise distribution, a transform, a network and a data set."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdiff import noise, samplers, schedules, transforms
from jaxdiff.typing import pytree, static


@pytree
class Line(schedules.Schedule):
    """A log-SNR that is linear in t."""

    high: float = static(default=10.0)
    low: float = static(default=-10.0)

    def log_snr(self, t):
        return self.high + (self.low - self.high) * jnp.asarray(t, float)

    def time(self, log_snr):
        return jnp.clip((self.high - log_snr) / (self.high - self.low), 0, 1)

    def alpha(self, t):
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t):
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))


class Ralston(samplers.RungeKutta):
    """Ralston's method: two stages, the least error bound of second order."""

    stages = ((2 / 3,),)
    weights = (1 / 4, 3 / 4)


@pytree
class Logistic(noise.NoiseDistribution):
    """The logistic distribution of variance 1."""

    def from_normal(self, eps, t, /):
        return jnp.sqrt(3) / jnp.pi * (jax.scipy.special.log_ndtr(eps) - jax.scipy.special.log_ndtr(-eps))


@pytree
class Squeeze(transforms.Transform):
    """x_1 shrinks with t."""

    by: float = static(default=0.5)

    def _factor(self, t):
        return jnp.array([1 - self.by * t, 1])

    def __call__(self, x, t, /):
        return x * self._factor(t)

    def inverse(self, y, t, /):
        return y / self._factor(t)


class Net(nn.Module):
    """A network that knows nothing of jaxdiff."""

    width: int = 8

    @nn.compact
    def __call__(self, x, t, cond=None):
        hidden = nn.Dense(self.width)(jnp.concatenate([x, t[:, None]], axis=-1))
        return nn.Dense(x.shape[-1])(nn.tanh(hidden))


def ring(split):
    """Points on a circle."""
    angle = np.random.default_rng(split == "test").uniform(0, 2 * np.pi, 500)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), None
'''
AGAIN = """
import json, sys
import jax, numpy as np
import jaxdiff as jd

plain, perturbed = (jd.load(folder, trust=True) for folder in sys.argv[1:])
found = {"step": plain.step, "model": type(plain.experiment.model).__name__, "width": plain.experiment.model.width}
found |= {"schedule": type(plain.process.schedule).__name__, "low": plain.process.schedule.low}
found |= {"noise": type(perturbed.process.noise).__name__, "by": perturbed.process.transform.by}
for run in (plain, perturbed):
    x = run.sample(jax.random.key(0), n=4)
    assert x.shape == (4, 2) and np.isfinite(x).all()
ralston, heun = (plain.sample(jax.random.key(0), n=4, sampler=name) for name in ("studio:Ralston", "heun"))
found["ralston"] = bool((ralston == plain.sample(jax.random.key(0), n=4)).all() and (ralston != heun).any())
found["test"] = len(plain.test_examples(5))
print(json.dumps(found))
"""
PLAIN = {
    "data.name": "studio:ring",
    "model": {"name": "studio:Net", "width": 12},
    "schedule": "studio:Line:low=-9",
    "sampling.sampler": "studio:Ralston",
}
PERTURBED = {
    **PLAIN,
    "process": {"name": "perturbed", "noise": "studio:Logistic", "transform": ("studio:Squeeze:by=0.25",)},
    "sampling.sampler": "deterministic",
}


@pytest.mark.thorough
def test_components_of_a_user_are_trained_by_name_and_found_again_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "studio.py").write_text(STUDIO)
    (tmp_path / "again.py").write_text(AGAIN)
    options = {"cache": tmp_path / "cache", "paths": (tmp_path,)}
    training = []
    for name, changes in (("plain", PLAIN), ("perturbed", PERTURBED)):
        (tmp_path / f"{name}-config").mkdir()
        config = tiny.write_config(tmp_path / f"{name}-config", changes)
        training.append(tiny.start("train.py", f"--config={config}", f"--workdir={tmp_path / name}", **options))
    for process in training:
        code, _, err = tiny.finish(process)
        assert code == 0, err
    config = json.loads((tmp_path / "plain" / "config.json").read_text())["config"]
    assert config["schedule"] == {"name": "studio:Line", "high": 10.0, "low": -9.0}
    code, out, err = tiny.finish(
        tiny.start(str(tmp_path / "again.py"), *(str(tmp_path / name) for name in ("plain", "perturbed")), **options)
    )
    assert code == 0, err
    assert json.loads(out) == {
        "step": 30,
        "model": "Net",
        "width": 12,
        "schedule": "Line",
        "low": -9.0,
        "noise": "Logistic",
        "by": 0.25,
        "ralston": True,
        "test": 5,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Line", "error: schedule = 'nowhere:Line': No module named 'nowhere'; the module must be importable"),
        ("json:Line", "error: schedule = 'json:Line': module 'json' has no attribute 'Line'; name a class or function"),
    ],
)
def test_a_component_that_is_not_there_is_one_line_on_the_command_line(tmp_path: Path, name: str, message: str) -> None:
    config = tiny.write_config(tmp_path, {"schedule": name})
    process = tiny.Forked("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", cache=tmp_path / "cache")
    code, _, err = tiny.finish(process)
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1
