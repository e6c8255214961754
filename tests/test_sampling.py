"""The sampling loop, the denoisers that it is given, and samplers made from text."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdiff as jd
from jaxdiff import samplers, schedules
from jaxdiff.processes import Gaussian
from jaxdiff.samplers import Sampler, Sampling, batching, pieces, sample_in_batches, timesteps
from jaxdiff.samplers.loop import sample_each, sample_keys
from jaxdiff.schedules import Schedule
from jaxdiff.typing import Prediction

SCHEDULES: dict[str, Schedule] = {name: make() for name, make in schedules.SCHEDULES.items()}
SAMPLERS: dict[str, Sampler] = {name: make() for name, make in samplers.SAMPLERS.items() if "dpmpp" not in name}
SAMPLERS["langevin"] = samplers.Langevin(200)  # enough for the few steps here

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def toy(params: Any, x: jax.Array, t: jax.Array, *cond: jax.Array) -> jax.Array:
    """A network on a batch, in plain JAX: not linear, so that a mixed-up sample shows."""
    shift = cond[0][:, None] if cond else 0.0
    return jnp.tanh(x * params["scale"] + params["bias"] + t[:, None] + shift)


PARAMS = {"scale": jnp.full((1, 3), 0.7), "bias": jnp.array([[0.1, -0.2, 0.3]])}
PROCESS = Gaussian(schedules.Discrete(np.linspace(0.05, 0.75, 10)))
TOY = jd.denoiser(toy, PARAMS, PROCESS)


def draw(key: jax.Array, denoiser: Any, sampler: str | Sampler = "ddpm", **options: Any) -> np.ndarray:
    return np.asarray(jd.sample(key, denoiser, sampler, **{"shape": (3,), "steps": 5} | options))


# One of each kind.
@every_sampler
@pytest.mark.quick(sampler=["ddim", "ddpm", "unipc", "heun"])
def test_a_sample_depends_only_on_its_own_key(sampler: str) -> None:
    """Not on its place among others, on these others, or, for one sampler of each kind, on how many they are."""
    key, times = jax.random.key(3), timesteps.make("uniform", 5, PROCESS.schedule)
    many = draw(key, TOY, SAMPLERS[sampler], n=16)
    assert many.shape == (16, 3)
    assert many.dtype == np.float32
    assert len(np.unique(many[:, 0])) == 16
    order = np.array([9, 0, 15, *range(20, 33)])
    picked = sample_each(sample_keys(key, order), TOY, SAMPLERS[sampler], times=times, shape=(3,))
    # A few roundings a step, and to its tolerance where steps are chosen.
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if sampler == "adaptive" else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(picked[:3], many[order[:3]], **tolerance)
    if sampler in ("ddpm", "dpm++3m", "predictor_corrector", "adaptive"):  # a batch of another size is compiled anew
        np.testing.assert_allclose(draw(key, TOY, SAMPLERS[sampler], n=3), many[:3], **tolerance)


def test_the_key_of_sample_i_is_fold_in() -> None:
    key = jax.random.key(5)
    keys = sample_keys(key, np.arange(2, 4))
    assert jax.random.key_data(keys[1]).tolist() == jax.random.key_data(jax.random.fold_in(key, 3)).tolist()


@pytest.mark.usefixtures("eight_devices")
def test_keys_sharded_over_devices_give_the_same_samples() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    keys, times = sample_keys(jax.random.key(3), np.arange(16)), np.linspace(1, 0, 6)
    call = functools.partial(sample_each, denoiser=TOY, sampler=SAMPLERS["ddpm"], times=times, shape=(3,))
    sharded = call(jax.device_put(keys, NamedSharding(mesh, P("data"))))
    assert len(sharded.sharding.device_set) == 8
    assert not sharded.sharding.is_fully_replicated
    np.testing.assert_allclose(jax.device_get(sharded), call(keys), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["ddpm", "unipc", "adaptive"])
def test_batches_in_pieces_give_the_same_samples(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit in any number of pieces and with progress, from one program; as `sample`, to rounding."""
    key, cond, traces = jax.random.key(3), np.linspace(0, 1, 20, dtype=np.float32), []

    def network(params: Any, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        traces.append(None)
        return toy(params, x, t, cond)

    def drawn(longest: int, progress: bool) -> np.ndarray:
        monkeypatch.setattr(pieces, "_MOST", longest)
        sampling = Sampling(sampler=sampler, steps=7, batch=8, progress=progress)
        return sample_in_batches(key, model, sampling, shape=(3,), n=20, cond=cond)

    model = jd.denoiser(network, PARAMS, PROCESS)
    whole = drawn(7, False)
    first = len(traces)
    for longest, progress in ((1, True), (3, False)):
        np.testing.assert_array_equal(drawn(longest, progress), whole)
    assert len(traces) == first
    tolerance = 1e-3 if sampler == "adaptive" else 1e-5
    alone = draw(key, TOY, sampler, n=20, steps=7, cond=cond)
    np.testing.assert_allclose(whole, alone, rtol=tolerance, atol=tolerance)


def test_the_progress_bar_counts_every_step_of_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int, unit: str, **_: Any) -> None:
            self.total, self.unit, self.updates = total, unit, []
            bars.append(self)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int) -> None:
            self.updates.append(n)

    monkeypatch.setattr(batching, "tqdm", Bar)
    monkeypatch.setattr(pieces, "_MOST", 2)
    model = jd.denoiser(toy, PARAMS, PROCESS)
    sample_in_batches(jax.random.key(0), model, Sampling(steps=5, batch=8, progress=True), shape=(3,), n=9)
    assert [(bar.total, bar.unit, sum(bar.updates)) for bar in bars] == [(10, "step", 10)]
    assert max(bars[0].updates) <= 2


