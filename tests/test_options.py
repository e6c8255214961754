"""Every option of every registered component, given what it may not be able to use: refused by name, or of use."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxdiff as jd
from jaxdiff import registry
from jaxdiff.losses.weightings import WEIGHTINGS
from jaxdiff.models import MODELS
from jaxdiff.processes.noise import NOISES
from jaxdiff.processes.transforms import TRANSFORMS
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schedules import SCHEDULES
from jaxdiff.typing import InputError

pytestmark = pytest.mark.usefixtures("unchecked")

NUMBERS = [math.nan, math.inf, -math.inf, -1, 0, 0.5, 2.5, 10**9, 10**30, 1e17, 1e30, 1e300, -1e300, 1e-30, 1e-300]
VALUES = [*NUMBERS, True, None, "x", "", (), ((),), (1,), (math.nan,), (1e300, 1e300), ("x",), (3, 2, 1), (2.5,)]
REQUIRED: dict[str, dict[str, Any]] = {
    "shift": {"pixels": 1},
    "rotation": {"angle": 1.0},
    "random_rotation": {"low": -1.0, "high": 1.0},
    "scale": {"factor": 0.5},
    "shear": {"amount": 0.5},
    "translation": {"by": (0.5, 0.5)},
    "random_warp": {"low": -1.0, "high": 1.0},
    "colors": {"matrix": ((1.0,),)},
    "blur": {"width": 2.0},
    "pixelate": {"blocks": (2, 4)},
}
GIVEN = {"key", "others", "parent", "name", "dtype", "shape"}  # by code
EXACT = jd.analytic.gaussian(np.zeros(2), 0.5, schedule=jd.schedules.VP())


def check_schedule(schedule: Any) -> None:
    t = jnp.array([0.25, 0.5, 1.0])
    assert jnp.isfinite(schedule.alpha(t)).all()
    assert jnp.isfinite(schedule.sigma(t)).all()
    assert (schedule.sigma(t) > 0).all()
    assert not jnp.isnan(schedule.log_snr(t)).any()
    times = schedule.time(jnp.array([-3.0, 0.0, 3.0]))
    assert ((times >= 0) & (times <= 1)).all()


def check_transform(transform: Any) -> None:
    for shape in ((8, 8, 1), (2,), (3,)):
        try:
            drawn = transform.sample_params(jax.random.key(0), shape)
            found = [drawn(jnp.ones(shape), t) for t in (0.5, 1.0)]
        except InputError:  # another shape may fit
            continue
        assert all(x.shape == shape and jnp.isfinite(x).all() for x in found)


def check_noise(noise: Any) -> None:
    assert jnp.isfinite(noise(jax.random.key(0), (16, 16))).all()


def check_sampler(sampler: Any) -> None:
    assert hash(sampler) == hash(sampler)


def check_weight(weigh: Any) -> None:
    assert all(jnp.isfinite(weight) & (weight >= 0) for weight in weigh(jd.schedules.VP(), 0.5))


def check_model(model: Any) -> None:
    assert model.time_dim % 2 == 0


KINDS: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "schedule": (SCHEDULES, check_schedule),
    "transform": (TRANSFORMS, check_transform),
    "noise": (NOISES, check_noise),
    "weight": (WEIGHTINGS, check_weight),
    "sampler": (SAMPLERS, check_sampler),
    "model": (MODELS, check_model),
}
OPTIONS = [
    (kind, name, option)
    for kind, (names, _) in KINDS.items()
    for name in names
    if not name.startswith("dpmpp") and name not in ("snr", "residual")  # second names
    for option in registry._signature(names[name])[0]
    if option not in GIVEN
]


def refusal(make: Callable[[], Any]) -> str:
    """What is said against it, empty if it is made and of use."""
    try:
        make()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS)
@pytest.mark.quick(name=["schedule-learned-log_snr_max", *(name for _, name, _ in OPTIONS if name != "learned")])
def test_an_option_is_refused_by_its_name_or_of_use(kind: str, name: str, option: str) -> None:
    names, check = KINDS[kind]
    useful = []
    for value in VALUES:
        options = {**REQUIRED.get(name, {}), option: value}
        by_name = refusal(lambda: registry.make(kind, {"name": name, **options}, names))  # noqa: B023
        from_python = refusal(lambda: names[name](**options))  # noqa: B023
        assert bool(by_name) == bool(from_python), value
        assert all(option in text and "\n" not in text for text in (by_name, from_python) if text), (value, by_name)
        if not by_name:
            useful.append(options)
    for options in useful[:1] + useful[-2:]:
        found = refusal(lambda: check(registry.make(kind, {"name": name, **options}, names)))  # noqa: B023
        assert not found or option in found


@pytest.mark.parametrize(
    "sampler", ["predictor_corrector:snr=9.9,corrections=3", "langevin:snr=9.9", "edm:gamma=1e17,noise=1e17"]
)
@pytest.mark.quick(sampler=["predictor_corrector:snr=9.9,corrections=3"])
def test_the_greatest_options_of_a_sampler_give_numbers(sampler: str) -> None:
    assert jnp.isfinite(jd.sample(jax.random.key(0), EXACT, sampler, n=1, shape=(2,), steps=2)).all()


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: jd.transforms.Flip("x"), "axis"),
        (lambda: jd.transforms.Rotation(math.nan), "angle"),
        (lambda: jd.transforms.Rotation(np.array(math.inf)), "angle"),
        (lambda: jd.transforms.Rotation(1.0, axis=(0, math.nan, 1)), "axis"),
        (lambda: jd.schedules.Discrete(("a", 0.5)), "betas"),
        (lambda: jd.schedules.Discrete([0.5, math.nan]), "betas"),
        (lambda: jd.samplers.Sampling(clip="statc"), "clip"),
        (lambda: jd.samplers.Sampling(steps=2.5), "steps"),
        (lambda: jd.samplers.Sampling(batch=True), "batch"),
        (lambda: jd.samplers.probability_flow.Solver(rtol=math.nan), "rtol"),
        (lambda: jd.samplers.probability_flow.Solver(max_steps=2.5), "max_steps"),
        (lambda: jd.samplers.PredictorCorrector(predictor="ddim"), "predictor"),
        (lambda: jd.samplers.Heun(slope=1), "slope"),
        (lambda: MODELS["mlp"](width=10**5000), "width"),
    ],
)
def test_python_is_checked_as_texts_are(make: Callable[[], Any], option: str) -> None:
    with pytest.raises(InputError, match=rf"^{option}\b"):
        make()


def test_numbers_of_numpy_and_jax_and_sequences_are_taken() -> None:
    assert jd.transforms.Blur(np.float32(4)) == jd.transforms.Blur(jnp.float32(4)) == jd.transforms.Blur(4)
    assert jd.transforms.Shift(np.array([1, 2])).pixels == jd.transforms.Shift([1, 2]).pixels == (1, 2)
    assert jd.transforms.Pixelate(range(2, 4)).blocks == (2, 3)
    assert jd.samplers.DDIM(np.float64(1)) == jd.samplers.DDIM(1)
    assert jax.jit(lambda angle: jd.transforms.Rotation(angle)(jnp.ones(2), 1.0))(jnp.nan).shape == (2,)


def test_infinity_is_taken_where_it_has_a_meaning() -> None:
    assert registry.make("sampler", {"name": "edm", "high": math.inf}, SAMPLERS) == jd.samplers.EDM()
    assert jd.schedules.TruncatedCosine(log_snr_max=math.inf).log_snr(0.0) == math.inf


@pytest.mark.parametrize(
    "text", ["(" * 990, "[" * 990 + ",", "thing:a=" + "(" * 900, "thing:a=" + "," * 900, "x" * 1001]
)
def test_a_text_of_brackets_is_refused(text: str) -> None:
    with pytest.raises(InputError) as error:
        registry.make("thing", text, {"thing": jd.samplers.DDIM})
    assert "\n" not in str(error.value)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ddim:eta=,()[]{}'\"0123456789.-e \\\n"), max_size=60), st.sampled_from(sorted(KINDS)))
def test_any_text_makes_a_component_or_one_line(text: str, kind: str) -> None:
    for written in (text, f"ddim:{text}", f"ddim:eta={text}"):
        assert "\n" not in refusal(lambda: registry.make(kind, written, KINDS[kind][0]))  # noqa: B023
