# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Other noise and other transforms
#
# A diffusion process can do more than add normal noise. In jaxdiff it may also transform the data, and its noise may
# have any distribution:
#
# $$x_t = \alpha_t\, g_t(x_0) + \sigma_t\, n, \qquad g_0(x) = x, \quad E\,n = 0, \quad \operatorname{Var} n = 1.$$
#
# This notebook rotates points under Laplace noise and blurs digits. For data that are a finite set of points the best
# denoiser is known, so that the samplers can be checked before anything is trained.
#
# It takes about 65 s on 2 cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.ndimage
import scipy.stats
from sklearn.neighbors import NearestNeighbors

import jaxdiff as jd
from jaxdiff.models import MLP

# %% [markdown]
# ## The forward process
#
# `jd.Perturbed` takes a schedule, a transform and a noise distribution. Here $g_t$ rotates by the angle $\pi t$, and
# the noise has the Laplace distribution, whose tails are heavier than those of the normal one. The schedule `Flow` has
# $\alpha_t = 1 - t$ and $\sigma_t = t$. Each point keeps the colour of its moon.

# %%
schedule = jd.schedules.Flow()
ANGLE = np.pi
rotated = jd.Perturbed(schedule, transform=jd.transforms.Rotation(ANGLE), noise=jd.noise.Laplace())
processes = {
    "normal noise": jd.Gaussian(schedule),
    "Laplace noise": jd.Perturbed(schedule, noise=jd.noise.Laplace()),
    "and rotation": rotated,
}
moons = jd.data.load("moons")
points, colors = jnp.asarray(moons.x), moons.labels
times = (0.0, 0.1, 0.25, 0.5, 1.0)
keys = jax.random.split(jax.random.key(0), len(points))


def noised(process, t):
    def one(x0, key):
        return process.corrupt(x0, process.sample_noise(key, x0.shape, t), t)

    return jax.vmap(one)(points, keys)


figure, axes = plt.subplots(3, 5, figsize=(11, 6.6), sharex=True, sharey=True)
for row, (name, process) in zip(axes, processes.items(), strict=True):
    for panel, t in zip(row, times, strict=True):
        panel.scatter(*np.asarray(noised(process, t)[:2000]).T, s=1, c=colors[:2000], cmap="coolwarm")
        panel.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    row[0].set_ylabel(name)
for panel, t in zip(axes[0], times, strict=True):
    panel.set_title(f"t = {t}")
figure.tight_layout()
plt.show()

# %% [markdown]
# With the rotation matrix $R$ of the angle $\pi t$, the mean of $x_t$ is $\alpha_t R\, E x_0$, and its covariance is
# $\alpha_t^2 R \operatorname{Cov}(x_0) R^T + \sigma_t^2 I$. We compare, within four standard errors. The noise must
# have the fourth moment 6 (a normal distribution has 3).

# %%
mean, covariance = np.asarray(points).mean(0), np.cov(np.asarray(points).T, bias=True)
for t in (0.1, 0.5, 1.0):
    x_t = np.asarray(noised(rotated, t), np.float64)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    R = np.array([[np.cos(ANGLE * t), -np.sin(ANGLE * t)], [np.sin(ANGLE * t), np.cos(ANGLE * t)]])
    expected = alpha * R @ mean
    products = np.einsum("ni,nj->nij", x_t - expected, x_t - expected)
    expected_covariance = alpha**2 * R @ covariance @ R.T + sigma**2 * np.eye(2)
    # The data are the same on both sides. So these standard errors, of data and noise, are too large rather than small.
    assert np.all(np.abs(x_t.mean(0) - expected) < 4 * x_t.std(0) / np.sqrt(len(x_t)))
    assert np.all(np.abs(products.mean(0) - expected_covariance) < 4 * products.std(0) / np.sqrt(len(x_t)))

draws = np.asarray(jax.vmap(lambda key: rotated.sample_noise(key, (2,)))(keys), np.float64).ravel()
for power, moment in {1: 0, 2: 1, 4: 6}.items():
    found, error = (draws**power).mean(), (draws**power).std() / np.sqrt(len(draws))
    print(f"E n^{power} = {found:.3f} ± {error:.3f}, expected {moment}")
    assert abs(found - moment) < 4 * error