@pytest.mark.thorough
def test_a_solver_that_gives_up_in_a_batch_is_one_plain_error() -> None:
    sampling = Sampling(sampler=samplers.Adaptive(max_steps=2), steps=4)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    with pytest.raises(jd.InputError, match=r"^the ODE could not be solved past t = .* raise max_steps$"):
        sample_in_batches(jax.random.key(0), TOY, sampling, shape=(3,), n=2, mesh=mesh)


def test_every_sample_has_its_own_condition() -> None:
    key, cond = jax.random.key(3), jnp.array([0.0, 1.0, 2.0])
    together = draw(key, TOY, "ddim", n=3, cond=cond)
    shifted = [PARAMS | {"bias": PARAMS["bias"] + shift} for shift in (0.0, 1.0, 2.0)]
    for i, params in enumerate(shifted):
        alone = draw(key, dataclasses.replace(TOY, params=params), "ddim", n=3)
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_the_trajectory_ends_in_the_sample(sampler: str) -> None:
    key = jax.random.key(3)
    path = draw(key, TOY, sampler, n=4, trajectory=True)
    assert path.shape == (4, 6, 3)
    np.testing.assert_allclose(path[:, -1], draw(key, TOY, sampler, n=4), rtol=1e-5, atol=1e-6)
    prior = jax.jit(jax.vmap(lambda key: PROCESS.sample_prior(jax.random.split(key)[0], (3,))))
    starts = prior(sample_keys(key, np.arange(4)))
    np.testing.assert_allclose(path[:, 0], starts, rtol=1e-6)


