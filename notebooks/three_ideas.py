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
# # Three ideas: one path, one conversion, one step
#
# jaxdiff is built on three ideas. This notebook introduces each of them with one equation, checks it with numbers, and
# then uses all three to train a small network on a swiss roll and sample from it.
#
# It takes about 45 s on 2 cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxdiff as jd
from jaxdiff.models import MLP

# %% [markdown]
# ## The data
#
# A swiss roll is a spiral in the plane with normal noise of standard deviation 0.5/8 around it.

# %%
points = jd.data.load("swissroll").x
print(points.shape, points.dtype)

# %% [markdown]
# ## One path
#
# A *schedule* gives two functions of time, $\alpha_t$ and $\sigma_t$. They define the path from a clean sample $x_0$ at
# $t = 0$ to noise at $t = 1$:
#
# $$x_t = \alpha_t x_0 + \sigma_t n, \qquad n \sim N(0, I).$$
#
# The schedule `VP` preserves variance: $\alpha_t^2 + \sigma_t^2 = 1$.

# %%
schedule = jd.schedules.VP()
t = jnp.linspace(0, 1, 101)
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)  # up to rounding in float32

plt.figure(figsize=(5, 3))
plt.plot(t, alpha, label=r"$\alpha_t$")
plt.plot(t, sigma, label=r"$\sigma_t$")
plt.xlabel("t")
plt.legend()
plt.show()

# %% [markdown]
# A *process* follows the path. `Gaussian` is the process of the equation above. All functions of jaxdiff take one
# sample, so that a batch needs `jax.vmap`.

# %%
process = jd.Gaussian(schedule)
noise = jax.random.normal(jax.random.key(0), points.shape)
times = (0.0, 0.1, 0.3, 1.0)
noisy = {t: jax.vmap(lambda x0, n, t=t: process.corrupt(x0, n, t))(points, noise) for t in times}

figure, axes = plt.subplots(1, 4, figsize=(12, 3), sharex=True, sharey=True)
for axis, (t, x_t) in zip(axes, noisy.items(), strict=True):
    axis.scatter(*np.asarray(x_t[:2000]).T, s=1)
    axis.set(title=f"t = {t}", aspect="equal")
plt.show()

# %% [markdown]
# The variance of $x_t$ must be $\alpha_t^2 \operatorname{Var} x_0 + \sigma_t^2$. The variance of $N$ values has a
# standard error of $\sqrt{(m_4 - m_2^2)/N}$, where $m_k$ is the $k$-th central moment. We allow four of them.

# %%
for t, x_t in noisy.items():
    found = x_t.var(0)
    error = jnp.sqrt((((x_t - x_t.mean(0)) ** 4).mean(0) - found**2) / len(points))
    expected = schedule.alpha(t) ** 2 * points.var(0) + schedule.sigma(t) ** 2
    assert np.all(np.abs(found - expected) <= 4 * error + 1e-6), (t, found, expected)
    print(f"t = {t}: variance {found}, expected {expected}")

# %% [markdown]
# ## One conversion
#
# A network may predict the noise, the clean sample, $v = \alpha n - \sigma x_0$, the score $-n/\sigma$ or the velocity
# $\alpha' x_0 + \sigma' n$. Since $x_t$ is known, each of them determines the pair $(x_0, n)$. jaxdiff converts
# whatever a network predicts to that pair, once, and everything else works with the pair.
#
# Here we convert a pair to each of the five and back.

# %%
t, pair = 0.4, jd.Prediction(x0=jnp.asarray(points[0]), noise=noise[0])
x_t = process.corrupt(pair.x0, pair.noise, t)
for kind in jd.parameterization.KINDS:
    output = jd.parameterization.from_prediction(kind, pair, t=t, process=process)
    again = jd.parameterization.to_prediction(kind, output, x_t, t=t, process=process)
    np.testing.assert_allclose(again.x0, pair.x0, atol=1e-5)  # float32, divided by α or σ
    np.testing.assert_allclose(again.noise, pair.noise, atol=1e-5)
    print(f"{kind:>8}: {output} -> x0 = {again.x0}, noise = {again.noise}")

# %% [markdown]
# A *denoiser* is a network with its process: it maps $(x_t, t)$ to the estimates $(\hat x_0, \hat n)$. Samplers,
# losses, guidance and likelihoods see denoisers only. `jd.denoiser` makes one from any function `apply(params, x, t)`.

# %%
model = MLP(width=128, depth=3)
params = model.init(jax.random.key(1), jnp.zeros((1, 2)), jnp.zeros(1))
untrained = jd.denoiser(model.apply, params, process, predicts="eps")
print(untrained(x_t, t))

# %% [markdown]
# ## Training
#
# The loss is the mean squared error of the predicted noise,
#
# $$L = E_{t, x_0, n} \, |n - \hat n(x_t, t)|^2.$$
#
# `jd.losses.simple` is that loss for one sample at one time. An untrained `MLP` predicts zero noise, so that its loss
# is the variance of the noise: 1.


# %%
def batch_loss(params, x0, key):
    key_times, key_noise = jax.random.split(key)
    times = jd.time_sampling.antithetic(key_times, len(x0))
    denoiser = jd.denoiser(model.apply, params, process, predicts="eps")

    def loss(x0, t, key):
        return jd.losses.simple(denoiser, x0, t, key=key, target="eps")

    return jax.vmap(loss)(x0, times, jax.random.split(key_noise, len(x0))).mean()