# %% [markdown]
# ## The best denoiser of a finite set
#
# Let the data be the points $a_1, …, a_k$, each with the same probability. By Bayes' rule, and with the density $f$ of
# a coordinate of the noise,
#
# $$\hat x_0 = \sum_i r_i a_i, \qquad r_i \propto \prod_j f\!\left(\frac{(x_t - \alpha_t\,
# g_t(a_i))_j}{\sigma_t}\right), \qquad \hat n = \frac{x_t - \alpha_t \sum_i r_i\, g_t(a_i)}{\sigma_t}.$$
#
# `jd.analytic.empirical` computes that for any transform. We check it against the density of scipy, with six points.

# %%
corners = np.exp(2j * np.pi * np.arange(5) / 5)
six = np.concatenate([np.stack([corners.real, corners.imag], -1), [[0, 0]]])
exact = jd.analytic.empirical(six, rotated)

t, x_t = 0.3, np.array([0.4, -0.7])
alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
R = np.array([[np.cos(ANGLE * t), -np.sin(ANGLE * t)], [np.sin(ANGLE * t), np.cos(ANGLE * t)]])
density = scipy.stats.laplace(scale=1 / np.sqrt(2)).pdf((x_t - alpha * six @ R.T) / sigma).prod(1)
r = density / density.sum()
prediction = exact(jnp.asarray(x_t, jnp.float32), t)
np.testing.assert_allclose(prediction.x0, r @ six, atol=1e-5)  # rounding in float32
np.testing.assert_allclose(prediction.noise, (x_t - alpha * r @ six @ R.T) / sigma, atol=1e-5)
print("probabilities of the six points", r.round(3))

# %% [markdown]
# ## Samplers for any process
#
# A step from t to s < t has the form $x_s = \alpha_s\, g_s(\hat x_0) + \sigma_s\, n'$, and samplers differ in $n'$:
#
# | sampler | $n'$ |
# | --- | --- |
# | `deterministic` | $\hat n$, the estimated noise |
# | `interpolated:rho=0.5` | $\sqrt{1 - \rho^2}\, \hat n + \rho\,$ new noise |
# | `renoise` | new noise |
#
# Each sample must end at one of the six points, and each point must get a sixth of the samples. The first is easy: near
# $t = 0$ the best denoiser knows the point. The second is a strong test. With $k$ points, the statistic
#
# $$\chi^2 = \sum_i \frac{(\text{count}_i - N/k)^2}{N/k}$$
#
# has a $\chi^2$ distribution with $k - 1$ degrees of freedom if the shares are right. We draw 12,000 samples for each
# of three noise distributions.

# %%
N = 12_000
SAMPLERS = ("deterministic", "interpolated:rho=0.5", "renoise")
counts = {}
for noise in (jd.noise.Normal(), jd.noise.Laplace(), jd.noise.Exponential()):
    process = jd.Perturbed(schedule, transform=jd.transforms.Rotation(ANGLE), noise=noise)
    denoiser = jd.analytic.empirical(six, process)
    for sampler in SAMPLERS:
        options = {"shape": (2,), "n": N, "steps": 250, "timesteps": "uniform"}
        x = np.asarray(jd.sample(jax.random.key(1), denoiser, sampler, **options))
        gaps = np.linalg.norm(x[:, None] - six[None], axis=-1)
        assert gaps.min(1).max() < 1e-5, (noise, sampler)  # each sample is one of the points
        name = type(noise).__name__.lower()
        counts[name, sampler] = found = np.bincount(gaps.argmin(1), minlength=6)
        statistic = ((found - N / 6) ** 2 / (N / 6)).sum()
        print(f"{name:>12}, {sampler:>20}: χ² = {statistic:8.1f}, counts {found}")

# %% [markdown]
# A statistic above 25.7 has the probability 1e-4 if the shares are right.
#
# - `deterministic` passes for every noise distribution. It follows a flow that has the distribution of $x_t$ at every
#   time, if $g$ is affine and smooth in $t$ and the noise has a density that does not change with $t$.
# - `interpolated` passes for normal noise only. A sum of normal noises is normal, but the sum of two skewed noises is
#   less skewed than either, so that the sampler leaves the path. The exponential distribution shows it best.
# - `renoise` does not pass. It replaces a sample by a mean over what it could be, which is in the middle, and so the
#   last point, in the center, gets too many samples.

# %%
limit = scipy.stats.chi2.ppf(1 - 1e-4, 5)
statistics = {each: ((found - N / 6) ** 2 / (N / 6)).sum() for each, found in counts.items()}
for name in ("normal", "laplace", "exponential"):
    assert statistics[name, "deterministic"] < limit
    assert statistics[name, "renoise"] > limit
assert statistics["normal", "interpolated:rho=0.5"] < limit
assert statistics["laplace", "interpolated:rho=0.5"] > limit
assert statistics["exponential", "interpolated:rho=0.5"] > 100 * limit

figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), sharey=True)
for panel, sampler in zip(axes, SAMPLERS, strict=True):
    for i, name in enumerate(("normal", "laplace", "exponential")):
        panel.bar(np.arange(6) + 0.25 * (i - 1), counts[name, sampler] / N, 0.25, label=name)
    panel.axhline(1 / 6, color="black", linewidth=0.5)
    panel.set(title=sampler, xlabel="point")
axes[0].set_ylabel("share of samples")
axes[0].legend(loc="upper right")
axes[0].set_ylim(0, 0.6)
plt.show()

# %% [markdown]
# Samplers that solve the probability-flow ODE need a score, which is known for normal noise only. They refuse.

# %%
try:
    jd.sample(jax.random.key(1), exact, "heun", shape=(2,), n=1, steps=10)
except jd.InputError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("heun accepted Laplace noise")

# %% [markdown]
# ## Training
#
# Losses, times and the loop are those of Gaussian diffusion: only the process is another. We train a small network on
# the moons, rotated and with Laplace noise.

# %%
model = MLP(width=128, depth=3)
params = model.init(jax.random.key(2), jnp.zeros((1, 2)), jnp.zeros(1))
STEPS, BATCH = 2000, 512
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
state, averaged = optimizer.init(params), params
draw_times = jd.time_sampling.time_sampler("auto", schedule)


def loss_of_one(params, x0, t, key):
    denoiser = jd.denoiser(model.apply, params, rotated, predicts="v")
    return jd.losses.simple(denoiser, x0, t, key=key, target="v")


@jax.jit
def train_step(params, averaged, state, key):
    key_batch, key_times, key_noise = jax.random.split(key, 3)
    x0 = points[jax.random.randint(key_batch, (BATCH,), 0, len(points))]
    t, keys = draw_times(key_times, BATCH), jax.random.split(key_noise, BATCH)

    def loss(params):
        return jax.vmap(loss_of_one, (None, 0, 0, 0))(params, x0, t, keys).mean()

    changes, state = optimizer.update(jax.grad(loss)(params), state)
    params = optax.apply_updates(params, changes)
    return params, optax.incremental_update(params, averaged, 0.01), state


for i in range(STEPS):
    params, averaged, state = train_step(params, averaged, state, jax.random.fold_in(jax.random.key(3), i))
trained = jd.denoiser(model.apply, averaged, rotated, predicts="v")

# %% [markdown]
# The best denoiser of the first 4,000 points is nearly that of the distribution, where the points are dense compared to
# the noise. We compare the network with it on the test split.

# %%
best = jd.analytic.empirical(points[:4000], rotated)
held_out = jnp.asarray(jd.data.load("moons", split="test").x[:1000])
variance = float(points.var(0).mean())


@jax.jit
def compare(t):
    def of_one(pair):
        x0, key = pair
        x_t = rotated.corrupt(x0, rotated.sample_noise(key, (2,), t), t)
        found, truth = trained(x_t, t).x0, best(x_t, t).x0
        return ((found - x0) ** 2).mean(), ((truth - x0) ** 2).mean(), ((found - truth) ** 2).mean()

    keys = jax.random.split(jax.random.key(4), len(held_out))
    return [part.mean() for part in jax.lax.map(of_one, (held_out, keys), batch_size=100)]


for t in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
    network, truth, apart = (float(part) / variance for part in compare(t))
    print(f"t = {t}: error of the network {network:.4f}, of the best {truth:.4f}, apart {apart:.4f} of the variance")
    assert apart < 0.01  # we measured at most 0.003

# %% [markdown]
# The samples start from Laplace noise. On their way they are rotated back.

# %%
n = 4000
path = np.asarray(jd.sample(jax.random.key(5), trained, "deterministic", shape=(2,), n=n, steps=100, trajectory=True))
samples = path[:, -1]

figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), sharex=True, sharey=True)
for panel, step in zip(axes, (0, 50, 75, 90, 100), strict=True):
    panel.scatter(*path[:, step].T, s=1)
    panel.set(title=f"t = {1 - step / 100:g}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
figure.tight_layout()
plt.show()

# %% [markdown]
# We compare the mean and the covariance with those of the data, within four standard errors and 0.01 for the error of
# network and steps; the share of each moon, which is a half; and the distance to the nearest of the 20,000 points,
# which should be about that of the test split.

# %%
products = np.einsum("ni,nj->nij", samples - mean, samples - mean)
mean_error, covariance_error = samples.mean(0) - mean, products.mean(0) - covariance
mean_standard, covariance_standard = samples.std(0) / np.sqrt(n), products.std(0) / np.sqrt(n)
print(f"error of the mean {mean_error.round(4)} ± {mean_standard.round(4)}")
print("error of the covariance", *covariance_error.round(4).ravel(), "±", *covariance_standard.round(4).ravel())
assert np.all(np.abs(mean_error) < 4 * mean_standard + 0.01)
assert np.all(np.abs(covariance_error) < 4 * covariance_standard + 0.01)

nearest = NearestNeighbors(n_neighbors=1).fit(moons.x)
gaps, index = nearest.kneighbors(samples)
gaps_of_test = nearest.kneighbors(np.asarray(held_out))[0]
share = moons.labels[index].mean()
print(f"share of the second moon {share:.4f} ± {0.5 / np.sqrt(n):.4f}")
print(f"nearest point at {gaps.mean():.4f} from samples, at {gaps_of_test.mean():.4f} from the test split")
assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(n) + 0.01
assert gaps.mean() < 2 * gaps_of_test.mean()

# %% [markdown]
# ## Blurred digits
#
# A transform may also destroy. `Blur(4)` is a Gaussian blur of standard deviation $4t$ pixels, which multiplies each
# spatial frequency. We check it against scipy, at $t = 0.3$.

# %%
found = jd.data.load("digits")
digits = np.asarray(jd.data.normalize(found.x, found.levels))[:200]
blur = jd.transforms.Blur(4.0)
by_scipy = np.fft.ifft2(scipy.ndimage.fourier_gaussian(np.fft.fft2(digits[0, ..., 0]), sigma=4 * 0.3)).real
np.testing.assert_allclose(blur(jnp.asarray(digits[0]), 0.3)[..., 0], by_scipy, atol=1e-5)  # rounding in float32

# %% [markdown]
# At $t = 1$ only the mean of a digit is left, and some noise: this schedule keeps $\alpha_t = 1$, and $\sigma_t$ rises
# to 0.5. So $x_1$ is not pure noise. It depends on the data, and samples start from a blurred draw of a normal
# distribution that is fitted to them: `FittedNormal`. The blur has no usable inverse for large t. A network would
# have to predict $x_0$. Here the exact denoiser of 200 digits takes its place.

# %%
start = jd.processes.FittedNormal.fit(digits)
blurred = jd.Perturbed(jd.schedules.VE(sigma_min=0.05, sigma_max=0.5), transform=blur, start=start)
denoiser = jd.analytic.empirical(digits, blurred)
m, steps = 300, 100
options = {"shape": (8, 8, 1), "n": m, "steps": steps, "trajectory": True}
path = np.asarray(jd.sample(jax.random.key(6), denoiser, "deterministic", **options))

shown = np.linspace(0, steps, 9).astype(int)
figure, axes = plt.subplots(4, 9, figsize=(7.2, 3.6))
for row, images in zip(axes, path, strict=False):
    for panel, step in zip(row, shown, strict=True):
        panel.imshow(images[step][..., 0], cmap="gray", vmin=-1, vmax=1)
        panel.axis("off")
for panel, step in zip(axes[0], shown, strict=True):
    panel.set_title(f"t = {1 - step / steps:.2f}", fontsize=9)
plt.show()

# %% [markdown]
# Each sample must be one of the 200 digits. If all of them have the same probability, then 300 samples show on average
# $k (1 - (1 - 1/k)^m)$ different ones, for $k = 200$ and $m = 300$; the variance of that number is known, too.

# %%
gaps = np.sqrt(((path[:, -1, None] - digits[None]) ** 2).sum((2, 3, 4)))
assert gaps.min(1).max() < 1e-4  # the sum of 64 squares, in float32
k = len(digits)
different = len(np.unique(gaps.argmin(1)))
one, two = (1 - 1 / k) ** m, (1 - 2 / k) ** m  # one digit is missing; two given ones are
expected, deviation = k * (1 - one), np.sqrt(k * one + k * (k - 1) * two - (k * one) ** 2)
print(f"{different} different digits, expected {expected:.1f} ± {deviation:.1f}")
assert abs(different - expected) < 4 * deviation

# %% [markdown]
# ## Read next
#
# - `docs/perturbations.md`: all transforms and noise distributions, how to write your own, and why discrete noise
#   fails.
# - `docs/digits_perturbations.md`: networks trained on digits with eight such processes.
# - Bansal et al. 2022, "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise"; Lipman et al. 2023, "Flow
#   Matching for Generative Modeling", on flows with given distributions at every time.