def test_the_same_call_is_compiled_once() -> None:
    """With fresh objects that are equal, other weights, other times and another key."""
    traces = []

    def network(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        traces.append(None)
        return params * x

    for i in range(3):
        model = jd.denoiser(network, jnp.float32(i), Gaussian(schedules.Discrete(np.linspace(0.05, 0.75, 10))))
        draw(jax.random.key(i), model, samplers.DDIM(eta=0.5), n=4, steps=None, timesteps=[1.0, 0.5 + 0.1 * i, 0.0])
        if i == 0:
            first = len(traces)
            assert first >= 1
    assert len(traces) == first


def test_a_plain_function_is_a_denoiser_also_inside_another() -> None:
    function = jd.from_function(lambda x_t, t, cond=None: TOY(x_t, t), PROCESS)
    key = jax.random.key(3)
    np.testing.assert_array_equal(draw(key, function, n=2), draw(key, TOY, n=2))
    clipped = jd.clip_denoised(function, low=-0.1, high=0.1)
    assert np.abs(draw(key, clipped, n=2)).max() <= 0.1


@pytest.mark.usefixtures("unchecked")
def test_a_function_without_a_process_is_refused() -> None:
    with pytest.raises(jd.InputError, match=r"denoiser = .* has no process; make it with .*from_function"):
        draw(jax.random.key(0), lambda x_t, t, cond=None: Prediction(x_t, x_t), n=1)


def test_sampling_can_be_differentiated() -> None:
    @jax.jit
    @jax.value_and_grad
    def total(bias: jax.Array) -> jax.Array:
        model = jd.denoiser(toy, PARAMS | {"bias": bias}, PROCESS)
        return jd.sample(jax.random.key(0), model, "ddim", shape=(3,), n=2, steps=5).sum()

    bias, h = np.asarray(PARAMS["bias"]), np.array([[1e-2, 0, 0]], np.float32)
    slope = np.asarray(total(bias)[1])[0, 0]
    difference = float(total(bias + h)[0] - total(bias - h)[0])
    assert slope == pytest.approx(difference / 2e-2, rel=2e-2)  # float32: a few 1e-6/2e-2 of a slope of order 1


@every_schedule
def test_scale_input_gives_the_network_unit_variance(name: str) -> None:
    process = Gaussian(SCHEDULES[name])
    seen = jd.denoiser(lambda _, x, t: x, None, process, predicts="x0", scale_input=True)
    plain = jd.denoiser(lambda _, x, t: x, None, process, predicts="x0", scale_input=False)
    assert jd.denoiser(lambda _, x, t: x, None, process).scale_input == (name in ("ve", "edm"))
    x, t = jnp.array([1.0, -2.0]), 0.75
    size = np.hypot(*jax.device_get(jax.jit(lambda: (process.schedule.alpha(t), process.schedule.sigma(t)))()))
    np.testing.assert_allclose(jax.jit(seen)(x, t).x0, x / size, rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(plain)(x, t).x0, x)


def test_clipping_keeps_the_sample_on_the_path() -> None:
    inner = jd.denoiser(lambda _, x, t: 3 * x, None, PROCESS, predicts="x0")
    x, t = jnp.array([0.1, -2.0, 0.5]), 0.5
    x0, noise, _ = jax.jit(jd.clip_denoised(inner, low=-1.0, high=0.5))(x, t)
    np.testing.assert_allclose(x0, [0.3, -1.0, 0.5], rtol=1e-6)
    alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
    np.testing.assert_allclose(alpha * x0 + sigma * noise, x, rtol=1e-5)
    with pytest.raises(ValueError, match=r"low = 1.0, high = -1.0; must satisfy low < high"):
        jd.clip_denoised(inner, low=1.0, high=-1.0)


def test_dynamic_thresholding_divides_by_a_quantile_where_it_is_above_1() -> None:
    inner = jd.denoiser(lambda _, x, t: 3 * x, None, PROCESS, predicts="x0")
    t, x = 0.5, jnp.linspace(-1, 0.5, 101)
    x0, noise, _ = jax.jit(jd.dynamic_threshold(inner, quantile=0.9))(x, t)
    reach = np.quantile(np.abs(3 * np.asarray(x)), 0.9)
    np.testing.assert_allclose(x0, np.clip(3 * np.asarray(x), -reach, reach) / reach, rtol=1e-6, atol=1e-6)
    alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
    np.testing.assert_allclose(alpha * x0 + sigma * noise, x, rtol=1e-5, atol=1e-6)
    small = x / 10
    np.testing.assert_array_equal(jax.jit(jd.dynamic_threshold(inner))(small, t).x0, 3 * small)
    with pytest.raises(ValueError, match=r"quantile = 0; must satisfy 0 < quantile <= 1"):
        jd.dynamic_threshold(inner, quantile=0)


def test_a_bfloat16_network_sees_the_exact_time_and_predicts_in_float32() -> None:
    def network(_: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        assert t.dtype == jnp.float32  # 0.999 and 0.998 are the same bfloat16
        return x.astype(jnp.bfloat16)

    for kind in jd.parameterization.KINDS:
        model: Any = jd.denoiser(network, None, PROCESS, predicts=kind)
        for x in (jnp.ones(2), jnp.ones(2, jnp.bfloat16)):
            prediction = jax.eval_shape(model, x, 0.999)
            assert prediction.x0.dtype == prediction.noise.dtype == jnp.float32


def test_a_network_of_another_shape_is_refused() -> None:
    model = jd.denoiser(lambda _, x, t: x[:, :1], None, PROCESS)
    with pytest.raises(ValueError, match=r"returned float32 of shape \(1, 1\) for x of shape \(1, 3\)"):
        model(jnp.zeros(3), 0.5)
    unknown: Any = "nothing"
    with pytest.raises((ValueError, TypeError), match="predicts = 'nothing'"):
        jd.denoiser(toy, PARAMS, PROCESS, predicts=unknown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n = 0; it must be 1 or more"),
        ({"n": 2, "steps": 11}, "steps = 11, but the schedule has 10 timesteps"),
        ({"n": 2, "steps": None, "timesteps": [0.5, 0.0]}, "timesteps start at 0.5, but the prior is that of t = 1"),
        ({"n": 2, "cond": {"label": jnp.zeros(3)}}, r"cond\['label'\] has shape \(3,\); .* leading axis n = 2"),
        ({"n": 2, "cond": 3}, r"cond has shape \(\)"),
        ({"n": 2, "start": jnp.zeros((3, 3))}, r"start has shape \(3, 3\); give one x per sample: \(2, 3\)"),
    ],
)
def test_a_wrong_argument_of_sample_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(jax.random.key(0), TOY, **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "ddmi"}, "sampler = 'ddmi'"),
        ({"timesteps": "cubic"}, "timesteps = 'cubic'"),
        ({"steps": 0}, "steps = 0; it must be 1 or more"),
        ({"n": 0}, "n = 0; it must be 1 or more"),
        ({"batch": 0}, "batch = 0; it must be 1 or more"),
        ({"clip": "hard"}, "clip = 'hard' is unknown; the known ones are dynamic, none, static"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_settings_of_sampling_are_named(fields: Any, message: str) -> None:
    with pytest.raises(jd.InputError, match=f"^{message}"):
        Sampling(**fields)


def test_no_samples_in_batches_are_refused() -> None:
    with pytest.raises(jd.InputError, match=r"^n = 0; it must be 1 or more"):
        sample_in_batches(jax.random.key(0), TOY, Sampling(steps=2), shape=(3,), n=0)


def test_sampling_takes_the_times_themselves() -> None:
    sampling = Sampling(timesteps=(1.0, 0.5, 0.0))
    assert sampling.times(PROCESS.schedule).tolist() == [1, 0.5, 0]
    drawn = sample_in_batches(jax.random.key(0), TOY, sampling, shape=(3,), n=2)
    expected = draw(jax.random.key(0), TOY, "ddim", n=2, steps=None, timesteps=sampling.timesteps)
    np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-6)