first = batch_loss(params, points, jax.random.key(2))
# The mean of n² over 2 N normal values has the standard error √(2/(2 N)).
assert abs(first - 1) < 4 / np.sqrt(len(points)), first

# %% [markdown]
# Training is an ordinary loop of optax.

# %%
steps = 2000
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
opt_state = optimizer.init(params)


@jax.jit
def update(params, opt_state, x0, key):
    loss, gradient = jax.value_and_grad(batch_loss)(params, x0, key)
    changes, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, changes), opt_state, loss


rng, losses = np.random.default_rng(0), []
for step in range(steps):
    x0 = points[rng.integers(len(points), size=512)]
    params, opt_state, loss = update(params, opt_state, x0, jax.random.fold_in(jax.random.key(3), step))
    losses.append(float(loss))
denoiser = jd.denoiser(model.apply, params, process, predicts="eps")

# %% [markdown]
# How low can the loss become? If the data were just these points, each with the same probability, the best denoiser
# would be known: `jd.analytic.empirical`. Its loss on other points of the same distribution is close to the lowest
# possible one. We compare the network with it at one time, where the points are dense compared to the noise.

# %%
best = jd.analytic.empirical(points[:4000], process)
held_out = jnp.asarray(jd.data.load("swissroll", split="test").x[:1000])
keys = jax.random.split(jax.random.key(4), len(held_out))


@jax.jit
def errors(denoiser, t):
    return jax.lax.map(
        lambda pair: jd.losses.simple(denoiser, pair[0], t, key=pair[1], target="eps"), (held_out, keys), batch_size=100
    )


network_loss, best_loss = errors(denoiser, 0.3), errors(best, 0.3)
excess = network_loss - best_loss  # both see the same noise
print(f"network {network_loss.mean():.4f}, best {best_loss.mean():.4f}, difference {excess.mean():.4f}")
standard_error = excess.std() / np.sqrt(len(excess))
assert excess.mean() > -4 * standard_error  # nothing is better than the best
assert excess.mean() < 0.1 * best_loss.mean() + 4 * standard_error  # and the network is within a tenth of it

plt.figure(figsize=(5, 3))
plt.plot(np.reshape(losses, (-1, 20)).mean(1))
plt.xlabel("steps / 20")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# ## One step
#
# A sampler moves one sample from time $t$ to any earlier time $s$. The simplest one, DDIM, keeps the predicted noise:
#
# $$x_s = \alpha_s \hat x_0 + \sigma_s \hat n.$$
#
# We compute one such step by hand, and compare it with the sampler. `start` gives the sample at the first of the times.

# %%
x_t, t, s = noisy[0.3][0], 0.3, 0.2
prediction = denoiser(x_t, t)
by_hand = schedule.alpha(s) * prediction.x0 + schedule.sigma(s) * prediction.noise
by_sampler = jd.sample(jax.random.key(5), denoiser, "ddim", shape=(2,), n=1, timesteps=[t, s], start=x_t[None])[0]
np.testing.assert_allclose(by_sampler, by_hand, atol=1e-5)  # the same operations, compiled differently
print(by_hand, by_sampler)

# %% [markdown]
# Repeated from $t = 1$ to $t = 0$, such steps turn noise into data. `jd.sample` draws the noise, and runs all steps in
# one compiled loop. `heun` evaluates the network twice in a step, which makes its error smaller. The spiral is thin, so
# that most of its detail is drawn at small t: the rule `"karras"` puts more of the steps there.

# %%
options = {"steps": 25, "timesteps": "karras", "shape": (2,), "n": 2000, "trajectory": True}
path = np.asarray(jd.sample(jax.random.key(6), denoiser, "heun", **options))
samples = path[:, -1]

times = jd.timesteps.make("karras", 25, schedule)
figure, axes = plt.subplots(1, 4, figsize=(12, 3))
for axis, step in zip(axes, (0, 15, 18, 25), strict=True):
    axis.scatter(*path[:, step].T, s=1)
    axis.set(title=f"t = {times[step]:.2f}", aspect="equal")
plt.show()

# %% [markdown]
# ## Are they samples of the swiss roll?
#
# The distance of a point to the spiral is $|N(0, w^2)|$ with $w = 0.5/8$ up to the curvature, so that its mean is $w
# \sqrt{2/\pi} = 0.0499$. The data agree with it within their standard error. Samples of a network that was trained for
# half a minute are a little further away: we measured 0.053, and allow 20 %.

# %%
angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, 4000)
spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 8


def mean_distance(x):
    distances = np.sqrt(((x[:, None] - spiral[None]) ** 2).sum(-1).min(1))
    return distances.mean(), distances.std() / np.sqrt(len(x))


expected = 0.5 / 8 * np.sqrt(2 / np.pi)
for name, x in {"data": points[:2000], "samples": samples, "noise": noise[:2000]}.items():
    print(f"{name:>8}: {mean_distance(x)[0]:.4f} ± {mean_distance(x)[1]:.4f}")
of_data, of_samples, of_noise = (mean_distance(x) for x in (points[:2000], samples, noise[:2000]))
assert abs(of_data[0] - expected) < 4 * of_data[1]
assert abs(of_samples[0] - expected) < 0.2 * expected
assert of_noise[0] > 5 * expected

# %% [markdown]
# ## Read next
#
# - `samplers.py`: other steps, and how fast their error falls.
# - `own_network.py`: your own network and data in place of these.
# - `docs/glossary.md`: every term and symbol, with its place in the code.
# - Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", and Song, Meng & Ermon 2021, "Denoising
#   Diffusion Implicit Models".