@every_sampler
def test_a_step_that_does_not_go_down_within_the_path_is_refused(sampler: str) -> None:
    x, chosen = jnp.ones(3), SAMPLERS[sampler]
    step = functools.partial(chosen.step, jax.random.key(0), x, chosen.init(x), denoiser=TOY)
    for t, s, message in (
        (0.3, 0.5, r"t = 0\.3, s = 0\.5; must satisfy s < t"),
        (0.5, jnp.array(0.5), r"t = 0\.5, s = 0\.5; must satisfy s < t"),
        (1.5, 0.5, r"t = 1\.5; must satisfy 0 <= t <= 1"),
        (0.5, -0.25, r"s = -0\.25; must satisfy 0 <= s <= 1"),
        (np.nan, 0.5, r"t = nan; must satisfy"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            step(t=t, s=s)


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("ddim", samplers.DDIM()),
        ("ddim:eta=0.5", samplers.DDIM(eta=0.5)),
        ("ddim:eta=1", samplers.DDIM(eta=1.0)),
        ("ddpm", samplers.DDPM()),
        ("ddpm:variance=large", samplers.DDPM(variance="large")),
        ("ddpm:variance=0.3", samplers.DDPM(variance=0.3)),
        ("renoise", samplers.Renoise()),
        ("residual", samplers.Deterministic()),
        ("euler", samplers.Euler()),
        ("heun:slope=noise", samplers.Heun(slope="noise")),
        ("dpm++3m", samplers.DPMSolver(order=3)),
        ("dpmpp_2m", samplers.DPMSolver()),
        ("dpmpp_3m", samplers.DPMSolver(order=3)),
        ("dpmpp_2m_sde", samplers.DPMSolver(stochastic=True)),
        ("adaptive:rtol=1e-3", samplers.Adaptive(rtol=1e-3)),
    ],
)
def test_a_sampler_is_made_from_text(text: str, sampler: Sampler) -> None:
    assert samplers.make(text) == sampler
    assert hash(samplers.make(text)) == hash(sampler)
    assert samplers.make(sampler) is sampler


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_is_made_by_its_name(name: str) -> None:
    assert samplers.make(name) == samplers.SAMPLERS[name]()
    assert isinstance(samplers.make(name), Sampler)


class Ralston(samplers.RungeKutta):
    """The second-order method with the least error bound."""

    stages = ((2 / 3,),)
    weights = (1 / 4, 3 / 4)


@pytest.mark.thorough
def test_a_tableau_is_all_that_a_new_runge_kutta_method_needs() -> None:
    """It is equal only to itself, and is as near to RK4 as Heun's method."""
    assert Ralston() == Ralston("x0")
    assert Ralston("noise") != Ralston() != samplers.Heun()
    assert samplers.make(f"{__name__}:Ralston:slope=noise") == Ralston("noise")
    ends = {sampler: draw(jax.random.key(0), TOY, sampler, n=8, steps=10) for sampler in ("rk4", "euler", Ralston())}
    errors = [np.abs(ends[sampler] - ends["rk4"]).max() for sampler in ("euler", Ralston())]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddmi", "sampler = 'ddmi'; the known ones are .*ddim, ddpm, .*; did you mean 'dd"),
        ("", "sampler = ''; the known ones are"),
        ("ddim:v=1", "'v'.*eta"),
        ("ddim:eta", "has no option 'eta'; write NAME:OPTION=VALUE"),
        ("euler:eta=1", "'eta'"),
        ("ddim:eta=0.1,eta=0.2", "gives 'eta' twice"),
        ("ddim:eta=abc", "eta = 'abc' .*float"),
        ("os:getcwd", "it must be a Sampler, such as"),
        ("ddim:eta=1.5", "eta = 1.5; must satisfy 0 <= eta <= 1"),
        ("ddim:eta=nan", "eta = 'nan'"),
        ("ddpm:variance=medium", "variance = 'medium'; give 'small', 'large', 'learned' or a number"),
        ("ddpm:variance=-0.1", "variance = -0.1"),
        ("ddpm:variance=None", "variance = None"),
        ("heun:slope=v", "slope = 'v'"),
        ("interpolated:rho=1.5", "rho = 1.5; must satisfy 0 <= rho <= 1"),
        ("dpm++2m:order=4", r"order = 4; it must be one of \(1, 2, 3\)"),
        ("dpm++2m_sde:order=3", r"order = 3; it must be one of \(1, 2\) for the SDE form"),
        ("langevin:corrections=0", "corrections = 0; take at least 1"),
        ("predictor_corrector:snr=0", "snr = 0.0; the step size"),
        ("edm:gamma=-1", "gamma = -1.0, noise = 1.0; both must be at least 0"),
        ("edm:low=2,high=1", "low = 2.0, high = 1.0; must satisfy"),
        ("adaptive:rtol=0", "rtol = 0.0, atol = 1e-05; both must be above 0"),
        ("adaptive:max_steps=0", "max_steps = 0; it must be 1 or more"),
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_wrong_sampler_is_explained(text: str, message: str, checked: bool, request: pytest.FixtureRequest) -> None:
    """Whether or not annotations are checked."""
    if not checked:
        request.getfixturevalue("unchecked")
    with pytest.raises(jd.InputError, match=message):
        samplers.make(text)
